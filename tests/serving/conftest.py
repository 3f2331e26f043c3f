"""A server of the demo model and two small baselines, in a thread of the test's process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cola_cli.api import Baseline, Cola
from cola_cli.corpus.chats import ChatTemplate
from cola_cli.families import AUTOREGRESSIVE, LLADA
from cola_cli.models.config import TransformerConfig
from cola_cli.models.transformer import Transformer
from cola_cli.serving.app import Access, App
from cola_cli.serving.completions import Limits, Served
from cola_cli.serving.scheduler import Scheduler
from cola_cli.serving.server import address, listen, make_server
from cola_cli.serving.watching import Watching
from cola_cli.settings import resolve
from cola_cli.settings.sample import SampleSettings
from cola_cli.stages.answers import open_model
from cola_cli.stages.sample import stored_settings
from cola_cli.weights.names import demo_model

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def defaults() -> SampleSettings:
    """What `cola sample demo` takes where no flag is given."""
    return resolve(SampleSettings, "sample", recorded=stored_settings(demo_model()))


def demo() -> Served:
    """The demo model as it is served."""
    settings = defaults()
    model = open_model(demo_model(), settings, "cpu")
    assert isinstance(model, Cola)
    return Served("demo", model, settings, Watching(model), ChatTemplate(TEMPLATE), 1)


def small_baseline(causal: bool, like: Cola) -> Served:
    """A random baseline with the demo model's tokenizer."""
    config = TransformerConfig(
        vocab_size=like.vae.config.vocab_size, causal=causal, layers=1, dim=16, ffn_dim=24, heads=2,
        head_dim=8,
    )  # fmt: skip
    token_model = (AUTOREGRESSIVE if causal else LLADA).token_model
    assert token_model is not None
    model = Baseline(Transformer(config).requires_grad_(False), token_model, like.tokenizer, 256)
    return Served("next" if causal else "masks", model, SampleSettings())


class Running:
    """A server that runs, and what it is made of."""

    def __init__(
        self, models: list[Served], limits: Limits | None = None, rows: int = 8, queue: int = 32,
        access: Access | None = None,
    ) -> None:  # fmt: skip
        self.models = models
        self.scheduler = Scheduler(rows, queue)
        self.app = App(models, self.scheduler, limits or Limits())
        self._server = make_server(self.app.asgi(access or Access()), drain=1, connections=500)
        socket = listen("127.0.0.1", 0)
        self.url, self.port = address(socket), socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [socket]})
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._server.should_exit = True
        self._thread.join()
        self.scheduler.close()


@pytest.fixture(scope="session")
def models() -> list[Served]:
    """Demo model and baselines."""
    first = demo()
    assert isinstance(first.model, Cola)
    return [first, small_baseline(True, first.model), small_baseline(False, first.model)]


@pytest.fixture
def start(models: list[Served]) -> Iterator[Callable[..., Running]]:
    """Start servers that end with the test."""
    running: list[Running] = []

    def begin(**options: Any) -> Running:
        running.append(Running(models, **options))
        return running[-1]

    yield begin
    for one in running:
        one.stop()


@pytest.fixture(scope="module")
def server(models: list[Served]) -> Iterator[Running]:
    """One server for the tests of a module."""
    running = Running(models)
    yield running
    running.stop()
