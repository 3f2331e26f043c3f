"""Rotary positions: the form for the compiler and the one without it are the same."""

from __future__ import annotations

import pytest
import torch

from cola_cli.models.rotary import rotary_frequencies, rotate_interleaved, rotation


def test_the_compilers_form_rotates_as_the_other_does(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 16, dtype=torch.float64, requires_grad=True)
    table = rotation(torch.arange(8), rotary_frequencies(12, 10_000.0).double())
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        out = rotate_interleaved(x, table)
        (gradient,) = torch.autograd.grad(out.pow(3).sum(), x)
        found.append((out, gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
