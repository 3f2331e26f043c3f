"""Errors a user can act on. Each class has the exit code that the command line returns for it."""

from __future__ import annotations

from collections.abc import Callable

# What makes the text of an error one for people, such as addresses in the place of the paths of copies.
translations: list[Callable[[str], str]] = []


def printable(text: str) -> str:
    """A text on one line, control characters escaped: names in foreign files could drive a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class ColaError(Exception):
    """One sentence on what is wrong (with file, line or row, and value) and one on what to do."""

    exit_code = 1
    longest = 1000  # characters of the problem: names in foreign files may be megabytes long

    def __init__(self, problem: str, remedy: str = "") -> None:
        for translate in translations:
            problem, remedy = translate(problem), translate(remedy)
        super().__init__(problem)
        self.problem = printable(problem)
        if len(self.problem) > self.longest:
            half = self.longest // 2
            self.problem = f"{self.problem[:half]} ... {self.problem[-half:]}"
        self.remedy = printable(remedy)

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".strip()

    def __reduce__(self) -> tuple[type[ColaError], tuple[str, str]]:
        return type(self), (self.problem, self.remedy)  # survives the trip out of a worker process


class UsageError(ColaError):
    """A wrong flag, setting or combination of them."""

    exit_code = 2


class OutputConflict(ColaError):
    """The output location holds something else, or another process is writing there."""

    exit_code = 3
    longest = 100_000  # every setting that differs is named


class OutputLocked(OutputConflict):
    """Another live process writes to the output; this passes when it ends.

    stopped: whether that process is stopped by a signal, so that whoever waits may wait without end.
    """

    def __init__(self, problem: str, remedy: str, stopped: bool = False) -> None:
        super().__init__(problem, remedy)
        self.stopped = stopped


class InputError(ColaError):
    """Input data that cannot be used as it is."""

    exit_code = 4


class DamagedArtifact(ColaError):
    """An artifact whose bytes are not as they were written."""

    exit_code = 5


class Diverged(ColaError):
    """Training whose loss or weights are not finite numbers, or all of whose steps were skipped."""

    exit_code = 6


class PeerFailed(ColaError):
    """Another process of the same run failed, was lost or never came; the exit code may be its own."""

    exit_code = 7


class Interrupted(BaseException):
    """A signal asked the stage to stop.

    A BaseException, like KeyboardInterrupt, so that no `except Exception` swallows it.
    saved: whether there is anything that the next run goes on from.
    """

    remedy = "Run the same command again to go on."

    def __init__(self, signal_number: int, saved: bool = False) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
        self.saved = saved

    @property
    def problem(self) -> str:
        """What is said of it."""
        return "interrupted; progress is saved" if self.saved else "interrupted"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory.

    On the CPU torch raises a plain RuntimeError that names its allocator, or C++'s.
    """
    signs = ("DefaultCPUAllocator", "alloc_cpu.cpp", "bad_alloc")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ in ("OutOfMemoryError", "OutOfMemoryException")
        or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))
    )


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold a text: JSON may spell half of a surrogate pair, which no file may hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
