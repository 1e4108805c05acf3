"""The shape of every body and event that `dlm serve` sends, as JSON Schema, and a checker for it.

Strict: an object has the members named here and no others, a number that counts is an integer,
and what may be null says so. The dictionaries are plain JSON Schema (draft 2020-12); check() reads
the part of it that they use, so that the tests need no package for this. The shapes follow the
types of the openai and anthropic Python packages and the README of llama.cpp's server; what dlm
adds is `timings`, `dlm` and `diffusion`.

    check("chat", body)         raises AssertionError that names the member at fault
    check_event(route, data)    the same for one event of a stream
"""

import re

INT = {"type": "integer", "minimum": 0}
NUMBER = {"type": "number"}
POSITIVE = {"type": "number", "minimum": 0}
TEXT = {"type": "string"}
BOOL = {"type": "boolean"}
NULL = {"type": "null"}


def obj(required, optional=None):
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def array(items, least=0, most=None):
    s = {"type": "array", "items": items, "minItems": least}
    return s if most is None else {**s, "maxItems": most}


def const(v):
    return {"const": v}


def one_of(*values):
    return {"enum": list(values)}


def maybe(schema):
    return {"anyOf": [schema, NULL]}


# ---- parts ----

TIMINGS = obj(
    {
        "cache_n": INT,
        "prompt_n": INT,
        "prompt_ms": POSITIVE,
        "prompt_per_token_ms": POSITIVE,
        "prompt_per_second": POSITIVE,
        "predicted_n": INT,
        "predicted_ms": POSITIVE,
        "predicted_per_token_ms": POSITIVE,
        "predicted_per_second": POSITIVE,
        "queue_ms": POSITIVE,
        "first_token_ms": POSITIVE,
        "forwards": obj({"prefill": INT, "denoise": INT, "commit": INT, "ar": INT}),
        "tokens_per_forward": POSITIVE,
    }
)
USAGE = obj(
    {
        "prompt_tokens": INT,
        "completion_tokens": INT,
        "total_tokens": INT,
        "prompt_tokens_details": obj({"cached_tokens": INT}),
    }
)
BYTES = array({"type": "integer", "minimum": 0, "maximum": 255})
LOGPROB = {"type": "number", "maximum": 0}
CHAT_LOGPROB = {"token": TEXT, "bytes": BYTES, "logprob": LOGPROB}
CHAT_LOGPROBS = obj(
    {
        "content": array(obj({**CHAT_LOGPROB, "top_logprobs": array(obj(CHAT_LOGPROB), 0, 20)})),
        "refusal": NULL,
    }
)
COMPLETION_LOGPROBS = obj(
    {
        "tokens": array(TEXT),
        "token_logprobs": array(LOGPROB),
        "top_logprobs": array({"type": "object", "additionalProperties": LOGPROB}),
        "text_offset": array(INT),
    }
)
LLAMA_LOGPROB = {"id": INT, **CHAT_LOGPROB}
LLAMA_LOGPROBS = array(obj({**LLAMA_LOGPROB, "top_logprobs": array(obj(LLAMA_LOGPROB), 0, 20)}))
CELL = {
    "anyOf": [
        obj(
            {
                "pos": INT,
                "id": INT,
                "text": TEXT,
                "confidence": {"type": "number", "minimum": 0, "maximum": 1.000001},
                "revealed": const(True),
                "new": BOOL,
            }
        ),
        obj(
            {
                "pos": INT,
                "id": NULL,
                "text": NULL,
                "confidence": NULL,
                "revealed": const(False),
                "new": const(False),
            }
        ),
    ]
}
DIFFUSION = obj(
    {
        "kind": one_of("prefill", "denoise", "commit", "ar"),
        "block": INT,
        "step": INT,
        "rows": INT,
        "ms": POSITIVE,
        "cells": array(CELL),
    }
)
SETTINGS = obj(
    {
        "n_ctx": INT,
        "n_predict": {"type": "integer", "minimum": -1},
        "temperature": POSITIVE,
        "top_k": INT,
        "top_p": POSITIVE,
        "min_p": POSITIVE,
        "presence_penalty": NUMBER,
        "frequency_penalty": NUMBER,
        "repeat_penalty": POSITIVE,
        "decode_mode": one_of("ar", "greedy", "iterative", "adaptive", "auto"),
        "rule": one_of(
            "threshold",
            "low_confidence_dynamic",
            "low_confidence",
            "sequential",
            "random",
            "entropy_bound",
            "origin",
            "maskgit_plus",
            "topk_margin",
            "entropy",
        ),
        "threshold": POSITIVE,
        "steps": INT,
        "block_size": INT,
        "sub_block_size": INT,
        "cache": one_of("none", "dual", "masked"),
        "dual_cache": BOOL,
        "cfg_scale": POSITIVE,
        "early_stop": BOOL,
        "stop": array(TEXT, 0, 16),
    }
)
FINISH = one_of("stop", "length", "tool_calls")


def openai(kind, choice, optional, least=1):
    return obj(
        {
            "id": {"type": "string", "pattern": "^(chatcmpl|cmpl)-[0-9a-f]{32}$"},
            "object": const(kind),
            "created": INT,
            "model": TEXT,
            "system_fingerprint": TEXT,
            "choices": array(choice, least, None if least else 0),
        },
        optional,
    )


def choice(body, logprobs, finish):
    return obj({"index": INT, **body, "logprobs": maybe(logprobs), "finish_reason": finish})


# ---- whole answers ----

CALL = {
    "id": {"type": "string", "pattern": "^call_[0-9a-f]{16}_[0-9]+_[0-9]+$"},
    "type": const("function"),
    "function": obj({"name": TEXT, "arguments": TEXT}),
}
MESSAGE = {"role": const("assistant"), "refusal": NULL}
CHAT_MESSAGE = {
    "anyOf": [
        obj({**MESSAGE, "content": TEXT}),
        obj({**MESSAGE, "content": maybe(TEXT), "tool_calls": array(obj(CALL), 1)}),
    ]
}
WHOLE = {"usage": USAGE, "timings": TIMINGS}


def with_all(schema, members):
    return {
        **schema,
        "properties": {**schema["properties"], **members},
        "required": schema["required"] + list(members),
    }


LLAMA_FINAL = obj(
    {
        "index": const(0),
        "content": TEXT,
        "tokens": array(INT),
        "id_slot": const(-1),
        "stop": const(True),
        "model": TEXT,
        "tokens_predicted": INT,
        "tokens_evaluated": INT,
        "generation_settings": SETTINGS,
        "prompt": TEXT,
        "truncated": BOOL,
        "stop_type": one_of("eos", "limit", "word"),
        "stopping_word": TEXT,
        "tokens_cached": INT,
        "timings": TIMINGS,
    },
    {"completion_probabilities": LLAMA_LOGPROBS},
)
MESSAGE_USAGE = obj(
    {
        "input_tokens": INT,
        "cache_creation_input_tokens": const(0),
        "cache_read_input_tokens": INT,
        "output_tokens": INT,
    }
)
MESSAGE_ID = {"type": "string", "pattern": "^msg_[0-9a-f]{32}$"}
STOP_REASON = one_of("end_turn", "max_tokens", "stop_sequence")
MODEL = obj(
    {
        "id": TEXT,
        "object": const("model"),
        "created": INT,
        "owned_by": const("dlm"),
        "meta": obj(
            {
                "n_vocab": INT,
                "n_ctx": INT,
                "n_ctx_train": INT,
                "n_embd": INT,
                "n_params": INT,
                "size": INT,
            }
        ),
    }
)

SCHEMAS = {
    "chat": with_all(
        openai(
            "chat.completion", choice({"message": CHAT_MESSAGE}, CHAT_LOGPROBS, FINISH), {}
        ),
        WHOLE,
    ),
    "completion": with_all(
        openai("text_completion", choice({"text": TEXT}, COMPLETION_LOGPROBS, FINISH), {}), WHOLE
    ),
    "llama": LLAMA_FINAL,
    "message": obj(
        {
            "id": MESSAGE_ID,
            "type": const("message"),
            "role": const("assistant"),
            "model": TEXT,
            "content": array(obj({"type": const("text"), "text": TEXT}), 1, 1),
            "stop_reason": STOP_REASON,
            "stop_sequence": maybe(TEXT),
            "usage": MESSAGE_USAGE,
            "timings": TIMINGS,
        }
    ),
    "count_tokens": obj({"input_tokens": INT}),
    "tokenize": obj(
        {
            "tokens": {
                "anyOf": [
                    array(INT),
                    array(obj({"id": INT, "piece": {"anyOf": [TEXT, BYTES]}})),
                ]
            }
        }
    ),
    "detokenize": obj({"content": TEXT}),
    "apply_template": obj({"prompt": TEXT}),
    "models": obj({"object": const("list"), "data": array(MODEL, 1)}),
    "model": MODEL,
    "health": obj({"status": const("ok")}),
    "props": obj(
        {
            "default_generation_settings": obj(
                {
                    "id": INT,
                    "id_task": {"type": "integer"},
                    "is_processing": BOOL,
                    "n_ctx": INT,
                    "params": SETTINGS,
                }
            ),
            "total_slots": INT,
            "model_alias": TEXT,
            "model_path": TEXT,
            "chat_template": TEXT,
            "bos_token": TEXT,
            "eos_token": TEXT,
            "build_info": TEXT,
            "modalities": obj({"vision": const(False), "audio": const(False)}),
            "is_sleeping": const(False),
            "diffusion": obj(
                {
                    "can_diffuse": BOOL,
                    "block_size": INT,
                    "sub_block_size": INT,
                    "block_size_max": INT,
                    "threshold": POSITIVE,
                    "attention": one_of("causal", "block", "full"),
                    "modes": array(one_of("ar", "greedy", "iterative", "adaptive", "auto"), 1),
                }
            ),
        }
    ),
    "error": obj(
        {"error": obj({"message": TEXT, "type": TEXT, "param": maybe(TEXT), "code": maybe(TEXT)})}
    ),
    "message_error": obj(
        {
            "type": const("error"),
            "error": obj({"type": TEXT, "message": TEXT}),
            "request_id": TEXT,
        }
    ),
}

# ---- events of streams: each is one of these ----

DELTA = obj(
    {},
    {
        "role": const("assistant"),
        "content": TEXT,
        "tool_calls": array(obj({"index": INT, **CALL}), 1),
    },
)
RUNNING = {"usage": NULL, "dlm": DIFFUSION}
LAST = {"usage": NULL, "timings": TIMINGS}


def chunks(kind, body, logprobs):
    return {
        "anyOf": [
            openai(kind, choice(body, logprobs, NULL), RUNNING),
            openai(kind, choice(body, logprobs, FINISH), LAST),
            with_all(openai(kind, {}, {}, 0), WHOLE),
        ]
    }


EVENTS = {
    "chat": chunks("chat.completion.chunk", {"delta": DELTA}, CHAT_LOGPROBS),
    "completion": chunks("text_completion", {"text": TEXT}, COMPLETION_LOGPROBS),
    "llama": {
        "anyOf": [
            LLAMA_FINAL,
            obj(
                {
                    "index": const(0),
                    "content": TEXT,
                    "tokens": array(INT),
                    "stop": const(False),
                    "id_slot": const(-1),
                },
                {"completion_probabilities": LLAMA_LOGPROBS, "dlm": DIFFUSION},
            ),
        ]
    },
    "message": {
        "anyOf": [
            obj(
                {
                    "type": const("message_start"),
                    "message": obj(
                        {
                            "id": MESSAGE_ID,
                            "type": const("message"),
                            "role": const("assistant"),
                            "model": TEXT,
                            "content": array({}, 0, 0),
                            "stop_reason": NULL,
                            "stop_sequence": NULL,
                            "usage": MESSAGE_USAGE,
                        }
                    ),
                }
            ),
            obj(
                {
                    "type": const("content_block_start"),
                    "index": const(0),
                    "content_block": obj({"type": const("text"), "text": const("")}),
                }
            ),
            obj(
                {
                    "type": const("content_block_delta"),
                    "index": const(0),
                    "delta": obj({"type": const("text_delta"), "text": TEXT}),
                }
            ),
            obj({"type": const("content_block_stop"), "index": const(0)}),
            obj(
                {
                    "type": const("message_delta"),
                    "delta": obj({"stop_reason": STOP_REASON, "stop_sequence": maybe(TEXT)}),
                    "usage": MESSAGE_USAGE,
                }
            ),
            obj({"type": const("message_stop")}),
            obj({"type": const("ping")}),
            obj({"type": const("dlm"), "dlm": DIFFUSION}),
        ]
    },
}

# ---- the checker ----

TYPES = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
}


def same(a, b):
    """Equal, and of one type: Python says that True == 1."""
    return type(a) is type(b) and a == b


def faults(schema, v, at="$"):
    """What is wrong with v; an empty list if nothing is."""
    if "anyOf" in schema:
        tries = [faults(s, v, at) for s in schema["anyOf"]]
        return min(tries, key=len) if all(tries) else []
    if "const" in schema and not same(v, schema["const"]):
        return [f"{at} is {v!r}, not {schema['const']!r}"]
    if "enum" in schema and not any(same(v, e) for e in schema["enum"]):
        return [f"{at} is {v!r}, none of {schema['enum']}"]
    if "type" in schema and not TYPES[schema["type"]](v):
        return [f"{at} is {v!r}, no {schema['type']}"]
    bad = []
    if "minimum" in schema and v < schema["minimum"]:
        bad.append(f"{at} is {v}, below {schema['minimum']}")
    if "maximum" in schema and v > schema["maximum"]:
        bad.append(f"{at} is {v}, above {schema['maximum']}")
    if "pattern" in schema and not re.search(schema["pattern"], v):
        bad.append(f"{at} is {v!r}, not like {schema['pattern']}")
    if isinstance(v, list):
        if not schema.get("minItems", 0) <= len(v) <= schema.get("maxItems", len(v)):
            bad.append(f"{at} has {len(v)} items")
        for i, item in enumerate(v):
            bad += faults(schema.get("items", {}), item, f"{at}[{i}]")
    if isinstance(v, dict):
        known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        bad += [f"{at}.{k} is missing" for k in schema.get("required", []) if k not in v]
        for k, member in v.items():
            if k in known:
                bad += faults(known[k], member, f"{at}.{k}")
            elif more is False:
                bad.append(f"{at}.{k} is not in the schema")
            elif isinstance(more, dict):
                bad += faults(more, member, f"{at}.{k}")
    return bad


def check(name, v):
    bad = faults(SCHEMAS[name], v)
    assert not bad, f"{name}: {'; '.join(bad[:5])}"


def check_event(name, v):
    bad = faults(EVENTS[name], v)
    assert not bad, f"event of {name}: {'; '.join(bad[:5])}"
