"""`cola eval text` against plain Python: n-gram metrics, memorisation, perplexity known in closed form."""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import zstandard
from torch import Tensor, nn

from cola_cli.artifacts import Artifact, Identity, Output
from cola_cli.artifacts.kinds import Tokens
from cola_cli.corpus.sequences import Sequences
from cola_cli.corpus.tokenizer import load_tokenizer
from cola_cli.errors import InputError, UsageError
from cola_cli.evaluation import judge as judging
from cola_cli.evaluation.judge import MAUVE_LEAST, mauve_scores, open_judge, perplexity, windows
from cola_cli.evaluation.memorisation import memorised_shares
from cola_cli.evaluation.text_metrics import Passage, cut_passages, ngrams, text_metrics
from cola_cli.models.config import TransformerConfig
from cola_cli.models.transformer import Transformer
from cola_cli.reporting import Silent
from cola_cli.settings.tokenize import TokenizeSettings
from cola_cli.stages.eval_text import evaluate_text, split_documents
from cola_cli.stages.tokenize import tokenize
from cola_cli.weights.artifact import load_transformer, write_network
from cola_cli.weights.configs import TRANSFORMER
from tests.conftest import CPU as ON_CPU
from tests.conftest import Run
from tests.stages.conftest import made_up_text

CPU = torch.device("cpu")
Texts = list[list[int]]


def make_tokens(folder: Path, seq_len: int = 32) -> Tokens:
    """Tokens of several parts."""
    folder.mkdir(exist_ok=True)
    (folder / "corpus.txt").write_text(made_up_text(400))
    settings = TokenizeSettings(
        vocab_size=300, seq_len=seq_len, part_bytes=4000, workers=1, validation_fraction=0.3
    )
    tokenize([str(folder / "corpus.txt")], folder / "tokens", settings)
    return Tokens.open(folder / "tokens")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return make_tokens(tmp_path_factory.mktemp("text"))


def documents(artifact: Tokens, split: str) -> Texts:
    end = artifact.statistics.end_of_text_id
    return list(split_documents(Sequences(artifact, split), end))


def random_texts(seed: int, vocabulary: int = 9, count: int = 40) -> Texts:
    source = random.Random(seed)
    return [
        [source.randrange(1_000_000, 1_000_000 + vocabulary) for _ in range(source.randrange(12))]
        for _ in range(count)
    ]


def grams_of(text: list[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(text[at : at + size]) for at in range(len(text) - size + 1)]


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_plain_counting(seed: int) -> None:
    texts = random_texts(seed)
    found = text_metrics(texts)
    counts = Counter(token for text in texts for token in text)
    total = sum(counts.values())
    assert (found["texts"], found["tokens"]) == (40, total)
    assert found["empty"] == texts.count([]) > 0
    assert found["mean_length"] == total / 40
    assert found["entropy"] == pytest.approx(
        -sum(n / total * math.log2(n / total) for n in counts.values())
    )
    for size in (1, 2, 3, 4):
        grams = [gram for text in texts for gram in grams_of(text, size)]
        assert found[f"distinct_{size}"] == pytest.approx(len(set(grams)) / len(grams))
        if size > 1:
            fresh = sum(len(set(grams_of(text, size))) for text in texts)
            assert found[f"repeated_{size}"] == pytest.approx(1 - fresh / len(grams))


def test_metrics_that_short_texts_cannot_have_are_none() -> None:
    found = text_metrics([[5], [7, 7], []])
    assert found["distinct_1"] == pytest.approx(2 / 3)
    assert (found["distinct_2"], found["repeated_2"]) == (1.0, 0.0)
    assert found["distinct_3"] is found["repeated_4"] is None
    assert text_metrics([[]])["entropy"] is None


def test_ngrams_are_numbered_by_what_they_are() -> None:
    texts = random_texts(9, vocabulary=3)
    for size, owners, numbers in ngrams(texts, 8):
        expected = [(at, gram) for at, text in enumerate(texts) for gram in grams_of(text, size)]
        assert owners.tolist() == [at for at, _ in expected]
        pairs = set(zip((gram for _, gram in expected), numbers.tolist(), strict=True))
        assert (
            len(pairs) == len({gram for gram, _ in pairs}) == len({number for _, number in pairs})
        )


@pytest.mark.parametrize("sets", [1, 2])
def test_cut_passages_have_the_shapes_and_overlap_nowhere(sets: int) -> None:
    source = random.Random(3)
    lengths = [source.choice([3, 9, 200, 700]) for _ in range(60)]
    starts = [sum(lengths[:at]) for at in range(60)]
    texts = [
        list(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)
    ]
    shapes = [(source.randrange(6), source.randrange(1, 30)) for _ in range(50)] + [(4, 0)]
    found = cut_passages(lambda: texts, sum(lengths), shapes, sets)
    assert len(found) == sets
    used: list[int] = []
    for group in found:
        assert sum(len(ids) for _, ids in group) == sum(length for _, length in shapes)
        for before, ids in group:
            whole = before + ids
            assert whole == list(range(whole[0], whole[0] + len(whole)))  # one run of one document
            assert not any(whole[0] < start <= whole[-1] for start in starts)
            used += whole
        full = sum((len(before), len(ids)) in shapes for before, ids in group)
        assert full > len(group) / 2
    assert len(used) == len(set(used))
    assert max(used) > 0.8 * sum(lengths)  # from all over


def test_scarce_documents_are_cut_up_and_no_more() -> None:
    [found] = cut_passages(lambda: [[1, 2, 3], [4, 5, 6, 7, 8]], 8, [(2, 2)] * 100)
    assert found == [([1], [2, 3]), ([4, 5], [6, 7])]


@pytest.mark.parametrize("seq_len", [3, 7, 32])
def test_memorisation_is_that_of_plain_sets(tmp_path: Path, seq_len: int) -> None:
    artifact = make_tokens(tmp_path, seq_len)
    assert len(artifact.parts) > 4
    train, held_out = documents(artifact, "train"), documents(artifact, "validation")
    mixed = [*held_out[:20], train[3][2:] + held_out[7], [], train[5][:4]]
    for size in (1, 4, 8):
        known = {gram for text in train for gram in grams_of(text, size)}
        groups = [mixed, held_out[20:60], [[1]] if size > 1 else [[train[0][0]]]]
        expected = []
        for group in groups:
            grams = [gram for text in group for gram in grams_of(text, size)]
            expected.append(sum(g in known for g in grams) / len(grams) if grams else None)
        found = memorised_shares(artifact, groups, size, Silent())
        assert found == pytest.approx(expected)
        assert size < 8 or (0 < found[0] < 1 and 0 < found[1] < 1)


def test_copied_training_text_is_memorised_and_random_tokens_are_not(tokens: Tokens) -> None:
    train = documents(tokens, "train")
    assert any(len(text) > 16 for text in train)  # some stand across two rows of 32
    source = random.Random(1)
    noise = [[source.randrange(2, 300) for _ in range(40)] for _ in range(50)]
    assert memorised_shares(tokens, [train, noise], 8, Silent()) == [1.0, 0.0]


def test_ngrams_across_two_documents_are_not_training_text(tokens: Tokens) -> None:
    first, second = documents(tokens, "train")[:2]
    glued = [first[-4:] + second[:4]]
    assert memorised_shares(tokens, [glued], 8, Silent()) == [0.0]


class Letters:
    """A tokenizer of the letters a to h."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("a") + token) for token in ids)


class Bigrams(nn.Module):
    """Logits that depend on the last token alone."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids]


def bigram_judge(table: Tensor, start: int | None, context: int | None = None) -> judging.Judge:
    network = Bigrams(table)

    class Made:
        tokenizer, device = Letters(), CPU

        def __init__(self) -> None:
            self.start, self.context = start, context

        def __call__(self, ids: Tensor) -> Tensor:
            assert context is None or ids.shape[1] <= context
            return network(ids)

        def features(self, ids: Tensor) -> Tensor:
            return network(ids)

    return Made()


def passages(*pairs: tuple[str, str]) -> list[Passage]:
    return [Passage(prompt, text, [], []) for prompt, text in pairs]


PAIRS = (("", "abba"), ("hgf", "c"), ("h", ""), ("ab", "abcdefgh" * 9))


def test_uniform_judge_has_the_vocabulary_as_perplexity() -> None:
    found = perplexity(bigram_judge(torch.zeros(8, 8), 7), passages(*PAIRS), Silent())
    assert found == (pytest.approx(8.0), 4 + 1 + 72)


@pytest.mark.parametrize("start", [None, 7])
@pytest.mark.parametrize("context", [None, 6, 1])
def test_bigram_judge_has_the_perplexity_of_its_table(
    start: int | None, context: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "BATCH_TOKENS", 30)  # several batches, with padding
    table = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    chances = table.double().softmax(-1)
    total, count = 0.0, 0
    for prompt, text in PAIRS:
        before = "" if start is None else "h"
        whole = before + prompt + text
        for at in range(len(before + prompt), len(whole)):
            if at:
                last, token = Letters().encode(whole[at - 1 : at + 1])
                total -= math.log(chances[last, token])
                count += 1
    judge = bigram_judge(table, start, context)
    found = perplexity(judge, passages(*PAIRS), Silent())
    assert found == (pytest.approx(math.exp(total / count), rel=1e-5), count)
    assert perplexity(judge, passages(("a", "")), Silent()) == (None, 0)


@pytest.mark.parametrize(("before", "text"), [(0, 50), (1, 7), (1, 8), (1, 9), (30, 21), (60, 3)])
def test_windows_judge_every_token_once_with_half_a_context(before: int, text: int) -> None:
    ids = list(range(before + text))
    judged: list[int] = []
    for window, scored in windows(ids[:before], ids[before:], 8):
        assert len(window) - 1 <= 8
        assert len(window) - scored >= min(4, window[-scored])  # ids are their own places
        judged += window[-scored:]
    assert judged == ids[max(1, before) :]


@pytest.fixture
def trained_judge(tokens: Tokens, tmp_path: Path) -> Path:
    """An artifact as `cola train ar` leaves it, of a random network that sees 15 tokens."""
    torch.manual_seed(0)
    sizes = {"dim": 16, "layers": 1, "heads": 2, "head_dim": 8, "ffn_dim": 32}
    network = Transformer(TransformerConfig(vocab_size=300, causal=True, **sizes))
    network.token_out.weight.data.mul_(50)  # far from uniform
    identity = Identity(stage="train ar", settings={}, inputs={})
    with Output.open(tmp_path / "ar", "autoregressive", identity).writing() as writer:
        write_network(writer, TRANSFORMER, network.state_dict(), network.config)
        writer.write("tokenizer.json", tokens.file("tokenizer.json").read_bytes())
        writer.finish({"seq_len": 16})
    return tmp_path / "ar"


@torch.no_grad()
def test_artifact_judges_as_its_network_does(tokens: Tokens, trained_judge: Path) -> None:
    judge = open_judge(trained_judge, CPU)
    assert judge.context == 15
    network = load_transformer(Artifact.open(trained_judge))
    codec = load_tokenizer(tokens.file("tokenizer.json"))
    rows = [("Tom", " sees a"), ("", "Anna likes")]
    total, count = 0.0, 0
    for prompt, text in rows:
        before, ids = [codec.end_of_text_id, *codec.encode(prompt)], codec.encode(text)
        assert len(before + ids) <= 16
        for at, token in enumerate(ids):
            logits = network(torch.tensor([before + ids[:at]]))[0, -1]
            total -= float(logits.log_softmax(-1)[token])
            count += 1
    found = perplexity(judge, passages(*rows), Silent())
    assert found == (pytest.approx(math.exp(total / count), rel=1e-4), count)


def write_samples(path: Path, rows: list[tuple[str, str]]) -> Path:
    lines = "".join(json.dumps({"prompt": p, "text": t}) + "\n" for p, t in rows).encode()
    identity = Identity(stage="sample", settings={}, inputs={})
    with Output.open(path, "samples", identity).writing() as writer:
        with writer.part(0, suffix=".jsonl.zst") as part:
            part.path.write_bytes(zstandard.compress(lines))
            part.rows = len(rows)
        writer.finish()
    return path


def copied_rows(tokens: Tokens, count: int = 12) -> list[tuple[str, str]]:
    """Samples that are copied from the training text, with its first tokens as prompts."""
    codec = load_tokenizer(tokens.file("tokenizer.json"))
    train = documents(tokens, "train")[:count]
    return [(codec.decode(ids[:3]), codec.decode(ids[3:])) for ids in train]


def test_all_metrics_stand_beside_those_of_held_out_text(
    tokens: Tokens, trained_judge: Path, tmp_path: Path
) -> None:
    samples = write_samples(tmp_path / "samples", [*copied_rows(tokens), ("Anna", "")])
    found = evaluate_text(samples, tokens.path, trained_judge, None, 8, ON_CPU)
    ours, real = found["samples"], found["held_out"]
    assert ours.keys() == real.keys()
    judge = open_judge(trained_judge, CPU)
    rows = passages(*copied_rows(tokens))
    assert (ours["perplexity"], ours["judged_tokens"]) == perplexity(judge, rows, Silent())
    assert real["perplexity"] > 1
    assert (ours["memorised"], ours["empty"], ours["texts"]) == (1.0, 1, 13)
    assert 0 < real["memorised"] < 1
    assert ours["tokens"] == real["tokens"]
    train = documents(tokens, "train")[:12]
    assert ours["tokens"] == sum(len(ids) - 3 for ids in train)
    assert ours["mauve"] is None
    assert [note.split(":")[0] for note in found["notes"]] == ["mauve"]


def test_reference_text_takes_the_place_of_validation_text(tokens: Tokens, tmp_path: Path) -> None:
    rows = copied_rows(tokens)
    (tmp_path / "samples.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "generated": t}) + "\n" for p, t in rows)
    )
    (tmp_path / "same.txt").write_text("Tom " * 400)
    given = (tmp_path / "samples.jsonl", tokens.path, None)
    by_text = evaluate_text(*given, tmp_path / "same.txt", 8)["held_out"]
    by_tokens = evaluate_text(*given, tokens.path, 8)["held_out"]
    assert by_text["entropy"] < 2 < by_tokens["entropy"]
    assert by_tokens == evaluate_text(*given, None, 8)["held_out"]
    (tmp_path / "short.txt").write_text("Tom sees a tall tree.")
    short = evaluate_text(*given, tmp_path / "short.txt", 8)
    assert any(note.startswith("held-out: ") for note in short["notes"])


def test_the_command_tells_what_is_missing(tokens: Tokens, tmp_path: Path, cola: Run) -> None:
    samples = write_samples(tmp_path / "samples", copied_rows(tokens))
    result = cola("eval", "text", samples, "--tokens", tokens.path, "--ngram", 6, "--json")
    found = json.loads(result.stdout)
    assert found["ngram"] == 6
    assert found["samples"]["memorised"] == 1.0
    assert found["samples"]["perplexity"] is None
    assert any("--judge" in note for note in found["notes"])
    shown = cola("eval", "text", samples, "--tokens", tokens.path)
    assert "--judge" in shown.stderr
    lines = dict(line.split("\t", 1) for line in shown.stdout.splitlines())
    assert lines["metric"] == "samples\theld-out"
    assert lines["perplexity"] == "-\t-"
    assert lines["memorised"].startswith("1\t0.")
    assert "--tokens" in cola("eval", "text", samples, expect=2).stderr
    (tmp_path / "odd.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    odd = cola("eval", "text", tmp_path / "odd.jsonl", "--tokens", tokens.path, expect=4)
    assert "line 2" in odd.stderr


def test_what_is_no_judge_is_refused(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="is an artifact of kind tokens"):
        open_judge(tokens.path, CPU)
    with pytest.raises(InputError, match="not a language model"):
        open_judge(tmp_path, CPU)
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="needs the package transformers"):
        open_judge(tmp_path, CPU)


@pytest.fixture
def gpt2(tokens: Tokens, tmp_path: Path) -> Path:
    """A random GPT-2 with the tokens' tokenizer, as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 24, "vocab_size": 300}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(
        tmp_path / "gpt2"
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokens.file("tokenizer.json")), eos_token="<|endoftext|>"
    ).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_transformers_model_judges_by_its_own_loss(tokens: Tokens, gpt2: Path) -> None:
    import transformers

    judge = open_judge(gpt2, CPU)
    assert (judge.start, judge.context) == (0, 24)
    codec = load_tokenizer(tokens.file("tokenizer.json"))
    rows = [("Tom", " sees a"), ("", "Anna likes")]
    network = transformers.GPT2LMHeadModel.from_pretrained(gpt2)
    total, count = 0.0, 0
    for prompt, text in rows:
        before, ids = [0, *codec.encode(prompt)], codec.encode(text)
        assert judge.tokenizer.encode(text) == ids
        labels = torch.tensor([[-100] * len(before) + ids])
        with torch.no_grad():
            loss = network(torch.tensor([before + ids]), labels=labels).loss
        total += float(loss) * len(ids)
        count += len(ids)
    found = perplexity(judge, passages(*rows), Silent())
    assert found == (pytest.approx(math.exp(total / count), rel=1e-5), count)


def test_mauve_tells_same_text_from_other_text(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = open_judge(gpt2, CPU)
    few = passages(*[("", "Tom")] * (MAUVE_LEAST - 1))
    sentences = made_up_text(600).split("\n\n")
    real = passages(*(("", text) for text in sentences[:300]))
    again = passages(*(("", text) for text in sentences[300:]))
    other = passages(*(("", f"{number} {number}") for number in range(300)))
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "mauve", None)
        scores, note = mauve_scores(judge, [again, []], real)
        assert scores == [None, None]
        assert "mauve-text" in note
    pytest.importorskip("mauve")
    assert mauve_scores(judge, [few], real)[0] == [None]
    (same, different), note = mauve_scores(judge, [again, other], real)
    assert "300 texts are few" in note
    assert same is not None
    assert different is not None
    assert different < 0.3 < 0.7 < same
