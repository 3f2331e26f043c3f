"""Schedules, optimisers, draws, checkpoints and metrics, each by itself."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from cola_cli.artifacts.files import sha256_file, write_atomic
from cola_cli.cost.training import causal_pairs
from cola_cli.errors import DamagedArtifact
from cola_cli.flow.path import linear_prediction_loss
from cola_cli.flow.timesteps import decided, location
from cola_cli.machine.processes import ALONE
from cola_cli.settings.prior import Timesteps
from cola_cli.settings.training import Mask, Optimizer
from cola_cli.training import checkpoints, optimizers, randomness
from cola_cli.training.metrics import Metrics
from cola_cli.training.objectives.flow_matching import (
    draw_clean,
    draw_timesteps,
)
from cola_cli.training.schedule import learning_rate, mask_weight


def test_the_default_schedule_is_the_papers() -> None:
    recipe, steps = Optimizer(), 1_000_000
    rates = [learning_rate(step, recipe, steps) for step in (0, 4_999, 499_999, 999_999)]
    assert rates[0] == pytest.approx(1e-6 + 1.49e-4 / 5000)
    assert rates[1] == pytest.approx(1.5e-4)
    assert rates[3] == pytest.approx(1e-5)
    assert learning_rate(250_000, recipe, steps) == pytest.approx(1.30e-4, rel=0.01)
    assert learning_rate(300_000, recipe, steps) == pytest.approx(1.22e-4, rel=0.01)


def test_constant_then_decay_holds_and_then_falls_in_a_line() -> None:
    recipe = Optimizer(
        schedule="constant-then-decay", lr=1.0, lr_end=0.0, warmup_steps=0, decay_fraction=0.25
    )
    rates = [learning_rate(step, recipe, 100) for step in range(100)]
    assert rates[:75] == [1.0] * 75
    np.testing.assert_allclose(rates[75:], 1 - np.arange(1, 26) / 25, atol=1e-12)


def test_a_run_cut_short_has_the_rates_of_the_long_one() -> None:
    recipe = Optimizer(decay_until=1000, warmup_steps=10)
    assert learning_rate(99, recipe, 100) == learning_rate(99, recipe, 1000)


def test_the_mask_loss_waits_and_then_ramps() -> None:
    weights = [mask_weight(step, Mask(weight=0.4, start=3, ramp=4)) for step in range(9)]
    assert weights == pytest.approx([0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_draws_depend_on_seed_step_and_row_alone() -> None:
    def noise(seed: int, step: int, rows: list[int]) -> np.ndarray:
        return randomness.normal(randomness.generators(seed, randomness.TRAINING, step, rows), 50)

    whole = noise(1, 7, [0, 1, 2, 3])
    np.testing.assert_array_equal(whole[[1, 3]], noise(1, 7, [1, 3]))
    for other in (noise(2, 7, [0]), noise(1, 8, [0]), noise(1, 7, [5])):
        assert abs(np.corrcoef(whole[0], other[0])[0, 1]) < 0.5
    validation = randomness.normal(randomness.generators(1, randomness.VALIDATION, 7, [0]), 50)
    assert not np.array_equal(validation[0], whole[0])


def test_timesteps_follow_their_law() -> None:
    randoms = randomness.generators(0, 0, 0, range(50))
    t = draw_timesteps(randoms, 400, Timesteps(scale=0.5), 64)
    logits = np.log(t / (1 - t))
    assert logits.mean() == pytest.approx(1 + 0.5 * math.log(4), abs=0.02)
    assert logits.std() == pytest.approx(0.5, abs=0.02)
    shifted = draw_timesteps(randoms, 400, Timesteps(law="shifted", shift=3.0), 16)
    assert np.median(shifted) == pytest.approx(0.75, abs=0.01)  # 3/2 / (1 + 2/2)
    assert draw_timesteps(randoms, 400, Timesteps(law="uniform"), 16).mean() == pytest.approx(
        0.5, abs=0.01
    )


def test_the_decided_law_is_where_noise_hides_the_token() -> None:
    """Two tokens at +-m in one channel: the entropy of the token is an integral over one normal variable."""
    m, s = 2.0, 0.3
    quantiles = decided(np.array([[m], [-m], [9.0]]), np.array([s]), np.array([5, 5, 0]))
    t = np.linspace(1e-3, 1, 400)
    noise = statistics.NormalDist()
    normal = np.array([noise.inv_cdf((i + 0.5) / 2000) for i in range(2000)])
    signal = (1 - t) * m / np.sqrt((1 - t) ** 2 * s + t**2)
    p = 1 / (1 + np.exp(-2 * signal[:, None] * (signal[:, None] + normal)))  # of the right token
    q = 1 - p
    entropy = -(p * np.log(p) + q * np.log(np.maximum(q, 1e-300))).mean(1)
    below = 0.9 * entropy / entropy[-1] + 0.1 * t
    for share in (0.25, 0.5, 0.75):
        place = round(share * (len(quantiles) - 1))
        assert np.interp(quantiles[place], t, below) == pytest.approx(share, abs=0.04)
    randoms = randomness.generators(0, 0, 0, range(50))
    drawn = draw_timesteps(randoms, 400, Timesteps(law="decided"), 1, quantiles)
    assert np.median(drawn) == pytest.approx(quantiles[len(quantiles) // 2], abs=0.02)
    assert drawn.min() >= 0
    assert drawn.max() <= 1


def test_the_location_rule_gives_the_papers_dashed_lines() -> None:
    assert [round(location(d), 2) for d in (16, 64, 128)] == [1.0, 1.69, 2.04]


def test_partly_clean_blocks_are_clean_on_the_left_and_never_whole() -> None:
    clean = draw_clean(randomness.generators(0, 0, 0, range(100)), 20, 8, 0.3).reshape(-1, 8)
    parts = clean.sum(1)
    assert parts.max() == 7
    assert (parts > 0).mean() == pytest.approx(0.3, abs=0.04)
    assert set(parts[parts > 0].tolist()) == set(range(1, 8))
    np.testing.assert_array_equal(clean, np.arange(8) < parts[:, None])


def test_the_loss_of_a_linear_prediction_is_that_of_least_squares() -> None:
    random = np.random.default_rng(0)
    t, s = 0.7, np.array([0.3, 2.0])
    z0, z1 = random.standard_normal((2, 200_000, 2)) * np.stack([np.sqrt(s), np.ones(2)])[:, None]
    z_t, target = (1 - t) * z0 + t * z1, z1 - z0
    slope = (z_t * target).mean(0) / (z_t**2).mean(0)
    measured = ((target - slope * z_t) ** 2).mean()
    assert linear_prediction_loss(np.array([t]), s)[0] == pytest.approx(measured, rel=0.01)


def test_allowed_pairs_are_counted_as_the_mask_allows() -> None:
    from cola_cli.models.attention import block_causal_mask

    for length, block in itertools.product((8, 24), (1, 4, 8)):
        assert causal_pairs(length, block) == int(block_causal_mask(length, length, block).sum())


def test_muon_makes_the_update_of_torchs_muon() -> None:
    torch.manual_seed(0)
    for scale, name in (("adamw", "match_rms_adamw"), ("spectral", "original")):
        ours, theirs = (nn.Parameter(torch.randn(24, 8)) for _ in range(2))
        theirs.data.copy_(ours.data)
        mine = optimizers.Muon([ours], 0.1, 0.9, 0.05, scale)
        torchs = torch.optim.Muon(
            [theirs], lr=0.1, momentum=0.9, weight_decay=0.05, adjust_lr_fn=name
        )
        for _ in range(4):
            ours.grad = torch.randn(24, 8)
            theirs.grad = ours.grad.clone()
            mine.step()
            torchs.step()
        moved = (ours - theirs).norm() / theirs.norm()
        assert moved < 0.02  # torch iterates in bf16, this in float32


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 16, 16), (2, 8, 32), (2, 32, 8)):
        values = torch.linalg.svdvals(optimizers.orthogonalize(torch.randn(shape)))
        assert values.min() > 0.4
        assert values.max() < 1.3


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest() -> None:
    from tests.training.conftest import prior_objective

    objective = prior_objective(mode="joint", joint={"vae_lr_ratio": 0.5})
    names = {parameter: name for name, parameter in objective.named_parameters()}
    settings = Optimizer(name="muon", muon_lr=0.01, lr=0.001)
    adamw, muon = optimizers.build(objective.parts(), settings)
    optimizers.set_learning_rate([adamw, muon], 0.001)
    moved = {names[p]: group["lr"] for group in muon.param_groups for p in group["params"]}
    assert moved["prior.blocks.0.qkv.weight"] == pytest.approx(0.01)
    assert moved["vae.encoder.0.ffn_in.weight"] == pytest.approx(0.005)
    rest = {names[p]: group["lr"] for group in adamw.param_groups for p in group["params"]}
    assert rest["prior.blocks.0.modulation.weight"] == pytest.approx(0.001)
    assert rest["vae.embedding.weight"] == pytest.approx(0.0005)
    assert moved.keys().isdisjoint(rest)
    assert moved.keys() | rest.keys() == set(names.values())


def test_the_paper_decays_everything_and_the_other_rule_only_matrices() -> None:
    from tests.training.conftest import vae_objective

    objective = vae_objective()
    names = {parameter: name for name, parameter in objective.named_parameters()}
    for rule, spared_norm in (("all", False), ("matrices", True)):
        (adamw,) = optimizers.build(objective.parts(), Optimizer(decay=rule))
        spared = {
            names[p] for g in adamw.param_groups if g["weight_decay"] == 0 for p in g["params"]
        }
        assert ("vae.out_norm.weight" in spared) == spared_norm
        assert "vae.encoder.0.qkv.weight" not in spared


def _save(folder: Path, step: int) -> None:
    tensors = {"model.w": torch.full((3,), float(step)), "optimizer.w:step": torch.tensor(4.0)}
    checkpoints.write(folder, step, tensors, {"step": step}, ALONE)
    checkpoints.commit(folder, step)


def _load(folder: Path, *shape: int) -> torch.Tensor:
    """The tensor `model.w` of the newest checkpoint."""
    found = checkpoints.latest(folder)
    assert found is not None
    weight = torch.zeros(shape)
    found.load({"model.w": weight})
    return weight


def test_checkpoints_come_back_as_they_were_and_old_ones_go(tmp_path: Path) -> None:
    for step in range(1, 8):
        _save(tmp_path, step)
        checkpoints.prune(tmp_path, keep_last=2, keep_every=3)
    assert [step for step, _ in checkpoints.committed(tmp_path)] == [3, 6, 7]
    newest = checkpoints.latest(tmp_path)
    assert newest is not None
    assert newest.state == {"step": 7}
    assert newest.names("optimizer") == ["w:step"]
    assert _load(tmp_path, 3).tolist() == [7.0, 7.0, 7.0]
    assert not list(tmp_path.rglob("*.p*t")) + list(tmp_path.rglob("*.pkl"))


def _write_part(folder: Path, name: str, rows: torch.Tensor, start: int) -> None:
    """A file as torch writes what one process holds of `model.w`."""
    offsets = {"model.w": {"saved_offsets": [start] + [0] * (rows.dim() - 1)}}
    (folder / "step-00000001").mkdir(exist_ok=True)
    path = folder / "step-00000001" / name
    save_file({"model.w": rows}, path, {"DCP_SHARDING_INFO": json.dumps(offsets)})
    record = {name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}}
    (path.parent / f"written-{name}.json").write_text(json.dumps(record))


@pytest.mark.parametrize("starts", [(0, 3, 6), (0, 4, 6)], ids=["whole", "with a hole"])
def test_parts_are_put_together_and_a_hole_is_an_error(
    tmp_path: Path, starts: tuple[int, ...]
) -> None:
    whole = torch.randn(7, 3)
    for start, stop in zip(starts, (3, 6, 7), strict=True):
        _write_part(tmp_path, f"shard-{start}.safetensors", whole[start:stop], start)
    write_atomic(tmp_path / "step-00000001" / "state.json", b'{"step": 1}')
    state = tmp_path / "step-00000001" / "state.json"
    record = {"state.json": {"bytes": state.stat().st_size, "sha256": sha256_file(state)}}
    (state.parent / "written-state.json").write_text(json.dumps(record))
    assert checkpoints.latest(tmp_path) is None
    checkpoints.commit(tmp_path, 1)
    if starts[1] == 3:
        assert _load(tmp_path, 7, 3).equal(whole)
        for shape in ((8, 3), (7, 2)):
            with pytest.raises(DamagedArtifact):
                _load(tmp_path, *shape)
    else:
        with pytest.raises(DamagedArtifact):
            _load(tmp_path, 7, 3)


def test_a_file_that_is_no_part_of_a_checkpoint_is_named(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    save_file({"model.w": torch.zeros(3)}, tmp_path / "step-00000001" / "a.safetensors")
    with pytest.raises(DamagedArtifact, match=r"a\.safetensors is not a part"):
        _load(tmp_path, 3)


@contextlib.contextmanager
def _sharded(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor as FSDP holds it, by a group of one process."""
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield distribute_tensor(tensor, dist.init_device_mesh("cpu", (1,)), [Shard(0)])
    finally:
        dist.destroy_process_group()


def test_the_same_tensors_in_any_order_are_the_same_bytes_of_a_shard(tmp_path: Path) -> None:
    with _sharded(torch.randn(7, 3)) as sharded:
        values = {f"model.{name}": sharded.clone() for name in "abcd"}
        for step in range(1, 9):
            tensors = dict(reversed(values.items())) if step % 2 else values
            checkpoints.write(tmp_path, step, tensors, {"step": 1}, ALONE)
    shards = [file.read_bytes() for file in tmp_path.rglob("*.safetensors")]
    assert len(shards) == 8
    assert len({*shards}) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names open files by /proc")
def test_shards_are_synced_to_their_last_byte_and_torch_alone_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.distributed.checkpoint as dcp

    synced: dict[str, int] = {}
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        synced[name] = os.fstat(descriptor).st_size
        fsync(descriptor)

    values = {"model.w": torch.randn(7, 3), "optimizer.w:step": torch.tensor(4.0)}
    monkeypatch.setattr(os, "fsync", noted)
    with _sharded(values["model.w"]) as sharded:
        checkpoints.write(tmp_path, 1, values | {"model.w": sharded}, {"step": 1}, ALONE)
    checkpoints.commit(tmp_path, 1)
    (shard,) = (tmp_path / "step-00000001").glob("*.safetensors")
    assert shard.name.startswith("shard-")
    assert synced[shard.name] == shard.stat().st_size
    assert {file.suffix for file in shard.parent.iterdir()} == {".json", ".safetensors"}
    read = {name: torch.zeros_like(value) for name, value in values.items()}
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(read, storage_reader=dcp.HuggingFaceStorageReader(str(shard.parent)))
    assert all(read[name].equal(value) for name, value in values.items())
    assert _load(tmp_path, 7, 3).equal(values["model.w"])


def test_an_uncommitted_checkpoint_does_not_count(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    _save(tmp_path, 2)
    (tmp_path / "step-00000002" / checkpoints.COMMITTED).unlink()
    newest = checkpoints.latest(tmp_path)
    assert newest is not None
    assert newest.step == 1
    checkpoints.prune(tmp_path, 2, 0)
    assert not (tmp_path / "step-00000002").exists()


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", checkpoints.COMMITTED])
def test_a_flipped_byte_in_a_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    _save(tmp_path, 1)
    path = tmp_path / "step-00000001" / name
    data = bytearray(path.read_bytes())
    data[0] ^= 0x04
    path.write_bytes(data)
    with pytest.raises(DamagedArtifact, match=name):
        checkpoints.latest(tmp_path)


def test_metrics_forget_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.parquet")
    for step in (10, 20, 30):
        metrics.add(step, {"loss": step / 3})
    metrics.flush()
    again = Metrics(tmp_path / "metrics.parquet")
    again.resume(20, metrics.digest(20))
    assert again.rows == [{"step": 10, "loss": 10 / 3}, {"step": 20, "loss": 20 / 3}]
    again.add(20, {"validation_loss": 2.0})
    assert again.last("validation_loss") == 2.0
    assert math.isnan(again.last("nothing"))


def test_a_damaged_table_of_metrics_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DamagedArtifact, match=r"metrics\.parquet"):
        Metrics(tmp_path / "metrics.parquet").resume(5, "")


def test_metrics_that_the_checkpoint_did_not_see_are_damage(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.parquet")
    for step in (10, 20):
        metrics.add(step, {"loss": step / 3})
    digest = metrics.digest(20)
    metrics.add(20, {"validation_loss": 2.0})  # comes after the checkpoint: no damage
    metrics.flush()
    Metrics(metrics.path).resume(20, digest)
    metrics.rows[0]["loss"] += 1e-12
    metrics.flush()
    with pytest.raises(DamagedArtifact, match=r"metrics\.parquet is damaged"):
        Metrics(metrics.path).resume(20, digest)
    metrics.path.unlink()
    with pytest.raises(DamagedArtifact, match=r"metrics\.parquet is damaged"):
        Metrics(metrics.path).resume(20, digest)


def test_state_survives_json_exactly() -> None:
    values = np.random.default_rng(0).standard_normal(1000).tolist()
    assert json.loads(json.dumps(values)) == values
