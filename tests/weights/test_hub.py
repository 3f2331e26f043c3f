"""Models by name: fetched once from a hub, found again without it, published so that both ends are equal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cola_cli
from cola_cli.artifacts.manifest import read_manifest
from cola_cli.weights.folder import open_model_folder
from cola_cli.weights.names import demo_model
from tests import golden
from tests.conftest import cola_command
from tests.weights.hub_server import TOKEN, Hub, serving

pytest.importorskip("huggingface_hub")
REPO = "org/stories"
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        hub.commit(REPO, files_of(demo_model()) | {"README.md": b"# about", ".gitattributes": b""})
        yield hub


@pytest.fixture
def cola(hub: Hub, tmp_path: Path) -> Command:
    """The command, with a cache of its own and this machine's hub."""

    def run(*words: object, expect: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        result = subprocess.run(
            cola_command(*words), capture_output=True, text=True, cwd=tmp_path,
            env=environment | more, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert result.returncode == expect, result.stdout + result.stderr
        return result

    return run


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_model_is_fetched_once_and_then_found_without_the_hub(hub: Hub, cola: Command) -> None:
    cola("pull", f"hf:{REPO}")
    fetched = [line for line in hub.requests if line.startswith("GET") and "resolve" in line]
    assert len(fetched) == len(files_of(demo_model())), (
        "and neither the card nor what else is there"
    )
    cola("pull", f"hf:{REPO}")
    assert [line for line in hub.requests if line in fetched] == fetched, "nothing is fetched again"
    sampled = cola("sample", f"hf:{REPO}", "-p", "Tom was", "-n", 4, "--json", HF_HUB_OFFLINE="1")
    own = cola_cli.load("demo").generate(["Tom was"], max_new_tokens=4)
    assert json.loads(sampled.stdout)["text"] == own[0].text


def test_commands_find_models_by_name(cola: Command) -> None:
    for name in ("demo", f"hf:{REPO}"):
        assert "complete, 5 files" in cola("verify", name).stdout
        assert json.loads(cola("inspect", name, "--json").stdout)["kind"] == "prior"
    assert cola("sql", "select count(*) from files", f"hf:{REPO}").stdout.split()[1] == "5"


def test_the_commit_goes_into_the_lineage(hub: Hub, cola: Command, tmp_path: Path) -> None:
    first = hub.digest(REPO, 0)
    hub.commit(REPO, {"manifest.json": b"{}"})  # the newest is broken, the pinned one is not
    cola("import", f"hf:{REPO}@{first}", "-o", "mine")
    manifest = read_manifest(tmp_path / "mine")
    assert manifest.environment["fetched"] == [f"hf:{REPO}@{first}"]
    assert manifest.identity.inputs["checkpoint"] == read_manifest(demo_model()).fingerprint
    assert f"hf:{REPO}@{first}" in cola("inspect", "mine").stdout
    cola("inspect", f"hf:{REPO}", expect=5)


def test_a_download_that_was_cut_off_goes_on(hub: Hub, cola: Command) -> None:
    hub.cut = 1_000_000  # of the first large file
    cola("pull", f"hf:{REPO}")
    assert "complete" in cola("verify", f"hf:{REPO}", HF_HUB_OFFLINE="1").stdout


@pytest.mark.parametrize(
    ("name", "said", "more"),
    [
        ("hf:org/none", "there is no hf:org/none on the hub", {}),
        (f"hf:{REPO}@none", "there is no such revision", {}),
        ("hf:org", "is not an address", {}),
        (f"hf:{REPO}", "is not in the cache", {"HF_HUB_OFFLINE": "1"}),
        (f"hf:{REPO}", "is not in the cache", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
        ("hf:org/empty", "holds no model", {}),
    ],
)
def test_what_cannot_be_fetched_is_said(
    hub: Hub, cola: Command, name: str, said: str, more: dict[str, str]
) -> None:
    hub.commit("org/empty", {"README.md": b""})
    code = 2 if name == "hf:org" else 4
    error = cola("sample", name, "-p", "Tom", expect=code, **more).stderr
    assert said in error


def test_only_what_is_there_is_pulled(cola: Command) -> None:
    assert "hf:org/name for a model on the hub" in cola("pull", REPO, expect=4).stderr


def test_a_published_model_is_the_same_when_it_is_fetched(
    hub: Hub, cola: Command, tmp_path: Path
) -> None:
    assert "Log in" in cola("push", "demo", "hf:me/tale", expect=4).stderr
    pushed = cola("push", "demo", "hf:me/tale", "--license", "apache-2.0", HF_TOKEN=TOKEN)
    _, files = hub.find("me/tale", "main") or ("", {})
    for name, content in files_of(demo_model()).items():
        assert files[name] == content
    card = files["README.md"].decode()
    assert "license: apache-2.0" in card
    assert "| parameters | 6801568 |" in card
    assert "| sampling.head_temperature | 0.7 |" in card
    address = pushed.stdout.strip()
    assert address == f"hf:me/tale@{hub.digest('me/tale', 0)}"
    assert "complete" in cola("verify", address).stdout
    again = cola("push", address, "hf:me/copy", "--private", HF_TOKEN=TOKEN).stdout.strip()
    assert "or it is private" in cola("verify", again, expect=4).stderr
    assert "complete" in cola("verify", again, HF_TOKEN=TOKEN).stdout


def test_the_tokenizer_of_a_published_model_opens_in_transformers(
    hub: Hub, cola: Command, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    cola("push", "demo", "hf:me/tale", HF_TOKEN=TOKEN)
    _, files = hub.find("me/tale", "main") or ("", {})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(files[name])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    from cola_cli.corpus.tokenizer import load_tokenizer

    ours = load_tokenizer(tmp_path / "tokenizer.json")
    assert theirs("Tom was a sailor.")["input_ids"] == ours.encode("Tom was a sailor.")
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.end_of_text_id, ours.pad_id)


def test_the_authors_layout_goes_both_ways(hub: Hub, cola: Command, tmp_path: Path) -> None:
    pushed = cola("push", golden.HERE, "hf:me/released", HF_TOKEN=TOKEN).stdout.strip()
    folder = Path(cola("pull", pushed).stdout.strip())
    theirs, ours = (open_model_folder(place / "cola_dlm") for place in (folder, golden.HERE))
    assert theirs.fingerprint() == ours.fingerprint()


def test_what_is_not_whole_is_not_published(hub: Hub, cola: Command, tmp_path: Path) -> None:
    shutil.copytree(demo_model(), tmp_path / "torn")
    (tmp_path / "torn/vae/model.safetensors").write_bytes(b"x")
    cola("push", "torn", "hf:me/torn", expect=5, HF_TOKEN=TOKEN)
    assert "me/torn" not in hub.repositories


def test_without_the_library_the_extra_is_named(hub: Hub, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from cola_cli.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "sample", f"hf:{REPO}", "-p", "Tom"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "cola-cli[hub]" in result.stderr
