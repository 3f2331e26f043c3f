"""One parser under test: real files, their hostile variants, digests mended so that a lie gets past them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cola_cli.artifacts.manifest import canonical_json, pretty_json
from tests.hostile.mutations import (
    Mutant,
    cut,
    flipped,
    header_lengths,
    json_bytes,
    json_mutants,
    lying_footers,
    nested,
    parquet_footer,
    safetensors_header,
    spliced,
    with_header,
)
from tests.hostile.tally import Tally

Case = tuple[str, str, bytes]  # label, file relative to the folder, its hostile content


@dataclass(frozen=True)
class Parser:
    """`parse(folder)` reads the `targets` (name -> format) in a copy of the original folder.

    seal: mends digests in the folder after the named file was changed, as whoever makes a hostile file
    would. exact: what is accepted must be what the original gives.
    """

    name: str
    original: str
    targets: dict[str, str]
    parse: Callable[[Path], Any]
    seal: Callable[[Path, str], None] | None = None
    exact: bool = False
    rows: int = 0  # of a Parquet target, to make its footer lie
    extra: Callable[[Path], Iterator[Case]] | None = None

    def cases(self, folder: Path, count: int, seed: int) -> Iterator[Case]:
        """`count` cases after the fixed ones; the same for the same seed."""
        source = random.Random(f"{self.name} {seed}")
        for target in self.targets:
            yield "as it was written", target, (folder / target).read_bytes()
            for label, content in self._fixed(target, (folder / target).read_bytes()):
                yield label, target, content
        if self.extra is not None:
            yield from self.extra(folder)
        streams = [
            [
                (label, target, content)
                for label, content in islice(
                    self._random(target, (folder / target).read_bytes(), source, count), count
                )
            ]
            for target in self.targets
        ]
        yield from islice((case for group in zip(*streams, strict=True) for case in group), count)

    def run(
        self,
        originals: Path,
        work: Path,
        count: int,
        seed: int,
        skip: int = 0,
        most: int | None = None,
    ) -> Tally:
        """Try every case from number `skip` on, or `most` of all by chance.

        The number of the one being tried is in `work`/current.
        """
        tally = Tally(self.name)
        folder = work / "case"
        shutil.copytree(originals / self.original, folder, symlinks=True)
        kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        expected = self.parse(folder)
        current = os.open(work / "current", os.O_WRONLY | os.O_CREAT)
        chosen: set[int] | None = None
        if most is not None:
            numbers = range(len(self.targets), sum(1 for _ in self.cases(folder, count, seed)))
            chosen = set(random.Random(seed).sample(numbers, min(most, len(numbers)))) | {0}
        for number, (label, target, content) in enumerate(self.cases(folder, count, seed)):
            if number < skip or (chosen is not None and number not in chosen):
                continue
            os.pwrite(current, struct.pack("<Q", number), 0)
            path = folder / target
            path.write_bytes(content)
            if self.seal is not None:
                self.seal(folder, target)
            tally.attempt(
                f"case {number}, {target} {label}",
                lambda: self.parse(folder),
                (str(folder),),
                expected,
                self.exact,
            )
            for original, data in kept.items():
                if original == path or self.seal is not None:
                    original.write_bytes(data)
        os.close(current)
        shutil.rmtree(folder)
        return tally

    def _fixed(self, target: str, data: bytes) -> Iterator[Mutant]:
        kind = self.targets[target]
        yield "empty", b""
        yield "one zero", b"\0"
        yield "zeros", bytes(4096)
        yield (
            "a pickle",
            b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
        )
        if not (self.exact and kind == "binary"):  # two packed streams are one, twice as long
            yield "twice", data + data
        yield "more behind it", data + b"\0" * 100
        if kind in ("json", "jsonl"):
            yield from nested(300)
            yield from nested(990)
            yield from nested(100_000)
        if kind == "json":
            yield "a byte order mark", b"\xef\xbb\xbf" + data
            yield "a digit string", b"9" * 5000
            yield "UTF-16", data.decode().encode("utf-16")
        if kind == "safetensors":
            yield from header_lengths(data)
        if kind == "parquet" and self.rows:
            yield from lying_footers(data, self.rows)

    def _random(
        self, target: str, data: bytes, source: random.Random, count: int
    ) -> Iterator[Mutant]:
        kind = self.targets[target]
        structured: Iterator[Mutant] = iter(())
        focus = (0, len(data))
        if kind == "json":
            structured = (
                (label, json_bytes(mutant))
                for label, mutant in json_mutants(json.loads(data), source)
            )
        elif kind == "jsonl":
            lines = data.splitlines()
            structured = (
                (label, b"\n".join([*lines[:1], json_bytes(mutant), *lines[2:]]))
                for label, mutant in json_mutants(json.loads(lines[1]), source)
            )
        elif kind == "safetensors":
            focus = (0, 8 + struct.unpack("<Q", data[:8])[0])
            structured = (
                (label, with_header(data, json_bytes(mutant)))
                for label, mutant in json_mutants(safetensors_header(data), source)
            )
        elif kind == "parquet":
            focus = parquet_footer(data)
        inside = [8 * place + bit for place in range(*focus) for bit in range(8)]
        source.shuffle(inside)
        outside = [place for place in range(8 * len(data)) if not focus[0] <= place // 8 < focus[1]]
        ends = list(range(len(data)))
        source.shuffle(ends)
        bytewise = _turns(
            flipped(data, inside[:count]),
            flipped(data, source.sample(outside, min(len(outside), count))),
            cut(data, ends[:count]),
            spliced(data, source, focus),
        )
        return _turns(structured, bytewise)


def _turns(*streams: Iterator[Mutant]) -> Iterator[Mutant]:
    """One of each stream in turn, until all have ended."""
    waiting = list(streams)
    while waiting:
        for stream in list(waiting):
            try:
                yield next(stream)
            except StopIteration:
                waiting.remove(stream)


def seal_artifact(folder: Path, target: str) -> None:
    """Put the digests of `target` right in its part's record and the manifest, as cola writes them."""
    artifact = next(
        path for path in [(folder / target).parent, *(folder / target).parents]
        if (path / "manifest.json").exists()
    )  # fmt: skip
    changed = (folder / target).relative_to(artifact).as_posix()
    record = (artifact / changed).with_suffix(".json")
    if changed.startswith("parts/") and not changed.endswith(".json") and record.is_file():
        document = json.loads(record.read_bytes())
        document |= _sums(artifact / changed) | {"digest": ""}
        record.write_bytes(pretty_json(document | {"digest": _sha256(pretty_json(document))}))
    elif changed.startswith("parts/"):
        _sign(artifact / changed)
    path = artifact / "manifest.json"
    if changed == "manifest.json":
        seal_manifest(path)
        return
    document = json.loads(path.read_bytes())
    for entry in document["files"]:
        entry |= _sums(artifact / entry["path"])
    path.write_bytes(json_bytes(document))
    seal_manifest(path)


def _sign(path: Path) -> None:
    """Give a changed part record the digest of its content, where it has a shape for one."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        document = json.loads(path.read_bytes()) | {"digest": ""}
        path.write_bytes(pretty_json(document | {"digest": _sha256(pretty_json(document))}))


def seal_manifest(path: Path) -> None:
    """Give a changed manifest the fingerprint and digest of its content, where it has a shape for them."""
    try:
        document = json.loads(path.read_bytes())
        document["fingerprint"] = _sha256(canonical_json(document["identity"]))
        document["digest"] = _sha256(pretty_json(document | {"digest": ""}))
        path.write_bytes(pretty_json(document))
    except (ValueError, TypeError, KeyError, RecursionError):
        return


def seal_checkpoint(folder: Path, target: str) -> None:
    """Put the digest of a file of a checkpoint right in its record."""
    path = folder / target
    record = path.with_name("COMMITTED.json")
    if path == record:
        return
    document = json.loads(record.read_bytes())
    document[path.name] = _sums(path)
    record.write_bytes(json.dumps(document).encode())


def unsealed(parser: Parser, name: str) -> Parser:
    """The same parser with the digests left as they were: any change must be seen."""
    return dataclasses.replace(parser, name=name, seal=None, exact=True)


def chained(*cases: Callable[[Path], Iterator[Case]]) -> Callable[[Path], Iterator[Case]]:
    """All the extra cases of several makers."""
    return lambda folder: chain.from_iterable(make(folder) for make in cases)


def _sums(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": _sha256(data)}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
