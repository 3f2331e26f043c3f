"""A store that speaks S3 on 127.0.0.1: `python -m tests.stores.server PORT`, moto's with what tests need.

LATENCY: seconds that every request takes longer. UNCONDITIONAL: conditions of puts are not looked at. SKEWED:
requests are refused, as S3 does where the clock of the client is off. GOOGLE: it speaks the XML API of
Google's storage, whose conditions name the generation of an object: here its ETag as a number. Puts are made
one after the other, as moto looks at their condition first and writes then.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

from tests.stores import KEY

SKEWED = b"<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>"


def as_google(environ: dict[str, Any], start_response: Any) -> Any:
    """Have a request of Google's dialect answered by S3's; returns a `start_response` for it."""
    for condition in ("HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"):
        if environ["REQUEST_METHOD"] == "PUT":
            environ.pop(condition, None)
    environ["HTTP_AUTHORIZATION"] = KEY
    generation = environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None)
    if generation == "0":
        environ["HTTP_IF_NONE_MATCH"] = "*"
    elif generation is not None:
        environ["HTTP_IF_MATCH"] = f'"{int(generation):032x}"'
    if source := environ.pop("HTTP_X_GOOG_COPY_SOURCE", None):
        environ["HTTP_X_AMZ_COPY_SOURCE"] = source

    def started(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
        tags = [value.strip('"').partition("-")[0] for name, value in headers if name == "ETag"]
        own = [("x-goog-generation", str(int(tag, 16))) for tag in tags]
        return start_response(status, [*headers, *own], *more)

    return started


class Store:
    """The WSGI application."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._one = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
        is_object = (path.count("/") > 1 and "moto-api" not in path) or "list-type" in query
        if is_object:
            time.sleep(float(os.environ.get("LATENCY", "0")))
        if is_object and "SKEWED" in os.environ:
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [SKEWED]
        if "GOOGLE" in os.environ:
            start_response = as_google(environ, start_response)
        if "UNCONDITIONAL" in os.environ:
            environ.pop("HTTP_IF_NONE_MATCH", None)
            environ.pop("HTTP_IF_MATCH", None)
        if environ["REQUEST_METHOD"] != "PUT":
            return self._moto(environ, start_response)
        with self._one:
            return [b"".join(self._moto(environ, start_response))]


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), Store(), threaded=True)
