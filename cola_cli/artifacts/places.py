"""Where a stage may write: apart from everything that it reads."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cola_cli.artifacts.files import refuse_link
from cola_cli.artifacts.manifest import MANIFEST_NAME
from cola_cli.artifacts.mirror import pull
from cola_cli.artifacts.stores import address_of, place_of
from cola_cli.errors import OutputConflict, UsageError

Key = tuple[int, int]  # device and inode


def local(text: str) -> Path:
    """The path on a disk that a text names, to be written to, taken literally.

    Raises UsageError for an empty text, a URL, a name on the hub, and what no file system can write.
    """
    if not text:
        raise UsageError("the output has no name.", "Is a variable in the command empty?")
    if re.match(r"hf:[^/]", text):
        raise UsageError(f"{text} is a name on the hub.", "`cola push` publishes a model.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise UsageError(
            f"{text} is a URL.",
            "Name a place on a disk; an artifact may also lie at s3://, gs:// or az://.",
        )
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise UsageError(
            f"{text!a} is not a name that this system can write.", "Choose another."
        ) from None
    return Path(text)


def artifact_place(text: str) -> Path:
    """`local` for an artifact: of an address in an object store its copy."""
    if (place := place_of(text)) is None:
        return local(text)
    if (address_of(place) or "").count("/") < 3:
        raise UsageError(f"{text} is a bucket.", "Name a folder in it, such as s3://bucket/run.")
    return place


def written_place(text: str) -> Path:
    """`artifact_place`, its copy brought up to date if it lies in an object store."""
    path = artifact_place(text)
    pull(path, listed=True)
    return path


def read_place(name: str | Path) -> Path:
    """The path of what is to be read; of an address in an object store its copy, brought up to date."""
    path = (isinstance(name, str) and place_of(name)) or Path(name)
    pull(path)
    return path


def require_apart(output: Path, reads: Iterable[Path]) -> None:
    """Raise UsageError when `output` is, lies in or holds one of the files and directories in `reads`.

    Links are followed: those in the two paths, and those in a directory that is read.
    """
    key = functools.cache(_key)
    place = Path(os.path.realpath(output))  # Path.resolve would stumble over links in a circle
    own, around = key(place), _keys(place, key)
    for read in reads:
        for part in (read, *_links(read)):
            found = Path(os.path.realpath(part))
            if key(found) is None:
                continue  # the stage itself will say so
            if own == key(found):
                how = "is"
            elif key(found) in around:
                how = "lies in"
            elif own is not None and own in _keys(found, key):
                how = "holds"
            else:
                continue
            raise UsageError(
                f"the output {output} {how} the input {part}.",
                "Choose another place for the output; nothing was touched.",
            )


def require_file_place(path: Path, what: str, mark: str = "", reads: Iterable[Path] = ()) -> None:
    """Raise unless a file, such as "a report", may be written to `path`.

    UsageError: `path` is a directory, lies in an artifact or harms one of `reads`, as in `require_apart`.
    OutputConflict: a link or device lies there, or a file that does not begin with `mark`, as `what` does.
    """
    require_apart(path, reads)
    if path.is_dir():
        raise UsageError(f"{path} is a directory.", f"Name a file for {what}.")
    for above in Path(os.path.realpath(path.parent), path.name).parents:
        if (above / MANIFEST_NAME).is_file():
            raise UsageError(
                f"{path} lies in the artifact {above.name}, where a foreign file counts as damage.",
                "Write the file beside it.",
            )
    refuse_link(path)
    if mark and path.exists():
        with path.open("rb") as file:
            if mark.encode() not in file.read(512):
                raise OutputConflict(
                    f"{path} exists and is not {what} that cola wrote.",
                    "Choose another name; nothing was touched.",
                )


def _keys(path: Path, key: Callable[[Path], Key | None]) -> set[Key]:
    """Keys of a path and of every directory above it, as far as they exist."""
    return {found for place in (path, *path.parents) if (found := key(place))}


def _key(path: Path) -> Key | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _links(directory: Path) -> Iterator[Path]:
    for folder, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = Path(folder, name)
            if path.is_symlink():
                yield path
