"""Continuations as text, each cut before the first of its stop strings."""

from __future__ import annotations

import bisect
import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from cola_cli.corpus.tokenizer import TextTokenizer
from cola_cli.sampling.requests import Generation, Request
from cola_cli.sampling.sampler import Sampler


def run_to_stops(
    sampler: Sampler, requests: Iterable[Request], tokenizer: TextTokenizer
) -> Iterator[tuple[Request, Generation]]:
    """What `sampler.run` yields, as `with_text` gives it; a request leaves with its first stop string."""
    for request, generation in sampler.run(requests):
        stops = (request.options or sampler.options).stop
        found = with_text(tokenizer, request.prompt, generation, stops)
        if found.finish != generation.finish:
            sampler.leave(functools.partial(operator.is_, request))
        yield request, found


def with_text(
    tokenizer: TextTokenizer, prompt: Sequence[int], generation: Generation, stops: Sequence[str]
) -> Generation:
    """A generation with its text, which ends before the first stop string; its tokens are those of the text.

    What may still become something else is held back while more blocks follow: a character that is split
    between tokens, and an end that may become a stop string.
    """
    ids = generation.ids
    text = tokenizer.continuation(prompt, ids)
    if generation.finish == "running":
        text = text.rstrip("\ufffd")
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        end = min(found)
        count = bisect.bisect_left(
            range(len(ids)), end, key=lambda n: len(tokenizer.continuation(prompt, ids[:n]))
        )
        told = generation.logprobs[:count]
        return replace(generation, ids=ids[:count], text=text[:end], finish="stop", logprobs=told)
    if generation.finish == "running":
        text = held_back(text, stops)
    return replace(generation, text=text)


def held_back(text: str, stops: Sequence[str]) -> str:
    """The text without an end that may become one of the stop strings."""
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:size]):
                text = text[:-size]
                break
    return text
