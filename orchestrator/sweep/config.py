"""What a sweep file may say: its sections, their keys, and which of them can be axes."""

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

Hold = Literal["none", "params", "flops"]
Multiplier = Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)]
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]

#: Names are folders too, and file systems allow 255 bytes.
LONGEST_NAME = 100


class ModelSection(Frozen):
    """The decoder, but for the width of its FFN, which the grid says."""

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
    mix_alpha: float = Field(default=0.25, ge=0, le=1)  # share of Post-LN layers, of norm mix
    initialisation: Initialisation = "plain"
    block: str | None = None  # package.module:Class, in the place of the FFN or the whole block
    reference_multiplier: Multiplier = REFERENCE_MULTIPLIER  # the width whose budget `hold` keeps


class TrainingSection(TrainingSpec):
    """The optimisation as a file says it: what fits together is asked of every cell."""

    @model_validator(mode="after")
    def _check_choices(self) -> "TrainingSection":
        return self


class ResourcesSection(Frozen):
    """How trials lie on devices, and what a device costs. Never part of a trial's identity."""

    workers: int = Field(default=1, ge=1)  # of one trial
    cpus_per_worker: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 0
    micro_batch: int | None = Field(default=None, ge=1)  # sequences; null: all in one
    checkpoint_every: int = Field(default=100, ge=1)  # updates
    keep_checkpoints: int = Field(default=2, ge=1)
    retries: int = Field(default=2, ge=0)  # of a trial that failed; outcomes are not retried
    preemptions: int = Field(default=50, ge=0)  # its node, process or storage was taken away
    concurrent: int | None = Field(default=None, ge=1)  # trials at once; null: as many as fit
    wait_for_nodes: bool = False  # for what no node has room for: the cluster grows on demand
    watts_per_worker: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    price_per_device_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_device(self) -> "ResourcesSection":
        if self.wait_for_nodes and self.device == "auto":
            raise ValueError(
                "wait_for_nodes true needs device: cpu or device: cuda: what the nodes have that "
                "will join is not known"
            )
        return self


class Target(Frozen):
    """The model that the verdict is wanted for, beyond those that are trained."""

    params: float = Field(gt=0, allow_inf_nan=False)  # non-embedding
    tokens: float = Field(gt=0, allow_inf_nan=False)  # of its training

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict) or set(value) != {"params", "tokens"}:
            raise ValueError(f"{value!r} should be {{params: 1e9, tokens: 2e10}}, with these keys")
        return value


class AnalysisSection(Frozen):
    """What the judgement takes as given."""

    tolerance_nats: float = Field(default=TOLERANCE_NATS, gt=0, allow_inf_nan=False)
    aggregate_last: int = Field(default=AGGREGATE_LAST, ge=1)  # a layer's rank: their median
    aggregate_layers: LayerStatistic = "median"  # of these, a trial's rank
    target: Target | None = None  # extrapolated to from three model sizes or more


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Override(Frozen):
    """For the cells with these values on these axes, other values of scalars of the base, or
    other resources.

    Keys of both are axes by their names; what is set does not stand on the grid.
    """

    when: dict[str, tuple[Any, ...]]
    set: dict[str, Any]


class SweepConfig(Frozen):
    """A sweep as its file and overrides say.

    `grid` maps each axis to its values. A field that is an axis holds its first value in its
    section; `orchestrator.grid.expand` puts the others in its place.
    """

    name: str  # also a folder
    corpus: Corpus = PythonSource()
    tokenizer: Tokenizer = BPETokenizer()
    model: ModelSection
    grid: dict[str, tuple[Any, ...]]
    hold: Annotated[
        tuple[Hold, ...], Field(min_length=1, strict=False), BeforeValidator(_as_tuple)
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
                f"{name!r} is the name of a file; the sweep's is without the ending, such as "
                f"{name.rpartition('.')[0] or 'mini'}"
            )
        if len(name) > LONGEST_NAME:
            raise ValueError(
                f"{len(name)} characters are too many for a name: it is a folder's too; "
                f"use at most {LONGEST_NAME}"
            )
        if name in (DATABASE, ARTIFACTS):
            raise ValueError(f"{name!r} is MLflow's in the folder of the sweeps; use another name")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(
                f"{name!r} should begin with a letter or a digit and hold only letters (A to Z, "
                "a to z), digits, '.', '_' and '-': it is a folder's name too"
            )
        return name

    @model_validator(mode="after")
    def _check_hold(self) -> "SweepConfig":
        if len(set(self.hold)) != len(self.hold):
            raise ValueError(f"hold {list(self.hold)} names a budget twice")
        if "ffn_width" in self.grid and self.hold != ("none",):
            raise ValueError(
                f"hold {list(self.hold)} varies d_model to fit each width, which an explicit "
                "grid.ffn_width leaves no room for; use grid.width_multiplier, or hold: none"
            )
        return self

    @property
    def source(self) -> DataSource:
        """Where the tokens come from."""
        return DataSource(corpus=self.corpus, tokenizer=self.tokenizer)

    @property
    def has_own_block(self) -> bool:
        """Whether some cell has a block of the user's own, which has to be imported."""
        elsewhere = any("block" in override.set for override in self.overrides)
        return self.model.block is not None or "block" in self.grid or elsewhere

    def to_dict(self) -> dict[str, Any]:
        """The file with every default written out; reading it gives an equal config."""
        content = self.model_dump(mode="json")
        for axis in self.grid:
            if axis in AXES:
                section, key = AXES[axis]
                del content[section][key]
        if "warmup_steps" in self.grid or self.training.warmup_steps is not None:
            content["training"].pop("warmup_fraction", None)  # it says the same
        return content


# --- the keys there are --------------------------------------------------------------------

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
#: Axes that are no field of a section.
GRID_ONLY: dict[str, TypeAdapter[Any]] = {
    "width_multiplier": TypeAdapter(Multiplier),  # D = multiplier x d_model, rounded
    "ffn_width": TypeAdapter(
        Width | Annotated[list[Width], Field(min_length=1, max_length=MAX_DEPTH)]
    ),
    "seed": TypeAdapter(Annotated[int, Field(ge=0)]),  # replicates
}


def _scalars() -> dict[str, tuple[str, str]]:
    """Axis -> (section, key); the axis is the bare key, or section.key where two share it."""
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
#: What an override may set: scalars of the base, and how a trial lies on devices.
SETTABLE = AXES | {
    key: ("resources", key) for key in ResourcesSection.model_fields if key in Layout.model_fields
}
AXIS_OF = {place: axis for axis, place in AXES.items()}


def keys_of(section: str, kind: object = None) -> list[str]:
    """Known keys of a section; for corpus and tokenizer those of one kind, or of all."""
    models = SECTIONS[section]
    chosen = [
        m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == kind
    ]
    return list(dict.fromkeys(key for m in chosen or models for key in m.model_fields))


def axis_name(key: object) -> str | None:
    """The canonical name of an axis that the file calls `steps` or `training.steps`."""
    name = str(key)
    if name in AXES or name in GRID_ONLY:
        return name
    section, _, field = name.partition(".")
    return AXIS_OF.get((section, field))


def settable_name(key: object) -> str | None:
    """The same of what an override may set, such as `workers` or `resources.workers`."""
    section, _, field = str(key).rpartition(".")
    resource = SETTABLE.get(field) == ("resources", field) and section in ("", "resources")
    return field if resource else axis_name(key)


def axis_type(axis: str) -> TypeAdapter[Any]:
    """What validates one value of an axis, or of what an override may set."""
    if axis in GRID_ONLY:
        return GRID_ONLY[axis]
    section, key = SETTABLE[axis]
    field = SECTIONS[section][0].model_fields[key]
    annotated: Any = Annotated[field.annotation, field]
    return TypeAdapter(annotated)
