"""Shapes of the networks, as frozen dataclasses with closed-form parameter counts. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

TIMESTEP_CHANNELS = 256  # width of the sinusoidal timestep embedding
# No network comes near, and a damaged config may say anything.
SIZE_LIMIT = 1 << 24  # of any dimension
LAYER_LIMIT = 1 << 12

Config = TypeVar("Config", "TextVAEConfig", "PriorConfig", "TransformerConfig")


@dataclass(frozen=True, kw_only=True)
class TextVAEConfig:
    """Shape of the Text VAE.

    block_size: latents that see one another in encoder and decoder; 1 is strictly causal.
    patch_size: tokens per latent.
    scaling_factor, shifting_factor: the prior works on (mean - shifting_factor) * scaling_factor.
    """

    vocab_size: int
    encoder_layers: int = 4
    decoder_layers: int = 4
    dim: int = 1536
    ffn_dim: int = 6144
    latent_dim: int = 16
    patch_size: int = 1
    heads: int = 12
    block_size: int = 1
    norm_eps: float = 1e-6
    rope_theta: float = 500_000.0
    bias: bool = True
    qk_bias: bool = False
    scaling_factor: float = 1.0
    shifting_factor: float = 0.0

    def __post_init__(self) -> None:
        _require(self, 1, SIZE_LIMIT, "vocab_size", "dim", "ffn_dim", "latent_dim", "patch_size")
        _require(self, 1, SIZE_LIMIT, "heads", "block_size")
        _require(self, 0, LAYER_LIMIT, "encoder_layers", "decoder_layers")
        if self.dim % (2 * self.heads):
            raise ValueError(f"dim {self.dim} must be divisible by 2 x heads ({2 * self.heads})")
        if self.ffn_dim % 2:
            raise ValueError(f"ffn_dim {self.ffn_dim} must be even (SwiGLU halves it)")

    @property
    def mask_token_id(self) -> int:
        """The extra row of the embedding, for masked tokens."""
        return self.vocab_size

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def parameter_count(self) -> int:
        """Number of weights: 501,871,574 at the paper's size."""
        dim, ffn, bias = self.dim, self.ffn_dim, int(self.bias)
        block = (3 * dim * dim + 3 * dim * int(self.qk_bias)) + (dim * dim + bias * dim)
        block += (dim * ffn + bias * ffn) + (dim * ffn // 2 + bias * dim) + 8 * dim
        encoder = (self.vocab_size + 1) * dim + dim * dim * self.patch_size + dim
        encoder += 2 * self.latent_dim * (dim + bias)
        decoder = dim * (self.latent_dim + bias) + self.patch_size * dim * (dim + bias)
        decoder += 2 * dim + self.vocab_size * (dim + bias)
        return (self.encoder_layers + self.decoder_layers) * block + encoder + decoder


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Shape of the block-causal diffusion transformer.

    block_size: latents denoised together. rope_dim: channels of a head that are rotated.
    """

    latent_dim: int = 16
    dim: int = 2048
    heads: int = 16
    head_dim: int = 128
    expand_ratio: int = 4
    layers: int = 24
    norm_eps: float = 1e-5
    qk_bias: bool = False
    rope_dim: int = 96
    block_size: int = 16

    def __post_init__(self) -> None:
        _require(self, 1, SIZE_LIMIT, "latent_dim", "dim", "heads", "head_dim", "expand_ratio")
        _require(self, 1, SIZE_LIMIT, "block_size")
        _require(self, 0, LAYER_LIMIT, "layers")
        if self.rope_dim % 2 or not 0 <= self.rope_dim <= self.head_dim:
            raise ValueError(f"rope_dim {self.rope_dim} must be even and at most {self.head_dim}")

    def parameter_count(self) -> int:
        """Number of weights: 1,829,875,728 at the paper's size."""
        dim, inner, hidden = self.dim, self.heads * self.head_dim, self.expand_ratio * self.dim
        bias = int(self.qk_bias)
        attention = 3 * inner * (dim + bias) + dim * (inner + bias) + 4 * self.head_dim
        feedforward = hidden * (dim + 1) + dim * (hidden + 1)
        block = attention + feedforward + 6 * dim * (dim + 1)
        timestep = dim * (TIMESTEP_CHANNELS + 1) + 2 * dim * (dim + 1)
        ends = dim * (self.latent_dim + 1) + self.latent_dim * (dim + 1)
        return self.layers * block + timestep + ends + 2 * dim + 2 * dim * (dim + 1)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of the baselines' transformer over tokens (LLaMA style).

    causal: next-token prediction; otherwise every token sees every other, and the embedding has one more
    row for the mask token (LLaDA).
    """

    vocab_size: int
    causal: bool
    layers: int = 27
    dim: int = 2048
    ffn_dim: int = 8192
    heads: int = 16
    head_dim: int = 128
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        _require(self, 1, SIZE_LIMIT, "vocab_size", "dim", "ffn_dim", "heads", "head_dim")
        _require(self, 1, LAYER_LIMIT, "layers")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even")

    @property
    def mask_token_id(self) -> int:
        """The extra row of the embedding, for masked tokens."""
        return self.vocab_size

    def layer_parameter_count(self) -> int:
        """Number of weights of one block."""
        return (
            4 * self.dim * self.heads * self.head_dim + 3 * self.dim * self.ffn_dim + 2 * self.dim
        )

    def core_parameter_count(self) -> int:
        """Number of weights between embedding and head, which the paper matches."""
        return self.layers * self.layer_parameter_count() + self.dim

    def parameter_count(self) -> int:
        """Number of weights, embedding and head included."""
        rows = 2 * self.vocab_size + (0 if self.causal else 1)
        return self.core_parameter_count() + rows * self.dim


def matched_sizes(prior: PriorConfig) -> dict[str, int]:
    """Sizes of a baseline with the width of a prior, and the depth that comes nearest to its parameters.

    27 layers at the paper's size (Cola DLM paper, capacity table).
    """
    sizes = {
        "dim": prior.dim,
        "ffn_dim": prior.expand_ratio * prior.dim,
        "heads": prior.heads,
        "head_dim": prior.head_dim,
    }
    layer = TransformerConfig(vocab_size=1, causal=True, **sizes).layer_parameter_count()
    return sizes | {"layers": max(1, round(prior.parameter_count() / layer))}


def with_floats(config: Config) -> Config:
    """The config with floats that are floats: JSON may write one as an integer of any size.

    Raises OverflowError where no float is so large.
    """
    names = [field.name for field in fields(config) if field.type == "float"]
    floats: dict[str, Any] = {name: float(getattr(config, name)) for name in names}
    return replace(config, **floats)


def _require(config: object, least: int, most: int, *names: str) -> None:
    for name in names:
        if not least <= getattr(config, name) <= most:
            raise ValueError(f"{name} must be from {least} to {most}, not {getattr(config, name)}")
