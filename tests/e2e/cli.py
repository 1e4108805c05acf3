#!/usr/bin/env python3
"""cli.py - the command line of the built program: what goes where, and every exit status."""

import json
import os
import re
import resource
import subprocess
import tempfile
import threading

from _run import DLM, ROOT, TINY, Count, run

t = Count()
QUESTION = "What is 2+2?"
LONG = "Count from 1 to 9."


def one_line(name, done, status, *words):
    """The program failed with `status`: nothing on stdout, one line with these words on stderr."""
    err = done.stderr.decode()
    t.check(done.returncode == status, f"{name}: exit {done.returncode}, want {status}: {err}")
    t.check(done.stdout == b"", f"{name}: stdout is {done.stdout[:80]}")
    t.check(err.startswith("dlm: ") and err.count("\n") == 1, f"{name}: not one line: {err!r}")
    for word in words:
        t.check(word in err, f"{name}: {word!r} is not in {err!r}")


def test_answer():
    done = run("-p", QUESTION)
    err = done.stderr.decode().splitlines()
    t.check(done.returncode == 0 and done.stdout.endswith(b"\n") and len(done.stdout) > 1, done)
    t.check(err[0] == "dlm: answering with the built-in demo model (-m names another)", err)
    t.check(
        re.fullmatch(
            r"\d+ tokens · \d+ forwards? \(\d+ denoise(?: \+ \d+ commit|, \d+ of them with a commit)\) · [\d.]+ tokens/forward "
            r"\([\d.]+ per denoise\) · [\d.]+ tok/s · first token [\d.]+ ms · peak [\d.]+ MiB",
            err[-1],
        ),
        err[-1],
    )
    t.check(len(err) == 2, err)
    t.check(run("-q", "-p", QUESTION).stderr == b"", "-q is not quiet")
    t.check(run("--no-stats", "-p", QUESTION).stderr.count(b"\n") == 1, "--no-stats")
    for args in (
        ["run", "-p", QUESTION],
        ["run", f"--prompt={QUESTION}"],
        ["-p" + QUESTION],
        ["-m", TINY, "-p", QUESTION],
        ["-p", QUESTION, "--predict", "256", "-t", "1", "-s", "1"],
        ["-p", QUESTION, "--kv-type", "f32"],
        ["-p", QUESTION, "--kv-type", "q8_0"],
        ["-p", QUESTION, "--temperature", "0", "-n=64", "--small-block-size", "8"],
    ):
        t.check(run(*args).stdout == done.stdout, args)
    t.check(
        b"demo" not in run("-p", QUESTION, env={"DLM_MODEL": TINY}).stderr, "DLM_MODEL is not heard"
    )
    ar = run("-p", QUESTION, "--decode-mode", "ar").stderr.decode()
    t.check("denoise" not in ar and "1.0 tokens/forward" in ar, ar)
    wide = json.loads(run("-p", QUESTION, "--block-size", "64", "--json").stdout)
    t.check(wide["decode"]["block_size"] == 64 and wide["text"], wide)
    for mode in "greedy", "adaptive":
        t.check(run("-p", QUESTION, "--decode-mode", mode).returncode == 0, mode)


def test_stdin():
    plain = run("-p", "What is 2+2?\nAnswer.").stdout
    t.check(
        run("-p", "What is 2+2?", stdin=b"Answer.\n").stdout == plain,
        "-p and a pipe are not joined",
    )
    t.check(run("-p", "-", stdin=b"What is 2+2?\nAnswer.\r\n").stdout == plain, "-p -")
    t.check(run(stdin=b"What is 2+2?\nAnswer.").stdout == plain, "a pipe alone")
    t.check(run("-f", "-", stdin=b"What is 2+2?\nAnswer.").stdout == plain, "-f -")
    with tempfile.NamedTemporaryFile() as f:
        f.write(b"Answer.\n")
        f.flush()
        t.check(run("-p", "What is 2+2?", "-f", f.name).stdout == plain, "-p and -f")
        with open(f.name, "rb") as redirected:
            done = subprocess.run(
                [DLM, "-p", "What is 2+2?"], stdin=redirected, capture_output=True, check=False
            )
        t.check(done.stdout == plain, "a file as standard input")
    one_line("no prompt", run(), 2, "no prompt", "-p TEXT")
    one_line("an empty pipe", run(stdin=b""), 2, "no prompt")
    one_line("an empty -p", run("-p", ""), 2, "no prompt")
    one_line("-f nosuch", run("-f", "nosuch.txt"), 1, "'nosuch.txt'", "No such file")
    closed = subprocess.run(
        [DLM, "-q", "-p", "What is 2+2?"],
        capture_output=True,
        check=False,
        preexec_fn=lambda: os.close(0),
    )
    t.check(closed.returncode == 0 and closed.stdout, f"closed standard input: {closed}")
    garbage = run("-q", "-p", "-", stdin=bytes(range(1, 256)) * 2)
    t.check(garbage.returncode == 0 and garbage.stdout.decode(), "a prompt that is not UTF-8")


def test_usage():
    cases = {
        ("--tmp", "1"): "did you mean --temp?",
        ("--no-dual-cahce", "-p", "x"): "did you mean --no-dual-cache?",
        ("--max-token", "5"): "did you mean --max-tokens?",
        ("--predit", "5"): "did you mean --predict?",
        ("--xyzzy",): "'dlm help run'",
        ("rnu",): "did you mean 'dlm run'?",
        ("model.gguf",): "dlm -m model.gguf",
        ("hello",): "a prompt goes after -p",
        ("run", "hello"): "unexpected argument 'hello'",
        ("help", "mods"): "did you mean 'modes'?",
        ("help", "xyzzy"): "'dlm help' lists",
        ("chat", "--json"): "--json does not apply to 'dlm chat'",
        ("-p",): "-p needs a value",
        ("-p", "x", "--json=1"): "--json takes no value",
        ("-p", "x", "-n", "0"): "-n 0",
        ("-p", "x", "-n", "12x"): "-n takes a whole number from -1 to 1048576, not '12x'",
        ("-p", "x", "-n", "99999999999999999999"): "from -1 to 1048576",
        ("-p", "x", "-n", ""): "not ''",
        ("-p", "x", "-n", " 5"): "not ' 5'",
        ("-p", "x", "-n5x"): "-n takes",
        ("-p", "x", "--top-p", "1.5"): "from 0 to 1",
        ("-p", "x", "--top-p", "0x1"): "from 0 to 1",
        ("-p", "x", "--temp", "nan"): "from 0 to 10",
        ("-p", "x", "--temp", "1e999"): "from 0 to 10",
        ("-p", "x", "--temp", "inf"): "from 0 to 10",
        ("-p", "x", "-s", "-2"): "or -1",
        ("-p", "x", "-t", "1000"): "from 0 to 256",
        ("-p", "x", "-c", "100000"): "100000",
        ("-p", "x", "--kv-type", "q4_0"): "f16, q8_0, f32",
        ("-p", "x", "--block-size", "65537"): "from 0 to 65536",
        ("-p", "x", "--decode-mode", "fast"): "greedy, iterative, adaptive, ar",
        ("-p", "x", "--mask-token-id", "5000"): "vocabulary of 1024",
        ("-p", "x", "--cpu", "pentium"): "'pentium'",
        ("-p", "x", "--stop", ""): "not empty",
        ("-p", "x", *["--stop", "q"] * 17): "at most 16",
        ("-p", "x", "--system", "a", "--system-file", "b"): "not both",
        ("-p", "x", "--raw", "--system", "a"): "chat template",
        ("completion",): "bash, zsh or fish",
        ("detokenize", "1024"): "vocabulary of 1024",
        ("detokenize", "x"): "'x' is not a token id",
        ("tokenize", "-p", "a", "b"): "give the text once",
    }
    for args, word in cases.items():
        one_line(" ".join(args[:6]), run(*args), 2, word)
    done = run("-q", "-p", "x", "--block-size", "8", "--sub-block-size", "3")
    one_line("a sub-block that does not divide", done, 2, "does not divide")
    one_line("DLM_CPU=pentium", run("-p", "x", env={"DLM_CPU": "pentium"}), 2, "'pentium'")
    one_line(
        "DLM_THREADS=many", run("-p", "x", env={"DLM_THREADS": "many"}), 2, "DLM_THREADS takes"
    )
    one_line("a control byte", run("--\x1b[31m"), 2, "?[31m")


def test_bad_models():
    with tempfile.TemporaryDirectory() as d, open(TINY, "rb") as f:
        whole = f.read()
        at = {
            name: os.path.join(d, name)
            for name in ("empty", "fifo", "cut", "head", "junk", "magic")
        }
        for name, data in (
            ("empty", b""),
            ("cut", whole[:-1]),
            ("head", whole[:5000]),
            ("junk", b"x" * 4096),
            ("magic", b"GGUF"),
        ):
            with open(at[name], "wb") as out:
                out.write(data)
        os.mkfifo(at["fifo"])
        for command in (
            ["-p", "x", "-m"],
            ["info"],
            ["tokenize", "x", "-m"],
            ["detokenize", "1", "-m"],
            ["chat", "-m"],
        ):
            name = command[0]
            one_line(
                f"{name}: nosuch",
                run(*command, os.path.join(d, "nosuch.gguf")),
                3,
                "nosuch.gguf",
                "No such file",
            )
            one_line(f"{name}: a directory", run(*command, d), 3, d, "is a directory")
            for crime, word in (
                ("empty", "is empty"),
                ("fifo", "pipe or a device"),
                ("head", "truncated"),
                ("cut", "cut"),
                ("junk", "junk"),
                ("magic", "magic"),
            ):
                one_line(f"{name}: {crime}", run(*command, at[crime]), 3, at[crime], word)


def test_output_fails():
    for args in (["-q", "-p", QUESTION], ["help"], ["info"], ["-q", "--json", "-p", QUESTION]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [DLM, *args],
                stdin=subprocess.DEVNULL,
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
            )
        t.check(
            done.returncode == 1 and b"No space left" in done.stderr, f"{args} > /dev/full: {done}"
        )
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [DLM, *args],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(writer)
        t.check(done.returncode == 0 and done.stderr == b"", f"{args} | true: {done}")
    done = subprocess.run(
        [DLM, "-q", "-p", QUESTION],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
        preexec_fn=lambda: os.close(1),
    )
    t.check(done.returncode == 1 and done.stderr.count(b"\n") == 1, f"closed stdout: {done}")
    with tempfile.NamedTemporaryFile() as trace:
        subprocess.run(
            [DLM, "-q", "-p", QUESTION, "--trace", trace.name],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
            preexec_fn=lambda: os.close(1),
        )
        t.check(all(x.startswith(b'{"kind"') for x in trace), "the answer went into the trace")
    one_line(
        "--trace into nowhere", run("-q", "-p", QUESTION, "--trace", "/nosuch/x"), 1, "'/nosuch/x'"
    )


def test_memory():
    """With less and less address space it answers or says so (4); it never dies of a signal."""
    if "debug" in os.path.basename(DLM):  # AddressSanitizer reserves terabytes
        return
    statuses = set()
    for mib in (4, 5, 6, 8, 10, 12, 16, 64):
        done = run(
            "-q",
            "-t",
            "1",
            "-p",
            QUESTION,
            preexec_fn=lambda n=mib << 20: resource.setrlimit(resource.RLIMIT_AS, (n, n)),
        )
        statuses.add(done.returncode)
        if done.returncode == 4:
            one_line(f"{mib} MiB", done, 4, "out of memory")
    t.check(statuses == {0, 4}, f"exit statuses {statuses}")


def test_json():
    streamed = run("-p", LONG).stdout.decode()
    with tempfile.NamedTemporaryFile("r") as trace:
        done = run("-p", LONG, "--json", "--trace", trace.name)
        lines = [json.loads(line) for line in trace]
    t.check(done.returncode == 0 and done.stdout.count(b"\n") == 1, "one object on one line")
    o = json.loads(done.stdout)
    t.check(
        streamed == o["text"] + "\n" * (not o["text"].endswith("\n")),
        "streamed and collected text differ",
    )
    want = {
        "text": str,
        "ids": list,
        "prompt_ids": list,
        "finish_reason": str,
        "tokens_per_forward": float,
        "seed": int,
        "peak_rss_bytes": int,
        "usage": {
            "prompt_tokens": int,
            "completion_tokens": int,
            "total_tokens": int,
            "cached_tokens": int,
        },
        "timings": {
            "load_ms": float,
            "prefill_ms": float,
            "decode_ms": float,
            "first_token_ms": float,
            "tokens_per_second": float,
        },
        "forwards": {"prefill": int, "denoise": int, "commit": int, "ar": int},
        "model": {
            "path": type(None),
            "builtin": bool,
            "name": str,
            "arch": str,
            "n_vocab": int,
            "n_ctx_train": int,
        },
        "decode": {
            "mode": str,
            "rule": str,
            "steps": int,
            "threshold": float,
            "block_size": int,
            "sub_block_size": int,
            "cache": str,
            "dual_cache": bool,
            "cfg_scale": float,
            "early_stop": bool,
            "temperature": float,
            "top_k": int,
            "top_p": float,
            "min_p": float,
        },
    }

    def fits(value, schema, path):
        if isinstance(schema, dict):
            t.check(set(value) == set(schema), f"--json: {path} has {sorted(value)}")
            for key, inner in schema.items():
                fits(value.get(key), inner, f"{path}.{key}")
        else:
            ok = isinstance(value, (int, float)) if schema is float else isinstance(value, schema)
            t.check(
                ok and not (schema is not bool and isinstance(value, bool)),
                f"--json: {path} is {value!r}",
            )

    fits(o, want, "object")
    t.check(
        o["usage"]["completion_tokens"] == len(o["ids"])
        and o["usage"]["prompt_tokens"] == len(o["prompt_ids"])
        and o["usage"]["total_tokens"] == len(o["ids"]) + len(o["prompt_ids"]),
        o["usage"],
    )
    forwards = o["forwards"]["denoise"] + o["forwards"]["commit"]
    t.check(abs(o["tokens_per_forward"] - len(o["ids"]) / forwards) < 1e-9, o["tokens_per_forward"])
    t.check(o["finish_reason"] == "stop" and o["decode"]["mode"] == "iterative", o["finish_reason"])
    ar = json.loads(run("-p", LONG, "--json", "--decode-mode", "ar").stdout)
    t.check(
        ar["tokens_per_forward"] == 1 and ar["forwards"]["ar"] == len(ar["ids"]) - 1,
        f"ar: {ar['forwards']}",
    )
    cut = json.loads(run("-p", LONG, "--json", "-n", "5").stdout)
    t.check(cut["finish_reason"] == "length" and cut["ids"] == o["ids"][:5], cut)
    stop = json.loads(run("-p", LONG, "--json", "--stop", "zzz", "--stop", "4").stdout)
    t.check(
        stop["finish_reason"] == "stop" and stop["text"] == o["text"].split("4")[0], stop["text"]
    )
    back = run("detokenize", "--json", *map(str, o["ids"]))
    t.check(o["text"] in json.loads(back.stdout)["text"], "detokenize --json")

    kinds = [line["kind"] for line in lines]
    for kind in "prefill", "denoise", "commit", "ar":
        t.check(
            kinds.count(kind) == o["forwards"][kind],
            f"--trace: {kinds.count(kind)} lines of {kind}",
        )
    revealed = {}
    for line in lines:
        t.check(
            set(line) == {"kind", "block", "step", "rows", "commit_rows", "pos", "ids", "probs", "ms"},
            f"--trace: {sorted(line)}",
        )
        t.check(len(line["pos"]) == len(line["ids"]) == len(line["probs"]), f"--trace: {line}")
        t.check(all(0 < p <= 1.0001 for p in line["probs"]), f"--trace: {line['probs']}")
        t.check(not revealed.keys() & set(line["pos"]), f"--trace: revealed twice in {line['pos']}")
        revealed.update(zip(line["pos"], line["ids"]))
    first = len(o["prompt_ids"])
    t.check(
        [revealed.get(first + i) for i in range(len(o["ids"]))] == o["ids"],
        "--trace adds up to the answer",
    )


def test_determinism():
    """The same tokens for any number of threads and any CPU level, greedy and sampled."""
    levels = re.search(r"of: (.*)", run("version").stdout.decode()).group(1).split(", ")
    t.check(levels[-1] == "ref", levels)
    for extra in ([], ["--temp", "0.8", "-s", "7", "--top-k", "20"], ["--no-dual-cache"]):
        args = ["-p", LONG, "--json", "-n", "48", *extra]
        want = json.loads(run(*args, "-t", "1").stdout)["ids"]
        for threads in "2", "3", "4":
            t.check(
                json.loads(run(*args, "-t", threads).stdout)["ids"] == want, f"{extra} -t {threads}"
            )
        for level in levels:
            got = json.loads(run(*args, "-n", "12", env={"DLM_CPU": level}).stdout)["ids"]
            t.check(got == want[:12], f"{extra} DLM_CPU={level}")
    seeds = {json.loads(run("-p", LONG, "--json", "--temp", "2").stdout)["seed"] for _ in range(3)}
    t.check(len(seeds) > 1, "random seeds do not differ")
    sampled = json.loads(run("-p", LONG, "--json", "--temp", "2").stdout)
    again = json.loads(run("-p", LONG, "--json", "--temp", "2", "-s", str(sampled["seed"])).stdout)
    t.check(again["ids"] == sampled["ids"], "the printed seed does not repeat the answer")


def test_system_and_template():
    ids = [
        json.loads(run("-p", "Hi", "--json", "-n", "1", *extra).stdout)["prompt_ids"]
        for extra in ([], ["--system", "Be brief."], ["--raw"])
    ]
    t.check(len(ids[2]) < len(ids[0]) < len(ids[1]), ids)
    with tempfile.NamedTemporaryFile("w") as f, tempfile.NamedTemporaryFile("w") as s:
        f.write(
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
        f.flush()
        s.write("Be brief.\n")
        s.flush()
        same = json.loads(
            run(
                "-p", "Hi", "--json", "-n", "1", "--chat-template", f.name, "--system-file", s.name
            ).stdout
        )
        t.check(same["prompt_ids"] == ids[1], "--chat-template FILE with the model's own template")
        f.write("{% nonsense %}")
        f.flush()
        one_line("a bad template", run("-q", "-p", "Hi", "--chat-template", f.name), 3)
    forged = json.loads(run("-p", "<|im_end|>", "--json", "-n", "1").stdout)["prompt_ids"]
    t.check(forged.count(1022) == ids[0].count(1022), "a user's <|im_end|> became a special token")


def test_tokenize():
    text = "Hello <|im_end|> wörld\n\n 42"
    ids = run("tokenize", text).stdout
    t.check(re.fullmatch(rb"\d+( \d+)*\n", ids), ids)
    t.check(run("detokenize", stdin=ids).stdout.decode() == text + "\n", "there and back")
    t.check(
        run("detokenize", *ids.decode().split()).stdout.decode() == text + "\n", "ids as arguments"
    )
    t.check(run("tokenize", stdin=text.encode() + b"\n").stdout == ids, "tokenize standard input")
    t.check(run("tokenize", "-p", text).stdout == ids, "tokenize -p")
    o = json.loads(run("tokenize", "--json", text).stdout)
    t.check(o["ids"] == [int(i) for i in ids.split()] and len(o["pieces"]) == len(o["ids"]), o)
    t.check(
        run("detokenize", stdin=json.dumps(o["ids"]).encode()).stdout.decode() == text + "\n",
        "a JSON array of ids",
    )
    special = run("tokenize", "--parse-special", text).stdout.split()
    t.check(b"1022" in special and b"1022" not in ids.split(), special)
    pieces = run("tokenize", "--pieces", text).stdout.splitlines()
    t.check(
        len(pieces) == len(o["ids"]) and pieces[0].split(b"\t")[0] == str(o["ids"][0]).encode(),
        pieces,
    )


def test_info():
    text = run("info").stdout.decode()
    for word in (
        "bitnet-b1.58",
        "TQ2_0",
        "1023",
        "mask token",
        "block_size",
        "chat template",
        "memory",
        "level",
        "yes",
    ):
        t.check(word in text, f"info: no {word!r}")
    o = json.loads(run("info", TINY, "--json").stdout)
    t.check(o["path"] == TINY and o["runs"] is True and o["diffusion"]["can"] is True, o)
    t.check(
        o["diffusion"]["mask_token"]["value"] == 1023
        and o["diffusion"]["block_size"] == {"value": 32, "source": "file"},
        o["diffusion"],
    )
    kv = [
        json.loads(run("info", "--json", *args).stdout)["memory"]["kv"]
        for args in ([], ["--kv-type", "f16"], ["-ctk", "f32"], ["--cache-type-v=f32"], ["-ctk", "q8_0"])
    ]
    t.check(kv == [kv[0], kv[0], 2 * kv[0], 2 * kv[0], kv[0] * 17 // 32], f"info --kv-type: {kv}")
    flag = json.loads(run("info", "--json", "--mask-token-id", "7").stdout)
    t.check(flag["diffusion"]["mask_token"]["source"] == "flag", flag["diffusion"])
    golden = os.path.join(ROOT, "tests", "golden")
    sdar = json.loads(run("info", "--json", f"{golden}/family-sdar.gguf").stdout)["diffusion"]
    t.check(
        sdar["rule"] == {"value": "low_confidence_dynamic", "source": "family"}
        and sdar["shift_logits"] == {"value": False, "source": "family"},
        sdar,
    )
    flag = json.loads(run("info", "--json", "--convention", "wedlm").stdout)["diffusion"]
    t.check(
        flag["order"] == {"value": "revealed_first", "source": "flag"}
        and flag["align"]["value"] == "prompt_end",
        flag,
    )
    llada = ["-q", "-m", f"{golden}/family-llada.gguf", "--raw", "-p", "abc", "-n", "8"]
    fill = [json.loads(run(*llada, "--suffix", text, "--json").stdout) for text in ("xyz", "def")]
    t.check(all(o["decode"]["rule"] == "low_confidence" for o in fill), fill)
    guided, plain = (
        json.loads(run(*llada, "-p", "abcdefg", "--cfg-scale", x, "--json").stdout) for x in "30"
    )
    t.check(guided["decode"]["cfg_scale"] == 3 and plain["decode"]["cfg_scale"] == 0, guided)
    t.check(guided["ids"] != plain["ids"], "guidance changes nothing")
    for verb in ("run", "chat", "serve"):
        refused = run(verb, "-q", "--cfg-scale", "1", *(["-p", "x"] if verb == "run" else []))
        one_line(f"{verb}: guidance under block attention", refused, 2, "full attention")
    one_line("a suffix under block attention", run("-q", "-p", "x", "--suffix", "y"), 2, "suffix")
    one_line("a convention", run("-q", "-p", "x", "--convention", "klingon"), 2, "fast-dllm-v2")
    t.check(sum(x["weights"] for x in o["tensors"]) == o["weights"], "the groups do not add up")
    for group in o["tensors"]:
        if "ternary" in group:
            t.check(sum(group["ternary"].values()) == group["weights"], group)
    same = [
        re.sub(r"; .* are free", "", run("info", *args).stdout.decode())
        for args in (["-m", TINY], [TINY])
    ]
    t.check(same[0] == same[1] and TINY in same[0], "info -m FILE")
    t.check(run("info", stdin=b"x").returncode == 0, "info with a pipe")
    vocab = os.path.join(ROOT, "..", "shared", "vocab", "ggml-vocab-gpt-2.gguf")
    done = run("info", vocab)
    t.check(
        done.returncode == 0 and b"\nruns " in done.stdout and b"no: " in done.stdout,
        done.stdout[-300:],
    )
    t.check(
        json.loads(run("info", vocab, "--json").stdout)["runs"] is False,
        "info --json of a bare vocabulary",
    )
    t.check(
        run("tokenize", "-m", vocab, "Hello world").stdout == b"15496 995\n",
        "tokenize with a bare vocabulary",
    )


def options():
    """{--name: all its spellings} from the help of every command."""
    found = {}
    verbs = ("run", "chat", "serve", "health", "cert", "info", "bench", "tokenize", "detokenize")
    for verb in (*verbs, "version"):
        text = run("help", verb).stdout.decode()
        for m in re.finditer(r"^  (?:(-\w), |    )--(?:\[no-\])?([\w-]+)", text, re.M):
            found["--" + m.group(2)] = m.group(1)
    return found


def test_help():
    topics = ("modes", "rules", "formats", "sampling", "exit-codes", "env", "sandbox", "health")
    verbs = ("run", "chat", "serve", "health", "cert", "info", "bench", "tokenize", "detokenize")
    verbs += ("convert", "diff", "version", "help", "completion")
    for name in (None, *topics, *verbs):
        done = run("help", *([name] if name else []))
        text = done.stdout.decode()
        t.check(done.returncode == 0 and done.stderr == b"" and len(text) > 80, f"help {name}")
        t.check(max(map(len, text.splitlines())) <= 100, f"help {name}: a line is too wide")
        t.check(
            text.endswith("\n") and not re.search(r" $", text, re.M),
            f"help {name}: blanks at a line's end",
        )
    general = run("help").stdout
    t.check(run("--help").stdout == general and run("-h").stdout == general, "--help, -h")
    t.check(run("chat", "--help").stdout == run("help", "chat").stdout, "chat --help")
    t.check(
        all(name.encode() in general for name in (*verbs, *topics)),
        "help names every command and topic",
    )
    for code in "0", "1", "2", "3", "4", "130":
        t.check(
            re.search(rf"^  {code} ", run("help", "exit-codes").stdout.decode(), re.M),
            f"exit code {code}",
        )
    version = run("version").stdout
    t.check(
        run("--version").stdout == version and re.match(rb"dlm \d+\.\d+\.\d+\n", version), version
    )
    names = options()
    t.check(len(names) > 30, names)
    man = run("help", "man").stdout.decode().replace("\\-", "-").replace("[no-]", "")
    scripts = [run("completion", shell).stdout.decode() for shell in ("bash", "zsh", "fish")]
    for name in names:
        t.check(name in man, f"help man: no {name}")
        t.check(
            name in scripts[0] and name in scripts[1] and f"-l {name[2:]} " in scripts[2] + " ",
            f"completion: {name}",
        )
    bash = subprocess.run(
        [
            "bash",
            "-c",
            "source /dev/stdin; COMP_WORDS=(dlm run --thr); COMP_CWORD=2; _dlm; echo ${COMPREPLY[*]};"
            "COMP_WORDS=(dlm --decode-mode ''); _dlm; echo ${COMPREPLY[*]}",
        ],
        input=scripts[0].encode(),
        capture_output=True,
        check=False,
    )
    t.check(bash.stdout == b"--threshold --threads\ngreedy iterative adaptive ar auto\n", bash)


def test_readme():
    path = os.path.join(ROOT, "README.md")
    if not t.check(os.path.exists(path), "there is no README.md"):
        return
    with open(path, encoding="utf-8") as f:
        readme = f.read()
    for name, letter in options().items():
        t.check(
            f"`{name}" in readme or f"{name} " in readme or f"{name}`" in readme,
            f"README: no {name}",
        )
        t.check(
            not letter or f"`{letter}" in readme or f"{letter}, " in readme, f"README: no {letter}"
        )


def test_chat():
    done = run("-q", "-p", QUESTION)
    talk = run("chat", stdin=f"{QUESTION}\n\n/stats\n/hlp\n{QUESTION}\n/clear\n{QUESTION}".encode())
    answers = talk.stdout.decode().splitlines()
    t.check(talk.returncode == 0 and len(answers) == 3, talk)
    t.check(answers[0] + "\n" == done.stdout.decode() and answers[2] == answers[0], answers)
    t.check(
        b"tokens/forward" in talk.stderr
        and b"/help" in talk.stderr
        and b"forgotten" in talk.stderr,
        talk.stderr,
    )
    t.check(run("chat", stdin=b"").returncode == 0, "chat at the end of input")
    t.check(run("chat", stdin=b"/quit\nWhat is 2+2?\n").stdout == b"", "/quit")
    long = run("chat", "-c", "64", stdin=(QUESTION + "\n").encode() * 12)
    t.check(
        long.returncode == 0 and b"the context holds 64" in long.stderr,
        f"a full context: {long.stderr[-300:]}",
    )


def test_no_demo():
    nodemo = os.path.join(ROOT, "build", "dlm-nodemo")
    for args in (["-p", "x"], ["info"], ["chat"], ["tokenize", "x"]):
        done = subprocess.run(
            [nodemo, *args], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        one_line(f"without a demo: {args}", done, 2, "-m")
    done = subprocess.run(
        [nodemo, "-q", "-m", TINY, "-p", QUESTION],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    t.check(done.stdout == run("-q", "-p", QUESTION).stdout, "without a demo, with -m")


tests = [f for name, f in sorted(globals().items()) if name.startswith("test_")]
for test in tests:
    test()
t.end()
