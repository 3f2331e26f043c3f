"""The server as an ASGI application: OpenAI's interface, health, metrics and the page."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cola_cli.serving.completions import Job, Limits, Served
from cola_cli.serving.metrics import ServerMetrics
from cola_cli.serving.scheduler import Busy, Scheduler
from cola_cli.serving.schema import ChatRequest, CompletionRequest, Refused, Wanted, parse

PAGE = Path(__file__).parent / "page"
FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
HEADER_BYTES = 32 << 10
SHORT_BODY = 4 << 10  # bytes of a request that is made ready on the loop's own thread
GRACE = 30.0  # seconds more than the limit, for a client that reads slowly
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


@dataclass(frozen=True)
class Access:
    """Who may ask: with the key where there is one; `local`: only under a name of this machine, so that no
    web page can reach the server by a name of its own."""

    key: str | None = None
    local: bool = True

    def check(self, request: Request) -> None:
        """Raise Refused unless the request may pass."""
        protected = request.url.path.startswith("/v1/") or request.url.path == "/metrics"
        if self.key is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.encode("latin-1"), self.key.encode())
            if protected and not (same and scheme.lower() == "bearer"):
                raise Refused(401, "The API key is missing or wrong.", code="invalid_api_key")
        elif self.local:
            name = request.headers.get("host", "")
            name = name if name.endswith("]") else name.rpartition(":")[0] or name
            if name not in LOOPBACK:
                raise Refused(403, "Without an API key this server answers to localhost only.")


class Guard:
    """Around the application: access, the time limit, and the count of answers."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        limits: Limits,
        metrics: ServerMetrics,
        routes: Collection[str],
    ) -> None:
        """routes: paths that are counted under their names."""
        self._app, self._access, self._metrics, self._routes = app, access, metrics, routes
        self._seconds = limits.seconds + limits.body_seconds + GRACE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
                raise Refused(431, "The headers are too long.")
            self._access.check(Request(scope))
            async with asyncio.timeout(self._seconds):
                await self._app(scope, receive, noted)
        except Refused as refused:
            await answer(refused)(scope, receive, noted)
        except TimeoutError:  # a client that does not read; the connection is closed
            pass
        finally:
            path = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.requests.labels(path, status).inc()


class App:
    """The endpoints over some models; a request that names none gets the first."""

    def __init__(self, models: Sequence[Served], scheduler: Scheduler, limits: Limits) -> None:
        self._models = {served.name: served for served in models}
        self._scheduler, self._limits = scheduler, limits
        self.metrics = ServerMetrics(scheduler)

    def asgi(self, access: Access) -> ASGIApp:
        """The application."""
        handlers: dict[str, tuple[Callable[..., Any], str]] = {
            "/v1/completions": (partial(self._answer, kind=CompletionRequest), "POST"),
            "/v1/chat/completions": (partial(self._answer, kind=ChatRequest), "POST"),
            "/v1/models": (self.models, "GET"),
            "/v1/models/{name:path}": (self.model, "GET"),
            "/health": (self.health, "GET"),
            "/metrics": (self.show_metrics, "GET"),
            **dict.fromkeys(FILES, (page, "GET")),
        }
        routes = [Route(path, call, methods=[method]) for path, (call, method) in handlers.items()]
        errors = {
            Refused: on_refused, HTTPException: on_http, ClientDisconnect: on_gone, Exception: on_fault,
        }  # fmt: skip
        app = Starlette(routes=routes, exception_handlers=errors)  # type: ignore[arg-type]
        return Guard(app, access, self._limits, self.metrics, handlers.keys())

    async def models(self, request: Request) -> Response:
        """GET /v1/models"""
        data = [served.about() for served in self._models.values()]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME"""
        return JSONResponse(self._served(request.path_params["name"]).about())

    async def health(self, request: Request) -> Response:
        """GET /health"""
        alive = self._scheduler.alive
        state = {"status": "ok" if alive else "the engine has stopped"}
        return JSONResponse(state, 200 if alive else 503)

    async def show_metrics(self, request: Request) -> Response:
        """GET /metrics"""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    def _served(self, name: str | None) -> Served:
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            known = ", ".join(self._models)
            message = f"The model {name[:100]!r} is not served here, but {known}."
            raise Refused(404, message, "model", "model_not_found")
        return self._models[name]

    async def _answer(self, request: Request, kind: type[Wanted]) -> Response:
        started = time.monotonic()
        body = await read_body(request, self._limits)
        wanted = parse(kind, body)
        plan = partial(
            Job, wanted, self._served(wanted.model), self._limits, asyncio.get_running_loop()
        )
        # a long text takes a while to tokenize, a short one less than to go to another thread
        job = plan() if len(body) < SHORT_BODY else await asyncio.to_thread(plan)
        try:
            self._scheduler.submit([choice.ticket for choice in job.choices])
        except Busy:
            raise Refused(429, "The queue is full; try again later.", code="queue_full") from None
        progress = job.progress()
        try:
            # nothing is sent before the first block, so that what fails until then has its status
            first = await unless_gone(request, anext(progress))
            self.metrics.first.observe(time.monotonic() - started)
            if wanted.stream:
                pieces = self._stream(job, first, progress, started)
                return StreamingResponse(
                    pieces, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
                )
            await unless_gone(request, exhaust(progress))
        except BaseException:
            job.leave()
            raise
        finally:
            if not wanted.stream:
                job.leave()
        self._count(job, started)
        return JSONResponse(job.whole())

    async def _stream(
        self, job: Job, first: Any, progress: AsyncIterator[Any], started: float
    ) -> AsyncIterator[str]:
        """Server-sent events: a piece for each choice that has news, block by block."""
        try:
            news = first
            while news is not None:
                for choice, glimpse in news:
                    yield event(job.chunk(choice, glimpse))
                news = await anext(progress, None)
            if job.wanted.stream_options and job.wanted.stream_options.include_usage:
                yield event(job.last_chunk())
            yield "data: [DONE]\n\n"
            self._count(job, started)
        except Refused as refused:
            yield event(refused.body)
        finally:
            job.leave()

    def _count(self, job: Job, started: float) -> None:
        usage = job.usage()
        self.metrics.prompt_tokens.inc(usage["prompt_tokens"])
        self.metrics.tokens.inc(usage["completion_tokens"])
        self.metrics.seconds.observe(time.monotonic() - started)


def page(request: Request) -> Response:
    """GET / and what belongs to it"""
    file = PAGE / FILES[request.url.path]
    headers = HEADERS | {"Cache-Control": "no-cache"}
    return Response(file.read_bytes(), headers=headers, media_type=TYPES[file.suffix])


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a JSON request. Raises Refused for one that is too large, too slow or of another type."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "The body must be application/json.")
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body:
                    raise Refused(413, f"The body is longer than {limits.body} bytes.")
    except TimeoutError:
        raise Refused(408, "The body did not come in time.") from None
    return bytes(body)


async def unless_gone(request: Request, work: Any) -> Any:
    """What comes of the work. Raises ClientDisconnect, and gives the work up, when the client goes away."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone(request))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


async def gone(request: Request) -> None:
    """Return when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def exhaust(pieces: AsyncIterator[Any]) -> None:
    """Take all there is."""
    async for _ in pieces:
        pass


def event(value: Any) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def answer(refused: Refused) -> JSONResponse:
    """A refusal as an answer."""
    headers = {}
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refused.status in (429, 503):
        headers["Retry-After"] = "1"
    if refused.status in (408, 413):
        headers["Connection"] = "close"
    return JSONResponse(refused.body, refused.status, headers)


async def on_refused(request: Request, error: Refused) -> Response:
    """What was refused on purpose."""
    return answer(error)


async def on_http(request: Request, error: HTTPException) -> Response:
    """What is not found, or not by this method."""
    return answer(
        Refused(error.status_code, f"{error.detail}: {request.method} {request.url.path}")
    )


async def on_gone(request: Request, error: ClientDisconnect) -> Response:
    """Who asked has gone away; this is for the count."""
    return Response(status_code=499)


async def on_fault(request: Request, error: Exception) -> Response:
    """A fault of ours; its traceback goes to the log."""
    return answer(Refused(500, "A fault in cola; the server's log says which."))
