"""Metrics of the server, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cola_cli.serving.scheduler import Scheduler

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class ServerMetrics:
    """The counters of one server."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter(
            "cola_requests", "Answered requests.", ["path", "status"], registry=own
        )
        self.prompt_tokens = Counter("cola_prompt_tokens", "Of answered requests.", registry=own)
        self.tokens = Counter("cola_generated_tokens", "Of answered requests.", registry=own)
        self.first = Histogram(
            "cola_first_block_seconds",
            "From a request to its first block.",
            buckets=SECONDS,
            registry=own,
        )
        self.seconds = Histogram(
            "cola_request_seconds", "From a request to its end.", buckets=SECONDS, registry=own
        )
        for name, about, value in (
            ("cola_active", "Continuations that are computed.", lambda: scheduler.active),
            ("cola_waiting", "Continuations in the queue.", lambda: scheduler.waiting),
        ):
            Gauge(name, about, registry=own).set_function(value)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)
