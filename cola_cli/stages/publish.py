"""`cola push`: a model into a repository of a hub, with a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cola_cli.artifacts.kinds import TOKENIZER, TrainedModel
from cola_cli.artifacts.manifest import MANIFEST_NAME, flatten
from cola_cli.artifacts.verify import verify
from cola_cli.corpus.tokenizer import TextTokenizer
from cola_cli.errors import DamagedArtifact, InputError
from cola_cli.families import FAMILIES
from cola_cli.weights import hub
from cola_cli.weights.folder import ModelFolder, open_model_folder

PAPER = "2605.06548"


def push(path: Path, address: str, private: bool = False, license: str | None = None) -> str:
    """Publish the model at `path` as `hf:org/name`; returns its address there, with the commit.

    Beside its files go a model card and, for AutoTokenizer, `tokenizer_config.json`. license: for the card,
    as the hub names licences. Raises DamagedArtifact or InputError for an artifact that is not whole or not a
    model, InputError when the hub refuses.
    """
    repo, _ = hub.parse(address)
    folder = open_model_folder(path)
    files = _released_files(path, folder) if folder.artifact is None else _files(folder.artifact)
    made: dict[str, bytes] = {"README.md": model_card(repo, folder, license).encode()}
    if (tokenizer := folder.tokenizer()) is not None:
        made["tokenizer_config.json"] = tokenizer_config(
            tokenizer, folder.context, folder.chat_template
        )
    commit = hub.upload(address, files | made, f"{repo.partition('/')[2]}, by cola", private)
    return f"{hub.PREFIX}{repo}@{commit}"


def _files(artifact: TrainedModel) -> dict[str, Path | bytes]:
    """The files of a model's artifact, whole and none besides."""
    path, manifest = artifact.path, artifact.manifest
    if manifest.kind not in FAMILIES:
        raise InputError(f"{path} is a {manifest.kind} artifact, not a model.", "Name a model.")
    if findings := verify(path).findings:
        raise DamagedArtifact(findings[0].problem, f"Look at it with `cola verify {path}`.")
    return {name: path / name for name in (MANIFEST_NAME, *(one.path for one in manifest.files))}


def _released_files(path: Path, folder: ModelFolder) -> dict[str, Path | bytes]:
    """The files of a checkpoint in the authors' layout, from `cola_dlm` on."""
    from cola_cli.weights.released import ROOT, find_root

    root = find_root(path)
    files: dict[str, Path | bytes] = {
        f"{ROOT}/{file.relative_to(root).as_posix()}": file
        for file in sorted(root.rglob("*"))
        if file.suffix in (".json", ".safetensors")
    }
    return files | ({TOKENIZER: found} if (found := folder.tokenizer_file()) else {})


def tokenizer_config(
    tokenizer: TextTokenizer, context: int | None, chat_template: str | None = None
) -> bytes:
    """What transformers' AutoTokenizer reads beside `tokenizer.json`."""
    names = {
        role: tokenizer.name_of(token)
        for role, token in (
            ("eos_token", tokenizer.end_of_text_id),
            ("pad_token", tokenizer.pad_id),
        )
    }
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    if context is not None:
        about["model_max_length"] = context
    if chat_template is not None:
        about["chat_template"] = chat_template
    return json.dumps(about | {"clean_up_tokenization_spaces": False}, indent=2).encode()


def model_card(repo: str, folder: ModelFolder, license: str | None = None) -> str:
    """A page in Markdown of what a model is: how to use it, its sizes, metrics, settings and inputs."""
    artifact = folder.artifact
    title = "Cola DLM" if artifact is None else FAMILIES[artifact.manifest.kind].title
    head = ["---", "library_name: cola", f"tags: [cola, diffusion, arxiv:{PAPER}]"]
    head += [f"license: {license}"] if license else []
    lines = [
        *head, "---", "", f"# {repo.partition('/')[2]}", "",
        f"{title}, made with cola: a continuous latent diffusion language model"
        f" ([arXiv {PAPER}](https://arxiv.org/abs/{PAPER})).", "",
    ]  # fmt: skip
    if artifact is None or FAMILIES[artifact.manifest.kind].writes:
        use = f'cola sample {hub.PREFIX}{repo} --prompt "Once upon a time"'
        lines += ["```bash", "pip install 'cola-cli[hub]'", use, "```", ""]
    if artifact is None:
        vae, prior = folder.configs()
        sizes: dict[str, Any] = {"Text VAE": vae, "prior": prior}
        weights = {name: f"{config.parameter_count():,}" for name, config in sizes.items()}
        return "\n".join([*lines, *_table("weights of", weights)])
    manifest = artifact.manifest
    lines += _table(
        "metric", {k: v for k, v in manifest.statistics.items() if not isinstance(v, dict)}
    )
    lines += _table("setting", flatten(manifest.settings))
    lines += _table(
        "made from", {name: f"`{digest}`" for name, digest in manifest.identity.inputs.items()}
    )
    return "\n".join(
        [*lines, f"Fingerprint `{manifest.fingerprint}`, cola {manifest.cola_version}.", ""]
    )


def _table(title: str, values: dict[str, Any]) -> list[str]:
    def cell(value: Any) -> str:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        return " ".join(text.replace("|", "\\|").split())

    rows = [f"| {name} | {cell(value)} |" for name, value in values.items() if value is not None]
    return [f"| {title} | |", "|---|---|", *rows, ""] if rows else []
