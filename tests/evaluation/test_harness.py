"""cola's models under lm-evaluation-harness itself, on tasks in local files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cola_cli.artifacts import Identity, Output
from cola_cli.corpus.tokenizer import TextTokenizer, train_tokenizer
from cola_cli.evaluation.likelihood import likelihood, masked_bound, response_score
from cola_cli.models.config import TransformerConfig
from cola_cli.models.transformer import Transformer
from cola_cli.weights.artifact import write_network
from tests.stages.test_sample import model  # noqa: F401  (a fixture)

VOCABULARY, CONTEXT = 300, 16
QUESTIONS = [
    {"question": "the cat", "choices": [" sat", " ran far"], "label": 0, "words": "Tom sees a bird"},
    {"question": "", "choices": ["Tom sees", "a"], "label": 1, "words": "the bird " * 12},
    {"question": "Anna likes " * 9, "choices": [" a", " the cat"], "label": 0, "words": "a"},
]  # fmt: skip
DATA = "dataset_path: json\ntest_split: test\ndataset_kwargs: {data_files: {test: DATA}, cache_dir: CACHE}\n"
TASKS = {
    "choose": "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\n"
    'doc_to_target: label\ntarget_delimiter: ""\nmetric_list: [{metric: acc}]\n',
    "whole": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: words\n"
    "metric_list: [{metric: word_perplexity}]\n",
    "write": "output_type: generate_until\ndoc_to_text: question\ndoc_to_target: words\n"
    'generation_kwargs: {until: ["e"], max_gen_toks: 6}\nmetric_list: [{metric: exact_match}]\n',
    "follow": "output_type: loglikelihood\ndoc_to_text: question\ndoc_to_target: '{{choices[0]}}'\n"
    'target_delimiter: ""\nmetric_list: [{metric: acc}, {metric: perplexity}]\n',
}


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(["the cat sat. Tom sees a bird, Anna likes the old boat."], VOCABULARY)


def baseline(folder: Path, kind: str, tokenizer: TextTokenizer) -> Path:
    """An artifact as training leaves it, of a random network that is far from uniform."""
    torch.manual_seed(0)
    sizes = {"dim": 16, "layers": 2, "heads": 2, "head_dim": 8, "ffn_dim": 32}
    causal = kind == "autoregressive"
    network = Transformer(
        TransformerConfig(vocab_size=tokenizer.vocab_size, causal=causal, **sizes)
    )
    network.token_out.weight.data.mul_(50)
    place = folder / kind
    with Output.open(place, kind, Identity(stage=kind, settings={}, inputs={})).writing() as writer:
        write_network(writer, "transformer", network.state_dict(), network.config)
        writer.write("tokenizer.json", tokenizer.to_bytes())
        writer.finish({"seq_len": CONTEXT, "end_of_text_id": tokenizer.end_of_text_id})
    return place


def evaluate(folder: Path, name: str, model: Any, **arguments: Any) -> dict[str, Any]:  # noqa: F811
    """What the harness says of a task: its results, and under `answers` those of the model."""
    harness = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    import cola_cli.evaluation.harness  # noqa: F401  (0.4.13 does not look for entry points)

    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    recipe = DATA.replace("DATA", str(data)).replace("CACHE", str(folder / "cache"))
    (folder / f"{name}.yaml").write_text(f"task: {name}\n{recipe}{TASKS[name]}")
    found = harness.simple_evaluate(
        model=model, tasks=[name], bootstrap_iters=0, **arguments,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )  # fmt: skip
    rows = sorted(found["samples"][name], key=lambda row: row["doc_id"])
    return found["results"][name] | {"answers": [row["resps"] for row in rows]}


def brute_force(network: Transformer, before: list[int], after: list[int]) -> float:
    """log p(after | before), a token at a time, with what fits into the context."""
    total, ids = 0.0, (before + after)[-CONTEXT:]
    for at in range(len(ids) - len(after), len(ids)):
        logits: Tensor = network(torch.tensor([ids[:at]]))[0, -1]
        total += float(logits.double().log_softmax(-1)[ids[at]])
    return total


@torch.no_grad()
def test_a_model_of_the_next_token_is_scored_exactly(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    import cola_cli

    place = baseline(tmp_path, "autoregressive", tokenizer)
    network: Any = cola_cli.load_baseline(place, "cpu").network
    start = [tokenizer.end_of_text_id]
    named = {"model": "cola", "model_args": f"pretrained={place},device=cpu"}
    found = evaluate(tmp_path, "choose", **named)
    right = 0
    for row, answers in zip(QUESTIONS, found["answers"], strict=True):
        question, choices = str(row["question"]), row["choices"]
        before = tokenizer.encode(question.rstrip())
        spaces = question[len(question.rstrip()) :]
        expected = []
        for choice in choices:
            whole = tokenizer.encode(question.rstrip() + spaces + choice)
            expected.append(brute_force(network, before or start, whole[len(before) :]))
        assert [answer[0][0] for answer in answers] == pytest.approx(expected, rel=1e-4)
        right += expected.index(max(expected)) == row["label"]
    assert found["acc,none"] == pytest.approx(right / len(QUESTIONS))

    totals = [
        sum(
            brute_force(
                network, ([*start, *ids])[begin : begin + 1], ids[begin : begin + CONTEXT - 1]
            )
            for begin in range(0, len(ids), CONTEXT - 1)
        )
        for ids in (tokenizer.encode(str(row["words"])) for row in QUESTIONS)
        if len(ids) % (CONTEXT - 1) == 0 or len(ids) < CONTEXT
    ]
    found = evaluate(tmp_path, "whole", **named)
    values = [answers[0][0] for answers in found["answers"]]
    assert [values[0], values[2]] == pytest.approx([totals[0], totals[-1]], rel=1e-4)


def test_the_harness_own_class_says_the_same_of_the_same_weights(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    pytest.importorskip("lm_eval")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM

    import cola_cli

    place = baseline(tmp_path, "autoregressive", tokenizer)
    network: Any = cola_cli.load_baseline(place, "cpu").network
    config = network.config
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.ffn_dim,
            num_hidden_layers=config.layers, num_attention_heads=config.heads, head_dim=config.head_dim,
            rms_norm_eps=config.norm_eps, rope_theta=config.rope_theta, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    )  # fmt: skip
    state = {
        "model.embed_tokens.weight": network.embedding.weight,
        "model.norm.weight": network.out_norm.weight,
        "lm_head.weight": network.token_out.weight,
    }
    for number, block in enumerate(network.blocks):
        q, k, v = block.qkv.weight.chunk(3)
        gate, value = block.ffn_in.weight.chunk(2)
        state |= {
            f"model.layers.{number}.{name}.weight": weight
            for name, weight in {
                "input_layernorm": block.attention_norm.weight,
                "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v,
                "self_attn.o_proj": block.attention_out.weight,
                "post_attention_layernorm": block.ffn_norm.weight,
                "mlp.gate_proj": gate, "mlp.up_proj": value, "mlp.down_proj": block.ffn_out.weight,
            }.items()
        }  # fmt: skip
    llama.load_state_dict(state)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(place / "tokenizer.json"), eos_token=tokenizer.end_of_text
    )
    theirs.pad_token = theirs.eos_token
    own = HFLM(pretrained=llama.eval(), tokenizer=theirs, max_length=CONTEXT - 1, device="cpu")
    named = {"model": "cola", "model_args": f"pretrained={place},device=cpu"}
    for name in ("choose", "follow", "whole"):
        ours, other = evaluate(tmp_path, name, **named), evaluate(tmp_path, name, model=own)
        flat = [
            [list(answer[0]) if name != "whole" else [answer[0]] for answer in one]
            for found in (ours, other)
            for one in found["answers"]
        ]
        for mine, theirs_ in zip(flat[: len(QUESTIONS)], flat[len(QUESTIONS) :], strict=True):
            assert mine == [pytest.approx(row, rel=1e-3) for row in theirs_]


def test_a_prior_is_scored_by_its_bounds_and_writes_until_a_stop(
    tmp_path: Path,
    model: Path,  # noqa: F811
) -> None:
    import cola_cli

    opened = cola_cli.load(model, "cpu")
    tokenizer = opened.require_tokenizer()
    bound = {"draws": 2, "steps": 3, "seed": 5, "divergence": "exact"}
    options = "draws=2,likelihood_steps=3,divergence=exact,seed=5,steps=2"
    named = {"model": "cola", "model_args": f"pretrained={model},device=cpu,{options}"}
    found = evaluate(tmp_path, "follow", **named)
    before, whole = tokenizer.encode("the cat"), tokenizer.encode("the cat sat")
    expected = response_score(opened, before, whole[len(before) :], **bound)["iwae"]
    assert found["answers"][0][0][0][0] == pytest.approx(expected, rel=1e-4)
    first = likelihood(opened, tokenizer.encode("Tom sees"), **bound).iwae
    assert found["answers"][1][0][0][0] == pytest.approx(first, rel=1e-4)
    texts = evaluate(tmp_path, "write", **named)["answers"]
    for place, (row, answers) in enumerate(zip(QUESTIONS, texts, strict=True)):
        ids = tokenizer.encode(str(row["question"]))
        (alone,) = opened.generate_ids([[]] * place + [ids], max_new_tokens=6, steps=2, seed=5)[
            place:
        ]
        said = tokenizer.continuation(ids, alone.ids)
        assert answers == [[said.split("e")[0]]] or tokenizer.end_of_text_id in alone.ids


@pytest.mark.parametrize("kind", ["autoregressive", "llada"])
def test_what_a_model_would_write_is_told_from_what_it_would_not(
    tmp_path: Path, tokenizer: TextTokenizer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cola_cli

    place = baseline(tmp_path, kind, tokenizer)
    opened = cola_cli.load_baseline(place, "cpu")
    ids = tokenizer.encode("the cat")
    (written,) = opened.generate_ids([ids], max_new_tokens=2)
    pytest.importorskip("lm_eval")
    from cola_cli.evaluation.harness import ColaLM

    scorer = ColaLM(str(place), device="cpu")
    asked = [(("", ""), ids, after) for after in (written.ids, [1, 2])]
    found = scorer._loglikelihood_tokens(asked, disable_tqdm=True)
    assert [likeliest for _, likeliest in found] == [True, False]


@torch.no_grad()
def test_the_bound_of_a_masked_model_is_that_of_all_orders(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    import cola_cli

    network: Any = cola_cli.load_baseline(baseline(tmp_path, "llada", tokenizer), "cpu").network
    network.token_out.weight.data /= 10  # so that the mean over draws is soon exact
    before, after = [5, 9], [7, 3, 20]
    orders = [*itertools.permutations(range(3))]
    total = 0.0
    for order in orders:
        for step, place in enumerate(order):
            ids = [
                *before,
                *(
                    after[p] if p in order[:step] else network.config.mask_token_id
                    for p in range(3)
                ),
            ]
            total += float(network(torch.tensor([ids]))[0, 2 + place].log_softmax(-1)[after[place]])
    found = masked_bound(network, before, after, 3000, seed=0)
    assert found == pytest.approx(total / len(orders), abs=0.05)
