"""`cola sample` as a user meets it: JSON lines, artifacts that resume, signals, wrong prompts."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

import cola_cli
from cola_cli.artifacts import Identity, Output
from cola_cli.corpus.tokenizer import train_tokenizer
from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.stages.sample import read_samples
from cola_cli.weights.artifact import write_network
from tests.conftest import CPU, Run, cola_command, content
from tests.stages.terminal import HIDE, SHOW, on_a_terminal
from tests.stages.test_tokenize import WORDS

CONTEXT = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior artifact with random weights, large enough that samples differ."""
    path = tmp_path_factory.mktemp("model") / "prior"
    tokenizer = train_tokenizer([" ".join(WORDS)] * 9, 300)
    torch.manual_seed(0)
    vae_config = TextVAEConfig(
        vocab_size=tokenizer.vocab_size, encoder_layers=1, decoder_layers=1, dim=16, ffn_dim=32,
        latent_dim=4, heads=2,
    )  # fmt: skip
    prior_config = PriorConfig(
        latent_dim=4, dim=16, heads=2, head_dim=8, layers=2, rope_dim=6, block_size=4
    )
    networks = {"vae": TextVAE(vae_config), "prior": Prior(prior_config)}
    for network in networks.values():
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    made = Identity(stage="train prior", settings={}, inputs={})
    with Output.open(path, "prior", made).writing() as writer:
        write_network(writer, "vae", networks["vae"].state_dict(), vae_config)
        write_network(writer, "prior", networks["prior"].state_dict(), prior_config)
        writer.write("tokenizer.json", tokenizer.to_bytes())
        writer.finish({"seq_len": CONTEXT})
    return path


def write_prompts(path: Path, count: int) -> list[dict[str, object]]:
    generator = random.Random(1)
    rows: list[dict[str, object]] = [
        {"id": f"p{n}", "prompt": " ".join(generator.choices(WORDS, k=generator.randint(1, 12)))}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


SHORT = ("--max-new-tokens", 6, "--steps", 2)


def rows_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines_come_in_the_order_of_the_prompts_from_file_and_stdin(
    cola: Run, tmp_path: Path, model: Path
) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 7)
    whole = cola("sample", model, "--prompts", "p.jsonl", "--json", *SHORT).stdout
    assert [row["id"] for row in rows_of(whole)] == [row["id"] for row in prompts]
    assert all(row["tokens"] == 6 for row in rows_of(whole) if row["finish"] == "length")
    lines = (tmp_path / "p.jsonl").read_text()
    piped = cola("sample", model, "--prompts", "-", "--json", *SHORT, input=lines)
    assert piped.stdout == whole


def test_a_sample_does_not_depend_on_its_neighbours(cola: Run, tmp_path: Path, model: Path) -> None:
    write_prompts(tmp_path / "p.jsonl", 9)
    common = ("sample", model, "--prompts", "p.jsonl", "--json", "--temperature", 1.0, *SHORT)
    together = cola(*common, "--batch-size", 9).stdout
    assert cola(*common, "--batch-size", 2).stdout == together
    assert cola(*common, "--batch-size", 9, "--seed", 1).stdout != together


def test_text_on_stdout_is_the_prompt_and_what_follows(cola: Run, model: Path) -> None:
    prompt = "the cat sat"
    row = rows_of(cola("sample", model, "--prompt", prompt, "--json", *SHORT).stdout)[0]
    plain = cola("sample", model, "--prompt", prompt, *SHORT)
    assert plain.stdout.rstrip("\n") == f"{prompt}{row['text']}".rstrip("\n")
    assert "Traceback" not in plain.stderr


@pytest.mark.slow
def test_a_thousand_prompts_killed_twice_come_out_once_in_order_and_the_same(
    cola: Run, tmp_path: Path, model: Path
) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 1000)
    arguments = ("sample", model, "--prompts", "p.jsonl", *SHORT, "--batch-size", 32, "--quiet")
    cola(*arguments, "-o", "whole")
    killed = 0
    while killed < 2:
        process = subprocess.Popen(cola_command(*arguments, "-o", "killed"), cwd=tmp_path)
        done = len(list(tmp_path.glob("killed/parts/*.json")))
        while len(list(tmp_path.glob("killed/parts/*.json"))) < done + 8:
            assert process.poll() is None, "it finished before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    assert "1,000 prompts" in cola(*arguments, "-o", "killed").stdout
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    samples = list(read_samples(tmp_path / "killed"))
    assert [row["id"] for row in samples] == [row["id"] for row in prompts]
    assert "up to date" in cola(*arguments, "-o", "killed").stdout
    assert cola("verify", "killed").returncode == 0


@pytest.mark.slow
def test_a_text_is_cut_at_a_stop_string_and_a_killed_run_cuts_the_same(
    cola: Run, tmp_path: Path, model: Path
) -> None:
    write_prompts(tmp_path / "p.jsonl", 96)
    common = (
        "sample", model, "--prompts", "p.jsonl", "--steps", 2, "-n", 8, "--temperature", 1.0,
        "--batch-size", 16,
    )  # fmt: skip
    plain = rows_of(cola(*common, "--json").stdout)
    having = Counter(letter for row in plain for letter in {*str(row["text"])})
    texts = [letter for letter, count in having.items() if letter.isalnum() and 6 < count < 40][:2]
    stops = [flag for text in texts for flag in ("--stop", text)]
    cola(*common, *stops, "-o", "whole")
    cut = list(read_samples(tmp_path / "whole"))
    for before, after in zip(plain, cut, strict=True):
        text = str(before["text"])
        assert after["text"] == re.split("|".join(map(re.escape, texts)), text)[0]
        assert after["finish"] == ("stop" if after["text"] != text else before["finish"])
    assert 12 < sum(row["finish"] == "stop" for row in cut) < 96
    assert rows_of(cola(*common, *stops, "--json").stdout) == cut
    process = subprocess.Popen(cola_command(*common, *stops, "-o", "killed"), cwd=tmp_path)
    while not list(tmp_path.glob("killed/parts/*.json")):
        assert process.poll() is None, "it finished before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cola(*common, *stops, "-o", "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    other = cola(*common, "-o", "whole", expect=3).stderr
    assert "stop" in other
    wrong = cola(*common, "--stop", "", expect=2).stderr
    assert "--stop: setting stop = " in wrong


def test_any_character_a_model_may_write_survives_the_artifact(
    cola: Run, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cola_cli.corpus.tokenizer import TextTokenizer
    from cola_cli.sampling.prompts import given_prompts
    from cola_cli.settings.sample import SampleSettings
    from cola_cli.stages.sample import sample_to_artifact

    awkward = "line\u2028paragraph\u2029next\x85page\x0c end\r\n"
    monkeypatch.setattr(TextTokenizer, "continuation", lambda *_: awkward)
    settings = SampleSettings(max_new_tokens=2, steps=1)
    sample_to_artifact(model, given_prompts(["a", "b"]), tmp_path / "s", settings, CPU)
    assert [row["text"] for row in read_samples(tmp_path / "s")] == [awkward, awkward]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_what_is_finished(
    tmp_path: Path, model: Path, number: signal.Signals, code: int
) -> None:
    write_prompts(tmp_path / "p.jsonl", 3000)
    arguments = ("sample", model, "--prompts", "p.jsonl", "-o", "s", *SHORT, "--batch-size", 16)
    process = subprocess.Popen(
        cola_command(*arguments), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("s/parts/*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert "Run the same command again" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.glob("s/parts/*.jsonl.zst"))


def test_watching_shows_the_block_settle_and_ends_with_the_text(
    cola: Run, tmp_path: Path, model: Path
) -> None:
    common = ("sample", model, "--prompt", "the cat sat", *SHORT)
    piped = cola(*common).stdout
    shown, code, kept = on_a_terminal(tmp_path, *common, "--watch", "--quiet")
    assert code == 0
    assert kept
    assert [shown.count(f"t = {t}") >= 2 for t in ("1.00", "0.50")] == [True, True]  # two blocks
    assert " ·" in shown.split("t = 1.00")[0]  # nothing has settled yet
    assert shown.rindex(SHOW) > shown.rindex(HIDE)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r\n", "\n")
    assert plain.endswith(piped.rstrip("\n") + "\n\n")
    assert cola(*common, "--watch").stdout == piped  # no terminal: plain streaming


@pytest.mark.parametrize("way", ["watch", "bars"])
def test_ctrl_c_leaves_a_clean_terminal_and_what_is_finished(
    tmp_path: Path, model: Path, way: str
) -> None:
    write_prompts(tmp_path / "p.jsonl", 3000)
    common = ("sample", model, "--prompts", "p.jsonl", *SHORT, "--batch-size", 16)
    if way == "watch":
        shown, code, kept = on_a_terminal(tmp_path, *common, "--watch", interrupt_at="t = 0.50")
        assert HIDE in shown
    else:
        finished = "s/parts/00001.json"
        shown, code, kept = on_a_terminal(tmp_path, *common, "-o", "s", interrupt_at=finished)
        assert (tmp_path / finished).exists()
    assert code == 130
    assert kept
    assert shown.rfind(SHOW) >= shown.rfind(HIDE)
    assert shown.endswith("\n")
    assert "Traceback" not in shown


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, model: Path) -> None:
    write_prompts(tmp_path / "p.jsonl", 60)
    command = cola_command("sample", model, "--prompts", "p.jsonl", "--json", *SHORT)
    process = subprocess.Popen(
        [*command, "--batch-size", "1"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"prompt": "a"}\n{"promt": "a"}\n', 'p.jsonl, line 2 has no text under "prompt"'),
        ('{"prompt": "a"\n', "p.jsonl, line 1 is not valid JSON"),
        (json.dumps({"prompt": "cat " * CONTEXT}), f"trained on sequences of {CONTEXT}"),
        ("", "there are no prompts"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(
    cola: Run, tmp_path: Path, model: Path, lines: str, message: str
) -> None:
    (tmp_path / "p.jsonl").write_text(lines)
    for output in (("-o", "s"), ()):
        result = cola("sample", model, "--prompts", "p.jsonl", *output, *SHORT, expect=4)
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_an_empty_prompt_gives_samples_of_nothing_before(cola: Run, model: Path) -> None:
    (one,) = cola("sample", model, "--prompt", "", "--json", *SHORT).stdout.splitlines()
    row = json.loads(one)
    assert (row["prompt"], row["tokens"] > 0) == ("", True)


def test_a_budget_beyond_the_context_is_said_once(cola: Run, model: Path) -> None:
    prompts = ("--prompt", "the cat", "--prompt", "a dog", "--steps", 1)
    result = cola("sample", model, *prompts, "-n", CONTEXT)
    assert result.stderr.count(f"more than the {CONTEXT} of a training sequence") == 1
    assert "training sequence" not in cola("sample", model, *prompts, "-n", 4).stderr


def test_a_model_that_is_not_there_is_told_at_once(cola: Run) -> None:
    result = cola("sample", "nosuch", "--prompt", "a", expect=4)
    assert result.stderr.splitlines()[0] == "cola: error: nosuch does not exist."


def test_the_demo_model_has_a_prompt_of_its_own(cola: Run) -> None:
    assert cola("sample", "demo", "-n", 1).stdout.startswith("Tom was a brave sailor who")


def test_wrong_settings_are_usage_errors(cola: Run, model: Path) -> None:
    prompt = ("--prompt", "the")
    assert (
        "must fall from 1 to 0"
        in cola("sample", model, *prompt, "--set", "grid=[1.0, 0.5, 0.7, 0.0]", expect=2).stderr
    )
    assert (
        "Did you mean guidance?"
        in cola("sample", model, *prompt, "--set", "guidence=3", expect=2).stderr
    )
    assert "either --prompt or --prompts" in cola("sample", model, expect=2).stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--guidance", "1e30"), ("--guidance", "inf"), ("--guidance", "nan"), ("--steps", "1000000"),
        ("--repaint-times", "1000000000"), ("--top-k", "0"), ("--top-p", "0"),
        ("--repetition-penalty", "0"), ("--set", "grid=[0.5]"),
    ],
)  # fmt: skip
def test_absurd_settings_are_refused_by_name(cola: Run, model: Path, flag: str, value: str) -> None:
    said = cola("sample", model, "--prompt", "a", flag, value, expect=2).stderr
    name = "grid" if flag == "--set" else flag.strip("-").replace("-", "_")
    assert name in said
    assert "setting  is" not in said


def test_another_kind_of_artifact_is_refused(cola: Run, tmp_path: Path) -> None:
    from tests.artifacts.test_promises import make

    make(tmp_path / "tokens")
    result = cola("sample", "tokens", "--prompt", "a", expect=4)
    assert "is an artifact of kind tokens, but one of kind prior is needed" in result.stderr


def test_the_plan_counts_parameters_passes_and_cache(cola: Run, model: Path) -> None:
    result = cola("sample", model, "--prompt", "a", "--dry-run", "--json", "--steps", 10)
    plan = json.loads(result.stdout)["plan"]
    assert plan["prior_passes_per_block"] == 10
    assert plan["weight_bytes"] == 4 * plan["parameters"]


def test_a_prior_is_sampled_as_it_was_stored_unless_a_flag_says_otherwise(
    cola: Run, tmp_path: Path
) -> None:
    """`[prior.sampling]` of the training goes into the manifest; the fingerprint does not depend on it."""
    run = Path(__file__).parent.parent / "format1"
    shutil.copytree(run / "run", tmp_path / "run")
    command = ("train", "prior", "latents", "--config", run / "settings.toml")
    stored = ("--set", "sampling.steps=3", "--set", "sampling.guidance=1.5")
    cola(*command, "-o", "own", *stored, cwd=tmp_path / "run")
    assert fingerprint(tmp_path / "run" / "own") == fingerprint(tmp_path / "run" / "prior")

    def planned(*flags: str) -> tuple[int, float]:
        shown = cola(
            "sample", "own", "-p", "Anna", "--dry-run", *flags, "--json", cwd=tmp_path / "run"
        )
        settings = json.loads(shown.stdout)["settings"]
        return settings["steps"], settings["guidance"]

    assert planned() == (3, 1.5)
    assert planned("--guidance", "2") == (3, 2.0)
    model = cola_cli.load(tmp_path / "run" / "own")
    same = {"steps": 3, "guidance": 1.5}
    assert model.generate(["Anna"], 4)[0].ids == model.generate(["Anna"], 4, **same)[0].ids


def fingerprint(artifact: Path) -> str:
    return json.loads((artifact / "manifest.json").read_text())["fingerprint"]
