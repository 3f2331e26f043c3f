"""The Python interface: what it accepts, what it gives, what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import cola_cli
from cola_cli.api import Cola, Options
from cola_cli.corpus.tokenizer import train_tokenizer
from cola_cli.errors import DamagedArtifact, InputError, UsageError
from cola_cli.settings.sample import SamplingOptions
from tests import golden
from tests.conftest import Run
from tests.small_networks import small_networks
from tests.stages.conftest import made_up_text

TEXTS = ["the cat sat on the mat", "a dog ran to the house", "we the people of the union"]


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint beside a tokenizer."""
    folder = tmp_path_factory.mktemp("speaking")
    shutil.copytree(golden.HERE / "cola_dlm", folder / "cola_dlm")
    (folder / "tokenizer.json").write_bytes(train_tokenizer(TEXTS, 300).to_bytes())
    return folder


def test_shapes_and_types() -> None:
    model = golden.model()
    posterior = model.encode(torch.randint(0, 512, (3, 8)))
    assert posterior.mean.shape == posterior.logvar.shape == (3, 8, 8)
    assert model.decode(posterior.mean).shape == (3, 8, 512)
    assert model.velocity(posterior.mean, 0.5).shape == (3, 8, 8)
    assert model.tokenizer is None


def test_times_may_be_one_for_all_one_a_row_or_one_a_position() -> None:
    model = golden.model()
    z, history = torch.randn(2, 4, 8), torch.randn(2, 8, 8)
    whole = model.velocity(z, 0.3, history)
    rows = model.velocity(z, torch.tensor([0.3, 0.3]), history)
    positions = model.velocity(z, torch.full((2, 4), 0.3), history)
    torch.testing.assert_close(rows, whole)
    torch.testing.assert_close(positions, whole)
    own = model.velocity(z, torch.tensor([0.3, 0.8]), history)
    torch.testing.assert_close(own[:1], whole[:1])
    torch.testing.assert_close(own[1:], model.velocity(z[1:], 0.8, history[1:]))


def test_a_history_of_half_a_block_and_half_a_patch_are_refused() -> None:
    model = golden.model()
    with pytest.raises(ValueError, match="history has 3 latents"):
        model.velocity(torch.randn(1, 4, 8), 0.5, torch.randn(1, 3, 8))
    with pytest.raises(ValueError, match="noise must say how many blocks"):
        model.generate_ids([[1, 2]], max_new_tokens=None)


@pytest.mark.parametrize(
    ("shape", "budget", "said"),
    [
        ((1, 2, 4, 8), 4, "for 1 prompts, there are 2"),
        ((2, 2, 4, 6), 4, r"not \(blocks, \*\(4, 8\)\)"),
        ((2, 1, 4, 8), 5, "has 1 blocks, 5 new tokens need 2"),
    ],
)
def test_noise_that_does_not_fit_is_refused(shape: tuple[int, ...], budget: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        golden.model().generate_ids(
            [[1] * 4, [2] * 4], max_new_tokens=budget, noise=torch.randn(shape), steps=1
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"guidance": -1.0}, {"temperature": -0.1}, {"top_k": 0}, {"top_p": 0.0},
        {"repetition_penalty": 0.0}, {"max_new_tokens": 0}, {"guidance_interval": (0.5, 0.2)},
        {"grid": [1.0, 0.2, 0.4, 0.0]}, {"grid": [1.0, 0.5]}, {"repaint_fraction": 1.5},
    ],
    ids=str,
)  # fmt: skip
def test_options_outside_their_range_are_refused_by_name(wrong: dict[str, object]) -> None:
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=name):
        golden.model().generate_ids([[1]], **{"max_new_tokens": 4, **wrong})


def test_no_prompts_give_no_generations() -> None:
    assert golden.model().generate_ids([], max_new_tokens=4) == []


def test_generations_come_in_the_order_of_the_prompts_and_depend_on_the_seed() -> None:
    model = golden.model()
    prompts = golden.document()["prompts"]
    options = {"max_new_tokens": 6, "steps": 2, "temperature": 1.0, "batch_size": 2}
    first = model.generate_ids(prompts, seed=1, **options)
    assert [g.ids for g in model.generate_ids(prompts, seed=1, **options)] == [g.ids for g in first]
    assert [g.ids for g in model.generate_ids(prompts, seed=2, **options)] != [g.ids for g in first]
    assert [len(g.ids) for g in first] == [6] * len(prompts)


def test_texts_go_in_and_come_out(speaking: Path) -> None:
    model = cola_cli.load(speaking)
    assert model.tokenizer is not None
    found = model.generate(TEXTS[:2], max_new_tokens=8, steps=2, stop_ids=())
    for text, generation in zip(TEXTS, found, strict=False):
        ids = model.tokenizer.encode(text)
        assert generation.text == model.tokenizer.decode(generation.ids)
        assert len(ids) < len(text)
        assert len(generation.ids) == 8


def test_the_same_weights_open_in_another_precision() -> None:
    model = golden.model(torch.bfloat16)
    assert {p.dtype for p in model.prior.parameters()} == {torch.bfloat16}
    assert model.prior.frequencies.dtype == torch.float32
    assert isinstance(model, Cola)


def test_a_path_that_holds_no_model_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        cola_cli.load(tmp_path / "nothing")
    with pytest.raises(InputError):
        cola_cli.load(tmp_path)


OPTIONS: Any = {"steps": 2, "stop_ids": (), "seed": 3, "temperature": 1.0}


def test_one_text_gives_one_generation_and_its_pieces_stream(speaking: Path) -> None:
    model = cola_cli.load(speaking)
    one = model.generate(TEXTS[0], 12, **OPTIONS)
    assert one.ids == model.generate([TEXTS[0]], 12, **OPTIONS)[0].ids
    pieces = list(model.stream(TEXTS[0], 12, **OPTIONS))
    assert "".join(pieces) == one.text
    assert len(pieces) > 1


def test_a_watched_text_is_the_generated_one_with_the_steps_of_every_block(speaking: Path) -> None:
    model = cola_cli.load(speaking)
    seen = model.watch(TEXTS[0], 12, **OPTIONS)
    assert seen.generation.text == model.generate(TEXTS[0], 12, **OPTIONS).text
    assert [frame.t for frame in seen.frames[:2]] == [1.0, 0.5]
    assert len(seen.frames) == 2 * (seen.frames[-1].block + 1)
    page = seen._repr_html_()
    assert page.count("<tr><td>") == len(seen.frames)
    assert "<script" not in model.watch("<script>", 4, **OPTIONS)._repr_html_()


def test_options_are_declared_as_samplers_know_them_and_the_nearest_is_suggested() -> None:
    assert set(Options.__annotations__) == set(SamplingOptions.model_fields) - {"max_new_tokens"}
    with pytest.raises(TypeError, match="Did you mean guidance"):
        golden.model().generate_ids([[1]], max_new_tokens=4, guidence=3.0)  # type: ignore[call-arg]


def test_a_model_and_a_generation_print_what_they_are(speaking: Path) -> None:
    model = cola_cli.load(speaking)
    count = sum(p.numel() for network in model.networks for p in network.parameters())
    assert repr(model) == f"<Cola {speaking}: {count:,} weights, float32 on {model.device}>"
    assert "tensor" not in repr(model.generate(TEXTS[0], 4, **OPTIONS))


def test_texts_are_scored_as_the_command_does(cola: Run) -> None:
    model = cola_cli.load("demo", dtype=torch.float32)
    words = ("likelihood", "demo", "--text", "Tom was a sailor.", "--steps", 4, "--json")
    expected = json.loads(cola(*words).stdout)["scores"][0]
    found = cola_cli.score(model, "Tom was a sailor.", steps=4)
    assert found[0]["elbo"] == pytest.approx(expected["elbo"])
    assert len(cola_cli.score(model, ["Tom", "Lily"], steps=1)) == 2


def test_the_stages_are_functions(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(made_up_text(100))
    small = {"vocab_size": 300, "seq_len": 32, "workers": 1}
    sizes = {"model.dim": 16, "model.heads": 1, "train.steps": 2, "train.batch_size": 2}
    vae = {"model.encoder_layers": 1, "model.decoder_layers": 1, "model.ffn_dim": 32, **sizes}
    prior = {"model.layers": 1, "model.head_dim": 16, "model.rope_dim": 8, **sizes}
    place = {name: tmp_path / name for name in ("tokens", "vae", "latents", "prior")}
    cola_cli.tokenize(tmp_path / "corpus.txt", place["tokens"], settings=small)
    cola_cli.train_vae(place["tokens"], place["vae"], settings=vae, device="cpu")
    cola_cli.encode(place["tokens"], place["vae"], place["latents"], device="cpu")
    made = cola_cli.train_prior(
        place["latents"], place["prior"], preset="tiny", settings=prior, device="cpu"
    )
    assert made.changed
    again = cola_cli.train_prior(
        place["latents"], place["prior"], preset="tiny", settings=prior, device="cpu"
    )
    assert not again.changed
    assert cola_cli.load(place["prior"]).generate("Anna", 4).finish in ("length", "stop")
    with pytest.raises(UsageError, match=r"train\.stepz"):
        cola_cli.train_prior(place["latents"], place["prior"], settings={"train.stepz": 1})


@pytest.mark.parametrize(
    ("ids", "options", "said"),
    [
        ([[1, -1]], {}, "prompt 0 holds the token -1"),
        ([[1], [512]], {}, "prompt 1 holds the token 512"),
        ([[1]], {"batch_size": 0}, "batch_size is 0"),
        ([[1]], {"batch_size": -1}, "batch_size is -1"),
        ([[1]], {"guidance": math.inf}, "guidance"),
        ([[1]], {"noise": torch.full((1, 1, 4, 8), math.nan)}, "NaN"),
        ([[1]], {"noise": torch.randn(1, 0, 4, 8), "max_new_tokens": None}, "noise is empty"),
        ([[1]], {"noise": torch.randn(4, 8)}, r"not \(prompts, blocks"),
    ],
)
def test_what_cannot_be_generated_is_named(
    ids: list[list[int]], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        golden.model().generate_ids(ids, **{"max_new_tokens": 4, "steps": 1} | options)


@pytest.mark.parametrize("wrong", [[1, 2], b"the cat", 3])
def test_a_prompt_that_is_not_a_text_is_named(speaking: Path, wrong: Any) -> None:
    model = cola_cli.load(speaking)
    said = f"a {type(wrong).__name__} is not a text"
    for generate in (lambda: model.generate([wrong], 2), lambda: [*model.stream(wrong, 2)]):
        with pytest.raises(TypeError, match=said):
            generate()


def test_velocities_outside_their_domain_are_refused() -> None:
    model = golden.model()
    for z, t, said in (
        (torch.randn(1, 3, 8), 0.5, "3 latents"),
        (torch.randn(1, 4, 7), 0.5, r"\(B, n, 8\)"),
        (torch.randn(1, 4, 8), 2.0, "outside"),
        (torch.randn(1, 4, 8), math.nan, "outside"),
    ):
        with pytest.raises(ValueError, match=said):
            model.velocity(z, t)
    with pytest.raises(ValueError, match=r"\(B, n, 8\)"):
        model.decode(torch.randn(1, 4, 7))
    with pytest.raises(ValueError, match="token 512"):
        model.encode(torch.full((1, 4), 512))
    for wrong in (torch.zeros(4).long(), torch.zeros(1, 0).long(), torch.zeros(1, 4)):
        with pytest.raises(ValueError, match=r"not \(B, L\) of integers"):
            model.encode(wrong)
    head = {"prediction": "tokens", "vocab_size": 9, "passes": 2, "chain": 4}
    vae, student = small_networks(0, 9, **head)
    with pytest.raises(ValueError, match="a student with a chain"):
        Cola(vae, student, None).velocity(torch.randn(1, 4, 8), 0.5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_not_numbers_are_named(speaking: Path, temperature: float) -> None:
    model = cola_cli.load(speaking)
    next(model.prior.parameters()).data[0] = math.nan
    with pytest.raises(DamagedArtifact, match=rf"{speaking}: the weights \S+ hold"):
        model.generate(["the cat"], max_new_tokens=2, steps=1, temperature=temperature)
    model = cola_cli.load(speaking)
    with pytest.raises(UsageError, match="overflow"):
        model.generate(["the cat"], 20, steps=1, temperature=1.0, repetition_penalty=1e-44)


@pytest.mark.parametrize("output", ["", "s3://bucket", "x://bucket/tokens", "hf:org/name"])
def test_stages_write_where_artifacts_can_lie(
    tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(UsageError):
        cola_cli.tokenize("a.txt", output, settings={"vocab_size": 258, "seq_len": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
