"""The schema of a sweep file: its sections, their keys, and the keys that can be axes."""

import re
from typing import Annotated, Any, Literal, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    TypeAdapter,
    field_validator,
    model_validator,
)

from analysis.settings import (
    AGGREGATE_LAST,
    FALSE_RECOMMENDATIONS,
    FFN_MULTIPLE,
    REFERENCE_MULTIPLIER,
    TOLERANCE_NATS,
)
from analysis.tables.aggregation import LayerStatistic
from orchestrator.mlflow.tracking import ARTIFACTS, DATABASE
from trainers.data.sources import (
    BPETokenizer,
    BytesTokenizer,
    Corpus,
    DataSource,
    HubDataset,
    PretrainedTokenizer,
    PythonSource,
    TextFiles,
    Tokenizer,
)
from trainers.models.model_spec import (
    Activation,
    Architecture,
    FFNWeight,
    Initialisation,
    NormPlacement,
)
from trainers.spec import EvaluationSpec, Layout, SpectraSpec, TrainingSpec
from trainers.strict import MAX_CONTEXT, MAX_DEPTH, MAX_HEAD_DIM, MAX_WIDTH, Frozen

#: How the cells of different width are made comparable: at a fixed d_model (none), or matched in
#: non-embedding parameters or in training FLOPs per token.
Matching = Literal["none", "params", "flops"]
Multiplier = Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)]
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]

#: Keys that older sweep files use -> the keys of today.
OLD_KEYS = {"hold": "match"}
#: Characters. A name is also a folder, and file systems allow 255 bytes.
LONGEST_NAME = 100


class ModelSection(Frozen):
    """The decoder, except for the width of its FFN, which is on the grid."""

    architecture: Architecture
    norm: NormPlacement
    depth: int = Field(ge=1, le=MAX_DEPTH)
    d_model: int = Field(ge=1, le=MAX_WIDTH)
    head_dim: int = Field(ge=2, le=MAX_HEAD_DIM)
    context: int = Field(ge=2, le=MAX_CONTEXT)  # tokens
    ffn_multiple: int = Field(default=FFN_MULTIPLE, ge=1, le=1_000_000)  # D is a multiple of it
    ffn_weight: FFNWeight = "plain"
    tie_embeddings: bool = False
    activation: Activation | None = None  # null: the architecture's own
    kv_heads: int | None = Field(default=None, ge=1)  # null: as many as heads
    qk_norm: bool = False
    mix_alpha: float = Field(default=0.25, ge=0, le=1)  # share of Post-LN layers; norm mix only
    initialisation: Initialisation = "plain"
    block: str | None = None  # package.module:Class that replaces the FFN or the whole block
    reference_multiplier: Multiplier = REFERENCE_MULTIPLIER  # the width whose budget `match` keeps


class TrainingSection(TrainingSpec):
    """The optimisation as the file gives it.

    Combinations of values are not checked here: overrides and axes may still change them. Every
    cell is checked when it becomes a `TrialSpec`.
    """

    @model_validator(mode="after")
    def _check_choices(self) -> "TrainingSection":
        return self


class ResourcesSection(Frozen):
    """Devices of a trial, scheduling, and what a device costs. Never part of a trial's id."""

    workers: int = Field(default=1, ge=1)  # per trial
    cpus_per_worker: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 0
    micro_batch: int | None = Field(default=None, ge=1)  # sequences; null: all at once
    checkpoint_every: int = Field(default=100, ge=1)  # updates
    keep_checkpoints: int = Field(default=2, ge=1)
    retries: int = Field(default=2, ge=0)  # after a failure; a trial with an outcome is not retried
    preemptions: int = Field(default=50, ge=0)  # restarts after losing a node, process or storage
    concurrent: int | None = Field(default=None, ge=1)  # trials at once; null: as many as fit
    # Start trials that no node has room for yet: for clusters that grow on demand.
    wait_for_nodes: bool = False
    watts_per_worker: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    price_per_device_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_device(self) -> "ResourcesSection":
        if self.wait_for_nodes and self.device == "auto":
            raise ValueError(
                "wait_for_nodes: true needs resources.device cpu or cuda: with auto, the devices "
                "of nodes that join later are not known"
            )
        return self


class Target(Frozen):
    """A model larger than those of the sweep, to extrapolate the optimum to."""

    params: float = Field(gt=0, allow_inf_nan=False)  # non-embedding
    tokens: float = Field(gt=0, allow_inf_nan=False)  # training tokens

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict) or set(value) != {"params", "tokens"}:
            raise ValueError(
                f"{value!r} should be a mapping with the keys params and tokens, such as "
                "{params: 1e9, tokens: 2e10}"
            )
        return value


class AnalysisSection(Frozen):
    """Settings of the analysis. They can change without training anything again."""

    tolerance_nats: float = Field(default=TOLERANCE_NATS, gt=0, allow_inf_nan=False)
    # share of recommendations that may be false, over all looks and groups
    false_recommendations: float = Field(default=FALSE_RECOMMENDATIONS, gt=0, le=0.2)
    # noise of one run, where replicates do not show it
    noise_nats: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    aggregate_last: int = Field(default=AGGREGATE_LAST, ge=1)  # snapshots per layer, their median
    aggregate_layers: LayerStatistic = "median"  # statistic over layers that is a trial's rank
    target: Target | None = None  # needs three model sizes or more


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Override(Frozen):
    """Settings for some cells of the grid.

    `when` maps axes of the grid to values; a cell matches if it has one of the values on each axis.
    `set` maps keys that are not on the grid to the values that matching cells get. Both use
    canonical axis names.
    """

    when: dict[str, tuple[Any, ...]]
    set: dict[str, Any]


class SweepConfig(Frozen):
    """A validated sweep file.

    `grid` maps each axis to its values. The section of an axis has the axis's first value, as a
    placeholder: `orchestrator.grid.expand` sets the value of each cell.
    """

    name: str  # also the name of the sweep's folder
    corpus: Corpus = PythonSource()
    tokenizer: Tokenizer = BPETokenizer()
    model: ModelSection
    grid: dict[str, tuple[Any, ...]]
    match: Annotated[
        tuple[Matching, ...], Field(min_length=1, strict=False), BeforeValidator(_as_tuple)
    ] = ("none",)
    overrides: tuple[Override, ...] = Field(default=(), strict=False)
    training: TrainingSection
    evaluation: EvaluationSpec = EvaluationSpec()
    spectra: SpectraSpec = SpectraSpec()
    resources: ResourcesSection = ResourcesSection()
    analysis: AnalysisSection = AnalysisSection()

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name.lower().endswith((".yaml", ".yml")):
            raise ValueError(
                f"{name!r} is the name of a file; leave out the ending: "
                f"{name.rpartition('.')[0] or 'mini'}"
            )
        if len(name) > LONGEST_NAME:
            raise ValueError(
                f"{len(name)} characters are too many: the name is also a folder's; use at most "
                f"{LONGEST_NAME}"
            )
        if name in (DATABASE, ARTIFACTS):
            raise ValueError(
                f"{name!r} is used by MLflow in the storage folder; choose another name"
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(
                f"{name!r} should begin with a letter or a digit and have only letters (A to Z, "
                "a to z), digits, '.', '_' and '-': the name is also a folder's"
            )
        return name

    @field_validator("match")
    @classmethod
    def _check_match(cls, match: tuple[Matching, ...]) -> tuple[Matching, ...]:
        if len(set(match)) != len(match):
            raise ValueError(f"{list(match)} has a value twice; remove one")
        return match

    @property
    def source(self) -> DataSource:
        """The corpus and the tokenizer, which together determine the tokens."""
        return DataSource(corpus=self.corpus, tokenizer=self.tokenizer)

    @property
    def has_own_block(self) -> bool:
        """Whether some cell uses a block of the user's own, which must be imported."""
        elsewhere = any("block" in override.set for override in self.overrides)
        return self.model.block is not None or "block" in self.grid or elsewhere

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a sweep file with every default written out.

        Reading it gives an equal config.
        """
        content = self.model_dump(mode="json")
        for axis in self.grid:
            if axis in AXES:
                section, key = AXES[axis]
                del content[section][key]
        if "warmup_steps" in self.grid or self.training.warmup_steps is not None:
            content["training"].pop("warmup_fraction", None)  # a file may have only one of the two
        return content


# --- keys and axes -------------------------------------------------------------------------

SECTIONS: dict[str, tuple[type[BaseModel], ...]] = {
    "corpus": (PythonSource, TextFiles, HubDataset),
    "tokenizer": (BytesTokenizer, BPETokenizer, PretrainedTokenizer),
    "model": (ModelSection,),
    "training": (TrainingSection,),
    "evaluation": (EvaluationSpec,),
    "spectra": (SpectraSpec,),
    "resources": (ResourcesSection,),
    "analysis": (AnalysisSection,),
}
#: Axes that are not a key of any section.
GRID_ONLY: dict[str, TypeAdapter[Any]] = {
    "width_multiplier": TypeAdapter(Multiplier),  # D = multiplier x d_model, rounded
    "ffn_width": TypeAdapter(
        Width | Annotated[list[Width], Field(min_length=1, max_length=MAX_DEPTH)]
    ),
    "seed": TypeAdapter(Annotated[int, Field(ge=0)]),  # replicates
}


def _scalars() -> dict[str, tuple[str, str]]:
    """Axis -> (section, key). The axis is the bare key, or section.key if two sections share it."""
    scalars = [
        (section, key)
        for section in ("model", "training", "evaluation", "spectra")
        for key, field in SECTIONS[section][0].model_fields.items()
        if get_origin(field.annotation) is not tuple
    ]
    keys = [key for _, key in scalars]
    return {
        key if keys.count(key) == 1 else f"{section}.{key}": (section, key)
        for section, key in scalars
    }


AXES = _scalars()
#: Keys that an override may set: scalars of the base, and the layout on devices.
SETTABLE = AXES | {
    key: ("resources", key) for key in ResourcesSection.model_fields if key in Layout.model_fields
}
AXIS_OF = {place: axis for axis, place in AXES.items()}


def keys_of(section: str, kind: object = None) -> list[str]:
    """Return the known keys of a section.

    For corpus and tokenizer these are the keys of `kind`, or of all kinds if `kind` is unknown.
    """
    models = SECTIONS[section]
    chosen = [
        m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == kind
    ]
    return list(dict.fromkeys(key for m in chosen or models for key in m.model_fields))


def axis_name(key: object) -> str | None:
    """Return the canonical name of an axis written as `steps` or `training.steps`, or None."""
    name = str(key)
    if name in AXES or name in GRID_ONLY:
        return name
    section, _, field = name.partition(".")
    return AXIS_OF.get((section, field))


def settable_name(key: object) -> str | None:
    """Return the canonical name of a key that an override may set, or None.

    Besides axes these are layout keys, written as `workers` or `resources.workers`.
    """
    section, _, field = str(key).rpartition(".")
    resource = SETTABLE.get(field) == ("resources", field) and section in ("", "resources")
    return field if resource else axis_name(key)


def axis_type(axis: str) -> TypeAdapter[Any]:
    """Return the validator for one value of an axis, or of a key that an override may set."""
    if axis in GRID_ONLY:
        return GRID_ONLY[axis]
    section, key = SETTABLE[axis]
    field = SECTIONS[section][0].model_fields[key]
    annotated: Any = Annotated[field.annotation, field]
    return TypeAdapter(annotated)
