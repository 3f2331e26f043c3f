"""stderr for people (progress, remarks, errors), stdout for the result; `--json` for machines."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from cola_cli.errors import ColaError, InputError, Interrupted, is_out_of_memory
from cola_cli.reporting import Reporter, Silent

LINE_SECONDS = 10.0  # between progress lines when stderr is not a terminal
BROKEN_PIPE = 141


def with_addresses(text: str) -> str:
    """A text for people in which copies of what lies in an object store are the addresses of it."""
    if "/objects/" not in text:  # that room is not opened for nothing: a command begins at once
        return text
    from cola_cli.artifacts import stores

    return stores.with_addresses(text)


class TerminalReporter:
    """Progress bars on a terminal, a plain line every so often elsewhere; all on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._interactive = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def start(self, what: str, total: int | None, unit: str, done: int = 0) -> None:
        from tqdm import tqdm

        self.stop()
        # Where there is no terminal tqdm would rewrite one line with carriage returns; it only keeps
        # the rate and the time left there, and _line prints them.
        self._bar = tqdm(
            desc=with_addresses(what),
            total=total,
            unit=f" {unit}",
            initial=done,
            file=sys.stderr if self._interactive else io.StringIO(),
            ascii=not self._interactive or None,
            dynamic_ncols=True,
            unit_scale=total is None or total >= 100_000,
            mininterval=0.2,
        )
        self._printed = time.monotonic()

    def advance(self, count: int, **metrics: float | str) -> None:
        if self._bar is None:
            return
        self._bar.update(count)
        if metrics:  # after the update, whose rate takes room too; the next line shows them
            self._bar.set_postfix_str(self._fitting(metrics), refresh=False)
        if not self._interactive and time.monotonic() - self._printed > LINE_SECONDS:
            self._line()

    def stop(self) -> None:
        if self._bar is None:
            return
        if not self._interactive:
            self._line()
        self._bar.close()
        self._bar = None

    def note(self, text: str) -> None:
        self._write(with_addresses(text))

    def warn(self, text: str) -> None:
        self._write(with_addresses(f"warning: {text}"))

    def _fitting(self, metrics: dict[str, float | str]) -> str:
        """The first of the metrics for which a terminal of this width has room beside a bar of ten cells."""
        shown = [
            f"{name}={value if isinstance(value, str) else self._bar.format_sizeof(value)}"
            for name, value in metrics.items()
        ]
        if self._interactive:
            bar = self._bar.format_dict
            while shown and bar["ncols"]:
                wide = self._bar.format_meter(**bar | {"ncols": None, "postfix": ", ".join(shown)})
                if len(wide) <= bar["ncols"]:
                    break
                shown.pop()
        return ", ".join(shown)

    def _line(self) -> None:
        if self._bar.disable:  # by TQDM_DISABLE
            return
        self._printed = time.monotonic()
        print(str(self._bar).replace("\r", ""), file=sys.stderr, flush=True)

    def _write(self, text: str) -> None:
        if self._bar is not None and self._interactive:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


def reporter(quiet: bool) -> Reporter:
    """The reporter of a command: silent with --quiet."""
    return Silent() if quiet else TerminalReporter()


def prepare_streams() -> None:
    """Make every text writable, and open the null device for each stream that the caller closed.

    Otherwise the next file that is opened would get the number of stdout or stderr.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    if isinstance(sys.stdin, io.TextIOWrapper):
        # what is not UTF-8 is named by who reads it
        sys.stdin.reconfigure(errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # stderr is so already


def print_json(value: Any) -> None:
    """One JSON object on stdout: infinite numbers and NaN become null, with a warning."""
    # where stdout is not UTF-8, its escapes of characters would not be those of JSON
    escaped = codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"
    try:
        text = json.dumps(value, ensure_ascii=escaped, allow_nan=False)
    except ValueError:
        print("warning: some numbers are infinite or NaN; they are null", file=sys.stderr)
        finite = json.loads(json.dumps(value), parse_constant=lambda name: None)
        text = json.dumps(finite, ensure_ascii=escaped)
    print(with_addresses(text), flush=True)


# title, columns, rows
Table = tuple[str, Sequence[str], Sequence[Sequence[Any]]]


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout: drawn on a terminal, tab-separated when piped; None is a dash.

    Where the terminal is too narrow for its words, every row is a block of lines, one a column.
    Cells may be foreign text: nothing in them is markup, and control characters are shown, not sent.
    """
    names = [_shown(column) for column in columns]
    if not sys.stdout.isatty():
        for row in (names, *rows):
            print("\t".join(_shown(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[f"{c:.4g}" if isinstance(c, float) else _shown(c) for c in row] for row in rows]
    drawn = Table(title=Text(with_addresses(title)) if title else None, title_justify="left")
    for number, name in enumerate(names):
        numeric = bool(rows) and isinstance(rows[0][number], int | float)
        drawn.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for shown in cells:
        drawn.add_row(*map(Text, shown))
    console = Console()
    unbounded = console.options.update(max_width=sys.maxsize)
    if console.measure(drawn, options=unbounded).minimum <= console.width:
        console.print(drawn)
        return
    if title:
        print(with_addresses(title))
    widest = max(map(len, names))
    blocks = [
        "".join(f"{name:<{widest}}  {cell}\n" for name, cell in zip(names, shown, strict=True))
        for shown in cells
    ]
    print("\n".join(blocks), end="")


def _shown(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bytes):
        return f"{len(cell):,} bytes"
    text = with_addresses(str(cell))
    if text.isprintable():
        return text
    from cola_cli.artifacts.reading import shown

    return shown(text, len(text))


@contextmanager
def errors_shown(debug: bool, as_json: bool = False) -> Iterator[None]:
    """Turn exceptions into a sentence on stderr and the exit code; tracebacks only with --debug."""
    try:
        yield
    except BrokenPipeError:
        # The reader of our output has gone; Python must not try to flush into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(BROKEN_PIPE) from None
    except (typer.Exit, typer.Abort):
        raise
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        raise typer.Exit(show_error(as_failure(error), debug, as_json)) from None


def as_failure(error: BaseException) -> ColaError | Interrupted:
    """An exception as what is said of it."""
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(2)
    if isinstance(error, ColaError | Interrupted):
        return error
    if isinstance(error, OSError):
        return _of_the_system(error)
    return NO_MEMORY if is_out_of_memory(error) else _fault(error)


NO_MEMORY = ColaError(
    "there is not enough memory.", "Use a smaller batch, or a machine with more memory."
)


# errors that a path given by the user can cause
OF_THE_PATH = (
    errno.ENAMETOOLONG, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV,
)  # fmt: skip


def _of_the_system(error: OSError) -> ColaError:
    # stages say which file they write; what is left is removing, and our own output
    named = error.filename if isinstance(error.filename, str) else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem = (
            f"the disk is full: {named} could not be written." if named else "the disk is full."
        )
        return ColaError(problem, "Free some space and run the same command again.")
    if not named:
        return _fault(error)
    if error.errno in OF_THE_PATH:
        return InputError(f"{named} cannot be used ({error.strerror}).", "Check the path.")
    return ColaError(
        f"{named}: {error.strerror}.",
        "Check the file and its disk, and run the same command again; what is finished is kept.",
    )


def _fault(error: BaseException) -> ColaError:
    return ColaError(
        f"a fault in cola: {type(error).__name__}: {error}",
        "Run again with --debug for the traceback; finished work is kept.",
    )


def show_error(error: ColaError | Interrupted, debug: bool, as_json: bool = False) -> int:
    """Print the error on stderr, as a line of JSON if wanted, and return its exit code."""
    if debug:
        traceback.print_exc()
    if as_json:
        told = {"problem": error.problem, "remedy": error.remedy, "exit_code": error.exit_code}
        print(json.dumps({"error": told}), file=sys.stderr)
        return error.exit_code
    word = "cola" if isinstance(error, Interrupted) else "cola: error"
    print(f"{word}: {error.problem}", file=sys.stderr)
    if error.remedy:
        print(f"      {error.remedy}", file=sys.stderr)
    return error.exit_code
