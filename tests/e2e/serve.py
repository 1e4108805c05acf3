#!/usr/bin/env python3
"""serve.py - `dlm serve` as its clients see it: the official packages, curl, and raw sockets."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anthropic
import openai
from langchain_openai import ChatOpenAI

from _run import DLM, Count, run
from _schema import check, check_event
from _serve import Server, dechunk, events, read_all

t = Count()
QUESTION = "What is 2+2?"
STORY = "Tell me a story about a cat named Tom."
KEY = "a-key-of-the-tests"
CHECKED = os.path.basename(DLM) != "dlm"  # a build with sanitizers: slower, and no sandbox
FOLDER = tempfile.TemporaryDirectory()
CERT, PRIVATE = os.path.join(FOLDER.name, "cert.pem"), os.path.join(FOLDER.name, "key.pem")
TLS = ("--tls-cert", CERT, "--tls-key", PRIVATE)
# never ends by itself, and reveals one token in each forward of a whole block
SLOW = {
    "threshold": 2,
    "dual_cache": False,
    "max_tokens": 100000,
    "logit_bias": {"1020": -100, "1021": -100, "1022": -100},
}


def shape(name, body):
    """The body has exactly the shape that is promised."""
    try:
        check(name, body)
        t.check(True, name)
    except AssertionError as e:
        t.check(False, e)


def event_shapes(name, data):
    """Every event of a stream has; returns them, without the closing [DONE]."""
    found = [d for _, d in events(data)]
    if found and found[-1] == "[DONE]":
        found.pop()
    found = [json.loads(d) for d in found]
    for e in found:
        try:
            check_event(name, e)
        except AssertionError as fault:
            t.check(False, fault)
    t.check(found, f"{name}: no events")
    return found


def said(question, *args):
    return run("-q", "-p", question, *args).stdout.decode().removesuffix("\n")


def chat(question, **more):
    return {"model": "dlm", "messages": [{"role": "user", "content": question}], **more}


def content(body):
    return body["choices"][0]["message"]["content"]


def streamed(chunks):
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])


# ---- the official packages, over TLS with a key ----


def secure_server(*args):
    keys = os.path.join(FOLDER.name, "keys")
    with open(keys, "w", encoding="ascii") as f:
        f.write(f"# keys\ntester {KEY}\nanother-key-here\n")
    os.chmod(keys, 0o600)
    return Server("-np", "4", *TLS, "--api-key-file", keys, *args, tls=CERT)


def raises(kind, call, what):
    try:
        call()
    except kind as e:
        t.check(True, what)
        return e
    except Exception as e:  # pylint: disable=broad-except
        t.check(False, f"{what}: {type(e).__name__}: {e}")
        return None
    t.check(False, f"{what}: nothing raised")
    return None


def openai_client(s, **more):
    http = openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=CERT))
    return openai.OpenAI(
        base_url=s.url + "/v1", http_client=http, **{"api_key": KEY, "max_retries": 0, **more}
    )


def check_openai_chat(client, want):
    ask = chat(QUESTION)
    answer = client.chat.completions.create(**ask)
    t.check(answer.choices[0].message.content == want, answer)
    t.check(answer.choices[0].finish_reason == "stop" and answer.usage.total_tokens > 10, answer)
    chunks = list(
        client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    t.check(text == want, text)
    t.check(chunks[-2].choices[0].finish_reason == "stop", chunks[-2])
    t.check(chunks[-1].usage.total_tokens == answer.usage.total_tokens, chunks[-1])
    t.check(len({c.id for c in chunks}) == 1, "one id for a stream")
    with client.chat.completions.stream(**ask) as stream:
        final = stream.get_final_completion()
    t.check(final.choices[0].message.content == want, final)
    several = client.chat.completions.create(
        **chat(STORY, n=3, temperature=1, seed=5, max_tokens=20)
    )
    texts = [c.message.content for c in several.choices]
    t.check(len(set(texts)) > 1 and [c.index for c in several.choices] == [0, 1, 2], texts)
    again = client.chat.completions.create(**chat(STORY, temperature=1, seed=6, max_tokens=20))
    t.check(again.choices[0].message.content == texts[1], "choice k has seed + k")
    answer = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    t.check(len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens, answer)


def check_openai_rest(client):
    answer = client.completions.create(model="dlm", prompt="1, 2, 3,", max_tokens=8)
    chunks = list(
        client.completions.create(model="dlm", prompt="1, 2, 3,", max_tokens=8, stream=True)
    )
    t.check("".join(c.choices[0].text for c in chunks) == answer.choices[0].text, answer)
    t.check([m.id for m in client.models.list()] == ["dlm-demo"], "models")
    t.check(client.models.retrieve("dlm-demo").id == "dlm-demo", "model")
    raises(openai.NotFoundError, lambda: client.models.retrieve("other"), "an unknown model")
    e = raises(
        openai.BadRequestError,
        lambda: client.chat.completions.create(**chat("x", temperature=9)),
        "temperature 9",
    )
    t.check(e and e.param == "temperature" and e.request_id.startswith("req_"), e)
    e = raises(
        openai.BadRequestError,
        lambda: client.chat.completions.create(**chat("word " * 4000)),
        "a prompt that does not fit",
    )
    t.check(e and e.code == "context_length_exceeded" and "2048" in e.message, e)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    e = raises(
        openai.BadRequestError,
        lambda: client.chat.completions.create(**chat("x", response_format=schema)),
        "a json_schema",
    )
    t.check(e and e.param == "response_format", e)


def check_anthropic(s, want):
    http = anthropic.DefaultHttpxClient(verify=ssl.create_default_context(cafile=CERT))
    client = anthropic.Anthropic(base_url=s.url, api_key=KEY, http_client=http, max_retries=0)
    ask = {"model": "dlm", "max_tokens": 64, "messages": [{"role": "user", "content": QUESTION}]}
    answer = client.messages.create(**ask)
    t.check(answer.content[0].text == want and answer.stop_reason == "end_turn", answer)
    with client.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    t.check(text == want and final.usage.output_tokens == answer.usage.output_tokens, final)
    n = client.messages.count_tokens(model="dlm", messages=ask["messages"]).input_tokens
    t.check(n == answer.usage.input_tokens + answer.usage.cache_read_input_tokens, n)
    raises(
        anthropic.BadRequestError,
        lambda: client.messages.create(**{**ask, "max_tokens": 0}),
        "max_tokens 0",
    )
    stranger = anthropic.Anthropic(
        base_url=s.url, api_key="x" * 20, http_client=http, max_retries=0
    )
    raises(anthropic.AuthenticationError, lambda: stranger.messages.create(**ask), "a wrong key")


def curl(s, *args):
    done = subprocess.run(
        ["curl", "-sS", "--cacert", CERT, *args], capture_output=True, timeout=60, check=False
    )
    t.check(done.returncode == 0, f"curl {args}: {done.stderr.decode()}")
    return done.stdout


def check_curl(s, want):
    key = ("-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json")
    body = '{"messages":[{"role":"user","content":"What is 2+2?"}]}'
    for flags in [], ["--tlsv1.3"], ["--tls-max", "1.2"], ["--http1.0", "--no-alpn"]:
        url = s.url + "/v1/chat/completions"
        t.check(content(json.loads(curl(s, *flags, url, *key, "-d", body))) == want, flags)
    t.check(json.loads(curl(s, s.url + "/health")) == {"status": "ok"}, "health")
    got = curl(s, s.url + "/completion", *key, "-d", '{"prompt":"1, 2, 3,","n_predict":8}')
    shape("llama", json.loads(got))
    stream = curl(
        s, "-N", s.url + "/v1/chat/completions", *key, "-d", body[:-1] + ',"stream":true}'
    )
    t.check(
        streamed(event_shapes("chat", stream)) == want and stream.endswith(b"data: [DONE]\n\n"),
        stream,
    )


def test_clients():
    want = said(QUESTION)
    with secure_server() as s:
        client = openai_client(s)
        check_openai_chat(client, want)
        check_openai_rest(client)
        stranger = openai_client(s, api_key="not-the-key-at-all")
        e = raises(openai.AuthenticationError, lambda: list(stranger.models.list()), "a wrong key")
        t.check(e and e.response.headers["www-authenticate"] == "Bearer", e)
        check_anthropic(s, want)
        model = ChatOpenAI(
            base_url=s.url + "/v1",
            api_key=KEY,
            model="dlm",
            max_retries=0,
            http_client=httpx_of(client),
        )
        t.check(model.invoke(QUESTION).content == want, "langchain")
        t.check("".join(c.content for c in model.stream(QUESTION)) == want, "langchain's stream")
        check_curl(s, want)
        for page in "/health", "/readyz":
            for ca in [], ["--ca", CERT]:
                t.check(run("health", s.url + page, *ca).returncode == 0, f"dlm health {page} {ca}")
        t.check(any("key tester" in line for line in s.log), "the key's name is not logged")
        t.check(not any(KEY in line or QUESTION in line for line in s.log), "secrets are logged")
        status = open(f"/proc/{s.pid}/status", encoding="ascii").read()
        if not CHECKED:
            for task in os.listdir(f"/proc/{s.pid}/task"):
                status = open(f"/proc/{s.pid}/task/{task}/status", encoding="ascii").read()
                t.check("\nSeccomp:\t2\n" in status and "NoNewPrivs:\t1" in status, f"task {task}")


def httpx_of(client):
    return client._client  # pylint: disable=protected-access


# ---- what the guides that dlm was written for say, letter by letter ----

GUIDES = (
    (
        """curl http://localhost:30000/v1/chat/completions \\
    -H "Content-Type: application/json" \\
    -d '{"messages":[{"role":"user","content":"Hello"}],"max_tokens":10}'
""",
        lambda a: a["object"] == "chat.completion" and 0 < a["usage"]["completion_tokens"] <= 10,
    ),
    ("curl http://localhost:30000/health", lambda a: a == {"status": "ok"}),
    (
        """curl http://localhost:30000/v1/chat/completions \\
    -H "Content-Type: application/json" \\
    -d '{
        "messages": [{"role": "user", "content": "What is 2+2?"}],
        "max_tokens": 50
    }'
""",
        lambda a: content(a) == "2 + 2 equals 4.",
    ),
    (
        """echo '{"prompt": "2+2=", "n_predict": 10}' | \\
    curl -s http://localhost:30000/completion -d @-
""",
        lambda a: a["tokens_predicted"] <= 10 and isinstance(a["content"], str),
    ),
)


def test_guides():
    model = os.path.join("build", "models", "tiny-i2_s.gguf")
    with Server("--model", model, "--port", "30000", "--block-size", "32", "--threshold", "0.95"):
        for command, good in GUIDES:
            done = subprocess.run(
                ["sh", "-c", command], capture_output=True, timeout=60, check=False
            )
            try:
                answer = json.loads(done.stdout)
                t.check(done.returncode == 0 and good(answer), f"{command}: {answer}")
            except ValueError:
                t.check(False, f"{command}: {done}")


# ---- every route's shape ----


def test_shapes():
    with Server("-np", "4", "--log-format", "json") as s:
        for path, name in (
            ("/health", "health"),
            ("/livez", "health"),
            ("/v1/models", "models"),
            ("/v1/models/dlm-demo", "model"),
            ("/props", "props"),
        ):
            shape(name, s.ask("GET", path)[2])
        wide = {"stream_options": {"include_usage": True, "include_diffusion": True}}
        for path, name, body in (
            ("/v1/chat/completions", "chat", chat(QUESTION, n=2, logprobs=True, top_logprobs=2)),
            (
                "/v1/completions",
                "completion",
                {"prompt": ["1, 2,", "3, 4,"], "max_tokens": 8, "logprobs": 2},
            ),
            ("/completion", "llama", {"prompt": "1, 2,", "n_predict": 8, "n_probs": 2}),
            ("/v1/messages", "message", chat(QUESTION, max_tokens=32)),
        ):
            status, headers, answer = s.ask("POST", path, body)
            t.check(
                status == 200 and headers["x-request-id"].startswith("req_"), f"{path}: {answer}"
            )
            shape(name, answer)
            more = {"include_diffusion": True} if name == "message" else wide
            status, headers, data = s.ask("POST", path, {**body, **more, "stream": True})
            t.check(headers["content-type"].startswith("text/event-stream"), headers)
            found = event_shapes(name, data)
            t.check(any("dlm" in e for e in found), f"{path}: no provisional states")
        for path, name, body in (
            ("/tokenize", "tokenize", {"content": QUESTION, "with_pieces": True}),
            ("/detokenize", "detokenize", {"tokens": [1, 2, 3]}),
            ("/apply-template", "apply_template", chat(QUESTION)),
            ("/v1/messages/count_tokens", "count_tokens", chat(QUESTION)),
        ):
            shape(name, s.ask("POST", path, body)[2])
        for path, body, code in (
            ("/v1/chat/completions", {"messages": []}, 400),
            ("/v1/chat/completions", b"{", 400),
            ("/nowhere", {}, 404),
            ("/v1/models/other", None, 404),
            ("/health", {}, 405),
        ):
            status, _, answer = s.ask("GET" if body is None else "POST", path, body)
            t.check(status == code, f"{path}: {status}")
            shape("error", answer)
        status, _, answer = s.ask("POST", "/v1/messages", {})
        t.check(status == 400, status)
        shape("message_error", answer)
        text = s.ask("GET", "/metrics")[2].decode()
        line = re.compile(r'# (HELP|TYPE) \w+ .+|\w+(\{(\w+="[^"]*",?)+\})? [-+0-9.e]+(Inf)?')
        bad = [ln for ln in text.splitlines() if not line.fullmatch(ln)]
        t.check(not bad and s.metric("dlm_generated_tokens_total") > 10, bad)
        t.check(s.stop() == 0, "exit status")
        for ln in s.log:
            entry = json.loads(ln)
            t.check({"time", "level"} <= entry.keys(), entry)


def test_tools():
    """What a template shows of tools and calls; a model whose template shows none is not asked."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    call = {"name": "weather", "arguments": '{"city": "Rome"}'}
    talk = [
        {"role": "user", "content": "How is Rome?"},
        {"role": "assistant", "content": None}
        | {"tool_calls": [{"id": "c1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    with Server("-np", "1") as s:
        status, _, body = s.ask("POST", "/v1/chat/completions", {"messages": talk, "tools": [tool]})
        t.check(status == 400 and body["error"]["param"] == "tools", body)
    path = os.path.join(FOLDER.name, "tools.jinja")
    with open(path, "w", encoding="ascii") as f:
        f.write(
            "{% for t in tools or [] %}{{ t.function.name }}|{% endfor %}{% for m in messages %}"
            "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
            "({{ c.function.arguments.city }}){% endfor %}|{% endfor %}"
        )
    with Server("-np", "1", "--chat-template", path) as s:
        body = s.ask("POST", "/apply-template", {"messages": talk, "tools": [tool]})[2]
        t.check(body["prompt"] == "weather|How is Rome?|weather(Rome)|sunny|", body)
        ask = {"messages": talk, "tools": [tool], "max_tokens": 8}
        status, _, body = s.ask("POST", "/v1/chat/completions", ask)
        t.check(status == 200, body)
        shape("chat", body)
        data = s.ask("POST", "/v1/chat/completions", {**ask, "stream": True})[2]
        chunks = event_shapes("chat", data)
        t.check(streamed(chunks) == content(body), chunks)


# ---- HTTP, byte by byte ----

ASK = b'{"prompt":"1, 2,","n_predict":2}'
HEAD = b"POST /completion HTTP/1.1\r\nHost: localhost\r\n"


def status_of(reply):
    return int(reply[9:12]) if reply.startswith(b"HTTP/1.1 ") else None


def test_http():
    sized = HEAD + b"Content-Length: %d\r\n" % len(ASK)
    get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    cases = (
        (200, sized + b"Connection: close\r\n\r\n" + ASK),
        (
            200,
            HEAD
            + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n%x;e=1\r\n%s\r\n0\r\nT: 1\r\n\r\n"
            % (len(ASK), ASK),
        ),
        (200, b"GET /health HTTP/1.0\r\n\r\n"),
        (
            200,
            b"GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        ),
        (400, sized + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, sized + sized[25:] + b"\r\n" + ASK),
        (400, sized + b"Content-Length: 5\r\n\r\n" + ASK),
        (400, HEAD + b"Content-Length: +5\r\n\r\n12345"),
        (501, HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        (400, get + b"X: a\r\n b\r\n\r\n"),
        (400, get + b"X : a\r\n\r\n"),
        (400, get + b"X: a\nY: b\r\n\r\n"),
        (400, get + b"X: \0\r\n\r\n"),
        (400, b"GET /health HTTP/1.1\r\n\r\n"),
        (400, get + b"Host: other\r\n\r\n"),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        (400, b"hello\r\n\r\n"),
        (505, b"GET / HTTP/2.0\r\n\r\n"),
        (411, HEAD + b"\r\n"),
        (413, HEAD + b"Content-Length: 99999999999\r\n\r\n"),
        (414, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        (431, get + b"X: " + b"a" * 17000 + b"\r\n\r\n"),
        (431, get + b"".join(b"X%d: a\r\n" % i for i in range(101)) + b"\r\n"),
        (501, b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        (417, sized + b"Expect: tea\r\n\r\n" + ASK),
        (415, sized + b"Content-Encoding: gzip\r\n\r\n" + ASK),
    )
    with Server("-np", "2") as s:
        for want, data in cases:
            reply = s.raw(data)
            t.check(status_of(reply) == want, f"{data[:90]!r}: {reply[:60]!r}, want {want}")
        two = s.raw(sized + b"\r\n" + ASK + get + b"\r\n" + get + b"Connection: close\r\n\r\n")
        t.check(two.count(b"HTTP/1.1 200 OK") == 3, "three requests at once")
        with s.connect() as c:  # a byte at a time
            for i in range(len(get)):
                c.send(get[i : i + 1])
            c.send(b"Connection: close\r\n\r\n")
            t.check(status_of(read_all(c)) == 200, "byte by byte")
        with s.connect() as c:
            c.sendall(sized + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
            t.check(c.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n", "no 100 Continue")
            c.sendall(ASK)
            t.check(status_of(read_all(c)) == 200, "after 100 Continue")
        head = s.raw(b"HEAD /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        t.check(head.endswith(b"\r\n\r\n") and b"Content-Length: 15" in head, head)
        old = s.raw(
            b'POST /v1/completions HTTP/1.0\r\nContent-Length: 42\r\n\r\n{"prompt":"1","max_tokens":2,"stream":true'
        )
        t.check(status_of(old) == 400, old)
        body = b'{"prompt":"1, 2,","n_predict":4,"stream":true}'
        stream = s.raw(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        data = dechunk(stream.partition(b"\r\n\r\n")[2])
        t.check(data is not None and len(event_shapes("llama", data)) > 1, stream)
        check_hosts(s)
        page = s.ask("GET", "/")
        t.check(page[0] == 200 and len(page[2]) < 60000, "the page")
        csp = page[1]["Content-Security-Policy"]
        nonce = re.search(r"script-src 'nonce-(\w{32})'", csp).group(1)
        t.check("default-src 'none'" in csp and page[2].count(nonce.encode()) == 2, csp)
        t.check(
            b"http://" not in page[2] and b"https://" not in page[2], "the page names other places"
        )


def check_hosts(s):
    for host, want in (
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:1", 200),
        ("[::1]", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
    ):
        t.check(s.ask("GET", "/health", headers={"Host": host})[0] == want, f"Host {host}")
    for origin, want in (
        ("http://localhost:1", 403),
        ("null", 403),
        ("https://evil.example", 403),
        (s.url, 200),
    ):
        got = s.ask("GET", "/health", headers={"Origin": origin})
        t.check(got[0] == want and "access-control-allow-origin" not in got[1], f"Origin {origin}")


def test_lists():
    page = "https://page.example"
    args = ("--allowed-hosts", "dlm.example", "--cors-origins", page, "--no-page")
    with Server("-np", "1", *args, "--max-body", "1", "--log-prompts") as s:
        t.check(
            s.ask("GET", "/health", headers={"Host": "dlm.example"})[0] == 200, "--allowed-hosts"
        )
        got = s.ask("OPTIONS", "/v1/chat/completions", headers={"Origin": page})
        t.check(got[0] == 204 and got[1]["access-control-allow-origin"] == page, got)
        got = s.ask("GET", "/v1/models", headers={"Origin": page})
        t.check(got[0] == 200 and got[1]["access-control-allow-origin"] == page, got)
        t.check(s.ask("GET", "/")[0] == 404, "--no-page")
        t.check(s.ask("POST", "/tokenize", {"content": "x" * 2000})[0] == 413, "--max-body")
        s.ask("POST", "/tokenize", {"content": "x\ny"})
        t.check(s.wait_for(r"x\\ny"), "--log-prompts")


# ---- the queue, the slots, time ----


def stream(s, body, **more):
    """Opens a stream and returns its connection when the first event is there."""
    c = s.connect(60)
    data = json.dumps({**body, "stream": True}).encode()
    c.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        % len(data)
        + data
    )
    first = b""
    while b"data: " not in first and b"HTTP/1.1 4" not in first:
        first += c.recv(4096)
    return c, first


def wait(what, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return False


def test_queue():
    with Server("-np", "1", "--queue", "1") as s:
        one, _ = stream(s, chat(STORY, **SLOW))
        waiting = []
        thread = threading.Thread(
            target=lambda: waiting.append(s.ask("POST", "/v1/chat/completions", chat(QUESTION)))
        )
        thread.start()
        t.check(wait(lambda: s.metric("dlm_queue_length") == 1), "nothing waits")
        status, headers, answer = s.ask("POST", "/v1/chat/completions", chat(QUESTION))
        t.check(status == 429 and int(headers["retry-after"]) >= 1, f"{status} {answer}")
        shape("error", answer)
        status, _, answer = s.ask("POST", "/v1/chat/completions", chat(QUESTION, n=3))
        t.check(status == 400, "three answers for one slot and one place")
        client = openai.OpenAI(base_url=s.url + "/v1", api_key="none-is-needed", max_retries=4)
        retried = []
        patient = threading.Thread(
            target=lambda: retried.append(client.chat.completions.create(**chat(QUESTION)))
        )
        patient.start()
        time.sleep(0.3)
        one.close()  # the client hangs up: its slot is free, and the next has its turn
        thread.join(20)
        t.check(waiting and content(waiting[0][2]) == said(QUESTION), waiting)
        patient.join(20)
        t.check(
            retried and retried[0].choices[0].message.content == said(QUESTION), "retry after 429"
        )
        t.check(wait(lambda: s.metric("dlm_slots_busy") == 0), "a slot stays busy")
        t.check(s.wait_for(" 499 POST"), "a client that left is not logged")


def test_limits():
    env = {"DLM_API_KEY": f"{KEY},second-key-here"}
    key = {"Authorization": f"Bearer {KEY}"}
    with Server(
        "-np",
        "4",
        "--max-per-key",
        "1",
        "--timeout",
        "1",
        "--max-connections",
        "4",
        "--idle",
        "1",
        env=env,
    ) as s:
        slow = chat(STORY, **SLOW)
        t.check(s.ask("GET", "/v1/models")[0] == 401, "no key")
        t.check(s.ask("GET", "/nowhere")[0] == 401, "what is where is not told to strangers")
        t.check(
            s.ask("GET", "/v1/models", headers={"X-Api-Key": "second-key-here"})[0] == 200,
            "x-api-key",
        )
        got = []
        thread = threading.Thread(
            target=lambda: got.append(s.ask("POST", "/v1/chat/completions", slow, key))
        )
        thread.start()
        wait(lambda: "dlm_slots_busy 0" not in s.ask("GET", "/metrics", headers=key)[2].decode())
        status, _, answer = s.ask("POST", "/v1/chat/completions", chat(QUESTION), key)
        t.check(status == 429, f"a second request of one key: {status} {answer}")
        thread.join(20)
        t.check(got[0][0] in (504, 200), got)
        idle = [s.connect() for _ in range(4)]
        for c in idle:
            c.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            t.check(status_of(c.recv(4096)) == 200, "health")
        t.check(s.ask("GET", "/health")[0] == 200, "idle connections do not make room")
        t.check(wait(lambda: all(quiet(c) for c in idle[1:]), 3), "idle connections stay open")


def quiet(c):
    c.settimeout(0.01)
    try:
        return c.recv(10) == b""
    except socket.timeout:
        return False
    except ConnectionResetError:
        return True


def test_deadline():
    with Server("-np", "1", "--timeout", "1", "-t", "1") as s:
        ask = chat(STORY, **SLOW)
        # a context of 2048 may be over before a second is: several answers one after another are not
        status, _, answer = s.ask("POST", "/v1/chat/completions", {**ask, "n": 8})
        t.check(status == 504 and answer["error"]["type"] == "timeout_error", f"{status} {answer}")
        status, _, data = s.ask("POST", "/v1/chat/completions", {**ask, "n": 8, "stream": True})
        last = json.loads(events(data)[-1][1])
        t.check(status == 200 and "error" in last and b"[DONE]" not in data, last)
        shape("error", last)


def test_reuse():
    with Server("-np", "2") as s:
        first = [{"role": "user", "content": STORY}]
        one = s.ask("POST", "/v1/chat/completions", {"messages": first, "max_tokens": 64})[2]
        again = s.ask("POST", "/v1/chat/completions", {"messages": first, "max_tokens": 64})[2]
        t.check(content(one) == content(again), "the cache changes the text")
        more = first + [
            {"role": "assistant", "content": content(one)},
            {"role": "user", "content": QUESTION},
        ]
        body = {"messages": more, "max_tokens": 32}
        warm = s.ask("POST", "/v1/chat/completions", body)[2]
        details = warm["usage"]["prompt_tokens_details"]
        t.check(details["cached_tokens"] >= 32, details)
        t.check(warm["timings"]["cache_n"] == details["cached_tokens"], warm["timings"])
    with Server("-np", "1") as s:
        cold = s.ask("POST", "/v1/chat/completions", body)[2]
        t.check(cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "a cold cache")
        t.check(content(cold) == content(warm), "a warm cache changes the text")


KNOBS = (
    {"rule": "sequential", "steps": 4},
    {"rule": "entropy", "steps": 3, "cache": "none"},
    {"cache": "masked", "threshold": 0.5},
    {"dual_cache": False, "block_size": 16},
    {"decode_mode": "greedy", "sub_block_size": 16},
)


def test_knobs():
    """How to decode, said in a request, gives what the options of the same names give."""
    with Server("-np", "2", "--rule", "random", "--steps", "2", "--cache", "none") as s:
        params = s.ask("GET", "/props")[2]["default_generation_settings"]["params"]
        found = [params[k] for k in ("rule", "steps", "cache", "dual_cache")]
        t.check(found == ["random", 2, "none", False], f"/props: {found}")
        model = {"rule": "model", "steps": 0, "cache": "model"}
        for more in ({}, *KNOBS):
            options = [
                part
                for k, v in more.items()
                for part in (
                    [f"--no-{k.replace('_', '-')}"]
                    if v is False
                    else [f"--{k.replace('_', '-')}", str(v)]
                )
            ]
            asked = model | more
            if "dual_cache" in more:
                del asked["cache"]
            cli = json.loads(run("--json", "-p", STORY, "-n", "64", *options).stdout)
            for path in ("/v1/chat/completions", "/v1/messages"):
                answer = s.ask("POST", path, chat(STORY, max_tokens=64, **asked))[2]
                chatted = path.endswith("completions")
                text = content(answer) if chatted else answer["content"][0]["text"]
                t.check(text == cli["text"], f"{path}, {more}: {text!r}, not {cli['text']!r}")
                if chatted:
                    forwards = answer["timings"]["forwards"]
                    t.check(forwards == cli["forwards"], f"{more}: {forwards}")
            answer = s.ask("POST", "/completion", {"prompt": "1, 2,", "n_predict": 4, **asked})[2]
            used = answer["generation_settings"]
            names = [k for k in more if k != "dual_cache"]
            t.check([used[k] for k in names] == [more[k] for k in names], f"{more}: {used}")
        for path in ("/v1/chat/completions", "/v1/completions", "/completion", "/v1/messages"):
            status, _, answer = s.ask("POST", path, chat(STORY, max_tokens=9, cfg_scale=1))
            if "chat" in path or "mess" in path:
                t.check(status == 400 and "full attention" in answer["error"]["message"], answer)
            for k, v in (("rule", "best"), ("steps", -1), ("steps", "4"), ("cache", 1)):
                body = {"messages": []} if "chat" in path or "mess" in path else {"prompt": "x"}
                status, _, answer = s.ask("POST", path, {**body, k: v})
                t.check(status == 400 and f"'{k}' must be" in answer["error"]["message"], answer)


def test_guidance():
    """Only models with full attention have it; beside other answers it is what it is alone."""
    model = os.path.join("tests", "golden", "family-llada.gguf")
    ask = {"prompt": "abcdefg", "n_predict": 8, "return_tokens": True}
    one = ("-m", model, "--json", "--raw", "-p", ask["prompt"], "-n", "8")
    with Server("-m", model, "-np", "3") as s:
        params = s.ask("GET", "/props")[2]["default_generation_settings"]["params"]
        t.check(params["cfg_scale"] == 0, params)
        scales = [0, 3, 0.5] * 3
        with ThreadPoolExecutor(9) as pool:
            answers = pool.map(
                lambda x: s.ask("POST", "/completion", {**ask, "cfg_scale": x})[2], scales
            )
            for x, answer in zip(scales, answers):
                want = json.loads(run(*one, "--cfg-scale", f"{x}").stdout)["ids"]
                t.check(answer["tokens"] == want, f"{x}: {answer['tokens']}, not {want}")
        many = "xyz" * 20
        for path in ("/completion", "/v1/completions"):
            status, _, answer = s.ask("POST", path, {"prompt": many, "cfg_scale": 1})
            t.check(status == 400 and "32 tokens" in answer["error"]["message"], answer)


QUESTIONS = [f"What is {a}+{b}?" for a in range(2, 6) for b in range(3, 7)]


def test_together():
    """What 16 at the same time are told is what each is told alone."""

    def body(i):
        long = i % 2
        return chat(STORY if long else QUESTIONS[i], temperature=0.9, seed=100 + i, max_tokens=96)

    with Server("-np", "16", "--queue", "64") as s:
        alone = [content(s.ask("POST", "/v1/chat/completions", body(i))[2]) for i in range(16)]
        t.check(len(set(alone)) > 10, "the seeds change nothing")
        with ThreadPoolExecutor(48) as pool:
            asked = pool.map(
                lambda i: s.ask("POST", "/v1/chat/completions", {**body(i % 16), "stream": True}),
                range(48),
            )
            for i, (status, _, data) in enumerate(asked):
                chunks = [json.loads(d) for _, d in events(data)[:-1]]
                t.check(status == 200 and streamed(chunks) == alone[i % 16], f"stream {i}")
        t.check(
            s.metric("dlm_slots_busy") == 0 and s.metric("dlm_queue_length") == 0, "left behind"
        )


# ---- signals ----


def test_draining():
    """What is on its way when the signal comes is answered, and told that it was the last."""
    body = json.dumps(chat(QUESTION)).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    ready = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with Server("-np", "2") as s:
        slow, first = stream(s, chat(STORY, **{**SLOW, "max_tokens": 300}))
        half, fresh, kept, probe = (s.connect() for _ in range(4))
        half.sendall(head + body[:10])
        for c in kept, probe:
            c.sendall(ready)
            t.check(status_of(c.recv(4096)) == 200, "ready")
        s.terminate()
        t.check(s.wait_for("stopping"), "SIGTERM is not heard")
        half.sendall(body[10:])
        fresh.sendall(head + body)
        kept.sendall(head + body)
        probe.sendall(ready)
        for c, what in (half, "half a request"), (fresh, "a first one"), (kept, "another one"):
            reply = read_all(c)
            t.check(
                status_of(reply) == 200 and b"Connection: close" in reply and b'"stop"' in reply,
                f"{what} during the drain: {reply[:200]}",
            )
        reply = read_all(probe)
        t.check(status_of(reply) == 503 and b"Connection: close" in reply, reply[:200])
        t.check(b"data: [DONE]" in first + read_all(slow), "a stream during the drain")
        t.check(s.stop() == 0, "exit status")


def test_stopping():
    with Server("-np", "2") as s:
        c, first = stream(s, chat(STORY, **{**SLOW, "max_tokens": 300}))
        idle = s.connect()
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        idle.recv(4096)
        s.terminate()
        t.check(s.wait_for("stopping"), "SIGTERM is not heard")
        t.check(wait(lambda: quiet(idle)), "an idle connection is kept")
        try:
            s.connect().close()
            t.check(False, "it still accepts")
        except OSError:
            t.check(True, "")
        data = first + read_all(c)
        t.check(b"data: [DONE]" in data, "the stream is not brought to its end")
        t.check(s.stop() == 0, "exit status")
    with Server("-np", "1", "--drain", "0", "-t", "1") as s:
        c, _ = stream(s, chat(STORY, **SLOW))
        s.terminate()
        data = read_all(c)
        t.check(b"[DONE]" in data or b"shutting down" in data, data[-300:])
        t.check(s.stop() == 0, "exit status when the time is over")
    with Server("-np", "1", "-t", "1") as s:
        c, _ = stream(s, chat(STORY, n=8, **SLOW))
        s.terminate()
        s.wait_for("stopping")
        s.terminate()
        began = time.monotonic()
        t.check(s.stop() == 0 and time.monotonic() - began < 3, "a second SIGTERM")
        c.close()


def serial(s, context):
    with socket.create_connection(("127.0.0.1", s.port), 10) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as c:
            return c.getpeercert()["serialNumber"], c.version()


def test_reload():
    cert, key, keys = (os.path.join(FOLDER.name, n) for n in ("r.pem", "rk.pem", "rkeys"))

    def make():
        for path in cert, key:
            if os.path.exists(path):
                os.remove(path)
        done = run("cert", "localhost", "127.0.0.1", "--tls-cert", cert, "--tls-key", key)
        t.check(done.returncode == 0, done.stderr)

    def write(text):
        with open(keys, "w", encoding="ascii") as f:
            f.write(text)
        os.chmod(keys, 0o600)

    make()
    write("first-key\n")
    with Server(
        "-np", "1", "--tls-cert", cert, "--tls-key", key, "--api-key-file", keys, tls=cert
    ) as s:
        before = serial(s, s.context())[0]
        kept = s.connect()
        ask = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n"
        kept.sendall(ask % b"first-key")
        t.check(status_of(kept.recv(4096)) == 200, "the first key")
        make()
        write("second-key\n")
        s.process.send_signal(signal.SIGHUP)
        t.check(s.wait_for("certificate reloaded") and s.wait_for("keys reloaded"), s.log)
        t.check(serial(s, s.context())[0] != before, "the old certificate is still shown")
        kept.sendall(ask % b"second-key")
        t.check(
            status_of(kept.recv(4096)) == 200, "an open connection does not live through a reload"
        )
        kept.sendall(ask % b"first-key")
        t.check(status_of(kept.recv(4096)) == 401, "the old key is still good")
        good = s.context()
        with open(cert, "w", encoding="ascii") as f:
            f.write("no certificate\n")
        write("short\n")
        s.process.send_signal(signal.SIGHUP)
        t.check(s.wait_for("the old one stays") and s.wait_for("the old ones stay"), s.log)
        t.check(serial(s, good)[0] != before, "a bad certificate")
        t.check(s.stop() == 0, "exit status")


def test_tls():
    only_12 = ssl.create_default_context(cafile=CERT)
    only_12.maximum_version = ssl.TLSVersion.TLSv1_2
    with Server("-np", "1", *TLS, "--tls-min", "1.3", tls=CERT) as s:
        t.check(serial(s, s.context())[1] == "TLSv1.3", "TLS 1.3")
        raises(ssl.SSLError, lambda: serial(s, only_12), "TLS 1.2 with --tls-min 1.3")
        reply = None
        with s.connect(tls=False) as c:
            c.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            reply = read_all(c)
        t.check(b"200 OK" not in reply, "plain HTTP on a TLS port")
        t.check(s.ask("GET", "/health")[0] == 200, "after that")
    mine, secret = os.path.join(FOLDER.name, "client.pem"), os.path.join(
        FOLDER.name, "client-key.pem"
    )
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ]
        + ["-days", "2", "-subj", "/CN=client", "-out", mine, "-keyout", secret],
        check=True,
        capture_output=True,
    )
    with Server("-np", "1", *TLS, "--tls-client-ca", mine, tls=CERT) as s:
        known = ssl.create_default_context(cafile=CERT)
        known.load_cert_chain(mine, secret)
        t.check(serial(s, only_12_of(known))[1] == "TLSv1.2", "a client with a certificate")

        def stranger():
            with s.connect() as c:  # TLS 1.3 tells it with the first read
                c.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if c.recv(100) == b"":
                    raise ssl.SSLError("closed")

        raises((ssl.SSLError, ConnectionError), stranger, "a client without a certificate")
        ask, shown = ["health", s.url, "--cacert", CERT], ["--cert", mine, "--key", secret]
        t.check(run(*ask, *shown).returncode == 0, "dlm health with a certificate")
        t.check(run(*ask).returncode == 1, "dlm health without one")
        t.check(run(*ask, *shown[:2]).returncode == 2, "dlm health with half of one")


def test_handshakes():
    """A hundred at the same time: each holds keys in the library's store while it lasts."""
    with Server("-np", "1", *TLS, tls=CERT) as s:
        context, good = s.context(), []

        def shake():
            for _ in range(4):
                with socket.create_connection(("127.0.0.1", s.port), 20) as plain:
                    with context.wrap_socket(plain, server_hostname="localhost") as c:
                        good.append(c.version())

        threads = [threading.Thread(target=shake) for _ in range(100)]
        for x in threads:
            x.start()
        for x in threads:
            x.join()
        t.check(len(good) == 400, f"{len(good)} of 400 handshakes")


def only_12_of(context):
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


# ---- starting ----


def test_starting():
    for args, words in (
        (["--host", "0.0.0.0"], "without a key and TLS"),
        (["--host", "::", *TLS], "without a key"),
        (["--host", "example.com"], "numeric"),
        (["--tls-cert", CERT], "go together"),
        (["--tls-cert", CERT, "--tls-key", CERT], "key"),
        (["--api-key-file", "/nonexistent"], "/nonexistent"),
        (["--port", "70000"], "65535"),
        (["-m", "/nonexistent"], "/nonexistent"),
    ):
        done = run("serve", "--port", "0", *args)
        err = done.stderr.decode()
        t.check(done.returncode in (1, 2, 3) and words in err, f"{args}: {done.returncode} {err}")
        t.check(err.count("\n") == 1 or "warning" in err, err)
    with Server("-np", "1", "--host", "0.0.0.0", "--insecure") as s:
        t.check(run("serve", "--port", str(s.port)).returncode == 1, "a port that is taken")
        t.check(run("health", f"http://localhost:{s.port}").returncode == 0, "dlm health")
        t.check(
            run("health", f"http://127.0.0.1:{s.port}/nowhere").returncode == 1, "dlm health 404"
        )
        env = {"DLM_PORT": str(s.port)}
        t.check(run("health", env=env).returncode == 0, "dlm health with DLM_PORT")
        env["DLM_HOST"] = "0.0.0.0"
        t.check(run("health", env=env).returncode == 0, "dlm health with DLM_HOST")
        t.check(run("health", "--ca", CERT, env=env).returncode == 1, "no HTTPS with --ca")
    t.check(run("health", f"http://localhost:{s.port}").returncode == 1, "dlm health of nobody")
    for bad in "ftp://x", "http://:1", "http://h:x/", "http://h:99999":
        t.check(run("health", bad).returncode == 2, f"dlm health {bad}")
    with Server("-np", "1", *TLS, tls=CERT) as s:
        for ca in [], ["--ca", CERT]:
            done = run("health", *ca, env={"DLM_PORT": str(s.port)})
            t.check(done.returncode == 0, f"dlm health finds HTTPS: {done.stderr}")
    path = os.path.join(FOLDER.name, "dlm.sock")
    with Server("-np", "1", "--host", path, "--sandbox", "auto" if CHECKED else "strict") as s:
        t.check(run("health", path).returncode == 0, "a unix socket")
        t.check(run("health", env={"DLM_HOST": path}).returncode == 0, "DLM_HOST is a socket")
        t.check(os.stat(path).st_mode & 0o777 == 0o600, "others may connect to the socket")
    again = run("cert", "localhost", "--tls-cert", CERT, "--tls-key", PRIVATE)
    t.check(again.returncode == 1 and b"exists" in again.stderr, "a certificate is overwritten")
    t.check(os.stat(PRIVATE).st_mode & 0o777 == 0o600, "others can read the key")


def test_secrets():
    """Others than the owner can read the keys: a warning, but not where a group is the only way to them."""
    keys = os.path.join(FOLDER.name, "shared-keys")
    with open(keys, "w", encoding="ascii") as f:
        f.write("a-key-of-some-length\n")
    root = os.geteuid() == 0
    for mode, owner, warns in (0o600, 0, 0), (0o640, 0, 1), (0o604, 0, 1), (0o440, 1, 0), (0o444, 1, 1):
        if owner and not root:
            continue
        os.chown(keys, owner if root else -1, -1)
        os.chmod(keys, mode)
        with Server("-np", "1", "--api-key-file", keys, "--log-format", "json") as s:
            said = [json.loads(ln) for ln in s.log if "others can read" in ln]
            t.check(len(said) == warns, f"mode {mode:o} of {owner}: {s.log}")
            t.check(all(e["level"] == "warning" for e in said), said)


def main():
    done = run("cert", "localhost", "127.0.0.1", *TLS)
    t.check(done.returncode == 0, done.stderr)
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            from_s = time.monotonic()
            test()
            print(f"{name}: {time.monotonic() - from_s:.1f} s", flush=True)
    t.end()


if __name__ == "__main__":
    main()
