"""`cola serve` as a process: what it says, how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Run, cola_command

BODY = {"prompt": "Tom was a brave sailor", "max_tokens": 120, "stream": True}
Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Start]:
    """Start `cola serve demo`; the process and its address."""
    started = []

    def begin(*arguments: str, **options: Any) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            cola_command("serve", "demo", "--port", "0", "--json", *arguments),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, **options,
        )  # fmt: skip
        started.append(process)
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        return process, json.loads(line)["url"]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_streams_end_refuses_others_and_exits_0(serve: Start, number: int) -> None:
    process, url = serve()
    with httpx.stream("POST", f"{url}/v1/completions", json=BODY, timeout=240) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(number)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"]
    assert process.wait() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_draining_takes_so_long_at_most(serve: Start) -> None:
    process, url = serve("--drain", "1")
    body = BODY | {"max_tokens": 1900, "steps": 200}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=240) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_a_key_comes_from_the_environment_and_is_not_shown(serve: Start) -> None:
    process, url = serve(env=os.environ | {"COLA_API_KEY": "k3y-of-mine"})
    assert httpx.get(f"{url}/v1/models").status_code == 401
    headers = {"Authorization": "Bearer k3y-of-mine"}
    (model,) = httpx.get(f"{url}/v1/models", headers=headers).json()["data"]
    assert model["id"] == "demo"
    assert model["cola"]["defaults"]["guidance"] == 1.0  # as it is stored with the model
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert "k3y-of-mine" not in out + err


def test_without_a_key_only_this_machine_is_answered_unless_told(serve: Start) -> None:
    process, url = serve()
    assert url.startswith("http://127.0.0.1:")
    process, url = serve("--host", "0.0.0.0", stdin=subprocess.DEVNULL)
    assert httpx.get(f"http://127.0.0.1:{url.rpartition(':')[2]}/health").status_code == 200
    process.send_signal(signal.SIGTERM)
    assert "there is no --api-key" in process.communicate()[1]


def test_a_port_in_use_is_named(cola: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = cola("serve", "demo", "--port", port, expect=2)
    assert f"cannot listen on 127.0.0.1:{port}" in found.stderr


def test_what_is_not_a_model_or_a_template_is_refused(cola: Run, tmp_path: Path) -> None:
    assert "does not exist" in cola("serve", "nothing", "--port", "0", expect=4).stderr
    (tmp_path / "chat.jinja").write_text("{% for %}")
    found = cola("serve", "demo", "--port", "0", "--chat-template", "chat.jinja", expect=4)
    assert "chat.jinja is not a chat template" in found.stderr


def test_without_the_extra_the_remedy_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None; import importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *rest: None if name == 'uvicorn' else find(name, *rest);"
        "from cola_cli.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "demo"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "pip install 'cola-cli[serve]'" in done.stderr


def test_the_base_install_imports_nothing_of_the_server() -> None:
    code = (
        "import sys\nfor name in ('starlette', 'uvicorn', 'prometheus_client'): sys.modules[name] = None\n"
        "import cola_cli.api, cola_cli.cli.main, cola_cli.stages.sample"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_models_of_one_name_are_served_under_their_paths(serve: Start, tmp_path: Path) -> None:
    from cola_cli.weights.names import demo_model

    shutil.copytree(demo_model(), tmp_path / "demo")
    _, url = serve(str(tmp_path / "demo"), "--quiet")
    found = [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]]
    assert len(found) == len(set(found)) == 2
    both = [
        threading.Thread(
            target=lambda name=name: httpx.post(
                f"{url}/v1/completions", json={"model": name, "prompt": "Tom", "max_tokens": 4}
            ).raise_for_status()
        )
        for name in found
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
