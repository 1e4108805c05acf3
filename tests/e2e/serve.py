#!/usr/bin/env python3
"""serve.py - `dlm serve` as its clients see it: the official packages, curl, and raw sockets."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time

import openai

from _run import Count, run
from _schema import check, check_event
from _serve import Server, dechunk, events

t = Count()
QUESTION = "What is 2+2?"
LONG = "Count from 1 to 9."


def shape(name, body):
    """The body has exactly the shape that is promised."""
    try:
        check(name, body)
        t.check(True, name)
    except AssertionError as e:
        t.check(False, e)


def event_shape(name, body):
    try:
        check_event(name, body)
        t.check(True, name)
    except AssertionError as e:
        t.check(False, e)


def said(question, *args):
    return run("-q", "-p", question, *args).stdout.decode().removesuffix("\n")


def test_openai(s):
    client = openai.OpenAI(base_url=s.url + "/v1", api_key="unused-key", max_retries=0)
    ask = {"model": "dlm", "messages": [{"role": "user", "content": QUESTION}]}
    answer = client.chat.completions.create(**ask)
    t.check(answer.choices[0].message.content == said(QUESTION), answer)
    t.check(answer.choices[0].finish_reason == "stop" and answer.usage.total_tokens > 10, answer)
    shape("chat", json.loads(client.chat.completions.with_raw_response.create(**ask).text))
    chunks = list(client.chat.completions.create(**ask, stream=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    t.check(text == answer.choices[0].message.content, text)
    t.check(chunks[-1].choices[0].finish_reason == "stop", chunks[-1])
    t.check([m.id for m in client.models.list()] == ["dlm-demo"], "models")
    t.check(client.models.retrieve("dlm-demo").id == "dlm-demo", "model")


def test_plain():
    with Server("-np", "4") as s:
        shape("health", s.ask("GET", "/health")[2])
        test_openai(s)
        t.check(s.stop() == 0, "exit status after SIGTERM")
        t.check(any("stopped" in line for line in s.log), s.log[-3:])


def main():
    for name, test in list(globals().items()):
        if name.startswith("test_") and test.__code__.co_argcount == 0:
            from_s = time.monotonic()
            test()
            print(f"{name}: {time.monotonic() - from_s:.1f} s", flush=True)
    t.end()


if __name__ == "__main__":
    main()
