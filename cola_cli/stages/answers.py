"""Prompts to continuations: one by one as a stream, or as the parts of an artifact that are still missing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cola_cli.artifacts import Output, PartRecord, Writer
from cola_cli.artifacts.parts import write_part
from cola_cli.artifacts.rows import PART_SUFFIX, write_rows
from cola_cli.errors import InputError
from cola_cli.machine.threads import describe_environment, prepare_torch
from cola_cli.reporting import Reporter
from cola_cli.sampling.prompts import Prompt
from cola_cli.settings.sample import SampleSettings
from cola_cli.stages.run import Outcome, Run, up_to_date
from cola_cli.stages.shards import WHOLE, Shard, make_artifact

if TYPE_CHECKING:
    from cola_cli.api import LanguageModel
    from cola_cli.sampling.requests import Request


@dataclass(frozen=True)
class Sample:
    """The state of one prompt's continuation after a block."""

    item: int
    prompt: Prompt
    text: str
    tokens: int
    finish: str

    def row(self) -> dict[str, Any]:
        """The JSON object of a finished sample."""
        return {
            "id": self.prompt.id,
            "prompt": self.prompt.text,
            "text": self.text,
            "tokens": self.tokens,
            "finish": self.finish,
        }


MakeRow = Callable[[Sample], dict[str, Any]]


def open_model(path: Path, settings: SampleSettings, device: str) -> LanguageModel:
    """Load the model for sampling; it must come with a tokenizer."""
    import torch

    from cola_cli.api import load_any
    from cola_cli.machine.processes import pick_device

    chosen = pick_device(device)
    name = settings.dtype
    if name == "auto":
        name = "float32" if chosen.type == "cpu" else "stored"
    dtype = None if name == "stored" else getattr(torch, name)
    model = load_any(path, str(chosen), dtype)
    model.require_tokenizer()
    return model


def sample_stream(
    model: LanguageModel,
    prompts: Iterable[tuple[int, Prompt]],
    settings: SampleSettings,
    reporter: Reporter,
) -> Iterator[Sample]:
    """Continue numbered prompts, yielding each one's state after every block.

    A prompt's number seeds its random numbers. Raises InputError naming an empty prompt or one that is
    longer than the model's context.
    """
    from cola_cli.sampling.requests import Request

    tokenizer = model.require_tokenizer()
    by_item: dict[int, Prompt] = {}
    warned = model.context is None

    def requests() -> Iterator[Request]:
        nonlocal warned
        for item, prompt in prompts:
            by_item[item] = prompt
            ids = encoded_prompt(model, prompt)
            if not warned and len(ids) + settings.max_new_tokens > (model.context or 0):
                reporter.warn(
                    f"{prompt.place}: {len(ids)} tokens and {settings.max_new_tokens} new ones are more than"
                    f" the {model.context} of a training sequence; what lies beyond may be poor"
                )
                warned = True
            yield Request(item, ids)

    options = settings.options((tokenizer.end_of_text_id,))
    for request, generation in model.stream_requests(
        requests(), options, settings.batch_size, warn=reporter.warn
    ):
        text, tokens, finish = generation.text or "", len(generation.ids), generation.finish
        yield Sample(request.item, by_item[request.item], text, tokens, finish)
        if finish != "running":
            del by_item[request.item]


def encoded_prompt(model: LanguageModel, prompt: Prompt) -> list[int]:
    """The token ids of a prompt. Raises InputError naming its place when it cannot be used."""
    ids = model.require_tokenizer().encode(prompt.text)
    if not ids and model.needs_prompt:
        raise InputError(
            f"{prompt.place}: the prompt has no tokens, and an autoregressive model goes on from one.",
            "Give it some text.",
        )
    if model.context is not None and len(ids) >= model.context:
        raise InputError(
            f"{prompt.place}: the prompt has {len(ids)} tokens, but the model was trained on"
            f" sequences of {model.context}.",
            "Shorten the prompt.",
        )
    return ids


def make_answers(
    output: Output,
    model_path: Path,
    settings: SampleSettings,
    run: Run,
    shard: Shard,
    progress: tuple[str, str],
    prepare: Callable[[LanguageModel], tuple[Sequence[Prompt], MakeRow]],
    statistics: Callable[[list[PartRecord]], dict[str, Any]],
    of_part: Callable[[list[dict[str, Any]]], dict[str, Any]] = lambda rows: {},
) -> Outcome:
    """Continue prompts into an artifact, each part written when it is whole; `shard` as in `make_artifact`.

    progress: label and unit of the bar. prepare: the prompts for the opened model, and what makes the JSON
    object of a finished sample, with its `tokens`. statistics: of all parts; of_part: of the rows of one.
    """
    if output.up_to_date:
        return up_to_date(output)
    environment = describe_environment(prepare_torch(run.threads)) | {"device": run.device}

    def make(done: Collection[int], own: Shard) -> None:
        model = open_model(model_path, settings, run.device)
        prompts, row = prepare(model)
        size = settings.items_per_part
        members = items_of_parts(len(prompts), size, own)
        total = sum(map(len, members.values()))
        members = {index: places for index, places in members.items() if index not in done}
        items = [item for places in members.values() for item in places]
        run.reporter.start(progress[0], total, progress[1], done=total - len(items))
        found: dict[int, dict[str, Any]] = {}
        # Item numbers stay those of the whole list, so that a resumed run draws the same noise.
        numbered = ((item, prompts[item]) for item in items)
        for sample in sample_stream(model, numbered, settings, run.reporter):
            if sample.finish == "running":
                continue
            found[sample.item] = row(sample)
            run.reporter.advance(1)
            index = sample.item // size
            if all(item in found for item in members[index]):
                rows = [found.pop(item) for item in members[index]]
                write_rows_part(output, index, rows, of_part(rows), own)
        run.reporter.stop()

    def finish(writer: Writer) -> dict[str, Any]:
        return statistics(writer.recorded())

    return make_artifact(output, environment, run, shard, make, finish)


def items_of_parts(count: int, size: int, shard: Shard) -> dict[int, range]:
    """The parts that a shard makes of so many items, `size` a part: by index, the numbers of their items."""
    return {
        index: range(index * size, min(count, (index + 1) * size))
        for index in range(shard[0], -(-count // size), shard[1])
    }


def write_rows_part(
    output: Output,
    index: int,
    rows: Sequence[dict[str, Any]],
    statistics: dict[str, Any],
    shard: Shard,
) -> None:
    """Commit part `index`: a JSON object a row, with its `tokens`."""
    with write_part(
        output.place, index, output.identity, suffix=PART_SUFFIX, shared=shard != WHOLE
    ) as part:
        write_rows(part.path, rows)
        part.rows, part.tokens = len(rows), sum(row["tokens"] for row in rows)
        part.statistics = statistics
