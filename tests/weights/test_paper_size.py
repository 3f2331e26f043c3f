"""The paper-sized pair, 2.3B random weights, in and out within the memory of one machine."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import cola_command
from tests.weights.test_released import released_shapes

NEEDED_DISK = 20 << 30
MEMORY_LIMIT = 24 << 30

CREATE = """
import sys
from pathlib import Path
import torch
from cola_cli.weights.export import write_checkpoint
from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.text_vae import TextVAE

torch.set_default_dtype(torch.bfloat16)
with torch.device("meta"):
    networks = TextVAE(TextVAEConfig(vocab_size=100_278)), Prior(PriorConfig())
noise = torch.randn(1 << 20)
for network in networks:
    network.to_empty(device="cpu")
    for number, tensor in enumerate(network.state_dict().values()):
        flat = tensor.view(-1)
        for start in range(0, len(flat), len(noise)):
            piece = flat[start : start + len(noise)]
            piece.copy_(noise[: len(piece)].roll(number + start))
write_checkpoint(Path(sys.argv[1]), *networks, None, 2 << 30)
"""

COMPARE = """
import json
import sys
from pathlib import Path
import torch
from cola_cli.weights.tensors import read_tensors

for part, shapes in zip(("cola_vae", "cola_dit"), json.loads(Path("shapes.json").read_text())):
    first, second = (read_tensors(Path(f) / "cola_dlm" / part) for f in sys.argv[1:3])
    assert {name: list(tensor.shape) for name, tensor in first.items()} == shapes
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        other = second[name]
        assert tensor.shape == other.shape and tensor.dtype == other.dtype, name
        assert torch.equal(tensor.view(torch.uint8), other.view(torch.uint8)), name
"""


@pytest.mark.slow
@pytest.mark.xdist_group("memory")
@pytest.mark.timeout(900)
def test_the_paper_sized_pair_is_imported_and_exported_byte_for_byte(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    if free < NEEDED_DISK:
        pytest.skip(f"needs {NEEDED_DISK >> 30} GiB of disk, {free >> 30} are free")
    (tmp_path / "shapes.json").write_text(json.dumps(released_shapes()))
    steps = [
        [sys.executable, "-c", CREATE, "released"],
        cola_command("import", "released", "-o", "artifact", "--json", "--quiet"),
        cola_command("export", "artifact", "-o", "again"),
        [sys.executable, "-c", COMPARE, "released", "again"],
    ]
    try:
        for command in steps:
            result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            if "import" in command:
                assert json.loads(result.stdout)["parameters"] == 501_871_574 + 1_829_875_728
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        assert peak < MEMORY_LIMIT
    finally:
        for folder in ("released", "artifact", "again"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
