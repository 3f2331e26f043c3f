"""Conversations through the stages: the mask goes into the latents, training goes on, answers end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cola_cli.api import LanguageModel, load_any
from cola_cli.artifacts.kinds import Latents, Tokens
from cola_cli.corpus.sequences import Sequences
from cola_cli.errors import UsageError
from cola_cli.evaluation.text_share import split_texts
from cola_cli.families import AUTOREGRESSIVE, LLADA, PRIOR, TEXT_VAE, Family
from cola_cli.serving.chat import Conversation, template_for
from cola_cli.settings.baseline import BaselineSettings
from cola_cli.settings.encode import EncodeSettings
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.sample import SampleSettings
from cola_cli.settings.training import Optimizer
from cola_cli.settings.vae import VAESettings
from cola_cli.stages.encode import encode
from cola_cli.stages.publish import tokenizer_config
from cola_cli.stages.tokenize import tokenize
from cola_cli.stages.train import train
from tests.conftest import CPU, content
from tests.corpus.test_chats import CHATML, SETTINGS, byte_tokenizer, turns, write
from tests.stages.conftest import TRAIN, prior_settings, vae_settings
from tests.stages.test_train_baseline import MODEL

ANSWERS = {"Hi": "Ho", "Who?": "Tom", "Why?": "So."}


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of conversations in ChatML, a VAE, and latents."""
    folder = tmp_path_factory.mktemp("chats")
    pairs = [*ANSWERS.items()]
    records = [turns(*a, *b) for a in pairs for b in pairs]
    write(folder / "chats.jsonl", *records)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    settings = SETTINGS.model_copy(
        update={
            "chat_template": CHATML,
            "seq_len": 64,
            "part_bytes": 100,
            "validation_fraction": 0.2,
        }
    )
    given = settings, folder / "tokenizer.json"
    tokenize([str(folder / "chats.jsonl")], folder / "tokens", *given)
    train(TEXT_VAE, folder / "tokens", folder / "vae", vae_settings(steps=2), CPU)
    encode(folder / "tokens", folder / "vae", folder / "latents", EncodeSettings(), CPU)
    return folder


def test_the_latents_have_the_mask_of_their_tokens(chats: Path) -> None:
    tokens, latents = Tokens.open(chats / "tokens"), Latents.open(chats / "latents")
    assert latents.statistics.chat_template == CHATML
    one, other = (Sequences(source, "train").read(0, 6) for source in (tokens, latents))
    assert one.response is not None
    assert one.response.any()
    assert other.response is not None
    np.testing.assert_array_equal(one.response, other.response)
    np.testing.assert_array_equal(one.take([3, 1]).response, one.response[[3, 1]])


def separate(chats: Path, folder: Path, step: int) -> None:
    """Tokens and latents of the same conversations, several in a sequence."""
    settings = SETTINGS.model_copy(
        update={
            "chat_template": CHATML,
            "seq_len": 256,
            "validation_fraction": 0.2,
            "separate": step,
        }
    )
    given = settings, chats / "tokenizer.json"
    tokenize([str(chats / "chats.jsonl")], folder / "tokens", *given)
    encode(folder / "tokens", chats / "vae", folder / "latents", EncodeSettings(), CPU)


def test_conversations_packed_apart_have_the_latents_that_they_have_alone(
    chats: Path, tmp_path: Path
) -> None:
    separate(chats, tmp_path, 8)
    alone, packed = (Latents.open(folder / "latents") for folder in (chats, tmp_path))
    assert packed.statistics.separate == 8
    assert packed.statistics.tokens == alone.statistics.tokens
    one = Sequences(alone, "train").read(0, Sequences(alone, "train").count)
    other = Sequences(packed, "train").read(0, Sequences(packed, "train").count)
    assert len(other) < len(one) / 2
    assert other.pieces is not None
    seen = 0
    for row, numbers in enumerate(other.pieces):
        for number in range(1, numbers.max() + 1):
            mine, length = numbers == number, one.lengths[seen]
            np.testing.assert_array_equal(other.tokens[row, mine], one.tokens[seen, :length])
            np.testing.assert_allclose(
                other.mean[row, mine], one.mean[seen, :length], rtol=2e-3, atol=2e-3
            )
            np.testing.assert_array_equal(other.response[row, mine], one.response[seen, :length])
            seen += 1
    assert seen == len(one)
    np.testing.assert_allclose(
        packed.statistics.channel_mean, alone.statistics.channel_mean, rtol=1e-3, atol=1e-3
    )
    texts = [list(split_texts(Tokens.open(f / "tokens"), "train")) for f in (chats, tmp_path)]
    assert "".join(texts[0]) == "".join(texts[1])
    settings = prior_settings(steps=2)
    shape = settings.model.model_copy(update={"block_size": 16})
    settings = settings.model_copy(update={"model": shape})
    with pytest.raises(UsageError, match="Tokenize with --separate 16"):
        train(PRIOR, tmp_path / "latents", tmp_path / "prior", settings, CPU)


@pytest.mark.parametrize("family", [PRIOR, LLADA], ids=lambda family: family.command)
def test_training_goes_on_to_the_bytes_of_one_that_was_not_interrupted(
    chats: Path, tmp_path: Path, family: Family
) -> None:
    source = chats / family.reads
    for name, steps in (("whole", 6), ("extended", 3), ("extended", 6)):
        if family is PRIOR:
            settings = prior_settings(steps=steps)
        else:
            settings = BaselineSettings.model_validate(
                {"model": MODEL, "train": TRAIN | {"steps": steps}}
            )
        optim = Optimizer(lr=4e-3, warmup_steps=2, schedule="constant")
        settings = settings.model_copy(update={"optim": optim})
        train(
            family, source, tmp_path / name, settings, CPU, extend=(name, steps) == ("extended", 6)
        )
    assert content(tmp_path / "whole") == content(tmp_path / "extended")


def assert_answers(model: LanguageModel) -> None:
    """It answers each question of a conversation, and ends each answer."""
    template = template_for(model, None)
    assert template is not None
    settings = SampleSettings(max_new_tokens=16, temperature=0, guidance=1)
    conversation = Conversation(model, settings, template)
    tokenizer = model.require_tokenizer()
    assert conversation.options().stop_ids == (
        tokenizer.end_of_text_id, tokenizer.encode_marked("<|im_end|>")[0],
    )  # fmt: skip
    for question, answer in [*ANSWERS.items()][:2]:
        request = conversation.ask(question)
        *_, (_, found) = conversation.stream(request)
        assert (found.text, found.finish) == (answer, "stop")
        conversation.answer(found)


def test_an_autoregressive_model_learns_where_answers_end_and_obeys(
    chats: Path, tmp_path: Path
) -> None:
    settings = BaselineSettings.model_validate(
        {
            "model": MODEL,
            "optim": {"lr": 1e-2, "warmup_steps": 10},
            "train": TRAIN | {"steps": 160, "validate_every": 160, "batch_size": 8},
        }
    )
    train(AUTOREGRESSIVE, chats / "tokens", tmp_path / "ar", settings, CPU)
    model = load_any(tmp_path / "ar", "cpu")
    config = tokenizer_config(model.require_tokenizer(), model.context, model.chat_template)
    assert json.loads(config)["chat_template"] == CHATML  # of a model that is pushed
    assert_answers(model)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["tokens", "velocity"])
def test_a_prior_learns_where_answers_begin_and_end_and_obeys(
    chats: Path, tmp_path: Path, prediction: str
) -> None:
    vae = vae_settings(steps=300, validate_every=300, checkpoint_every=300).model_dump(
        exclude_unset=True
    )
    vae |= {"loss": {"posterior": "fixed", "log_snr": 4.0}, "mask": {"weight": 0}}
    train(TEXT_VAE, chats / "tokens", tmp_path / "vae", VAESettings.model_validate(vae), CPU)
    encode(chats / "tokens", tmp_path / "vae", tmp_path / "latents", EncodeSettings(), CPU)
    prior = prior_settings(steps=500, batch_size=8, validate_every=500, checkpoint_every=500)
    model = prior.model_dump(exclude_unset=True)
    model["model"] |= {
        "dim": 64,
        "heads": 2,
        "head_dim": 32,
        "rope_dim": 24,
        "prediction": prediction,
    }
    train(PRIOR, tmp_path / "latents", tmp_path / "prior", PriorSettings.model_validate(model), CPU)
    assert_answers(load_any(tmp_path / "prior", "cpu"))
