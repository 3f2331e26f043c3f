"""The compiled attention against attention written out, and generation with and without it."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE
from cola_cli.sampling.engine import Engine
from cola_cli.sampling.fast import cpu_attention, fused_prior
from cola_cli.sampling.requests import Request
from cola_cli.settings.sample import SamplingOptions

EPS = 1e-5
needs_compiler = pytest.mark.skipif(
    cpu_attention.find_compiler() is None, reason="needs a C++ compiler"
)


def normalised(x: Tensor, norm: Tensor, angles: Tensor) -> Tensor:
    """LayerNorm and rotation of x (n, H, d) by angles (n, d / 2), float64."""
    x = x.double()
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + EPS).sqrt()
    even, odd = (x * norm[0] + norm[1]).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (n, H, d), k and v (m, H, d) -> (n, H, d)."""
    scores = torch.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v)


@needs_compiler
@pytest.mark.parametrize("n", [4, 8, 12, 16, 24, 48])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 16), (3, 48), (2, 64), (2, 128)])
def test_it_is_attention_over_what_is_stored_and_the_own_block(
    n: int, heads: int, head_dim: int
) -> None:
    generator = torch.Generator().manual_seed(n)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    # slot 1 commits behind 3 and is noisy behind that; slot 0 is noisy behind 70; both come again alone
    source, slot, fill = [0, 1, 2, 1, 2], [1, 0, 1, -1, -2], [3, 70, 3 + n, 0, 0]
    qkv, angles = drawn(3, n, 3, heads, head_dim) * 3, drawn(3, n, head_dim // 2) * 5
    qkv, angles = qkv[source], angles[source]
    norms = drawn(2, 2, head_dim)
    keys, values = drawn(2, 2, heads, 80 + 2 * n, head_dim)
    was = keys.clone(), values.clone()
    kernel = cpu_attention.block_attention(torch.empty(1), n, head_dim, EPS)
    assert kernel is not None
    out = kernel(
        qkv,
        norms[0],
        norms[1],
        torch.polar(torch.ones(()), angles).unsqueeze(2),
        keys,
        values,
        torch.empty(2, heads, 2, n, head_dim),
        torch.tensor(slot),
        torch.tensor(fill),
    )
    entries = [
        [normalised(x, norm, turn) for x, norm in ((own[:, 0], norms[0]), (own[:, 1], norms[1]))]
        + [own[:, 2].double()]
        for own, turn in zip(qkv, angles.double(), strict=True)
    ]
    stored = [part.double().transpose(1, 2) for part in was]  # (slots, length, H, d)
    for index in range(5):
        q, k, v = entries[index]
        if slot[index] >= 0:
            end = fill[index] + n
            for cache, new in zip(stored, (k, v), strict=True):
                cache[slot[index], fill[index] : end] = new
    for index in range(5):
        q, k, v = entries[index]
        if slot[index] >= 0:
            k, v = (cache[slot[index], : fill[index] + n] for cache in stored)
        expected = attention(q, k, v)
        torch.testing.assert_close(out[index].double(), expected, atol=2e-5, rtol=1e-4)
    for found, cache in zip((keys, values), stored, strict=True):
        torch.testing.assert_close(found.double().transpose(1, 2), cache, atol=2e-5, rtol=1e-4)


def networks(block: int) -> tuple[TextVAE, Prior]:
    torch.manual_seed(5)
    vae = TextVAE(
        TextVAEConfig(
            vocab_size=300, encoder_layers=1, decoder_layers=1, dim=32, ffn_dim=48, heads=2
        )
    )
    prior = Prior(
        PriorConfig(dim=48, heads=2, head_dim=32, rope_dim=16, layers=3, block_size=block)
    )
    with torch.no_grad():
        for parameter in (*vae.parameters(), *prior.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return vae.eval(), prior.eval()


def tokens(block: int, threads: int, batch: int) -> list[list[int]]:
    """What nine prompts of many lengths become."""
    vae, prior = networks(block)
    engine = Engine(vae, prior, SamplingOptions(max_new_tokens=21, steps=3), batch)
    source = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 300, (n,), generator=source).tolist() for n in range(0, 45, 5)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        last = {
            request.item: generation.ids
            for request, generation in engine.run(Request(i, p) for i, p in enumerate(prompts))
        }
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    return [last[i] for i in range(len(prompts))]


@needs_compiler
@pytest.mark.parametrize("block", [4, 16])
def test_generation_is_the_same_without_it_and_however_rows_are_shared_out(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [tokens(block, threads, batch) for threads, batch in itertools.product((1, 2), (1, 8))]
    monkeypatch.setattr(fused_prior, "block_attention", lambda *_: None)
    expected = tokens(block, 1, 1)
    assert tokens(block, 2, 8) == expected
    for own in found:
        assert own == expected


def test_without_a_compiler_that_works_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    for name in ("no-such-compiler", str(broken), '"g++', "g++ \\", " "):
        monkeypatch.setenv("CXX", name)
        cpu_attention.library_function.cache_clear()
        assert cpu_attention.block_attention(torch.empty(1), 16, 64, EPS) is None
    cpu_attention.library_function.cache_clear()
    assert not list((tmp_path / "cache").rglob("*.so"))


@pytest.fixture
def compiler() -> tuple[str, ...]:
    found = cpu_attention.find_compiler()
    if not found:
        pytest.skip("there is no C++ compiler")
    return found


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    directory = tmp_path / "cache"
    directory.mkdir(mode=0o700)
    return directory


def test_a_compiler_whose_name_is_not_utf_8_builds_it(
    compiler: tuple[str, ...], cache: Path, tmp_path: Path
) -> None:
    named = tmp_path / os.fsdecode(b"caf\xe9")
    named.symlink_to(compiler[0])
    assert cpu_attention.built((str(named), *compiler[1:]), cpu_attention.FLAGS, cache).is_file()


def test_it_is_built_once(compiler: tuple[str, ...], cache: Path) -> None:
    first = cpu_attention.built(compiler, cpu_attention.FLAGS, cache)
    made = first.stat().st_mtime_ns
    assert cpu_attention.built(compiler, cpu_attention.FLAGS, cache) == first
    assert first.stat().st_mtime_ns == made
    assert sorted(cache.iterdir()) == [first.with_suffix(".sha256"), first]


@pytest.mark.parametrize("damage", ["cut", "zeros", "empty", "link", "no record"])
def test_a_damaged_library_is_built_again(
    compiler: tuple[str, ...], cache: Path, tmp_path: Path, damage: str
) -> None:
    library = cpu_attention.built(compiler, cpu_attention.FLAGS, cache)
    whole = library.read_bytes()
    if damage == "cut":
        library.write_bytes(whole[:4096])
    elif damage == "zeros":
        library.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    elif damage == "empty":
        library.write_bytes(b"")
    elif damage == "link":
        (tmp_path / "planted.so").write_bytes(whole)
        library.unlink()
        library.symlink_to(tmp_path / "planted.so")
    else:
        library.with_suffix(".sha256").unlink()
    cpu_attention.load(compiler, cpu_attention.FLAGS, cache)
    assert not library.is_symlink()
    assert cpu_attention._digest(library) == cpu_attention._recorded(library.with_suffix(".sha256"))


PLANTED = """#include <cstdio>
__attribute__((constructor)) static void run() { std::fclose(std::fopen("%s", "w")); }
"""


@pytest.mark.parametrize("how", ["writable", "link", "parent", "owner"])
def test_a_planted_library_is_never_loaded(
    compiler: tuple[str, ...], cache: Path, tmp_path: Path, how: str
) -> None:
    """Whoever may write the cache directory could put code there: it is not even looked at."""
    library = cpu_attention.built(compiler, cpu_attention.FLAGS, cache)
    trace = tmp_path / "executed"
    source = tmp_path / "planted.cpp"
    source.write_text(PLANTED % trace)
    command = [*compiler, "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True)
    library.with_suffix(".sha256").write_text(
        cpu_attention._digest(library) or ""
    )  # a careful attacker
    used = cache
    if how == "writable":
        cache.chmod(0o777)
    elif how == "link":
        used = tmp_path / "link"
        used.symlink_to(cache)
    elif how == "parent":
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared").chmod(0o777)
        used = cache.rename(tmp_path / "shared" / "cache")
    elif os.geteuid() == 0:
        os.chown(cache, 12345, 12345)
    else:
        pytest.skip("only root can give a directory away")
    function = cpu_attention.load(compiler, cpu_attention.FLAGS, used).cola_block_attention
    assert function
    assert not trace.exists()


def test_a_relative_cache_directory_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "rel")
    assert cpu_attention.cache_directory() == Path.home() / ".cache" / "cola"


def test_the_compiler_may_have_arguments(
    compiler: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", f"{compiler[0]} -O0")
    assert cpu_attention.find_compiler() == (compiler[0], "-O0")
    for nothing in ("", " "):
        monkeypatch.setenv("CXX", nothing)
        assert cpu_attention.find_compiler() is None


def test_other_shapes_and_types_are_left_to_torch() -> None:
    assert cpu_attention.block_attention(torch.empty(1), 6, 64, EPS) is None
    assert cpu_attention.block_attention(torch.empty(1), 16, 24, EPS) is None
    assert cpu_attention.block_attention(torch.empty(1, dtype=torch.bfloat16), 16, 64, EPS) is None
