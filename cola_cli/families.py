"""The kinds of model, each declared once: its command, settings, network, objective, cost and sampler.

A new kind is one entry of FAMILIES beside its network, objective and sampler; a stage that makes one model
from another is one entry of DERIVED. Commands, plans, studies, status and report follow from the tables.
Imports neither torch nor pydantic: entries import what they use when they are called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cola_cli.cost import Data
from cola_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from cola_cli.artifacts import Artifact
    from cola_cli.artifacts.kinds import Latents, Tokens
    from cola_cli.cost.training import Cost
    from cola_cli.models.config import PriorConfig, TextVAEConfig, TransformerConfig
    from cola_cli.sampling.sampler import Sampler
    from cola_cli.settings.baseline import BaselineSettings
    from cola_cli.settings.distill import DistillSettings
    from cola_cli.settings.prior import PriorSettings
    from cola_cli.settings.sample import SampleSettings, SamplingOptions
    from cola_cli.settings.vae import VAESettings
    from cola_cli.training.objectives.objective import Objective


@dataclass(frozen=True)
class Networks:
    """The objective, the networks to save by name with their configs, and what to do before saving."""

    objective: Objective
    saved: Mapping[str, tuple[nn.Module, Any]]
    finish: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class TokenModel:
    """How a model over tokens, without latents, continues text.

    read_config, load: from its artifact; the config has `parameter_count()`. sampler: of a network, options
    and a batch size. flops: by the tokens of a prompt and the new ones. passes: of the network over
    one continuation, None for one per new token. cached: numbers kept for each token. next_token: whether the
    network gives p(next token | tokens before), so that it can judge text.
    """

    read_config: Callable[[Artifact], Any]
    load: Callable[[Artifact], nn.Module]
    sampler: Callable[[Any, SamplingOptions, int], Sampler]
    flops: Callable[[Any, SamplingOptions, int, int], float]
    passes: Callable[[SampleSettings], int | None] = lambda settings: None
    cached: Callable[[Any], int] = lambda config: 0
    next_token: bool = False


@dataclass(frozen=True)
class Base:
    """A trained model that models of a family are made from: the first argument of their command.

    kind: of its artifact; help: of the argument. family: of the models made from such an artifact, whose
    config, cost and build depend on it. recorded: what is taken over of the sampling settings that it was
    stored with.
    """

    kind: str
    help: str
    family: Callable[[Artifact], Family]
    recorded: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda stored: {}


@dataclass(frozen=True)
class Family:
    """A kind of model, and the stage that trains it.

    kind: of its artifacts. command: `cola train COMMAND`, with `summary` as its help, or `cola COMMAND` where
    `group` is empty. title: in the report. reads: the kind of artifact that it is trained on. base: the model
    that it is made from, if any. inputs: fingerprints of further artifacts. table: of its settings, see
    `settings.TABLES`; `flags` are settings with flags of their own, `ignored` sections that matter to other
    kinds only. config: of the network; raises ValueError or UsageError for impossible sizes. trained: names
    of the networks that the artifact holds. kept: statistics of the input that the artifact repeats. metrics:
    validation metrics to show after training, with their meaning. titles: title and unit of metrics that mean
    something else than in other kinds. writes: whether it continues text; token_model: how, None for a prior.
    """

    kind: str
    command: str
    title: str
    summary: str
    reads: str
    table: str
    config: Callable[[Data, Any], Any]
    cost: Callable[[Any, Data, Any], Cost]
    build: Callable[[Any, Any, Any], Networks]
    trained: Callable[[Any], tuple[str, ...]]
    kept: tuple[str, ...] = ("seq_len", "end_of_text_id", "chat_template")
    ignored: tuple[str, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    titles: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    writes: bool = True
    token_model: TokenModel | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    base: Base | None = None
    flags: tuple[str, ...] = ()
    group: str = "train"

    @property
    def stage(self) -> str:
        """The command of its stage, which is its name in an artifact's identity."""
        return f"{self.group} {self.command}".lstrip()

    @property
    def network(self) -> str:
        """The name of the network that is trained whatever the settings say."""
        from cola_cli.settings import TABLES

        return self.trained(TABLES[self.table]())[-1]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The kinds of the artifacts that its command reads, in their order."""
        return (self.base.kind, self.reads) if self.base else (self.reads,)


def lazy(module: str, name: str) -> Callable[..., Any]:
    """A function or class of the package that is imported when it is called."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"cola_cli.{module}"), name)(*arguments)

    return call


# The Text VAE: stage 1 of the Cola DLM paper


def _vae_config(data: Data, settings: VAESettings) -> TextVAEConfig:
    from cola_cli.models.config import TextVAEConfig

    config = TextVAEConfig(vocab_size=data.vocab_size, **settings.model.model_dump())
    step = config.patch_size * config.block_size
    if data.length % step:
        raise UsageError(
            f"vae.model: {data.length} tokens a sequence are not a multiple of"
            f" patch_size x block_size = {step}.",
            "Choose other sizes, or tokenize with another --seq-len.",
        )
    _require_whole_blocks(data, step)
    return config


def _build_vae(config: TextVAEConfig, tokens: Tokens, settings: VAESettings) -> Networks:
    from cola_cli.models.text_vae import TextVAE
    from cola_cli.training.objectives.text_vae import TextVAEObjective, fix_log_variance

    vae = TextVAE(config)

    def finish() -> None:
        if settings.loss.posterior == "fixed":
            fix_log_variance(vae, settings.loss.log_snr)

    objective = TextVAEObjective(vae, settings, tokens.statistics.seq_len)
    return Networks(objective, {"vae": (vae, config)}, finish)


TEXT_VAE = Family(
    kind="vae",
    command="vae",
    title="Text VAE",
    summary="Train the Text VAE: tokens to continuous latents and back (stage 1 of the paper).",
    reads="tokens",
    table="vae",
    config=_vae_config,
    cost=lazy("cost.training", "text_vae_cost"),
    build=_build_vae,
    trained=lambda settings: ("vae",),
    kept=("seq_len",),
    metrics={
        "validation_reconstruction": "reconstruction loss, nats a token",
        "validation_accuracy": "tokens reconstructed from the posterior mean",
        "validation_accuracy_noisy": "tokens reconstructed under latent noise",
        "validation_accuracy_masked": "masked tokens predicted",
        "validation_kl": "KL to N(0, I), nats a latent",
        "validation_log_snr": "logSNR of the posterior",
        "validation_active_channels": "active channels",
    },
    writes=False,
)


# The prior: stage 2, with the VAE frozen or trained jointly


def _prior_config(data: Data, settings: PriorSettings) -> PriorConfig:
    from cola_cli.models.config import PriorConfig

    positions, head = data.positions, 0
    if settings.model.prediction == "tokens":
        head = data.vocab_size
        _require_head_fits(settings, positions, data.length)
    sizes = settings.model.model_dump()
    sizes["evidence"] &= bool(head)  # so that a preset's goes with its token head
    config = PriorConfig(latent_dim=data.encoder.latent_dim, vocab_size=head, **sizes)
    if settings.timesteps.law == "decided" and positions != data.length:
        raise UsageError(
            f"prior.timesteps.law = decided needs one latent per token; {data.length} tokens have"
            f" {positions} latents here.",
            "Train a VAE with patch_size 1, or choose another law.",
        )
    early = (size for size, _ in settings.data.block_curriculum)
    for size in (config.block_size, *settings.data.block_sizes, *early):
        if size < 1 or positions % size:
            raise UsageError(
                f"prior: {positions} latents a sequence are not a multiple of block size {size}.",
                "Choose another block size, or tokenize with another --seq-len.",
            )
        _require_whole_blocks(data, size * data.encoder.patch_size)
    if settings.lora.rank and settings.mode == "joint":
        raise UsageError(
            "prior.lora.rank and mode = joint cannot be combined: a Text VAE has no adapters.",
            "Use mode = frozen, or set prior.lora.rank=0.",
        )
    if settings.data.block_sizes and settings.train.parallel == "fsdp":
        raise UsageError(
            "prior.data.block_sizes and train.parallel = fsdp cannot be combined: processes would differ"
            " in the number of passes.",
            "Use train.parallel = ddp.",
        )
    return config


def _require_whole_blocks(data: Data, step: int) -> None:
    """Raise UsageError where a block of `step` tokens may hold two documents that do not see one another."""
    if data.separate % step:
        raise UsageError(
            f"documents begin at multiples of {data.separate} tokens, and blocks at those of {step}.",
            f"Tokenize with --separate {step} or a multiple of it, or choose another block size.",
        )


def _require_head_fits(settings: PriorSettings, positions: int, length: int) -> None:
    """Raise UsageError where a token head cannot say what a latent holds."""
    if positions != length:
        raise UsageError(
            f"prior.model.prediction = tokens needs one latent per token; {length} tokens have"
            f" {positions} latents here.",
            "Train a VAE with patch_size 1, or set prior.model.prediction=velocity.",
        )
    if settings.mode == "joint":
        raise UsageError(
            "prior.model.prediction = tokens and mode = joint cannot be combined: the codes of the tokens"
            " would move.",
            "Use mode = frozen, or set prior.model.prediction=velocity.",
        )


def _build_prior(config: PriorConfig, latents: Latents, settings: PriorSettings) -> Networks:
    import numpy as np
    import torch

    from cola_cli.corpus.sequences import Sequences
    from cola_cli.flow.timesteps import decided
    from cola_cli.models.prior import Prior
    from cola_cli.models.text_vae import TextVAE
    from cola_cli.training.objectives.flow_matching import FlowMatching, JointTraining, token_codes
    from cola_cli.weights.artifact import load_vae
    from cola_cli.weights.configs import vae_config

    vae_shape, statistics = vae_config(latents), latents.statistics
    variance = np.add(statistics.channel_variance, statistics.posterior_variance)
    variance *= vae_shape.scaling_factor**2
    prior, length = Prior(config), statistics.seq_len
    saved: dict[str, Any] = {"prior": (prior, config)}
    if settings.mode == "frozen":
        decoder = load_vae(latents) if settings.loss.decoder else None
        objective = FlowMatching(prior, settings, variance, length, vae_shape, decoder)
    else:
        vae = TextVAE(vae_shape) if settings.joint.from_scratch else load_vae(latents)
        objective = JointTraining(prior, vae, settings, variance, length)
        saved = {"vae": (vae, vae_shape), **saved}
    head, law = config.prediction == "tokens", settings.timesteps.law == "decided"
    if head or law:
        found = token_codes(Sequences(latents, "train"), vae_shape, statistics.vocab_size)
        if head:
            prior.codes.copy_(torch.from_numpy(found.codes))
            prior.code_variance.copy_(torch.from_numpy(found.variance))
        if law:
            objective.decided = decided(found.codes, found.variance, found.counts)
    return Networks(objective, saved)


PRIOR = Family(
    kind="prior",
    command="prior",
    title="Prior",
    summary="Train the block-causal prior by flow matching, the VAE frozen or joint (stage 2 of the paper).",
    reads="latents",
    table="prior",
    flags=("mode", "loss.flow_gradient"),
    config=_prior_config,
    cost=lazy("cost.training", "prior_cost"),
    build=_build_prior,
    trained=lambda settings: ("vae", "prior") if settings.mode == "joint" else ("prior",),
    kept=("seq_len", "latent_shape", "end_of_text_id", "chat_template"),
    metrics={
        "validation_flow": "flow loss",
        "validation_cross_entropy": "cross-entropy of the token head, nats a token",
        "validation_flow_of_zero": "flow loss of predicting zero",
        "validation_flow_of_mean": "flow loss of predicting the mean",
        "validation_flow_of_linear": "flow loss of the best linear predictor",
        "validation_accuracy": "tokens right, of the token head or of the VAE trained along",
        "validation_drift": "mean squared drift of the latents",
        "validation_effective_rank": "effective rank of the latents",
    },
)


# A prior distilled from another one, which is of the prior's kind

CHAIN = 2  # width of the chain of a student with a token head, in widths of the prior


def student_of(teacher: Artifact) -> Family:
    """The priors that are distilled from `teacher`, a prior artifact."""
    from cola_cli.weights.configs import prior_config

    shape = prior_config(teacher)

    def config(data: Data, settings: DistillSettings) -> PriorConfig:
        shape.require_guidance(settings.teacher.guidance)
        if shape.residual:
            raise UsageError(
                "a prior with model.residual cannot be distilled: a student has no place for the residual.",
                "Train a prior without it.",
            )
        if shape.chain:
            raise UsageError(
                "the teacher is itself a student with a chain, and there is nothing left to distil.",
                "Name its teacher.",
            )
        if data.positions % shape.block_size:
            raise UsageError(
                f"distill: {data.positions} latents a sequence are not a multiple of the teacher's block size"
                f" {shape.block_size}.",
                "Encode tokens of another --seq-len.",
            )
        _require_whole_blocks(data, shape.block_size * data.encoder.patch_size)
        guided = settings.teacher.guidance != 1.0
        in_groups = shape.prediction == "tokens" and shape.block_size % settings.passes == 0
        if in_groups and guided and settings.passes == 1:
            raise UsageError(
                "a student of one pass with a token head learns from text, so it cannot have guidance"
                f" {settings.teacher.guidance:g} built in.",
                "Set teacher.guidance=1, or ask for more passes.",
            )
        made_for = {"passes": settings.passes}
        if (
            in_groups and not guided
        ):  # a chain, which decides a token in one pass, so no estimate goes from pass to pass
            made_for |= {"chain": CHAIN * shape.dim, "self_conditioning": False}
        return shape.model_copy(update=made_for)

    def build(config: PriorConfig, latents: Latents, settings: DistillSettings) -> Networks:
        from cola_cli.models.prior import Prior
        from cola_cli.training.objectives.chained import Chained, cool
        from cola_cli.training.objectives.distillation import Distillation
        from cola_cli.weights.artifact import load_prior
        from cola_cli.weights.configs import vae_config

        student, original = Prior(config), load_prior(teacher).float()  # it may be rounded
        student.load_state_dict(original.state_dict(), strict=False)  # all but what a chain changes
        length, vae = latents.statistics.seq_len, vae_config(latents)
        saved = {"prior": (student, config)}
        if not config.chain:
            return Networks(Distillation(student, original, settings, length, vae), saved)
        temperature = settings.teacher.head_temperature
        objective = Chained(student, settings, length, vae)
        return Networks(objective, saved, lambda: cool(student, temperature))

    inputs = {PRIOR.kind: teacher.manifest.fingerprint}
    return replace(DISTILLED, config=config, build=build, inputs=inputs)


DISTILLED = replace(
    PRIOR,
    command="distill",
    group="",
    summary="Distil a prior into a student that needs few passes a block, with guidance built in.",
    table="distill",
    cost=lazy("cost.training", "distillation_cost"),
    flags=("passes",),
    trained=lambda settings: ("prior",),
    metrics={
        "validation_loss": "distance to the teacher's predictions; with a chain, nats a token",
        "validation_gap": "squared distance of the latents to the teacher's",
        "validation_gap_of_teacher": "that of the teacher in as few passes",
        "validation_accuracy": "tokens equal to the teacher's; with a chain, to the text's",
    },
    base=Base(
        PRIOR.kind,
        "The teacher, a prior artifact.",
        student_of,
        lazy("settings.distill", "settings_of_teacher"),
    ),
)


# The baselines: a transformer over tokens, matched to a prior


def _transformer_config(data: Data, settings: BaselineSettings, causal: bool) -> TransformerConfig:
    from cola_cli.models.config import TransformerConfig

    shape = settings.model.model_dump()
    return TransformerConfig(vocab_size=data.vocab_size, causal=causal, **shape)


def _build_transformer(
    config: TransformerConfig, tokens: Tokens, settings: BaselineSettings
) -> Networks:
    from cola_cli.models.transformer import Transformer
    from cola_cli.training.objectives.baselines import MaskedDiffusion, NextToken

    network, length = Transformer(config), tokens.statistics.seq_len
    objective: Objective = MaskedDiffusion(network, length, settings.masking.least)
    if config.causal:
        objective = NextToken(network, length)
    return Networks(objective, {"transformer": (network, config)})


_TRANSFORMER: dict[str, Any] = {
    "read_config": lazy("weights.configs", "transformer_config"),
    "load": lazy("weights.artifact", "load_transformer"),
}
AUTOREGRESSIVE = Family(
    kind="autoregressive",
    command="ar",
    title="Autoregressive baseline",
    summary="Train the autoregressive baseline: a LLaMA-style transformer that predicts the next token.",
    reads="tokens",
    table="baseline",
    config=lambda data, settings: _transformer_config(data, settings, causal=True),
    cost=lazy("cost.training", "transformer_cost"),
    build=_build_transformer,
    trained=lambda settings: ("transformer",),
    ignored=("masking",),
    metrics={
        "validation_loss": "loss, nats a token",
        "validation_accuracy": "next tokens predicted",
    },
    titles={
        "loss": ("Loss", "nats a token"),
        "accuracy": ("Next tokens predicted", "share of tokens"),
    },
    token_model=TokenModel(
        **_TRANSFORMER,
        sampler=lazy("sampling.autoregressive", "AutoregressiveSampler"),
        flops=lazy("cost.sampling", "autoregressive_sampling"),
        cached=lambda config: 2 * config.layers * config.heads * config.head_dim,
        next_token=True,
    ),
)


LLADA = replace(
    AUTOREGRESSIVE,
    kind="llada",
    command="llada",
    title="Masked diffusion baseline (LLaDA)",
    summary="Train the masked-diffusion baseline (LLaDA): a bidirectional transformer that fills in masks.",
    config=lambda data, settings: _transformer_config(data, settings, causal=False),
    ignored=(),
    metrics={
        "validation_loss": "loss, nats a token (an upper bound)",
        "validation_accuracy_masked": "masked tokens predicted",
    },
    titles={"loss": ("Loss, an upper bound", "nats a token")},
    token_model=TokenModel(
        **_TRANSFORMER,
        sampler=lazy("sampling.masked_diffusion", "MaskedDiffusionSampler"),
        flops=lazy("cost.sampling", "masked_diffusion_sampling"),
        passes=lambda settings: settings.unmask_steps or settings.max_new_tokens,
    ),
)


FAMILIES = {family.kind: family for family in (TEXT_VAE, PRIOR, AUTOREGRESSIVE, LLADA)}
DERIVED = [DISTILLED]  # made from a model of FAMILIES, and of the kind of one of them


def trainings() -> list[Family]:
    """Every family that has a training command."""
    return [*FAMILIES.values(), *DERIVED]


def baselines() -> list[Family]:
    """The kinds that are models over tokens."""
    return [family for family in FAMILIES.values() if family.token_model is not None]


def commands(chosen: list[Family] | None = None) -> str:
    """The training commands of the families, by default of all that write text, for a message."""
    written = [family for family in FAMILIES.values() if family.writes]
    return " or ".join(f"`cola {family.stage}`" for family in chosen or written)


def token_model(kind: str) -> TokenModel | None:
    """How a kind of artifact continues text without latents, or None."""
    return FAMILIES[kind].token_model if kind in FAMILIES else None
