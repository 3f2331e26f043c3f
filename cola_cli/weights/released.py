"""Checkpoints in the authors' layout: `cola_dlm/cola_vae`, `cola_dlm/cola_dit`, `tokenizer.json`.

The released code has other names for its parameters, keeps the four AdaLN linears of a block apart, and
stores the rotary frequencies once a layer; all else is the same, so tensors go both ways byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from cola_cli.artifacts.reading import read_record, reason
from cola_cli.errors import InputError
from cola_cli.models.config import PriorConfig, TextVAEConfig
from cola_cli.models.prior import Prior
from cola_cli.models.rotary import rotary_frequencies
from cola_cli.models.text_vae import TextVAE
from cola_cli.weights.tensors import read_tensors, require_fit

_Config = TypeVar("_Config", TextVAEConfig, PriorConfig)

ROOT, VAE, PRIOR = "cola_dlm", "cola_vae", "cola_dit"
TOKENIZER = "tokenizer.json"
FIT = "Use the config.json and the weights of one and the same checkpoint."

# our setting -> the released one, and its value where a config.json leaves it out
VAE_SETTINGS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 100278),
    "encoder_layers": ("encoder_num_blocks", 4),
    "decoder_layers": ("decoder_num_blocks", 4),
    "dim": ("dim", 1536),
    "ffn_dim": ("ffn_dim", 6144),
    "latent_dim": ("latent_dim", 16),
    "patch_size": ("patch_size", 1),
    "heads": ("num_heads", 12),
    "block_size": ("block_size", 4),
    "norm_eps": ("layer_norm_eps", 1e-6),
    "rope_theta": ("rope_theta", 500_000.0),
    "bias": ("bias", True),
    "qk_bias": ("qk_bias", False),
    "scaling_factor": ("scaling_factor", 1.0),
    "shifting_factor": ("shifting_factor", 0.0),
}
PRIOR_SETTINGS: dict[str, tuple[str, Any]] = {
    "latent_dim": ("txt_in_channels", 16),
    "dim": ("txt_dim", 2048),
    "heads": ("heads", 16),
    "head_dim": ("head_dim", 128),
    "expand_ratio": ("expand_ratio", 4),
    "layers": ("num_layers", 24),
    "norm_eps": ("norm_eps", 1e-5),
    "qk_bias": ("qk_bias", False),
    "rope_dim": ("rope_dim", 96),
    "block_size": ("block_size", 4),
}
# further settings of a released config, with the only value that cola computes
VAE_FIXED: dict[str, Any] = {
    "encoder_last_ln": True,
    "layer_norm_type": "layer_norm",
    "layer_norm_affine": True,
    "post_norm": True,
    "qk_norm": True,
    "qk_norm_affine": True,
    "clip_qkv": None,
    "act": "swiglu",
    "block_causal": True,
    "shared_heads_kv": 1,
    "use_variation": True,
}
VAE_DEFAULTS = VAE_FIXED | {
    "attn_dropout": 0.0,
    "causal": False,
    "dropout": 0.0,
    "init_cutoff_factor": 3,
    "init_fn": "normal",
    "init_std": 0.02,
    "rope_full_precision": True,
    "use_emb": True,
}
VAE_NAMES = {
    "embedding": "encoder.wte",
    "patch_in": "encoder.patch_embedder",
    "posterior_out": "encoder.final_layer",
    "latent_in": "decoder.in_layer",
    "patch_out": "decoder.unpatch_layer",
    "out_norm": "decoder.final_norm",
    "token_out": "decoder.final_layer",
}
VAE_BLOCK_NAMES = {
    "attention_norm": "norm_attn",
    "qkv": "qkv_proj",
    "q_norm": "q_norm",
    "k_norm": "k_norm",
    "attention_out": "attn_out_proj",
    "ffn_norm": "norm_ffn",
    "ffn_in": "ffn_proj",
    "ffn_out": "ffn_out",
}
PRIOR_NAMES = {
    "latent_in": "txt_in.proj",
    "timestep_in": "emb_in.proj_in",
    "timestep_hidden": "emb_in.proj_hid",
    "timestep_out": "emb_in.proj_out",
    "out_norm": "txt_out_norm",
    "out_modulation": "txt_out_ada.out_in.1",
    "latent_out": "txt_out.proj",
}
PRIOR_BLOCK_NAMES = {
    "qkv": "msa.proj_qkv",
    "attention_out": "msa.proj_out",
    "q_norm": "msa.norm_q",
    "k_norm": "msa.norm_k",
    "mlp_in": "mlp.proj_in",
    "mlp_out": "mlp.proj_out",
}
# the parts of our `modulation` in order: (released name, rows in units of dim)
ADA_PARTS = (("msa_in", 2), ("msa_out", 1), ("mlp_in", 2), ("mlp_out", 1))
FREQUENCIES = "msa.rope.rope.freqs"


def find_root(folder: Path) -> Path:
    """The folder that holds `cola_vae` and `cola_dit`: the one given, or `cola_dlm` in it."""
    for root in (folder, folder / ROOT):
        if (root / VAE).is_dir() and (root / PRIOR).is_dir():
            return root
    raise InputError(
        f"{folder} is neither an artifact nor a released checkpoint: it lacks {ROOT}/{VAE} and"
        f" {ROOT}/{PRIOR}.",
        "Name the folder that holds cola_dlm, or an artifact.",
    )


def read_checkpoint(folder: Path) -> tuple[TextVAE, Prior]:
    """Text VAE and prior of a released checkpoint, in their stored precision; perhaps views of mapped files.

    Raises InputError for a config or tensors that disagree, naming the first that does, and
    DamagedArtifact for files that are not whole.
    """
    root = find_root(folder)
    vae_config, prior_config = read_configs(root)
    with torch.device("meta"):
        vae, prior = TextVAE(vae_config), Prior(prior_config)
    own = vae_from_released(read_tensors(root / VAE), vae, root / VAE)
    vae.load_state_dict(own, assign=True)
    own = prior_from_released(read_tensors(root / PRIOR), prior, root / PRIOR)
    prior.load_state_dict(own, assign=True)
    # not part of the checkpoint, so still without values
    vae.frequencies = rotary_frequencies(vae_config.head_dim, vae_config.rope_theta)
    return vae, prior


def read_configs(root: Path) -> tuple[TextVAEConfig, PriorConfig]:
    """The shapes of the VAE and the prior below `root`, checked against each other."""
    vae = _config(root / VAE / "config.json", TextVAEConfig, VAE_SETTINGS, lambda vae: VAE_FIXED)
    prior = _config(root / PRIOR / "config.json", PriorConfig, PRIOR_SETTINGS, _prior_fixed)
    if prior.latent_dim != vae.latent_dim:
        raise InputError(
            f"{root}: the VAE has {vae.latent_dim} latent channels, the prior {prior.latent_dim}.",
            "Use the pair that was trained together.",
        )
    return vae, prior


def tokenizer_file(root: Path) -> Path | None:
    """`tokenizer.json` beside or in the folder `cola_dlm`, if there is one."""
    beside = (
        root / ".." if root.name in ("", "..") else root.parent
    )  # a path such as `.` has no parent
    candidates = (beside / TOKENIZER, root / TOKENIZER)
    return next((path for path in candidates if path.is_file()), None)


def vae_names(config: TextVAEConfig) -> Iterator[tuple[str, str]]:
    """(our prefix, released prefix) of every module of the VAE that has parameters."""
    yield from VAE_NAMES.items()
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for layer in range(layers):
            for ours, theirs in VAE_BLOCK_NAMES.items():
                yield f"{side}.{layer}.{ours}", f"{side}.blocks.{layer}.{theirs}"


def prior_names(config: PriorConfig) -> Iterator[tuple[str, str]]:
    """(our prefix, released prefix) of every module of the prior but the AdaLN of its blocks."""
    yield from PRIOR_NAMES.items()
    for layer in range(config.layers):
        for ours, theirs in PRIOR_BLOCK_NAMES.items():
            yield f"blocks.{layer}.{ours}", f"blocks.{layer}.{theirs}"


def vae_to_released(vae: TextVAE) -> dict[str, Tensor]:
    """The state of a VAE under the released names (133 entries at the paper's size)."""
    return _renamed(vae.state_dict(), dict(vae_names(vae.config)))


def prior_to_released(prior: Prior) -> dict[str, Tensor]:
    """The state of a prior under the released names (470 entries at the paper's size)."""
    state = prior.state_dict()
    released = _renamed(state, dict(prior_names(prior.config)))
    for layer in range(prior.config.layers):
        prefix = f"blocks.{layer}"
        for end in ("weight", "bias"):
            whole = state[f"{prefix}.modulation.{end}"]
            pieces = whole.split([rows * prior.config.dim for _, rows in ADA_PARTS])
            for (name, _), piece in zip(ADA_PARTS, pieces, strict=True):
                released[f"{prefix}.ada.{name}.1.{end}"] = piece
        released[f"{prefix}.{FREQUENCIES}"] = state["frequencies"]
    return released


def vae_from_released(tensors: dict[str, Tensor], vae: TextVAE, where: Path) -> dict[str, Tensor]:
    """The state of our VAE from released tensors; `where` is named in errors."""
    require_fit(tensors, vae_to_released(vae), where, FIT)
    return _renamed(tensors, {theirs: ours for ours, theirs in vae_names(vae.config)})


def prior_from_released(tensors: dict[str, Tensor], prior: Prior, where: Path) -> dict[str, Tensor]:
    """The state of our prior from released tensors; `where` is named in errors."""
    require_fit(tensors, prior_to_released(prior), where, FIT)
    names = {theirs: ours for ours, theirs in prior_names(prior.config)}
    state = _renamed(tensors, names)
    first = tensors.get(f"blocks.0.{FREQUENCIES}")
    for layer in range(prior.config.layers):
        prefix = f"blocks.{layer}"
        for end in ("weight", "bias"):
            parts = [tensors[f"{prefix}.ada.{name}.1.{end}"] for name, _ in ADA_PARTS]
            state[f"{prefix}.modulation.{end}"] = torch.cat(parts)
        own = tensors[f"{prefix}.{FREQUENCIES}"]
        if first is not None and not torch.equal(own, first):
            raise InputError(
                f"{where}: the rotary frequencies of block {layer} differ from block 0.",
                "cola has one set of frequencies for all blocks; this checkpoint cannot be used.",
            )
    if first is not None:
        state["frequencies"] = first
    return state


def released_configs(vae: TextVAEConfig, prior: PriorConfig, dtype: str) -> tuple[Any, Any]:
    """The two config.json documents, VAE and prior. Raises InputError for a prior that they cannot describe.

    The passes that a prior was distilled for are left out: they change how it is sampled, not what it is.
    """
    if beyond := prior.document().keys() - {*prior.KEYS, "passes"}:
        named = ", ".join(f"{name} = {getattr(prior, name)}" for name in sorted(beyond))
        raise InputError(
            f"the released layout has no place for a prior with {named}.",
            "Keep it as an artifact, or train a prior with the defaults of these settings.",
        )
    vae_document = VAE_DEFAULTS | {
        theirs: getattr(vae, ours) for ours, (theirs, _) in VAE_SETTINGS.items()
    }
    prior_document = _prior_fixed(prior) | {
        theirs: getattr(prior, ours) for ours, (theirs, _) in PRIOR_SETTINGS.items()
    }
    names = (("ColaTextVAEModel", "cola_text_vae"), ("ColaDiTModel", "cola_dit"))
    documents = [
        document | {"architectures": [architecture], "model_type": kind, "dtype": dtype}
        for document, (architecture, kind) in zip(
            (vae_document, prior_document), names, strict=True
        )
    ]
    first, second = (dict(sorted(document.items())) for document in documents)
    return first, second


def _config(
    path: Path,
    kind: type[_Config],
    names: dict[str, tuple[str, Any]],
    fixed: Callable[[_Config], dict[str, Any]],
) -> _Config:
    document = read_record(path, dict[str, Any], "Fetch the checkpoint again.")
    settings = {ours: document.get(*theirs) for ours, theirs in names.items()}
    try:
        config = kind.model_validate(settings, strict=True)
    except ValidationError as error:
        ours = next(iter(error.errors()[0]["loc"]), None)
        why = reason(error)
        if ours is not None:
            why = f"{names[str(ours)][0]} = {settings[str(ours)]!r} is not possible ({why})"
        raise InputError(f"{path}: {why}.", "Correct it.") from error
    for name, allowed in fixed(config).items():
        if document.get(name, allowed) != allowed:
            raise InputError(
                f"{path}: {name} = {document[name]!r} is not supported (only {allowed!r}).",
                "cola computes the released model's mathematics; this config asks for another.",
            )
    return config


def _prior_fixed(prior: PriorConfig) -> dict[str, Any]:
    """As VAE_FIXED: a released prior says some sizes twice."""
    return {"txt_out_channels": prior.latent_dim, "emb_dim": prior.dim, "patch_size": 1}


def _renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in state.items():
        prefix, _, end = key.rpartition(".")
        if prefix in names:
            renamed[f"{names[prefix]}.{end}"] = tensor
    return renamed
