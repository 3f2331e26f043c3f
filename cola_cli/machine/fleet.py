"""Tasks on a cluster of Ray, or on a Ray that is started here for them alone."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import signal
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from cola_cli.errors import ColaError, InputError, UsageError
from cola_cli.machine import interruption
from cola_cli.machine.threads import available_cores

LOCAL = "ray"
CLUSTER = "ray://"
RETRIES = 6  # of a task whose worker dies; an error that a task tells is not tried again
ENDING_SECONDS = 10.0  # for tasks that are cancelled to end
POLL_SECONDS = 0.2  # for signals
STORE_BYTES = 80 << 20  # the least that Ray takes: tasks exchange files, not objects
SILENT: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}


def require_engine(text: str) -> None:
    """Raise UsageError unless a text is `ray` or `ray://HOST:PORT`."""
    if text != LOCAL and not (text.startswith(CLUSTER) and text != CLUSTER):
        raise UsageError(
            f"--on {text}: it is not ray, nor ray://HOST:PORT.",
            "Try --on ray: it uses the cluster in RAY_ADDRESS, or this machine.",
        )


class Fleet:
    """A Ray that is connected."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def count(self, kind: str) -> int:
        """How many of "CPU" or "GPU" all machines have."""
        return int(self._ray.cluster_resources().get(kind, 0))

    def run(
        self, work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], cpus: int, gpus: int
    ) -> Generator[tuple[int, Any], None, None]:
        """Call `work`, a function of a module, with each of the tuples on a worker of so many processors.

        Gives (number of the task, result) as they end; for a task whose workers all died, a ColaError. What
        runs when the caller has enough is stopped.
        """
        remote = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(work)
        running = {remote.remote(*task): number for number, task in enumerate(tasks)}
        try:
            while running:
                ready, _ = self._ray.wait([*running], timeout=POLL_SECONDS)
                interruption.check()
                for one in ready:
                    yield running.pop(one), self._result(one)
        finally:
            for one in running:
                self._ray.cancel(one)
            if running:
                self._ray.wait([*running], num_returns=len(running), timeout=ENDING_SECONDS)

    def _result(self, finished: Any) -> Any:
        try:
            return self._ray.get(finished)
        except self._ray.exceptions.RayError as error:
            return ColaError(
                f"its worker was lost, {1 + RETRIES} times or for good ({_reason(error)}).",
                "If memory ran out, have fewer --shards at a time or smaller batches; run the same command"
                " again: what is finished is kept.",
            )


@contextlib.contextmanager
def fleet(where: str) -> Iterator[Fleet]:
    """The cluster at `where`; of `ray` that in RAY_ADDRESS, or a Ray of this machine that ends with it.

    The latter listens on the loopback interface alone and leaves no file. Raises UsageError without Ray,
    InputError where there is no cluster.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray waits 40 s in each attempt to reach a cluster, and makes 20 unless told
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    address = where if where != LOCAL else os.environ.get("RAY_ADDRESS", "")
    with contextlib.ExitStack() as ends:
        # where Ray prints what it has to say of workers that died, whatever its logs are told
        ends.enter_context(contextlib.redirect_stdout(io.StringIO()))
        ends.enter_context(warnings.catch_warnings(action="ignore"))
        options: dict[str, Any] = {"address": address}
        if not address:
            # without clusters Ray calls this machine 127.0.0.1; a token in the environment is not written
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            folder = tempfile.TemporaryDirectory(prefix="cola-", ignore_cleanup_errors=True)
            options = {
                "address": "local",
                "num_cpus": available_cores(),
                "object_store_memory": STORE_BYTES,
                "include_dashboard": False,
                "_temp_dir": ends.enter_context(folder),
            }
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                "--on needs Ray, which is not installed.",
                "Install it: pip install 'cola-cli[ray]', here and on all machines of a cluster.",
            ) from error
        # an exception that a signal raises amid Ray's own code would come out as another
        ends.enter_context(interruption.deferred())
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**options, **SILENT)
        except Exception as error:  # of many kinds; grpc's own among them
            raise InputError(
                f"Ray cannot be used at {address or 'this machine'} ({_reason(error)}).",
                "Check its address, that it runs, and that it has this version of Python and of Ray.",
            ) from error
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end this process at once
        ends.callback(ray.shutdown)
        yield Fleet(ray)


def _reason(error: Exception) -> str:
    """The first and the last line of the message of an error; of a server's, the cause is the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ... ".join(dict.fromkeys(lines[:1] + lines[-1:])) or type(error).__name__
