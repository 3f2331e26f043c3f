"""pipelines/kubernetes/, slurm-shards.sh and ray.sh in miniature, started as their engines start them.

`kubectl` is a small program here that does what the script relies on: it runs the command of every pod of a
Job with the variables that the pod would have; two pods instead of eight, a folder instead of a volume.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cola_cli.artifacts import Artifact
from cola_cli.families import TEXT_VAE
from cola_cli.stages.train import train
from tests.conftest import CPU, content
from tests.pipelines.test_torchrun import PIPELINES, SETTINGS
from tests.ports import free_port
from tests.stages.conftest import made_up_text, vae_settings

KUBERNETES = PIPELINES / "kubernetes"
KUBECTL = f"""#!{sys.executable}
import os, subprocess, sys
import yaml
verb, *rest = sys.argv[1:]
if verb == "wait":
    sys.exit(0)
source = rest[rest.index("-f") + 1]
job = yaml.safe_load(sys.stdin if source == "-" else open(source))
spec = job["spec"]
(container,) = spec["template"]["spec"]["containers"]
given = {{one["name"]: one["value"] for one in container["env"]}}
assert int(given["COLA_SHARDS"]) == spec["completions"] == spec["parallelism"]
print(job["metadata"]["name"], spec["completions"])
count = min(2, spec["completions"])
program, *arguments = [word.replace("/data", os.environ["DATA"]) for word in container["command"]]
assert program == "cola"
for index in range(count):
    pod = {{"JOB_COMPLETION_INDEX": str(index)}} | given | {{"COLA_SHARDS": str(count)}}
    cola = [sys.executable, "-m", "cola_cli", *arguments, "--quiet"]
    subprocess.run(cola, env=os.environ | pod, check=True)
"""


def environment(folder: Path) -> dict[str, str]:
    """With the `kubectl` of this test first on the path, and files in `folder`."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/kubectl").write_text(KUBECTL)
    (folder / "bin/kubectl").chmod(0o755)
    return os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(PIPELINES.parent),
        "DATA": str(folder),
        "COLA_TOKENIZE__PART_BYTES": "20000",
        "COLA_TOKENIZE__WORKERS": "1",
    }


def run(folder: Path, *command: object, **variables: str) -> list[str]:
    """What a script or `cola` prints, line by line."""
    result = subprocess.run(
        list(map(str, command)), env=environment(folder) | variables, cwd=folder,
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def corpus(folder: Path) -> Path:
    """Three files."""
    (folder / "corpus").mkdir()
    for number in range(3):
        (folder / f"corpus/{number}.txt").write_text(made_up_text(900, number))
    return folder / "corpus"


def test_the_job_of_kubernetes_makes_the_tokens_in_shards_and_completes_them(
    tmp_path: Path,
) -> None:
    corpus(tmp_path)
    said = run(tmp_path, "bash", KUBERNETES / "data.sh", "tokenize")
    out = tmp_path / "runs/big/tokens"
    parts = len(Artifact.open(out, "tokens").parts)
    assert [line for line in said if line.startswith("cola-")] == [
        "cola-tokenize 8", "cola-tokenize-completed 1",
    ]  # fmt: skip
    counts = [line.removeprefix(f"{out}: ") for line in said if line.startswith(f"{out}: ")]
    assert [line.split()[0] for line in counts[:2]] == [str(parts // 4 * 2), str(parts)]
    assert counts[2].startswith("2,695 documents")


@pytest.mark.slow
def test_the_jobs_of_kubernetes_encode_and_would_train(tmp_path: Path) -> None:
    corpus(tmp_path)
    run(tmp_path, "bash", KUBERNETES / "data.sh", "tokenize")
    tokens, vae = tmp_path / "runs/big/tokens", tmp_path / "runs/big/vae"
    train(TEXT_VAE, tokens, vae, vae_settings(steps=2), CPU)
    run(tmp_path, "bash", KUBERNETES / "data.sh", "encode", CUDA_VISIBLE_DEVICES="")
    assert Artifact.open(tmp_path / "runs/big/latents", "latents").parts
    _, job = documents("train.yaml")
    words: list[str] = container(job)["command"]
    stage = [word.replace("/data", str(tmp_path)) for word in words[words.index("-m") + 2 :]]
    stage[stage.index("base")] = "tiny"
    said = run(tmp_path, sys.executable, "-m", "cola_cli", *stage, "--dry-run", "--device", "cpu")
    assert any(line.startswith("parameters: ") for line in said)


def documents(name: str) -> list[Any]:
    """Those of a file of YAML."""
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def container(job: Any) -> Any:
    """The one container of a Job."""
    (only,) = job["spec"]["template"]["spec"]["containers"]
    return only


def test_the_pods_of_a_training_meet_at_the_first_of_as_many_as_there_are() -> None:
    service, job = documents("train.yaml")
    words, spec = container(job)["command"], job["spec"]
    assert words[words.index("--nnodes") + 1] == str(spec["completions"])
    assert spec["completions"] == spec["parallelism"]
    gpus = container(job)["resources"]["limits"]["nvidia.com/gpu"]
    assert words[words.index("--nproc-per-node") + 1] == str(gpus)
    name, host = job["metadata"]["name"], service["metadata"]["name"]
    assert words[words.index("--rdzv-endpoint") + 1] == f"{name}-0.{host}:29500"
    assert spec["template"]["spec"]["subdomain"] == host
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None"


@pytest.mark.parametrize("name", ["tokenize.yaml", "encode.yaml", "train.yaml"])
def test_every_volume_that_is_mounted_is_there(name: str) -> None:
    job = documents(name)[-1]
    assert (job["apiVersion"], job["spec"]["completionMode"]) == ("batch/v1", "Indexed")
    volumes = {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container(job)["volumeMounts"]} == volumes


def test_an_array_of_slurm_makes_the_tokens_and_an_array_of_one_completes_them(
    tmp_path: Path,
) -> None:
    texts = corpus(tmp_path)
    command = ("tokenize", texts, "--preset", "base", "--quiet", "-o")
    script = PIPELINES / "slurm-shards.sh"
    for index in ("5", "6"):
        array = {"SLURM_ARRAY_TASK_ID": index, "SLURM_ARRAY_TASK_COUNT": "2"}
        run(tmp_path, "bash", script, *command, "out", **array, SLURM_ARRAY_TASK_MIN="5")
    one = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MIN": "0"}
    said = run(tmp_path, "bash", script, *command, "out", **one)
    assert said[0].startswith("out: 2,695 documents")
    run(tmp_path, sys.executable, "-m", "cola_cli", *command, "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed")
def test_a_cluster_of_ray_makes_the_artifacts(tmp_path: Path) -> None:
    texts, port = corpus(tmp_path), str(free_port())
    (tmp_path / "mini.toml").write_text(SETTINGS)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"id": 1, "prompt": "Tom"}) + "\n")
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # so that it listens on the loopback interface alone
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2",
         "--port", port, "--include-dashboard", "false"],
        env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert head.stdout is not None
    try:
        said = []
        while "Ray runtime started" not in "".join(said):
            said.append(line := head.stdout.readline())
            assert line, "".join(said)
        command = ("bash", PIPELINES / "ray.sh", "run", texts)
        own = {"PRESET": "tiny", "SETTINGS": "mini.toml", "PROMPTS": "prompts.jsonl"}
        own |= variables | {"RAY_ADDRESS": f"127.0.0.1:{port}", "CUDA_VISIBLE_DEVICES": ""}
        run(tmp_path, *command, **own)
        for kind in ("tokens", "vae", "latents", "prior", "samples"):
            Artifact.open(tmp_path / "run" / kind, kind)  # type: ignore[arg-type]
    finally:
        head.terminate()
        head.communicate()
    options = ("-o", "run/tokens", "--preset", "tiny", "--config", "mini.toml", "--on", "ray")
    again = run(tmp_path, sys.executable, "-m", "cola_cli", "tokenize", texts, *options, **own)
    assert again == ["run/tokens: up to date"]  # what is finished does not need the cluster
