"""cola train ... --extend: a longer run goes on from the state of a shorter one, and ends as if planned."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cola_cli.artifacts import Artifact, Identity, Output
from cola_cli.artifacts.manifest import NEW, read_manifest
from cola_cli.artifacts.verify import repair, verify
from cola_cli.errors import Interrupted, OutputConflict
from cola_cli.families import AUTOREGRESSIVE, DISTILLED, LLADA, PRIOR, TEXT_VAE, Family
from cola_cli.machine import interruption
from cola_cli.settings.prior import PriorSettings
from cola_cli.settings.training import Optimizer
from cola_cli.stages.status import survey
from cola_cli.stages.train import derived_family, plan_training, train
from cola_cli.training.loop import Training
from cola_cli.training.schedule import learning_rate, shared_steps
from tests.artifacts.test_replacement import Killed, killing
from tests.conftest import CPU, content
from tests.stages.conftest import assignments, distill_settings, prior_settings, vae_settings
from tests.stages.killing import assert_same_manifest, assert_same_metrics, kill_until_done
from tests.stages.test_many_processes import difference, run
from tests.stages.test_numbers import cola
from tests.stages.test_start import baseline_settings

SHORT, LONG = 18, 27  # neither is a step that a run of another length logs, validates or saves
WITH_AVERAGE = {"ema_decay": 0.9, "batch_size": 10}


def beginning_with(updates: int) -> PriorSettings:
    """A prior that has blocks of 2 for its first updates."""
    settings = prior_settings()
    data = settings.data.model_copy(update={"block_curriculum": ((2, updates),)})
    return settings.model_copy(update={"data": data})


def of(settings: Any, steps: int, schedule: str = "constant", **optim: object) -> Any:
    """The settings with another length and learning rate."""
    return settings.model_copy(
        update={
            "train": settings.train.model_copy(update={"steps": steps}),
            "optim": settings.optim.model_copy(update={"schedule": schedule, **optim}),
        }
    )


def assert_same(one: Path, other: Path) -> None:
    """The artifacts are equal byte for byte, but for times."""
    assert content(one) == content(other)
    assert_same_metrics(one, other)
    assert_same_manifest(one, other)
    assert verify(one).findings == []


CASES: dict[str, tuple[Family, Any, dict[str, object]]] = {
    "vae": (TEXT_VAE, vae_settings(**WITH_AVERAGE), {"name": "muon"}),
    "frozen": (PRIOR, prior_settings(), {}),
    "curriculum": (PRIOR, beginning_with(SHORT // 3), {}),
    "joint": (PRIOR, prior_settings("joint"), {}),
    "ar": (AUTOREGRESSIVE, baseline_settings(**WITH_AVERAGE), {}),
    "ar, decay at the end": (AUTOREGRESSIVE, baseline_settings(), {"schedule": "constant-then-decay"}),
    "ar, decay to a step": (AUTOREGRESSIVE, baseline_settings(), {"schedule": "cosine", "decay_until": 30}),
    "llada": (LLADA, baseline_settings(), {}),
    "distill": (DISTILLED, distill_settings(teacher={"steps": 4, "guidance": 2.0}, batch_size=2), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_extended_run_is_the_planned_one_to_the_byte(
    made: Path, tmp_path: Path, name: str
) -> None:
    family, settings, optim = CASES[name]
    source = made / family.reads
    if family is DISTILLED:
        train(PRIOR, source, tmp_path / "teacher", prior_settings(steps=2), CPU)
        family = derived_family(DISTILLED, tmp_path / "teacher", source)
    train(family, source, tmp_path / "planned", of(settings, LONG, **optim), CPU)
    train(family, source, tmp_path / "grown", of(settings, SHORT, **optim), CPU)
    for _ in range(2):  # the second time it is up to date
        done = train(
            family, source, tmp_path / "grown", of(settings, LONG, **optim), CPU, None, True
        )
        assert_same(tmp_path / "grown", tmp_path / "planned")
    assert not done.changed


def test_what_is_kept_is_as_large_as_the_plan_says(made: Path, tmp_path: Path) -> None:
    for name, (family, settings, optim) in CASES.items():
        if name in ("frozen", "joint", "ar"):  # muon has one moment of most weights at larger sizes
            chosen, source = of(settings, 2, **optim), made / family.reads
            plan = plan_training(family, source, chosen, "cpu")
            train(family, source, tmp_path / name, chosen, CPU)
            files = (tmp_path / name / "checkpoints").rglob("*")
            size = sum(file.stat().st_size for file in files if file.is_file())
            assert size == pytest.approx(
                plan["kept_bytes"], rel=0.15
            )  # headers, in so small a network
    none = prior_settings(keep_state=False)
    assert plan_training(PRIOR, made / "latents", none, "cpu")["kept_bytes"] == 0


def test_a_decay_that_ends_with_the_run_is_taken_up_before_it_begins(
    made: Path, tmp_path: Path
) -> None:
    settings = of(baseline_settings(), 20, "constant-then-decay")
    train(AUTOREGRESSIVE, made / "tokens", tmp_path / "ar", settings, CPU)
    assert [path.name for path in (tmp_path / "ar/checkpoints").iterdir()] == ["step-00000016"]


@pytest.mark.parametrize("schedule", ["cosine", "constant", "constant-then-decay"])
def test_updates_that_are_shared_have_the_same_learning_rate_in_longer_runs(schedule: str) -> None:
    for until in (0, 40):
        optim = Optimizer(schedule=schedule, warmup_steps=4, decay_until=until)  # type: ignore[arg-type]
        for steps in (3, 4, 5, 20, 33):
            shared = shared_steps(optim, steps)
            rates = [[learning_rate(s, optim, n) for s in range(steps)] for n in (steps, 50, 51)]
            assert all(other[:shared] == rates[0][:shared] for other in rates)
            assert shared == steps or rates[1][shared] != rates[0][shared]


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `cola` says in this process; `expect` is its exit code."""

    def run(*arguments: object, expect: int = 0) -> str:
        assert cola(*arguments) == expect
        return "".join(capfd.readouterr())

    return run


def test_where_the_schedule_knows_the_end_it_is_said_and_recorded(
    told: Callable[..., str], made: Path, tmp_path: Path
) -> None:
    first = tmp_path / "ar"
    command = ["train", "ar", made / "tokens", "-o", first, "--device", "cpu"]
    told(*command, *assignments(baseline_settings(steps=20)))
    fingerprint = read_manifest(first).fingerprint
    longer = [*command, "--set", "train.steps=30"]
    said = told(*longer, "--extend")
    assert (
        "learning rate 1.00e-05 at step 20, 1.16e-03 after it: cosine falls to step 30 now" in said
    )
    manifest = read_manifest(first)
    assert manifest.identity.inputs["extended"] == fingerprint
    assert manifest.statistics["steps"] == 30
    assert "up to date" in told(*longer, "--extend")
    told(*command, "--set", "train.steps=32", "--extend")
    assert read_manifest(first).identity.inputs["extended"] == manifest.fingerprint
    assert "Give one of them" in told(*longer, "--extend", "--overwrite", expect=2)


def test_where_the_length_limits_the_curriculum_it_is_said_and_recorded(
    told: Callable[..., str], made: Path, tmp_path: Path
) -> None:
    settings = of(beginning_with(LONG // 3), SHORT)
    train(PRIOR, made / "latents", tmp_path / "prior", settings, CPU)
    command: list[object] = ["train", "prior", made / "latents", "-o", tmp_path / "prior"]
    command += ["--device", "cpu"]
    command += ["--set", f"data.block_curriculum=[[2,{LONG // 3}]]"]
    said = told(*command, *assignments(of(prior_settings(), LONG)), "--extend")
    assert "block_curriculum [(2, 6)] would be [(2, 9)], so the result is not" in said
    assert "extended" in read_manifest(tmp_path / "prior").identity.inputs


def test_a_longer_run_is_told_of_extend_and_what_cannot_be_extended_of_other_ways(
    told: Callable[..., str], made: Path, tmp_path: Path
) -> None:
    old = tmp_path / "ar"
    settings = of(baseline_settings(), 6)
    train(AUTOREGRESSIVE, made / "tokens", old, settings, CPU)
    before = content(old)
    command = ["train", "ar", made / "tokens", "-o", old, "--device", "cpu"]
    same = [*command, *assignments(settings), "--set", "optim.schedule=constant"]
    longer = told(*same, "--set", "train.steps=8", expect=3)
    assert "holds a run of 6 steps, and 8 are asked for" in longer
    assert "--extend" in longer
    faster = ["--set", "optim.lr=1", "--set", "train.steps=8"]
    other = told(*command, *faster, "--extend", expect=3)
    assert "cannot be extended: optim.lr: 0.004 -> 1.0; train.steps: 6 -> 8" in other
    assert "--from" in other
    assert "train.steps: 6 -> 5" in told(*command, "--set", "train.steps=5", "--extend", expect=3)
    assert content(old) == before
    state = old / "checkpoints/step-00000006/tensors.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    damaged = told(*command, "--set", "train.steps=8", "--extend", expect=5)
    assert str(state) in damaged
    assert "cola verify --repair" in damaged
    assert Artifact.open(old).manifest.statistics["steps"] == 6  # the old one stands
    assert not (old / NEW).exists()


def test_where_no_run_is_one_begins_and_says_so(
    told: Callable[..., str], made: Path, tmp_path: Path
) -> None:
    command = ["train", "ar", made / "tokens", "-o", tmp_path / "ar", "--device", "cpu", "--extend"]
    command += assignments(of(baseline_settings(), 6))
    output = Output.open(
        tmp_path / "ar", "autoregressive", Identity(stage="a", settings={}, inputs={})
    )
    with pytest.raises(Interrupted), output.writing():
        raise Interrupted(15)  # before anything was saved
    assert "holds no run to extend yet: this one begins" in told(*command)
    assert "begins" not in told(*command)


def test_without_a_state_it_cannot_be_extended(made: Path, tmp_path: Path) -> None:
    settings = of(baseline_settings(keep_state=False), 6)
    train(AUTOREGRESSIVE, made / "tokens", tmp_path / "ar", settings, CPU)
    assert not (tmp_path / "ar/checkpoints").exists()
    with pytest.raises(OutputConflict, match=r"made without train.keep_state.*--from"):
        train(AUTOREGRESSIVE, made / "tokens", tmp_path / "ar", of(settings, 9), CPU, None, True)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_an_interrupted_run_is_extended_where_its_schedule_does_not_know_the_end(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    update = Training._update

    def stopping(self: Training, step: Any) -> None:
        update(self, step)
        if step.number == 12:
            monkeypatch.setattr(interruption, "_received", 15)

    short, long = (of(baseline_settings(), steps, schedule) for steps in (SHORT, LONG))
    monkeypatch.setattr(Training, "_update", stopping)
    with pytest.raises(Interrupted):
        train(AUTOREGRESSIVE, made / "tokens", tmp_path / "grown", short, CPU)
    monkeypatch.undo()
    if schedule == "cosine":
        with pytest.raises(OutputConflict, match="unfinished"):
            train(AUTOREGRESSIVE, made / "tokens", tmp_path / "grown", long, CPU, None, True)
        return
    train(AUTOREGRESSIVE, made / "tokens", tmp_path / "grown", long, CPU, None, True)
    train(AUTOREGRESSIVE, made / "tokens", tmp_path / "planned", long, CPU)
    assert_same(tmp_path / "grown", tmp_path / "planned")


def test_a_damaged_network_is_written_again_from_the_state(made: Path, tmp_path: Path) -> None:
    settings = of(baseline_settings(), 6)
    train(AUTOREGRESSIVE, made / "tokens", tmp_path / "ar", settings, CPU)
    shutil.copytree(tmp_path / "ar", tmp_path / "whole")
    (tmp_path / "ar/transformer/model.safetensors").write_bytes(b"")
    assert repair(tmp_path / "ar") == ["transformer/model.safetensors"]
    train(AUTOREGRESSIVE, made / "tokens", tmp_path / "ar", settings, CPU)
    assert content(tmp_path / "ar") == content(tmp_path / "whole")
    metrics = [(tmp_path / name / "metrics.parquet").read_bytes() for name in ("ar", "whole")]
    assert metrics[0] == metrics[1]  # with its times: nothing was trained
    (tmp_path / "ar/checkpoints/step-00000006/state.json").write_bytes(b"")
    repair(tmp_path / "ar")
    assert verify(tmp_path / "ar").status == "complete"
    train(AUTOREGRESSIVE, made / "tokens", tmp_path / "ar", settings, CPU)
    assert verify(tmp_path / "ar").findings == []  # whole, without a state
    assert not (tmp_path / "ar/checkpoints").exists()


@pytest.mark.slow
def test_a_kill_at_any_change_leaves_the_short_run_or_the_way_to_the_long_one(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grow(path: Path, steps: int, extend: bool = True) -> None:
        settings = of(baseline_settings(checkpoint_every=1, validate_every=2, batch_size=1), steps)
        train(AUTOREGRESSIVE, made / "tokens", path, settings, CPU, None, extend)

    grow(tmp_path / "short", 2, extend=False)
    grow(tmp_path / "wanted", 4, extend=False)
    short = content(tmp_path / "short")
    after, ended, halves = 0, False, 0
    while not ended:
        path = tmp_path / f"at{after}"
        shutil.copytree(tmp_path / "short", path)
        with monkeypatch.context() as patch:
            killing(patch, after)
            try:
                grow(path, 4)
                ended = True
            except Killed:
                pass
        manifest = read_manifest(path)
        if manifest.identity.settings["train"]["steps"] == 2:
            assert manifest.status == "complete"
            assert short.items() <= content(path).items()
            Artifact.open(path, "autoregressive").file("transformer/model.safetensors")
            if (path / NEW / "manifest.json").exists():
                assert survey(path)[0].next.endswith("--extend")
                halves += 1
        grow(path, 4)
        assert_same(path, tmp_path / "wanted")
        assert not (path / NEW).exists()
        shutil.rmtree(path)
        after += 1
    assert halves > 5
    assert after > 30


@pytest.mark.slow
def test_killed_again_and_again_it_is_the_planned_run(made: Path, tmp_path: Path) -> None:
    settings = [of(prior_settings(checkpoint_every=7, validate_every=50), n) for n in (20, 80)]
    train(PRIOR, made / "latents", tmp_path / "killed", settings[0], CPU)
    train(PRIOR, made / "latents", tmp_path / "planned", settings[1], CPU)
    command = ["train", "prior", str(made / "latents"), "-o", str(tmp_path / "killed"), "--extend"]
    command += ["--set", "train.steps=80", "--device", "cpu"]
    kill_until_done(command, "matrix products", kills=4, span=0.8, seed=5)
    assert_same(tmp_path / "killed", tmp_path / "planned")


@pytest.mark.slow
def test_a_state_of_one_process_is_extended_on_two_and_sharded(made: Path, tmp_path: Path) -> None:
    settings = prior_settings("joint", steps=16, micro_batch=1)
    command = ["train", "prior", str(made / "latents"), "--mode", "joint", "--device", "cpu"]
    command += [
        *assignments(settings),
        "--set",
        "optim.eps=1e-4",
        "--set",
        "optim.schedule=constant",
    ]
    longer = ["--set", "train.steps=24"]
    run(1, [*command, *longer, "-o", str(tmp_path / "planned")], tmp_path)
    run(1, [*command, "-o", str(tmp_path / "ddp")], tmp_path)
    shutil.copytree(tmp_path / "ddp", tmp_path / "fsdp")
    for name in ("ddp", "fsdp"):
        more = [*longer, "--extend", "--set", f"train.parallel={name}"]
        run(2, [*command, *more, "-o", str(tmp_path / name)], tmp_path)
        assert difference(tmp_path / "planned", tmp_path / name) < 1e-5
        assert verify(tmp_path / name).findings == []
    saved = list((tmp_path / "fsdp/checkpoints").glob("step-*/shard-*"))
    assert len(saved) == 2
    run(
        1, [*command, "--set", "train.steps=26", "--extend", "-o", str(tmp_path / "fsdp")], tmp_path
    )
    assert Artifact.open(tmp_path / "fsdp").manifest.statistics["steps"] == 26
