"""Clients that are slow, wrong, hostile or gone: the others are served, and nothing is left behind."""

from __future__ import annotations

import ctypes
import gc
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cola_cli.serving import server as serving_server
from cola_cli.serving.app import Access
from cola_cli.serving.completions import Limits
from tests.serving.conftest import Running

JSON = {"Content-Type": "application/json"}
# a story of the demo model ends after some 80 tokens, so that many steps make it long
LONG = {
    "prompt": "Once upon a time there was",
    "max_tokens": 1500,
    "steps": 200,
}  # a story: seconds


def is_whole(server: Running) -> bool:
    """Whether the server still gives what it always gives."""
    body = {"prompt": "Tom was a brave sailor", "max_tokens": 8}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=240)
    return answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 8


def until(ready: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"null", 400),
        (b"[]", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": 1}', 400),
        (b'{"prompt": [[1, "a"]]}', 400),
        (b'{"prompt": [-1]}', 400),
        (b'{"prompt": [1e99]}', 400),
        (b'{"prompt": "x", "seed": ' + b"9" * 6000 + b"}", 400),
        (b'{"prompt": "x", "guidance": NaN}', 400),
        (b'{"prompt": "x", "guidance": 1e999}', 400),
        (b'{"prompt": "x", "seed": true}', 400),
        (b'{"prompt": "x", "grid": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
        (b"[" * 200_000, 400),
        (b'{"prompt": "x", "\xc3\xa9": 1}', 400),
        (b'{"prompt": "x", "stop": [""]}', 400),
        (b'{"prompt": "' + b"x" * (10 << 20) + b'"}', 413),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_malformed_body_is_refused_in_openais_shape(
    server: Running, body: bytes, status: int
) -> None:
    for path in ("completions", "chat/completions"):
        answer = httpx.post(f"{server.url}/v1/{path}", content=body, headers=JSON, timeout=240)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error["message"]
        assert set(error) == {"message", "type", "param", "code"}
    assert is_whole(server)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children)
    ),
    max_leaves=8,
)
FIELDS = (
    "model", "prompt", "n", "stop", "seed", "steps", "guidance", "grid", "stream", "echo", "top_k", "item",
    "guidance_interval", "unmask_block", "messages", "stream_options", "compat", "first_block", "history",
)  # fmt: skip


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=5))
def test_no_body_makes_the_server_fail(server: Running, fields: dict[str, Any]) -> None:
    body = json.dumps(fields | {"max_tokens": 2}).encode()
    for path in ("completions", "chat/completions"):
        answer = httpx.post(f"{server.url}/v1/{path}", content=body, headers=JSON, timeout=240)
        assert answer.status_code in (200, 400, 404), answer.text


def test_other_methods_paths_and_types_are_refused(server: Running) -> None:
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405
    assert httpx.get(f"{server.url}/../etc/passwd").status_code == 404
    assert httpx.get(f"{server.url}/page.html").json()["error"]["type"] == "invalid_request_error"
    plain = httpx.post(
        f"{server.url}/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"}
    )
    assert plain.status_code == 415  # what a web page may send without being asked


def test_a_foreign_name_of_this_machine_is_refused(server: Running) -> None:
    for host, status in (("evil.example", 403), ("localhost:1", 200), ("[::1]:80", 200)):
        answer = httpx.get(f"{server.url}/health", headers={"Host": host})
        assert answer.status_code == status


def test_a_key_is_needed_where_there_is_one(
    start: Callable[..., Running], capfd: pytest.CaptureFixture[str]
) -> None:
    server = start(access=Access("s3cret-key"))
    body = {"prompt": "Tom", "max_tokens": 1}
    for given_key, status in (("s3cret-key", 200), ("s3cret-kez", 401), ("s", 401), ("\xe9", 401)):
        headers = {"Authorization": f"Bearer {given_key}".encode("latin-1")}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers)
        assert answer.status_code == status
        assert "s3cret" not in answer.text
    for path in ("/v1/models", "/metrics", "/v1/nothing"):
        assert httpx.get(server.url + path).status_code == 401
        assert httpx.get(server.url + path).json()["error"]["code"] == "invalid_api_key"
    for path in ("/health", "/"):
        assert httpx.get(server.url + path).status_code == 200
    out, err = capfd.readouterr()
    assert "s3cret" not in out + err


def test_keys_are_compared_in_constant_time() -> None:
    """A comparison that ends at the first wrong character tells how many were right."""
    import inspect

    assert "compare_digest" in inspect.getsource(Access.check)


def test_beyond_the_queue_clients_are_told_to_come_again(start: Callable[..., Running]) -> None:
    server = start(rows=2, queue=1)
    with httpx.Client(timeout=240) as client:
        running = [client.send(_stream(client, server), stream=True) for _ in range(2)]
        until(lambda: server.scheduler.active == 2)
        waiting = threading.Thread(target=lambda: is_whole(server))
        waiting.start()
        until(lambda: server.scheduler.waiting == 1)
        refused = client.post(f"{server.url}/v1/completions", json=LONG)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        for answer in running:
            answer.close()
        waiting.join()


def test_clients_that_vanish_free_their_rows(start: Callable[..., Running]) -> None:
    server = start(rows=4, queue=0)
    for stream in (True, False):
        for _ in range(4):
            body = json.dumps(LONG | {"stream": stream}).encode()
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(_head(len(body)) + body)
                if stream:
                    client.recv(100)
                else:
                    until(lambda: server.scheduler.active)
        until(lambda: server.scheduler.active == 0)
    assert is_whole(server)


def test_a_request_that_takes_too_long_ends(start: Callable[..., Running]) -> None:
    server = start(limits=Limits(seconds=0.5))
    answer = httpx.post(f"{server.url}/v1/completions", json=LONG)
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "timeout")
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}
    ) as stream:
        *_, last = [line for line in stream.iter_lines() if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"


def test_slow_senders_are_cut_off(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_server, "HEADER_SECONDS", 0.5)
    server = start(limits=Limits(body_seconds=0.5))
    for sent in (b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET"):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(sent)
            client.settimeout(10)
            while client.recv(1000):
                pass
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(10)
        client.sendall(_head(1000) + b'{"prompt":')
        assert b" 408 " in client.recv(1000)
    assert is_whole(server)


def test_a_flood_of_headers_is_refused(server: Running) -> None:
    for headers in (b"X-A: " + b"x" * 100_000, b"".join(b"X-%d: y\r\n" % n for n in range(20_000))):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.settimeout(10)
            try:
                client.sendall(
                    b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n\r\n"
                )
                assert client.recv(1000).split()[1] in (b"400", b"431")
            except ConnectionError:
                pass  # it was closed while we were still sending
    assert is_whole(server)


def test_nobody_is_served_anothers_text(server: Running) -> None:
    """Many at once, each with a prompt and a seed of its own, some of whom go away."""
    asked = [
        {"prompt": prompt, "seed": seed, "max_tokens": 16, "steps": 4, "temperature": 0.7}
        for seed, prompt in enumerate(
            ["Tom was", "Anna saw a", "Once upon a time there", "The"] * 3
        )
    ]
    expected = [_text(server, body) for body in asked]
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        if number % 4 == 3:
            with httpx.stream(
                "POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}
            ) as gone:
                next(gone.iter_lines())
        found[number] = _text(server, asked[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(asked))] == expected


def test_memory_stays_where_it_is_over_many_requests(start: Callable[..., Running]) -> None:
    server = start(rows=8, queue=200)
    body = {"prompt": "Tom was a", "max_tokens": 4, "steps": 1}

    def ask(count: int) -> None:
        with httpx.Client(timeout=240) as client:
            for number in range(count):
                client.post(f"{server.url}/v1/completions", json=body | {"seed": number})

    def round_of(count: int) -> int:
        threads = [threading.Thread(target=ask, args=(count // 4,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return resident()

    before = round_of(120)
    assert round_of(240) - before < 8 << 20


def resident() -> int:
    """Bytes of memory that this process holds, without what was freed and is kept by the allocator."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    pytest.skip("needs /proc")


def _text(server: Running, body: dict[str, Any]) -> str:
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=240)
    return answer.json()["choices"][0]["text"]


def _stream(client: httpx.Client, server: Running) -> httpx.Request:
    return client.build_request(
        "POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}
    )


def _head(length: int) -> bytes:
    return (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()
