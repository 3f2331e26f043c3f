"""Generative perplexity and MAUVE: how another language model rates texts."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cola_cli.artifacts.kinds import TrainedModel
from cola_cli.artifacts.manifest import MANIFEST_NAME
from cola_cli.artifacts.reading import reason
from cola_cli.corpus.tokenizer import tokenizer_of
from cola_cli.errors import InputError, UsageError
from cola_cli.evaluation.text_metrics import Passage
from cola_cli.families import TokenModel, baselines, commands, token_model
from cola_cli.reporting import Reporter

BATCH_TOKENS = 2048  # positions in a pass; with 128,000 logits each, 1 GB
MAUVE_LEAST = 100  # texts; with fewer, its histograms have less than ten bins
MAUVE_ADVISED = 1000


class Codec(Protocol):
    """Text to token ids and back."""

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens."""

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""


class Judge(Protocol):
    """A causal language model that gives likelihoods.

    start: the token put before every text (None: a text's first token is not judged).
    context: positions the model can see (None: any number).
    """

    tokenizer: Codec
    start: int | None
    context: int | None
    device: torch.device

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits (B, L, V) of the tokens that follow each of ids (B, L)."""

    def features(self, ids: Tensor) -> Tensor:
        """Last hidden states (B, L, D)."""


class ArtifactJudge:
    """A model of the next token that was trained here."""

    def __init__(self, artifact: TrainedModel, model: TokenModel, device: torch.device) -> None:
        tokenizer = tokenizer_of(artifact)
        self.tokenizer: Codec = tokenizer
        self.start: int | None = tokenizer.end_of_text_id  # as before a document in training
        length = artifact.statistics.seq_len
        # the last token predicts nothing
        self.context: int | None = None if length is None else length - 1
        self.device = device
        self._network: Any = model.load(artifact).to(device).eval()

    def __call__(self, ids: Tensor) -> Tensor:
        return self._network(ids)

    def features(self, ids: Tensor) -> Tensor:
        return self._network.hidden(ids)


class TransformersJudge:
    """A causal language model in a folder that the `transformers` library reads."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        try:
            transformers = importlib.import_module("transformers")
        except ImportError as error:
            raise UsageError(
                f"--judge {folder}: loading it needs the package transformers.",
                "Install it: pip install 'cola-cli[judge]', or name a model of `cola train ar`.",
            ) from error
        transformers.utils.logging.disable_progress_bar()
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            network = transformers.AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, dtype="auto"
            )
        except Exception as error:  # the library raises exceptions of every kind
            raise InputError(
                f"{folder} cannot be read as a causal language model ({reason(error)}).",
                "Name a folder with config.json, the weights and the tokenizer.",
            ) from error
        self.tokenizer: Codec = _TransformersCodec(tokenizer)
        start = tokenizer.bos_token_id
        self.start: int | None = tokenizer.eos_token_id if start is None else start
        self.context: int | None = getattr(network.config, "max_position_embeddings", None)
        self.device = device
        self._network = network.to(device).eval()

    def __call__(self, ids: Tensor) -> Tensor:
        return self._network(ids).logits

    def features(self, ids: Tensor) -> Tensor:
        return self._network(ids, output_hidden_states=True).hidden_states[-1]


class _TransformersCodec:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)


def open_judge(path: Path, device: torch.device) -> Judge:
    """The judge at `path`: the artifact of a model of the next token, or a folder for `transformers`.

    Raises InputError when it is neither, UsageError when `transformers` is needed and absent.
    """
    judges = [one for one in baselines() if one.token_model and one.token_model.next_token]
    remedy = f"Name the output of {commands(judges)}, or a folder with a causal language model."
    if (path / MANIFEST_NAME).exists():
        artifact = TrainedModel.open(path)
        model = token_model(artifact.manifest.kind)
        if model is None or not model.next_token:
            raise InputError(
                f"{path} is an artifact of kind {artifact.manifest.kind}, not a model that gives likelihoods"
                " token by token.",
                remedy,
            )
        return ArtifactJudge(artifact, model, device)
    if not (path / "config.json").is_file():
        raise InputError(f"{path} is not a language model.", remedy)
    return TransformersJudge(path, device)


@torch.inference_mode()
def perplexity(
    judge: Judge, passages: Sequence[Passage], reporter: Reporter
) -> tuple[float | None, int]:
    """exp of the mean negative log-likelihood of all judged tokens, and their number.

    Only the texts are judged; their prompts are context. None when there is nothing to judge.
    """
    pieces: list[tuple[list[int], int]] = []
    for passage in passages:
        before = [] if judge.start is None else [judge.start]
        before += judge.tokenizer.encode(passage.prompt) if passage.prompt else []
        pieces += windows(before, judge.tokenizer.encode(passage.text), judge.context)
    total, count = 0.0, 0
    reporter.start("judge", len(pieces), "windows")
    for _, values, _ in log_probabilities(judge, pieces, judge.device):
        total -= float(values.sum())
        count += len(values)
        reporter.advance(1)
    reporter.stop()
    return (math.exp(min(700.0, total / count)) if count else None), count


@torch.inference_mode()
def log_probabilities(
    network: Callable[[Tensor], Tensor],
    pieces: Sequence[tuple[list[int], int]],
    device: torch.device,
) -> Iterator[tuple[int, Tensor, bool]]:
    """Of each piece (ids, number of last ids) its place, log p of these ids, and if each is the likeliest.

    network: a causal one, ids (B, L) to logits (B, L, V) of the tokens that follow. log p (number,) float64
    on the CPU, in nats; the pieces come in another order.
    """
    for batch in _batches(pieces):
        longest = max(len(pieces[place][0]) for place in batch)
        # a causal model's tokens do not see the padding on their right
        filled = [pieces[place][0] + [0] * (longest - len(pieces[place][0])) for place in batch]
        rows = torch.tensor(filled, device=device)
        for place, row, line in zip(batch, rows, network(rows[:, :-1]), strict=True):
            ids, scored = pieces[place]
            judged = row[len(ids) - scored : len(ids)]
            kept = line[len(ids) - scored - 1 : len(ids) - 1].float()
            values = -F.cross_entropy(kept, judged, reduction="none").cpu().double()
            yield place, values, bool((kept.argmax(-1) == judged).all())


def windows(
    before: list[int], text: list[int], context: int | None
) -> Iterator[tuple[list[int], int]]:
    """(ids, number of last ids to judge) so that each token of `text` is judged once.

    With more ids than a model sees at once, every judged token has at least half the context before it.
    """
    ids = before + text
    at = max(1, len(before))
    reach = len(ids) if context is None else context
    while at < len(ids):
        begin = 0 if len(ids) - 1 <= reach else max(0, at - max(1, reach // 2))
        stop = min(len(ids), begin + reach + 1)
        yield ids[begin:stop], stop - at
        at = stop


def _batches(pieces: Sequence[tuple[list[int], int]]) -> Iterator[list[int]]:
    """Places of pieces of similar length, a batch at a time."""
    batch: list[int] = []
    for place in sorted(range(len(pieces)), key=lambda place: -len(pieces[place][0])):
        if batch and (len(batch) + 1) * len(pieces[batch[0]][0]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def mauve_scores(
    judge: Judge, groups: Sequence[Sequence[Passage]], reference: Sequence[Passage]
) -> tuple[list[float | None], str]:
    """MAUVE of each group of texts against reference texts, in [0, 1], or why there is not one.

    Prompts are left out. The features are the judge's last hidden states at a text's last token, so scores
    are comparable under one judge only.
    """
    nothing: list[float | None] = [None] * len(groups)
    try:
        mauve = importlib.import_module("mauve")
    except ImportError:
        return nothing, "mauve: it needs mauve-text (pip install 'cola-cli[mauve]')."
    least = min(len(groups[0]), len(reference))
    if least < MAUVE_LEAST:
        return nothing, f"mauve: it needs {MAUVE_LEAST} texts on either side; there are {least}."
    known = _features(judge, reference)
    scores = list(nothing)
    for place, group in enumerate(groups):
        if len(group) >= MAUVE_LEAST:
            own = _features(judge, group)
            # a fixed seed: the clustering begins at random
            scores[place] = float(mauve.compute_mauve(own, known, seed=0, verbose=False).mauve)
    if least < MAUVE_ADVISED:
        return scores, f"mauve: {least} texts are few for it; {MAUVE_ADVISED:,} are advised."
    return scores, ""


@torch.inference_mode()
def _features(judge: Judge, passages: Sequence[Passage]) -> Any:
    """The last hidden state (texts, D) at the end of every text, as far as the judge's context goes."""
    rows = []
    for passage in passages:
        before = [] if judge.start is None else [judge.start]
        ids = (before + judge.tokenizer.encode(passage.text))[: judge.context]
        if ids:
            rows.append(judge.features(torch.tensor([ids], device=judge.device))[0, -1].float())
    return torch.stack(rows).cpu().numpy()
