"""uvicorn with limits of time and the signals of every command."""

from __future__ import annotations

import contextlib
import socket
from asyncio import TimerHandle, Transport
from collections.abc import Generator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from cola_cli.errors import UsageError
from cola_cli.machine import interruption
from cola_cli.serving.app import HEADER_BYTES

HEADER_SECONDS = 10.0


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose request head is not complete in time."""

    _timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        """A request is answered; another may follow."""
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or the connection was closed."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class Server(uvicorn.Server):
    """Stops when a signal asks, as every command does: `machine.interruption` has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals to the command."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Whether to end."""
        return await super().on_tick(counter) or interruption.requested() is not None


def make_server(app: ASGIApp, drain: float, connections: int) -> Server:
    """A server of the application; drain: seconds for what is under way when it is to end."""
    options: dict[str, Any] = {
        "http": PatientProtocol,
        "ws": "none",
        "lifespan": "off",
        "loop": "asyncio",
    }
    return Server(
        uvicorn.Config(
            app,
            **options,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(drain),
            limit_concurrency=connections,
            h11_max_incomplete_event_size=2 * HEADER_BYTES,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket on which the server listens. Raises UsageError where that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or f"{error}"
        raise UsageError(
            f"cannot listen on {host}:{port} ({reason}).", "Choose another --port or --host."
        ) from None


def address(bound: socket.socket) -> str:
    """The address of a listening socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
