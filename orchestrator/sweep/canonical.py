"""One spelling of a cell: what a choice leaves no choice of is brought to what the spec accepts.

A grid is a product, and a product holds combinations that differ in words alone: nGPT under four
norm placements is one model. Such a cell becomes what it is, and says what changed and why; cells
that become equal are one trial.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

from orchestrator.sweep.config import ModelSection, TrainingSection
from trainers.models.model_spec import NGPT_FIXES, OWN_ACTIVATION

Section = TypeVar("Section", ModelSection, TrainingSection)


@dataclass(frozen=True)
class Change:
    """A key of a cell, by the name of its axis, that is not what the sweep says; `after` is
    None where the key means nothing there."""

    key: str
    before: Any
    after: Any
    why: str


@dataclass(frozen=True)
class Canonical:
    """The sections of a cell in their one spelling, and what that took."""

    model: ModelSection
    training: TrainingSection
    changes: tuple[Change, ...]

    @property
    def post_layers(self) -> int:
        """How many layers are Post-LN under Mix-LN."""
        model = self.model
        return post_layers(model.mix_alpha, model.depth) if model.norm == "mix" else 0

    def named(self, cell: dict[str, Any]) -> dict[str, Any]:
        """The axes of this cell with the values that they came to: equal in equal cells."""
        came_to = {change.key: change.after for change in self.changes}
        model = self.model
        came_to = {"activation": model.activation, "kv_heads": model.kv_heads} | came_to
        return cell | {
            axis: self.name_of(axis, value) for axis, value in came_to.items() if axis in cell
        }

    def name_of(self, axis: str, value: Any) -> Any:
        """A value of an axis as this cell would name it: none given is the architecture's own
        activation, and all heads are no kv_heads."""
        model = self.model
        if axis == "activation" and value is None:
            return OWN_ACTIVATION[model.architecture]
        if axis == "kv_heads" and value == model.d_model // model.head_dim:
            return None
        return value


def post_layers(alpha: float, depth: int) -> int:
    """floor(alpha * depth), alpha as it is written: of 100 layers 0.29 are 29
    (arXiv 2412.13795)."""
    return int(Decimal(repr(alpha)) * depth)


def canonical(
    model: ModelSection, training: TrainingSection, axes: Collection[str] = ()
) -> Canonical:
    """The one spelling of a cell whose values stand in these sections.

    A key that means nothing in the cell counts as changed where it is one of the `axes` of the
    grid, or is set to anything but its default.
    """
    changes: list[Change] = []
    model = _follow(_norm(model), model, axes, changes)
    model = _follow(_no_choice(model), model, axes, changes)
    training = _follow(_no_choice_in_training(model, training), training, axes, changes)
    return Canonical(model, training, tuple(changes))


def same_in_other_words(axis: str, model: ModelSection) -> str | None:
    """Why two values of an axis, in cells that came to this model, are the same."""
    if axis == "activation":
        own = OWN_ACTIVATION[model.architecture]
        return f"the activation of {model.architecture} is {own} where none is given"
    if axis == "kv_heads":
        return f"{model.d_model // model.head_dim} kv_heads are all the heads"
    if axis == "mix_alpha":
        number = post_layers(model.mix_alpha, model.depth)
        return f"mix_alpha makes {number} of {model.depth} layers Post-LN for several of its values"
    return None


# --- the rules -----------------------------------------------------------------------------


class Rule(NamedTuple):
    """A key has this value whatever the sweep says; it `means` nothing, or is fixed."""

    key: str
    value: Any
    why: str
    means: bool = True


def _follow(
    rules: Iterable[Rule], section: Section, axes: Collection[str], changes: list[Change]
) -> Section:
    """The section by the rules; what they change is added to `changes`."""
    updates = {}
    for key, value, why, means in rules:
        before = getattr(section, key)
        updates[key] = value
        if before != value or (not means and key in axes):
            changes.append(Change(key, before, value if means else None, why))
    return section.model_copy(update=updates)


def _norm(model: ModelSection) -> Iterator[Rule]:
    if model.architecture == "ngpt":
        yield Rule("norm", "ngpt", "nGPT has its own norm placement")
    elif model.norm == "mix" and post_layers(model.mix_alpha, model.depth) == 0:
        yield Rule(
            "norm",
            "pre",
            f"mix with alpha {model.mix_alpha:g} at depth {model.depth} has no Post-LN layer: "
            "it is pre",
        )


def _no_choice(model: ModelSection) -> Iterator[Rule]:
    """For a model whose norm is settled."""
    default = {key: field.default for key, field in ModelSection.model_fields.items()}
    if model.architecture == "ngpt":
        for key, why in NGPT_FIXES.items():
            # No activation given is its own; the spec takes both for the same.
            if key in default and not (key == "activation" and model.activation is None):
                value = OWN_ACTIVATION["ngpt"] if key == "activation" else default[key]
                yield Rule(key, value, f"nGPT has no choice of {key}: {why}")
    if model.norm != "mix":
        yield Rule("mix_alpha", default["mix_alpha"], "mix_alpha is of norm mix", means=False)


def _no_choice_in_training(model: ModelSection, training: TrainingSection) -> Iterator[Rule]:
    default = {key: field.default for key, field in TrainingSection.model_fields.items()}
    if model.architecture == "ngpt":
        yield Rule(
            "weight_decay",
            0.0,
            "nGPT has no weight decay: its matrices are normalised after every update",
        )
    if training.optimizer == "muon":
        yield Rule(
            "gradient_clipping",
            0.0,
            "muon is not clipped: its update does not grow with the gradient",
        )
    else:
        yield Rule("momentum", default["momentum"], "momentum is of muon", means=False)
    if training.schedule != "wsd":
        why = "decay_fraction is of the schedule wsd"
        yield Rule("decay_fraction", default["decay_fraction"], why, means=False)
    if training.warmup_steps is not None:
        why = "warmup_steps say how long the warm-up is"
        yield Rule("warmup_fraction", default["warmup_fraction"], why, means=False)
