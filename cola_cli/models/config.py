"""Shapes of the networks, each declared once, with closed-form parameter counts. Needs no torch.

A shape (`PriorShape`) is what a user may choose: the table `model` of a stage's settings. The config of a
network (`PriorConfig`) adds what follows from the data, and is stored as `config.json` beside the weights.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cola_cli.errors import UsageError

TIMESTEP_CHANNELS = 256  # width of the sinusoidal timestep embedding
LEVELS = 64  # in training staggered positions have times that are multiples of 1 / LEVELS
# Far above any real network: a damaged config may hold any number.
SIZE_LIMIT = 1 << 24  # of any dimension
LAYER_LIMIT = 1 << 12

Size = Annotated[int, Field(ge=1, le=SIZE_LIMIT)]
Layers = Annotated[int, Field(ge=1, le=LAYER_LIMIT)]


# Marks a field that came after the first format: at its default it is neither stored nor fingerprinted.
LATER = "left_out_at_default"


def later(default: Any, **field: Any) -> Any:
    """A field that artifacts of the first format do not have."""
    return Field(default=default, json_schema_extra={LATER: True}, **field)


class Shape(BaseModel):
    """A set of sizes: unknown names are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    # the keys of config.json in the order in which they are written
    KEYS: ClassVar[tuple[str, ...]]

    def document(self) -> dict[str, Any]:
        """The content of config.json; `model_validate(document, strict=True)` reads it back."""
        added = {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if name not in self.KEYS and getattr(self, name) != field.default
        }
        return {key: getattr(self, key) for key in self.KEYS} | added


class TextVAEShape(Shape):
    """Sizes of the Text VAE. Defaults: Cola DLM paper, 0.5 B parameters."""

    encoder_layers: Layers = Field(default=4, description="Blocks of the encoder.")
    decoder_layers: Layers = Field(default=4, description="Blocks of the decoder.")
    dim: Size = Field(default=1536, description="Width of the residual stream.")
    ffn_dim: Size = Field(default=6144, description="Width before SwiGLU halves it; even.")
    heads: Size = Field(default=12, description="Attention heads; dim is a multiple of 2 x heads.")
    latent_dim: Size = Field(default=16, ge=2, description="d, channels of a latent.")
    patch_size: Size = Field(default=1, description="Tokens per latent.")
    block_size: Size = Field(
        default=1, description="Latents that see one another in encoder and decoder; 1: causal."
    )
    norm_eps: float = Field(default=1e-6, gt=0, description="Epsilon of the layer norms.")
    rope_theta: float = Field(default=500_000.0, gt=0, description="Base of the rotary embedding.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> TextVAEShape:
        if self.dim % (2 * self.heads):
            raise ValueError(f"dim {self.dim} must be divisible by 2 x heads ({2 * self.heads})")
        if self.ffn_dim % 2:
            raise ValueError(f"ffn_dim {self.ffn_dim} must be even (SwiGLU halves it)")
        return self


class TextVAEConfig(TextVAEShape):
    """Everything that fixes the function of a Text VAE but its weights."""

    KEYS = (
        "vocab_size", "encoder_layers", "decoder_layers", "dim", "ffn_dim", "latent_dim", "patch_size",
        "heads", "block_size", "norm_eps", "rope_theta", "bias", "qk_bias", "scaling_factor",
        "shifting_factor",
    )  # fmt: skip

    vocab_size: Size = Field(description="Tokens of the vocabulary.")
    bias: bool = Field(default=True, description="Whether linear layers have a bias.")
    qk_bias: bool = Field(
        default=False, description="Whether queries, keys and values have a bias."
    )
    scaling_factor: float = Field(default=1.0, description="Factor on shifted latents.")
    shifting_factor: float = Field(default=0.0, description="Subtracted from the latents.")

    def to_prior(self, latents: Any) -> Any:
        """Latents (a tensor or an array) on the prior's scale."""
        return (latents - self.shifting_factor) * self.scaling_factor

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


class PriorShape(Shape):
    """Sizes of the block-causal diffusion transformer. Defaults: Cola DLM paper, 1.8 B parameters."""

    layers: Layers = Field(default=24, description="Blocks of the transformer.")
    dim: Size = Field(default=2048, description="Width of the residual stream.")
    heads: Size = Field(default=16, description="Attention heads.")
    head_dim: Size = Field(default=128, ge=2, description="Channels of a head.")
    expand_ratio: Size = Field(default=4, description="Width of the feed-forward layer / dim.")
    rope_dim: int = Field(
        default=96, ge=0, description="Channels of a head that are rotated; even."
    )
    block_size: Size = Field(default=16, description="Latents denoised together.")
    norm_eps: float = Field(default=1e-5, gt=0, description="Epsilon of the layer norms.")
    qk_bias: bool = Field(
        default=False, description="Whether queries, keys and values have a bias."
    )

    prediction: Literal["velocity", "latent", "tokens"] = later(
        "velocity",
        description="Output of the network. velocity: dz/dt (the paper's). latent: the clean latent. tokens:"
        " logits of the token at each position; the clean latent is the mean code under them.",
    )
    stagger: float = later(
        0.0,
        ge=0,
        le=1024,
        description="S: within a block the first position is denoised first, the last one S times the"
        " duration of a position later. 0: all positions share one time (the paper's).",
    )
    self_conditioning: bool = later(
        False, description="Whether the previous clean estimate is an input of the network."
    )
    causal_history: bool = later(
        False,
        description="Whether a clean latent sees only those before it; else all of its block (the paper's).",
    )
    residual: bool = later(
        False,
        description="Whether a prior that predicts tokens adds to the mean code what tokens do not say.",
    )
    evidence: bool = later(
        False,
        description="With prediction tokens and causal_history: whether the network is given what a latent"
        " says of its own token, and what the position before says of the next one.",
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> PriorShape:
        if self.residual and self.prediction != "tokens":
            raise ValueError("residual goes with prediction 'tokens', and only with it")
        if self.evidence and self.prediction == "tokens" and not self.causal_history:
            raise ValueError("evidence needs causal_history = true")
        if self.rope_dim % 2 or self.rope_dim > self.head_dim:
            raise ValueError(f"rope_dim {self.rope_dim} must be even and at most {self.head_dim}")
        if self.rope_dim and self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even where rope_dim is not 0")
        return self


class PriorConfig(PriorShape):
    """Everything that fixes the function of a prior but its weights."""

    KEYS = (
        "latent_dim", "dim", "heads", "head_dim", "expand_ratio", "layers", "norm_eps", "qk_bias",
        "rope_dim", "block_size",
    )  # fmt: skip

    latent_dim: Size = Field(default=16, description="d, channels of a latent.")
    vocab_size: int = later(
        0, ge=0, le=SIZE_LIMIT, description="Tokens of the head of `prediction: tokens`."
    )
    passes: int = later(
        0, ge=0, description="Of a distilled prior: passes over a block it was made for. 0: any."
    )
    chain: int = later(
        0,
        ge=0,
        le=SIZE_LIMIT,
        description="Of a distilled prior with a token head: width of the network that chooses the tokens of"
        " a pass one after another. 0: none.",
    )

    @model_validator(mode="after")
    def _head_fits(self) -> PriorConfig:
        if (self.prediction == "tokens") != bool(self.vocab_size):
            raise ValueError("vocab_size goes with prediction 'tokens', and only with it")
        if self.evidence and not self.vocab_size:
            raise ValueError("evidence goes with prediction 'tokens', and only with it")
        if self.chain and not (self.vocab_size and self.passes):
            raise ValueError("a chain goes with passes and prediction 'tokens'")
        if self.chain and self.block_size % self.passes:
            raise ValueError(f"passes {self.passes} must divide block_size {self.block_size}")
        return self

    def require_guidance(self, scale: float) -> None:
        """Raise UsageError for guidance of a distilled prior, which has its teacher's built in."""
        if self.passes and scale != 1.0:
            raise UsageError(
                f"this prior is distilled for {self.passes} passes a block with guidance built in; it cannot"
                f" be given guidance {scale:g}.",
                "Leave guidance at 1, or name its teacher.",
            )

    @property
    def group_size(self) -> int:
        """Positions of a block that a pass of a prior with a chain decides, one group after another."""
        return self.block_size // self.passes

    @property
    def said_dim(self) -> int:
        """Channels of what a position says of the next one: none without `evidence`."""
        return self.dim if self.evidence else 0

    @property
    def history_block(self) -> int:
        """Clean latents that see one another."""
        return 1 if self.causal_history else self.block_size

    @property
    def has_density(self) -> bool:
        """Whether latents have a density; one that predicts tokens gives these probabilities instead."""
        return self.prediction != "tokens"

    @property
    def out_dim(self) -> int:
        """Channels of the network's output."""
        own = 0 if self.vocab_size and not self.residual else self.latent_dim
        return self.vocab_size + own

    def end_products(self) -> int:
        """Multiplications of a position before and after the blocks of the network."""
        own = self.dim * (self.latent_dim + self.out_dim + 2 * self.chain + self.said_dim)
        return own + self.evidence_products()

    def evidence_products(self) -> int:
        """Multiplications of a position for its tokens' likelihoods, which have two terms a channel."""
        return 2 * self.latent_dim * self.vocab_size if self.evidence else 0

    def parameter_count(self) -> int:
        """Number of weights: 1,829,875,728 at the paper's size."""
        dim, inner, hidden = self.dim, self.heads * self.head_dim, self.expand_ratio * self.dim
        bias = int(self.qk_bias)
        attention = 3 * inner * (dim + bias) + dim * (inner + bias) + 4 * self.head_dim
        feedforward = hidden * (dim + 1) + dim * (hidden + 1)
        block = attention + feedforward + 6 * dim * (dim + 1)
        timestep = dim * (TIMESTEP_CHANNELS + 1) + 2 * dim * (dim + 1)
        ends = dim * (self.latent_dim + 1) + self.out_dim * (dim + 1)
        ends += dim * self.latent_dim * int(self.self_conditioning)
        ends += (self.vocab_size + dim) * dim * int(self.evidence)
        ends += self.chain and self.chain * (self.vocab_size + 2 * dim + 2)
        return self.layers * block + timestep + ends + 2 * dim + 2 * dim * (dim + 1)

    def core_parameter_count(self) -> int:
        """Number of weights without token head and embedding, which a baseline is matched to."""
        own = self.dim * (1 + int(self.evidence)) + 1 + self.chain
        return self.parameter_count() - self.vocab_size * own


class TransformerShape(Shape):
    """Sizes of the baselines' transformer (LLaMA style). Defaults: matched to the paper's prior."""

    layers: Layers = Field(default=27, description="Blocks of the transformer.")
    dim: Size = Field(default=2048, description="Width of the residual stream.")
    ffn_dim: Size = Field(default=8192, description="Width of the feed-forward layer.")
    heads: Size = Field(default=16, description="Attention heads.")
    head_dim: Size = Field(default=128, ge=2, description="Channels of a head; even.")
    norm_eps: float = Field(default=1e-5, gt=0, description="Epsilon of the RMS norms.")
    rope_theta: float = Field(default=10_000.0, gt=0, description="Base of the rotary embedding.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> TransformerShape:
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even")
        return self


class TransformerConfig(TransformerShape):
    """Everything that fixes the function of a baseline's network but its weights."""

    KEYS = (
        "vocab_size", "causal", "layers", "dim", "ffn_dim", "heads", "head_dim", "norm_eps", "rope_theta",
    )  # fmt: skip

    vocab_size: Size = Field(description="Tokens of the vocabulary.")
    causal: bool = Field(
        description="Next-token prediction; otherwise every token sees every other, and the embedding has"
        " one more row for the mask token (LLaDA)."
    )

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
    return sizes | {"layers": max(1, round(prior.core_parameter_count() / layer))}
