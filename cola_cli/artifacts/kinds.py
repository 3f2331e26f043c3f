"""The promise of each kind of artifact to later stages: its files, the columns of its parts, its statistics.

Stages read what earlier ones wrote through these types and nothing else. Trained models share one kind here;
which families of them there are is not for an artifact to know.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cola_cli.artifacts.artifact import METRICS, Artifact
from cola_cli.artifacts.checks import RESTORE
from cola_cli.artifacts.manifest import PartRecord
from cola_cli.artifacts.reading import reason
from cola_cli.errors import DamagedArtifact

TOKENIZER = "tokenizer.json"

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1, le=1 << 24)]
RecordT = TypeVar("RecordT", bound="Record")


class Record(BaseModel):
    """Statistics or a row that a stage writes for later ones; unknown fields are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @classmethod
    def of(cls: type[RecordT], tree: dict[str, Any], place: Path) -> RecordT:
        """The record in a JSON object at `place`. Raises DamagedArtifact naming the field that is wrong."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise DamagedArtifact(
                f"{place} is not as its stage writes it ({reason(error)}).", RESTORE
            ) from error


class TypedArtifact(Artifact, Generic[RecordT]):
    """A finished artifact of a known kind.

    STATISTICS: of the manifest. FILES: name -> meaning. PART: statistics of a part. ROW: its columns.
    """

    STATISTICS: ClassVar[type[Record]]
    FILES: ClassVar[dict[str, str]] = {}
    PART: ClassVar[type[Record] | None] = None
    ROW: ClassVar[type[Record] | None] = None

    @cached_property
    def statistics(self) -> RecordT:
        """The statistics in the manifest. Raises DamagedArtifact naming the field that is wrong."""
        found: Any = self.STATISTICS.of(self.manifest.statistics, self.path)
        return found

    @classmethod
    def contract(cls) -> dict[str, Any]:
        """The promise as JSON: files, and JSON schemas of the statistics, the parts and their rows."""
        schemas = {"statistics": cls.STATISTICS, "part_statistics": cls.PART, "columns": cls.ROW}
        return {
            "title": cls.__name__,
            "description": cls.__doc__,
            "files": cls.FILES,
            **{name: model.model_json_schema() for name, model in schemas.items() if model},
        }


class Packed(TypedArtifact[RecordT]):
    """Packed sequences in parts, each of one split: tokens, or latents beside them."""

    def split_parts(self, split: str) -> list[PartRecord]:
        """The records of the parts of a split that hold any sequences, in order."""
        found = [part for part in self.parts if part.rows]
        return [p for p in found if TokensPart.of(p.statistics, self.path / p.file).split == split]


# Statistics and rows, with fields in the order in which stages write them


class SplitStatistics(Record):
    """Totals of the training or validation split."""

    documents: Count
    bytes: Count = Field(description="Of text, in UTF-8.")
    rows: Count = Field(description="Sequences.")
    tokens: Count


class TokensStatistics(Record):
    documents: Count = Field(description="Documents, without duplicates and empty ones.")
    bytes: Count = Field(description="Of their text, in UTF-8.")
    tokens: Count = Field(description="Tokens of both splits, padding left out.")
    bytes_per_token: float
    duplicates: Count = Field(description="Documents left out because an equal one came before.")
    rejects: Count = Field(
        description="Documents left out because they hold no text, or are conversations that cannot be used."
    )
    seq_len: Size = Field(description="L, tokens of a sequence.")
    vocab_size: Size
    end_of_text_id: Count = Field(description="The token between documents.")
    pad_id: Count = Field(description="The token that fills the last sequence of a part.")
    splits: dict[str, SplitStatistics] = Field(description="Totals of train and validation.")
    near_duplicates: Count | None = Field(
        default=None, description="Documents left out because an earlier one resembles them."
    )
    lost_characters: Count | None = Field(
        default=None, description="Characters of the text that the tokenizer has no tokens for."
    )
    lost_share: float | None = Field(default=None, description="Their share of all characters.")
    left_out: dict[str, Count] | None = Field(
        default=None, description="Files of the corpus that were not read, by reason."
    )
    chat_template: str | None = Field(
        default=None, description="Of conversations: the Jinja template that wrote them as text."
    )
    separate: Size | None = Field(
        default=None,
        description="Documents do not see one another, and begin at multiples of so many tokens.",
    )


class TokensPart(Record):
    split: Literal["train", "validation"]
    documents: Count
    bytes: Count = Field(description="Of text, in UTF-8.")
    lost_characters: Count = Field(default=0, description="As in the statistics of the artifact.")
    rejects: Count = Field(default=0, description="Conversations that the part would hold.")


class Segment(Record):
    document: int = Field(description="Number of the document in the corpus.")
    offset: int = Field(description="Its tokens in earlier sequences.")
    length: int = Field(description="Its tokens in this sequence.")
    start: int | None = Field(
        default=None, description="Where these begin, if documents do not see one another."
    )


class TokensRow(Record):
    tokens: list[int] = Field(
        description="L token ids (int32), padded at the end, and before documents that stand apart."
    )
    length: int = Field(description="Places before the padding at the end (int32).")
    segments: list[Segment] = Field(description="The pieces of documents in the sequence.")
    response: list[bool] | None = Field(
        default=None, description="Of conversations: L, which tokens are answers, to be learnt."
    )


class Tokens(Packed[TokensStatistics]):
    """A corpus as token ids, packed into sequences of one length; of `cola tokenize`."""

    kind = "tokens"
    STATISTICS = TokensStatistics
    FILES: ClassVar = {TOKENIZER: "The tokenizer."}
    PART = TokensPart
    ROW = TokensRow


class LatentsStatistics(Record):
    rows: Count = Field(description="Sequences.")
    tokens: Count = Field(description="Tokens of all sequences, padding left out.")
    latent_shape: tuple[Size, Size] = Field(description="N latents of d channels a sequence.")
    log_snr: float = Field(description="log of mean squared mean over mean posterior variance.")
    channel_mean: list[float] = Field(description="(d,) mean of the posterior means.")
    channel_variance: list[float] = Field(description="(d,) variance of the posterior means.")
    posterior_variance: list[float] = Field(description="(d,) mean of the posterior variances.")
    seq_len: Size = Field(description="L, tokens of a sequence.")
    vocab_size: Size
    pad_id: Count
    end_of_text_id: Count
    chat_template: str | None = Field(default=None, description="As in the tokens.")
    separate: Size | None = Field(default=None, description="As in the tokens.")

    @model_validator(mode="after")
    def _numbers_are_of_channels(self) -> LatentsStatistics:
        for name in ("channel_mean", "channel_variance", "posterior_variance"):
            if (found := len(getattr(self, name))) != self.latent_shape[1]:
                raise ValueError(f"{name} has {found} numbers for {self.latent_shape[1]} channels")
        return self


class LatentsPart(TokensPart):
    latent_positions: Count = Field(description="Latents of text, without padding.")
    latent_mean: list[float] = Field(description="(d,) sum of the means over these latents.")
    latent_square: list[float] = Field(description="(d,) sum of the squared means.")
    latent_variance: list[float] = Field(description="(d,) sum of the posterior variances.")


class LatentsRow(TokensRow):
    mean: bytes = Field(
        description="(N, d) float16, mean of the posterior q(z_0 | x). With `stored` int8 or mean: d"
        " float16 lowest values, d float16 steps, (N, d) uint8 steps above the lowest."
    )
    logvar: bytes = Field(
        description="(N, d) float16, its log-variance. int8: as the mean; mean: (d,) float16, for all N."
    )


class Latents(Packed[LatentsStatistics]):
    """The posterior q(z_0 | x) of every sequence of a tokens artifact, part by part; of `cola encode`."""

    kind = "latents"
    STATISTICS = LatentsStatistics
    FILES: ClassVar = {
        TOKENIZER: "The tokenizer of the tokens.",
        "vae/config.json": "Shape of the Text VAE that made the latents.",
        "vae/model.safetensors": "Its weights.",
    }
    PART = LatentsPart
    ROW = LatentsRow


class ModelStatistics(Record):
    """The last value of every metric of the training is kept as well."""

    parameters: Count | None = Field(default=None, description="Weights, of a prior with its VAE.")
    seq_len: Size | None = Field(
        default=None, description="Tokens of a training sequence; not known of imported models."
    )
    steps: Count | None = Field(default=None, description="Optimizer steps.")
    end_of_text_id: Count | None = Field(
        default=None, description="The token between documents of the training text, if recorded."
    )
    chat_template: str | None = Field(
        default=None, description="Of conversations that it was trained on, see the tokens."
    )


class TrainedModel(TypedArtifact[ModelStatistics]):
    """A trained or imported network, or several: Text VAE, prior with its VAE, baseline."""

    STATISTICS = ModelStatistics
    FILES: ClassVar = {
        TOKENIZER: "The tokenizer of the training text, if known.",
        "NAME/config.json": "Shape of the network NAME: vae, prior, or the network of a baseline.",
        "NAME/model.safetensors": "Its weights.",
        "NAME/adapters.safetensors": "Low-rank adapters that are merged into them, if these were trained.",
        METRICS: "A row a logged step of the training.",
    }

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings of `cola sample` that were stored with the model."""
        stored = self.manifest.settings.get("sampling")
        stored = stored if isinstance(stored, dict) else {}
        return {name: value for name, value in stored.items() if value is not None}


class SamplesStatistics(Record):
    prompts: Count
    tokens: Count = Field(description="Generated tokens.")
    stopped: Count = Field(description="Samples that ended with the end-of-text token.")


class SamplesPart(Record):
    stopped: Count


class SamplesRow(Record):
    id: int | str = Field(description="Of the prompt.")
    prompt: str
    text: str = Field(description="The continuation.")
    tokens: Count = Field(description="Tokens of the continuation.")
    finish: str = Field(description="stop or length.")


class Samples(TypedArtifact[SamplesStatistics]):
    """Continuations of prompts, in the order of the prompts; of `cola sample`."""

    kind = "samples"
    STATISTICS = SamplesStatistics
    PART = SamplesPart
    ROW = SamplesRow


class EvaluationStatistics(Record):
    task: str
    correct: Count = Field(description="Right answers.")
    n: Count = Field(description="Items.")
    accuracy: float
    low: float = Field(description="Lower end of its 95 % bootstrap interval.")
    high: float = Field(description="Upper end.")
    valid_options: float | None = Field(description="Share of answers that name an option.")
    accuracy_given_valid: float | None = Field(description="Accuracy among these.")
    chance: float | None = Field(description="Accuracy of guessing.")
    cut_prompts: Count = Field(description="Prompts cut to fit into the model's context.")


class EvaluationRow(Record):
    id: int | str
    prompt: str
    ground_truth: str
    choices: list[str] = Field(description="Options; empty for open answers.")
    generate: str = Field(description="The raw generation.")
    correct: bool
    option: str | None = Field(description="The letter of the option that the answer names.")
    tokens: Count
    finish: str = Field(description="stop or length.")
    cut: bool = Field(description="Whether the prompt was cut to fit into the model's context.")
    prompt_sha256: str
    task: str
    steps: int | None = Field(description="Of the sampler, where it has any.")
    guidance: float | None
    temperature: float
    seed: int
    dtype: str
    model: str = Field(description="Fingerprint of the model.")
    data_sha256: str


class Evaluation(TypedArtifact[EvaluationStatistics]):
    """Answers to the items of a benchmark, scored item by item; of `cola eval run`."""

    kind = "evaluation"
    STATISTICS = EvaluationStatistics
    ROW = EvaluationRow


class LikelihoodsPart(Record):
    elbo: float = Field(description="Sum over the texts, nats.")
    iwae: float | None = Field(description="As elbo; null unless the divergence is exact.")


class LikelihoodsStatistics(LikelihoodsPart):
    texts: Count
    tokens: Count
    perplexity_elbo: float = Field(description="exp(-elbo / tokens).")
    perplexity_iwae: float | None


class LatentTerms(Record):
    text: str
    posterior: float = Field(description="log q of the latent.")
    prior: float = Field(description="log p of it after those before.")
    decoder: float = Field(description="log p of its tokens.")
    perplexity: float


class LikelihoodsRow(Record):
    text: str
    tokens: Count
    elbo: float = Field(description="Nats.")
    iwae: float | None
    perplexity_elbo: float
    perplexity_iwae: float | None
    latents: list[LatentTerms] = Field(description="The terms of every latent.")


class Likelihoods(TypedArtifact[LikelihoodsStatistics]):
    """Bounds on the likelihood of texts, in their order; of `cola likelihood`."""

    kind = "likelihoods"
    STATISTICS = LikelihoodsStatistics
    PART = LikelihoodsPart
    ROW = LikelihoodsRow


PACKED: dict[str, type[Packed[Any]]] = {"tokens": Tokens, "latents": Latents}
KINDS: dict[str, type[TypedArtifact[Any]]] = {
    **PACKED,
    "model": TrainedModel,
    "samples": Samples,
    "evaluation": Evaluation,
    "likelihoods": Likelihoods,
}
