"""A trial is its spec: everything that training and measuring depend on, and an id made of it.

Two trials are the same trial if and only if their ids are equal. The id is a hash of canonical
JSON of the identity fields; a field at its first-version default is left out, so that a field
added later changes no id. Where the data lie and how the work is laid out on devices are carried
beside the identity and never enter it. Nothing here imports torch.
"""

import hashlib
import json
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from trainers.data.sources import DataSource, DataSpec
from trainers.models.model_spec import ModelSpec
from trainers.strict import MAX_STEPS, MAX_TOKENS, Frozen
from trialstore.errors import InputError
from trialstore.records import BUCKETS, FIRST_SEMANTICS

#: Raised whenever the meaning of training or measuring changes: it enters every id. What each
#: version means is in docs/trial-directory.md.
SEMANTICS_VERSION = 2

Optimizer = Literal["adamw", "muon"]
Schedule = Literal["cosine", "linear", "wsd"]
Precision = Literal["fp32", "bf16"]
Site = Literal["pre", "post"]
SpectrumMethod = Literal["auto", "exact", "lanczos"]


class TrainingSpec(Frozen):
    """One optimisation: AdamW, or Muon for matrices; a warm-up and a decay of the rate."""

    steps: int = Field(ge=1, le=MAX_STEPS)
    batch_tokens: int = Field(ge=2, le=MAX_TOKENS)  # tokens per optimiser update, over all workers
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    optimizer: Optimizer = "adamw"
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    momentum: float = Field(default=0.95, ge=0, lt=1)  # of Muon
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    gradient_clipping: float = Field(default=1.0, ge=0, allow_inf_nan=False)  # 0: off
    schedule: Schedule = "cosine"
    warmup_fraction: float = Field(default=0.1, ge=0, le=1)  # of the steps
    warmup_steps: int | None = Field(default=None, ge=0, le=MAX_STEPS)  # in place of the fraction
    decay_fraction: float = Field(default=0.2, gt=0, le=1)  # of the steps; of wsd
    final_fraction: float = Field(default=0.1, ge=0, le=1)  # of the peak rate
    precision: Precision = "fp32"
    # End a trial whose layers have collapsed (analysis.collapse); otherwise it is only marked.
    stop_on_collapse: bool = False

    @property
    def warmup(self) -> int:
        """Updates until the rate is at its peak."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round(self.warmup_fraction * self.steps)

    @model_validator(mode="after")
    def _check_choices(self) -> "TrainingSpec":
        default = {name: field.default for name, field in TrainingSpec.model_fields.items()}
        if self.optimizer == "muon" and self.gradient_clipping != 0:
            raise ValueError(
                f"gradient_clipping {self.gradient_clipping} with muon: its update does not grow "
                "with the gradient, and ZeRO would clip the update itself; use 0"
            )
        if self.optimizer != "muon" and self.momentum != default["momentum"]:
            raise ValueError(f"momentum {self.momentum} is of muon; adamw has beta1")
        if self.schedule != "wsd" and self.decay_fraction != default["decay_fraction"]:
            raise ValueError(
                f"decay_fraction {self.decay_fraction} is of the schedule wsd; {self.schedule} "
                "decays from the end of the warm-up"
            )
        if self.warmup_steps is not None:
            if self.warmup_fraction != default["warmup_fraction"]:
                raise ValueError(
                    f"warmup_steps {self.warmup_steps} and warmup_fraction "
                    f"{self.warmup_fraction} both say how long the warm-up is; give one"
                )
            if self.warmup_steps > self.steps:
                raise ValueError(
                    f"warmup_steps {self.warmup_steps} is more than the {self.steps} steps"
                )
        if self.schedule == "wsd" and self.warmup > self.stable_end:
            raise ValueError(
                f"the warm-up of {self.warmup} steps reaches into the decay, which begins after "
                f"{self.stable_end} of {self.steps}; shorten one of them"
            )
        return self

    @property
    def stable_end(self) -> int:
        """Of wsd: the update after which the rate decays. Until there, runs that differ in
        `steps` alone are the same run."""
        return self.steps - max(1, round(self.decay_fraction * self.steps))


class EvaluationSpec(Frozen):
    """Loss on held-out tokens, at step 0, every `every` updates and at the end."""

    every: int = Field(default=100, ge=1)
    tokens: int = Field(default=16384, ge=2, le=MAX_TOKENS)


class SpectraSpec(Frozen):
    """Eigenspectra of the FFN activations on held-out tokens, on the same steps rule."""

    every: int = Field(default=100, ge=1)
    tokens: int = Field(default=8192, ge=2, le=MAX_TOKENS)  # N of every snapshot
    sites: tuple[Site, ...] = Field(default=("post",), min_length=1, strict=False)
    # How the metrics are found: from all eigenvalues, by stochastic Lanczos quadrature, or by the
    # cheaper. The last snapshot of a trial is exact in any case.
    method: SpectrumMethod = "auto"
    # Spectra of frequent, middling and rare tokens too, each a third of all occurrences.
    buckets: bool = False
    # What the scatter matrices of a worker may take together, in MiB: where all layers need more,
    # they are measured in groups, each with forward passes of its own. Never part of the id.
    memory_mb: int = Field(default=2048, ge=1)

    @property
    def parts(self) -> int:
        """Scatter matrices of every layer and site."""
        return len(BUCKETS) if self.buckets else 1

    def matrix_bytes(self, width: int) -> int:
        """What one layer takes at one site."""
        return 4 * width**2 * self.parts

    @model_validator(mode="after")
    def _check_sites(self) -> "SpectraSpec":
        if len(set(self.sites)) != len(self.sites):
            raise ValueError(f"sites {list(self.sites)} names a site twice")
        return self


class Layout(Frozen):
    """How the work lies on devices: never part of the id, recorded with the result."""

    workers: int = Field(default=1, ge=1)
    cpus_per_worker: int = Field(default=1, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"
    zero_stage: Literal[0, 1, 2, 3] = 0
    micro_batch: int | None = Field(default=None, ge=1)  # sequences; None: all in one
    checkpoint_every: int = Field(default=100, ge=1)  # updates
    keep_checkpoints: int = Field(default=2, ge=1)
    # Updates at which a checkpoint is made and kept: other trials branch off there.
    branch_points: tuple[int, ...] = Field(default=(), strict=False)
    # After an out-of-memory failure a retry may change the micro-batch; it says so here.
    retried_smaller: bool = False


class TrialSpec(Frozen):
    """One trial, complete. `source`, `layout` and `axes` are carried beside the identity."""

    model: ModelSpec
    training: TrainingSpec
    data: DataSpec
    replicate: int = Field(ge=0)  # fixes initialisation and data order, for every cell alike
    evaluation: EvaluationSpec = EvaluationSpec()
    spectra: SpectraSpec = SpectraSpec()
    kind: Literal["train"] = "train"
    parent: str | None = None  # the trial whose weights this one starts from
    # What training and measuring mean in it. A trial of an earlier version can be read, exported
    # and exported; only the current one is trained.
    semantics_version: int = Field(default=SEMANTICS_VERSION, ge=FIRST_SEMANTICS)

    source: DataSource = DataSource()
    layout: Layout = Layout()
    axes: dict[str, Any] = Field(default_factory=dict)  # the cell as the sweep file named it

    @model_validator(mode="after")
    def _check_version(self) -> "TrialSpec":
        if self.semantics_version > SEMANTICS_VERSION:
            raise ValueError(
                f"semantics_version {self.semantics_version} is of a later widthlab than this "
                f"one, which knows {FIRST_SEMANTICS} to {SEMANTICS_VERSION}; read the trial with "
                "the one that wrote it"
            )
        return self

    @model_validator(mode="after")
    def _check_recipe(self) -> "TrialSpec":
        if self.model.architecture == "ngpt" and self.training.weight_decay != 0:
            raise ValueError(
                f"weight_decay {self.training.weight_decay} does not go with ngpt: its matrices "
                "are normalised after every update, which undoes a decay; use 0"
            )
        return self

    @model_validator(mode="after")
    def _check_batches(self) -> "TrialSpec":
        context, batch = self.model.context, self.training.batch_tokens
        if batch % context:
            raise ValueError(
                f"batch_tokens {batch} is not a multiple of the context {context}; "
                f"the nearest is {max(1, round(batch / context)) * context}"
            )
        sequences = batch // context
        workers, micro = self.layout.workers, self.layout.micro_batch
        if sequences % workers:
            raise ValueError(
                f"a batch of {sequences} sequences cannot be shared evenly by {workers} workers"
            )
        if micro and (sequences // workers) % micro:
            raise ValueError(
                f"micro_batch {micro} does not divide the {sequences // workers} sequences "
                "that a worker has per update"
            )
        measured = {"evaluation": self.evaluation.tokens, "spectra": self.spectra.tokens}
        for name, tokens in measured.items():
            if tokens < context * workers:
                raise ValueError(
                    f"{name}.tokens {tokens} is less than one context of {context} for each of "
                    f"{workers} workers"
                )
            if (tokens // context) % workers:
                raise ValueError(
                    f"{name}.tokens {tokens} are {tokens // context} windows of {context} tokens, "
                    f"which {workers} workers cannot share evenly"
                )
        return self

    @model_validator(mode="after")
    def _check_collapse(self) -> "TrialSpec":
        if self.training.stop_on_collapse and "post" not in self.spectra.sites:
            raise ValueError(
                f"stop_on_collapse needs spectra.sites {list(self.spectra.sites)} to have post: "
                "collapse is judged by the ranks there"
            )
        return self

    @model_validator(mode="after")
    def _check_memory(self) -> "TrialSpec":
        needed = -(-self.spectra.matrix_bytes(max(self.model.ffn_widths)) // 2**20)
        if needed > self.spectra.memory_mb:
            raise ValueError(
                f"spectra.memory_mb {self.spectra.memory_mb} is less than the {needed} that one "
                f"layer of width {max(self.model.ffn_widths)} takes; give at least that"
            )
        return self

    @property
    def sequences(self) -> int:
        """Sequences per optimiser update, over all workers."""
        return self.training.batch_tokens // self.model.context

    @property
    def autocast(self) -> bool:
        """Whether bf16 is autocast over float32 weights: where DeepSpeed's own bf16 goes wrong.

        At ZeRO 0 it takes a step on zero gradients at the start; at stage 2 it keeps Muon's
        momentum in bf16, which is off by 3 %.
        """
        training, stage = self.training, self.layout.zero_stage
        wrong = stage == 0 or (stage == 2 and training.optimizer == "muon")
        return training.precision == "bf16" and wrong

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of `canonical_json`."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()[:12]

    def to_json(self) -> bytes:
        """The whole spec as stored in spec.json, with its id."""
        content = {"id": self.id, **self.model_dump(mode="json")}
        return (json.dumps(content, indent=1) + "\n").encode()


OUTSIDE_IDENTITY = frozenset({"source", "layout", "axes"})


def canonical_json(spec: TrialSpec) -> str:
    """The identity of a trial: sorted keys, no spaces, values at their defaults left out."""
    memory = SpectraSpec.model_fields["memory_mb"].default  # how it is measured, not what
    spectra = spec.spectra.model_copy(update={"memory_mb": memory})
    spec = spec.model_copy(update={"spectra": spectra})
    identity = spec.model_dump(mode="json", exclude=set(OUTSIDE_IDENTITY), exclude_defaults=True)
    identity["semantics_version"] = spec.semantics_version  # at its default too
    return json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_spec(data: bytes | str, place: str) -> TrialSpec:
    """A spec from JSON. Raises InputError naming `place` and the first thing that is wrong.

    What has an id was written by widthlab, and without `semantics_version` by one that knew only
    the first; what has neither was written by hand, and means the current one.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{place}: a spec is a JSON object, not {type(content).__name__}")
    claimed = content.pop("id", None)
    if claimed is not None:
        content.setdefault("semantics_version", FIRST_SEMANTICS)
    spec = _validated(TrialSpec, content, place)
    if claimed is not None and claimed != spec.id:
        raise InputError(f"{place}: says id {claimed} but its content is trial {spec.id}")
    return spec


def refuse_other_semantics(spec: TrialSpec, place: str) -> None:
    """Raises InputError naming `place` for a trial that this version would train as another."""
    if spec.semantics_version != SEMANTICS_VERSION:
        raise InputError(
            f"{place}: trial {spec.id} is of semantics version {spec.semantics_version}, and this "
            f"widthlab trains version {SEMANTICS_VERSION}: its data, held-out tokens and losses "
            "would be others; `widthlab run` with the sweep's file trains such a trial anew, under "
            "an id of its own"
        )


def parse_layout(content: dict[str, Any], place: str) -> Layout:
    """A layout as a checkpoint's manifest has it. Raises InputError naming `place`."""
    return _validated(Layout, content, place)


Section = TypeVar("Section", bound=Frozen)


def _validated(kind: type[Section], content: dict[str, Any], place: str) -> Section:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "spec"
        raise InputError(f"{place}: {where}: {first['msg']}") from error
