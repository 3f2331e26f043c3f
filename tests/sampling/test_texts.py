"""Stop strings: where a text is cut, what is held back, and that a row which has one leaves its batch."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

import cola_cli
from cola_cli.api import Cola
from cola_cli.corpus.tokenizer import TextTokenizer, train_tokenizer
from cola_cli.sampling.requests import Generation, Request
from cola_cli.sampling.texts import run_to_stops, with_text


@cache
def tokenizer() -> TextTokenizer:
    return train_tokenizer(["a cab, a back: café au lait; 中文"] * 9, 280)


@given(
    st.text("abc é中", max_size=30),
    st.text("abc é中", max_size=30),
    st.lists(st.text("abc é中", min_size=1, max_size=4), max_size=3),
    st.integers(1, 5),
)
def test_pieces_never_show_what_is_cut_and_end_in_the_text_before_the_first_stop(
    before: str, after: str, stops: list[str], block: int
) -> None:
    tokens = tokenizer()
    prompt, ids = tokens.encode(before), tokens.encode(after)
    whole = tokens.continuation(prompt, ids)
    first = min([whole.find(stop) for stop in stops if stop in whole], default=None)
    shown = ""
    for end in [*range(block, len(ids), block), len(ids)]:
        finish = "length" if end == len(ids) else "running"
        found = with_text(tokens, prompt, Generation(ids[:end], finish=finish), stops)
        assert found.text is not None
        assert found.text.startswith(shown)
        shown = found.text
        if found.finish == "stop":
            break
    assert shown == whole[:first]
    assert (found.finish == "stop") == (first is not None)
    if first is not None:  # the fewest tokens that hold the text
        lengths = [len(tokens.continuation(prompt, ids[:n])) for n in range(len(ids) + 1)]
        assert len(found.ids) == next(n for n, size in enumerate(lengths) if size >= first)


def test_a_row_with_a_stop_string_makes_room_for_the_next() -> None:
    model = cola_cli.load("demo", "cpu")
    assert isinstance(model, Cola)
    tokens = model.require_tokenizer()
    prompt = "Tom was a brave sailor who lived near the sea."
    whole = model.generate(prompt, 40, steps=4)
    cut = model.generate(prompt, 40, steps=4, stop=".")
    assert whole.text is not None
    assert cut.text == whole.text[: whole.text.index(".")]
    assert (cut.finish, cut.ids) == ("stop", whole.ids[: len(cut.ids)])
    assert "".join(model.stream(prompt, 40, steps=4, stop=["?", "."])) == cut.text
    assert model.watch(prompt, 40, steps=4, stop=".").generation.text == cut.text
    sampler = model.sampler(model.options(40, steps=4, stop="."), 1, tokens.pad_id)
    taken = []
    step = sampler.step
    sampler.step = lambda: taken.append(sampler.active[0].request.item) or step()  # type: ignore
    list(run_to_stops(sampler, [Request(n, tokens.encode(prompt)) for n in (0, 1)], tokens))
    assert taken.count(0) < 40 // model.prior.config.block_size / 2  # most blocks were not made
    assert taken.count(1)
