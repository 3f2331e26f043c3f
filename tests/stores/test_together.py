"""Several processes at one artifact in an object store, and the commands that measure."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.stages.ranks import start
from tests.stores.conftest import Shelf, needs_a_server, same_as_local, stages

pytestmark = [needs_a_server, pytest.mark.slow, pytest.mark.xdist_group("stores")]


@pytest.fixture(scope="module")
def made(shelf: Shelf, corpus: Path) -> str:
    """The address of tokens, VAE, latents and prior."""
    for command in stages("s3://shelf/together", corpus)[:4]:
        shelf.cola(*command)
    return "s3://shelf/together"


def measuring(at: str, model: str, asked: Path, text: Path) -> list[list[str]]:
    """Commands that write answers and likelihoods below `at`."""
    cpu = ["--device", "cpu"]
    return [
        ["eval", "run", model, "--task", "squad", "--prompts", str(asked), "--steps", "2",
         "-o", f"{at}/answers", *cpu],
        ["likelihood", model, "--file", str(text), "--steps", "2", "-o", f"{at}/likelihoods", *cpu],
    ]  # fmt: skip


def test_answers_and_likelihoods_are_those_on_a_disk(
    shelf: Shelf, made: str, local: Path, cola: Run, tmp_path: Path
) -> None:
    asked, text = tmp_path / "asked.jsonl", tmp_path / "text.jsonl"
    question = {"prompt": "Anna sees", "ground_truth": "cats"}
    asked.write_text("".join(json.dumps({"id": n, **question}) + "\n" for n in range(4)))
    text.write_text("".join(f'{{"text": "Anna sees {n} cats."}}\n' for n in range(12)))
    for command in measuring(str(tmp_path), str(local / "prior"), asked, text):
        cola(*command)
    for command in measuring("s3://shelf/measured", f"{made}/prior", asked, text):
        shelf.cola(*command)
        assert "up to date" in shelf.cola(*command).stdout
    for name in ("answers", "likelihoods"):
        same_as_local(shelf, f"measured/{name}", tmp_path)
    assert "s3://shelf/measured/answers" in shelf.cola("status", "s3://shelf/measured").stdout


@pytest.mark.parametrize("stage", [0, 2], ids=["tokenize", "encode"])
def test_shards_on_two_machines(
    shelf: Shelf, made: str, corpus: Path, local: Path, stage: int
) -> None:
    command = stages(made, corpus)[stage]
    output = command.index("-o") + 1
    name = command[output].rpartition("/")[2]
    command[output] = f"s3://shelf/shards/{name}"
    caches = [f"{shelf.environment['COLA_CACHE']}-{name}-{n}" for n in range(2)]
    shards = [
        shelf.start(*command, "--shard", f"{n}/2", COLA_CACHE=cache)
        for n, cache in enumerate(caches)
    ]
    for process in shards:
        told = process.communicate()
        assert process.returncode == 0, told
    shelf.cola(*command, COLA_CACHE=caches[0])
    same_as_local(shelf, f"shards/{name}", local)


def begin_a_survey(shelf: Shelf, command: list[str], scratch: str, cache: str) -> None:
    """Run a shard of `cola tokenize`, and kill it once it has surveyed a piece."""
    process = shelf.start(*command, "--shard", "0/2", COLA_CACHE=cache)
    while not any(key.endswith("0.parquet") for key in shelf.written(scratch)):
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()


def test_another_artifact_leaves_nothing_of_a_survey_that_another_machine_began(
    shelf: Shelf, made: str, corpus: Path
) -> None:
    command = stages(made, corpus)[0]
    command[command.index("-o") + 1] = "s3://shelf/begun/tokens"
    begin_a_survey(
        shelf, command, "begun/tokens/.scratch", f"{shelf.environment['COLA_CACHE']}-begun"
    )
    shelf.cola(*command, "--set", "seq_len=16", "--overwrite")
    assert "manifest.json" in shelf.content("begun/tokens")
    assert not shelf.written("begun/tokens/.scratch")


def test_machines_share_a_survey(shelf: Shelf, made: str, corpus: Path, local: Path) -> None:
    """A second machine surveys no piece that the first, which was killed, has a record of in the store."""
    scratch = "survey/tokens/.scratch"
    command = stages(made, corpus)[0]
    command[command.index("-o") + 1] = "s3://shelf/survey/tokens"
    caches = [f"{shelf.environment['COLA_CACHE']}-survey-{n}" for n in range(2)]
    begin_a_survey(shelf, command, scratch, caches[0])
    there = {key: when for key, when in shelf.written(scratch).items() if ".lock" not in key}
    time.sleep(1)
    for n in range(2):
        shelf.cola(*command, "--shard", f"{n}/2", COLA_CACHE=caches[1])
    assert there.items() <= shelf.written(scratch).items()
    assert any(key.endswith("chunks.parquet") for key in shelf.written(scratch))
    shelf.cola(*command, COLA_CACHE=caches[0])
    assert not shelf.written(scratch)
    same_as_local(shelf, "survey/tokens", local)


def test_ray_makes_parts_in_a_store(shelf: Shelf, made: str, corpus: Path, local: Path) -> None:
    pytest.importorskip("ray")
    command = stages(made, corpus)[2]
    command[command.index("-o") + 1] = "s3://shelf/ray/latents"
    shelf.cola(*command, "--on", "ray", "--shards", "2")
    same_as_local(shelf, "ray/latents", local)


def test_two_ranks_train_into_a_store(shelf: Shelf, made: str, local: Path, tmp_path: Path) -> None:
    """What they write there is what they write on a disk; undisturbed, and after both were killed."""
    corpus = tmp_path / "none"

    def command(at: str, into: str) -> list[str]:
        found = stages(at, corpus)[3]
        found[found.index("-o") + 1] = into
        return [*found, "--set", "train.parallel=fsdp", "--set", "train.checkpoint_every=2"]

    def trained(arguments: list[str], kill: bool = False) -> None:
        ranks = start(arguments, 2, ["-m", "cola_cli"], **shelf.environment)
        if kill:
            prefix = arguments[arguments.index("-o") + 1].removeprefix("s3://shelf/")
            while not any("COMMITTED" in key for key in shelf.content(prefix)):
                assert ranks[0].poll() is None
            for rank in ranks:
                rank.kill()
        told = [rank.communicate()[1] for rank in ranks]
        assert kill or [rank.returncode for rank in ranks] == [0, 0], "\n".join(told)

    trained(command(str(local), str(tmp_path / "prior")))
    for name in ("quiet", "killed"):
        at = f"ranks/{name}/prior"
        if name == "killed":
            trained(command(made, f"s3://shelf/{at}"), kill=True)
            shutil.rmtree(shelf.environment["COLA_CACHE"])  # the next machine has nothing
        trained(command(made, f"s3://shelf/{at}"))
        same_as_local(shelf, at, tmp_path)
