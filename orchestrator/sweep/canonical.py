"""Normalise cells: set a field that another field makes irrelevant to one fixed value.

A grid is a product of axes, so it has combinations that are the same trial: nGPT has its own norm
placement, and under four values of `norm` it is one model. Normalising records each change with
its reason. Cells that are equal afterwards become one trial.
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
    """A value of a cell that normalising changed.

    `key` is the name of the axis. `after` is None if the key has no meaning in the cell.
    """

    key: str
    before: Any
    after: Any
    why: str


@dataclass(frozen=True)
class Canonical:
    """The normalised sections of a cell, and the changes that were made."""

    model: ModelSection
    training: TrainingSection
    changes: tuple[Change, ...]

    @property
    def post_layers(self) -> int:
        """Number of Post-LN layers under Mix-LN; 0 under any other norm placement."""
        model = self.model
        return post_layers(model.mix_alpha, model.depth) if model.norm == "mix" else 0

    def named(self, cell: dict[str, Any]) -> dict[str, Any]:
        """Return the axes of this cell with normalised values, which are equal in equal cells."""
        normalised = {change.key: change.after for change in self.changes}
        model = self.model
        normalised = {"activation": model.activation, "kv_heads": model.kv_heads} | normalised
        return cell | {
            axis: self.name_of(axis, value) for axis, value in normalised.items() if axis in cell
        }

    def name_of(self, axis: str, value: Any) -> Any:
        """Return the normalised name of one value of an axis in this cell.

        No activation becomes the architecture's own; kv_heads equal to the head count become None.
        """
        model = self.model
        if axis == "activation" and value is None:
            return OWN_ACTIVATION[model.architecture]
        if axis == "kv_heads" and value == model.d_model // model.head_dim:
            return None
        return value


def post_layers(alpha: float, depth: int) -> int:
    """Return the number of Post-LN layers of Mix-LN: floor(alpha * depth), arXiv 2412.13795.

    The product is exact in decimals: an alpha of 0.29 at depth 100 gives 29 layers.
    """
    return int(Decimal(repr(alpha)) * depth)


def canonical(
    model: ModelSection, training: TrainingSection, axes: Collection[str] = ()
) -> Canonical:
    """Normalise the sections of one cell.

    Args:
        model: Model section with the values of the cell.
        training: Training section with the values of the cell.
        axes: Axes of the grid. A key without meaning in the cell is reported as changed if it is
            one of them, or if its value is not the default.

    Returns:
        The normalised sections and the changes.
    """
    changes: list[Change] = []
    model = _follow(_norm(model), model, axes, changes)
    model = _follow(_no_choice(model), model, axes, changes)
    training = _follow(_no_choice_in_training(model, training), training, axes, changes)
    return Canonical(model, training, tuple(changes))


def same_in_other_words(axis: str, model: ModelSection) -> str | None:
    """Return why different values of an axis give this model; None for other axes."""
    if axis == "activation":
        own = OWN_ACTIVATION[model.architecture]
        return f"the default activation of {model.architecture} is {own}"
    if axis == "kv_heads":
        return f"the model has {model.d_model // model.head_dim} heads, the default of kv_heads"
    if axis == "mix_alpha":
        number = post_layers(model.mix_alpha, model.depth)
        return f"several values of mix_alpha make {number} of {model.depth} layers Post-LN"
    return None


# --- the rules -----------------------------------------------------------------------------


class Rule(NamedTuple):
    """The fixed value of a key in some cells, and why; if not `means`, the key has no meaning."""

    key: str
    value: Any
    why: str
    means: bool = True


def _follow(
    rules: Iterable[Rule], section: Section, axes: Collection[str], changes: list[Change]
) -> Section:
    """Apply rules to a section; add the changes to `changes`."""
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
            f"mix with alpha {model.mix_alpha:g} at depth {model.depth} has no Post-LN layer, "
            "which is pre",
        )


def _no_choice(model: ModelSection) -> Iterator[Rule]:
    """Rules for a model whose norm is normalised."""
    default = {key: field.default for key, field in ModelSection.model_fields.items()}
    if model.architecture == "ngpt":
        for key, why in NGPT_FIXES.items():
            # The spec takes no activation and the architecture's own for the same.
            if key in default and not (key == "activation" and model.activation is None):
                value = OWN_ACTIVATION["ngpt"] if key == "activation" else default[key]
                yield Rule(key, value, f"nGPT has no choice of {key}: {why}")
    if model.norm != "mix":
        yield Rule(
            "mix_alpha", default["mix_alpha"], "mix_alpha applies only to norm mix", means=False
        )


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
            "muon needs no clipping: the size of its update does not depend on the gradient's",
        )
    else:
        yield Rule("momentum", default["momentum"], "momentum applies only to muon", means=False)
    if training.schedule != "wsd":
        why = "decay_fraction applies only to schedule wsd"
        yield Rule("decay_fraction", default["decay_fraction"], why, means=False)
    if training.warmup_steps is not None:
        why = "warmup_steps sets the length of the warm-up"
        yield Rule("warmup_fraction", default["warmup_fraction"], why, means=False)
