"""The spec of a trial: everything that training and measuring depend on, and an id made from it.

Two trials are the same trial if and only if their ids are equal. The id is a hash of canonical
JSON of the identity fields. A field at its first-version default is left out, so a field that is
added later changes no id. The location of the data and the layout on devices are in the spec too,
but never enter the id. Nothing here imports torch.
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

#: Increased whenever the meaning of training or measuring changes; part of every id. See
#: docs/trial-directory.md for what each version means.
SEMANTICS_VERSION = 2

Optimizer = Literal["adamw", "muon"]
Schedule = Literal["cosine", "linear", "wsd"]
Precision = Literal["fp32", "bf16"]
Site = Literal["pre", "post"]
SpectrumMethod = Literal["auto", "exact", "lanczos"]


class TrainingSpec(Frozen):
    """The optimisation of one trial: AdamW, or Muon for matrices, and a learning-rate schedule."""

    steps: int = Field(ge=1, le=MAX_STEPS)
    batch_tokens: int = Field(ge=2, le=MAX_TOKENS)  # tokens per optimiser update, over all workers
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    optimizer: Optimizer = "adamw"
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    momentum: float = Field(default=0.95, ge=0, lt=1)  # Muon only
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    gradient_clipping: float = Field(default=1.0, ge=0, allow_inf_nan=False)  # 0: off
    schedule: Schedule = "cosine"
    warmup_fraction: float = Field(default=0.1, ge=0, le=1)  # of the steps
    warmup_steps: int | None = Field(default=None, ge=0, le=MAX_STEPS)  # in place of the fraction
    decay_fraction: float = Field(default=0.2, gt=0, le=1)  # of the steps; wsd only
    final_fraction: float = Field(default=0.1, ge=0, le=1)  # of the peak rate
    precision: Precision = "fp32"
    # Whether a trial ends when its layers collapse (analysis.collapse), or is only marked.
    stop_on_collapse: bool = False

    @property
    def warmup(self) -> int:
        """Updates until the learning rate reaches its peak."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round(self.warmup_fraction * self.steps)

    @model_validator(mode="after")
    def _check_choices(self) -> "TrainingSpec":
        default = {name: field.default for name, field in TrainingSpec.model_fields.items()}
        if self.optimizer == "muon" and self.gradient_clipping != 0:
            raise ValueError(
                f"gradient_clipping {self.gradient_clipping} does not go with muon: its update "
                "does not grow with the gradient, and ZeRO would clip the update itself; use 0"
            )
        if self.optimizer != "muon" and self.momentum != default["momentum"]:
            raise ValueError(f"momentum {self.momentum} is for muon; adamw has beta1")
        if self.schedule != "wsd" and self.decay_fraction != default["decay_fraction"]:
            raise ValueError(
                f"decay_fraction {self.decay_fraction} is for the schedule wsd; {self.schedule} "
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
                f"the warm-up of {self.warmup} steps overlaps the decay, which begins after "
                f"{self.stable_end} of {self.steps}; shorten one of them"
            )
        return self

    @property
    def stable_end(self) -> int:
        """The update after which wsd decays the learning rate.

        Up to there, trials that differ only in `steps` are the same.
        """
        return self.steps - max(1, round(self.decay_fraction * self.steps))


class EvaluationSpec(Frozen):
    """Loss on `tokens` held-out tokens, at step 0, every `every` updates and at the end."""

    every: int = Field(default=100, ge=1)
    tokens: int = Field(default=16384, ge=2, le=MAX_TOKENS)


class SpectraSpec(Frozen):
    """Eigenspectra of FFN activations on held-out tokens, at step 0, every `every` updates and at
    the end."""

    every: int = Field(default=100, ge=1)
    tokens: int = Field(default=8192, ge=2, le=MAX_TOKENS)  # per snapshot
    sites: tuple[Site, ...] = Field(default=("post",), min_length=1, strict=False)
    # exact: from all eigenvalues; lanczos: by stochastic Lanczos quadrature; auto: the cheaper of
    # the two. The last snapshot of a trial is always exact.
    method: SpectrumMethod = "auto"
    # Whether to take spectra of frequent, middling and rare tokens too. Each bucket has a third of
    # all token occurrences.
    buckets: bool = False
    # Limit on the scatter matrices of one worker, in MiB. If all layers need more, they are
    # measured in groups, each with its own forward passes. Never part of the id.
    memory_mb: int = Field(default=2048, ge=1)

    @property
    def parts(self) -> int:
        """Scatter matrices per layer and site: one, or one per token bucket."""
        return len(BUCKETS) if self.buckets else 1

    def matrix_bytes(self, width: int) -> int:
        """Return the bytes of one layer's scatter matrices at one site, for FFN width `width`."""
        return 4 * width**2 * self.parts

    @model_validator(mode="after")
    def _check_sites(self) -> "SpectraSpec":
        if len(set(self.sites)) != len(self.sites):
            raise ValueError(f"sites {list(self.sites)} names a site twice")
        return self


class Layout(Frozen):
    """How a trial's work is laid out on devices. Recorded with the result, never part of the id."""

    workers: int = Field(default=1, ge=1)
    cpus_per_worker: int = Field(default=1, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"
    zero_stage: Literal[0, 1, 2, 3] = 0
    micro_batch: int | None = Field(default=None, ge=1)  # sequences; None: all in one
    checkpoint_every: int = Field(default=100, ge=1)  # updates
    keep_checkpoints: int = Field(default=2, ge=1)
    # Updates at which a checkpoint is made and kept, because other trials branch off there.
    branch_points: tuple[int, ...] = Field(default=(), strict=False)
    # Whether a retry has made the micro-batch smaller after memory ran out.
    retried_smaller: bool = False


class TrialSpec(Frozen):
    """One trial, complete. `source`, `layout` and `axes` are not part of its identity."""

    model: ModelSpec
    training: TrainingSpec
    data: DataSpec
    replicate: int = Field(ge=0)  # seeds initialisation and data order, alike in every cell
    evaluation: EvaluationSpec = EvaluationSpec()
    spectra: SpectraSpec = SpectraSpec()
    kind: Literal["train"] = "train"
    parent: str | None = None  # id of the trial whose weights this one starts from
    # The meaning of training and measuring. Trials of earlier versions can be read and exported;
    # only those of the current version are trained.
    semantics_version: int = Field(default=SEMANTICS_VERSION, ge=FIRST_SEMANTICS)

    source: DataSource = DataSource()
    layout: Layout = Layout()
    axes: dict[str, Any] = Field(default_factory=dict)  # the cell, as the sweep file names it

    @model_validator(mode="after")
    def _check_version(self) -> "TrialSpec":
        if self.semantics_version > SEMANTICS_VERSION:
            raise ValueError(
                f"semantics_version {self.semantics_version} is newer than this widthlab, which "
                f"knows {FIRST_SEMANTICS} to {SEMANTICS_VERSION}; read the trial with the version "
                "that wrote it"
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
        """Whether bf16 is autocast over float32 weights, instead of DeepSpeed's own bf16.

        DeepSpeed's bf16 is wrong in two cases. At ZeRO 0 it begins with a step on zero gradients;
        at stage 2 it keeps Muon's momentum in bf16, which is off by 3 %.
        """
        training, stage = self.training, self.layout.zero_stage
        wrong = stage == 0 or (stage == 2 and training.optimizer == "muon")
        return training.precision == "bf16" and wrong

    @property
    def id(self) -> str:
        """The trial's id: twelve hexadecimal digits of the SHA-256 of `canonical_json`."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()[:12]

    def to_json(self) -> bytes:
        """Return the whole spec, with its id, as spec.json stores it."""
        content = {"id": self.id, **self.model_dump(mode="json")}
        return (json.dumps(content, indent=1) + "\n").encode()


OUTSIDE_IDENTITY = frozenset({"source", "layout", "axes"})


def canonical_json(spec: TrialSpec) -> str:
    """Return the JSON that a trial's id is made from.

    Keys are sorted, there are no spaces, and values at their defaults are left out.
    """
    memory = SpectraSpec.model_fields["memory_mb"].default  # not part of the identity
    spectra = spec.spectra.model_copy(update={"memory_mb": memory})
    spec = spec.model_copy(update={"spectra": spectra})
    identity = spec.model_dump(mode="json", exclude=set(OUTSIDE_IDENTITY), exclude_defaults=True)
    identity["semantics_version"] = spec.semantics_version  # at its default too
    return json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_spec(data: bytes | str, place: str) -> TrialSpec:
    """Parse a spec from JSON.

    A spec without `semantics_version` has the first version if it has an id, because widthlab wrote
    it before there were others. Without an id it was written by hand and has the current version.

    Args:
        data: The JSON.
        place: Where it comes from, for messages.

    Raises:
        InputError: The spec is invalid. The message names `place` and the first thing wrong.
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
    """Raise InputError, naming `place`, unless the trial is of the current semantics version."""
    if spec.semantics_version != SEMANTICS_VERSION:
        raise InputError(
            f"{place}: trial {spec.id} is of semantics version {spec.semantics_version}, and this "
            f"widthlab trains version {SEMANTICS_VERSION}, with other data, held-out tokens and "
            "losses; `widthlab run` with the sweep's file trains the trial anew, under a new id"
        )


def refuse_unnamed_block(spec: TrialSpec, block: str | None, place: str) -> None:
    """Raise InputError if the spec names a block of the user's that the user did not name too.

    Importing a block runs its code. A sweep file is the user's own, but a spec.json may come from
    anybody who can write to the storage.

    Args:
        spec: The trial.
        block: The block that the user named on the command line, MODULE:CLASS, if any.
        place: Where the spec comes from, for messages.
    """
    named = None if spec.model.block is None else spec.model.block.path
    if named is not None and named != block:
        raise InputError(
            f"{place} names the code {named} as the model's block, and importing it runs it; "
            f"{f'--block {block} names another' if block else 'anybody may have written it'}. "
            f"If you know and trust it, give --block {named}"
        )


def parse_layout(content: dict[str, Any], place: str) -> Layout:
    """Parse the layout in a checkpoint's manifest. Raises InputError, naming `place`."""
    return _validated(Layout, content, place)


Section = TypeVar("Section", bound=Frozen)


def _validated(kind: type[Section], content: dict[str, Any], place: str) -> Section:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "spec"
        raise InputError(f"{place}: {where}: {first['msg']}") from error
