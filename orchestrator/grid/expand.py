"""Expand a sweep to its trials: the product of the axes without impossible and repeated cells.

A cell depends only on the file's base, the overrides and its own values on the axes. Adding a width
or a seed therefore changes no other trial's id.

Trials are in the order to run them. Replicates follow the order of `grid.seed`, so that a sweep
that is cut short has whole replicates. Within a replicate the most expensive trial comes first, so
that no long trial runs alone at the end while other devices are idle.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from math import floor, prod

from pydantic import ValidationError

from orchestrator.grid.branches import branch_points
from orchestrator.grid.equal_budget import MatchedModel, Missed, match_budget
from orchestrator.sweep.canonical import Change, same_in_other_words
from orchestrator.sweep.cell import Axes, Cell, cells, resolved
from orchestrator.sweep.config import ModelSection, SweepConfig
from trainers.accounting import training_flops_per_token
from trainers.data.sources import DataSpec
from trainers.models.model_spec import BlockSpec, ModelSpec
from trainers.spec import Layout, TrainingSpec, TrialSpec
from trialstore.errors import InputError


@dataclass(frozen=True)
class PlannedTrial:
    """One trial of a grid.

    Attributes:
        spec: The trial.
        cell: Its cell. If several cells are this trial, the one that normalising changed least.
        matchings: The matchings that it is a cell of: "none", "params", "flops".
        budget_errors: Matching -> signed relative error of its budget.
    """

    spec: TrialSpec
    cell: Cell
    matchings: tuple[str, ...]
    budget_errors: dict[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The id of the trial."""
        return self.spec.id

    @property
    def axes(self) -> Axes:
        """Axis -> value of the cell after normalising, with the trial's d_model and D."""
        return self.spec.axes

    @property
    def changes(self) -> tuple[Change, ...]:
        """Values of the cell that normalising changed."""
        return self.cell.changes

    @property
    def flops(self) -> int:
        """Training FLOPs of the whole trial."""
        training = self.spec.training
        return training_flops_per_token(self.spec.model) * training.steps * training.batch_tokens


@dataclass(frozen=True)
class Dropped:
    """A cell that cannot be trained, with its matching and the reason."""

    axes: Axes
    matching: str
    why: str


@dataclass(frozen=True)
class Merged:
    """A cell that is the same trial as an earlier cell of the same matching."""

    axes: Axes
    matching: str
    into: str  # the id of the trial
    why: str


@dataclass(frozen=True)
class Grid:
    """The trials of a sweep, and the cells that are not trials of their own.

    `cells` is the number of all cells: combinations of the axes times matchings.
    """

    trials: list[PlannedTrial]
    dropped: list[Dropped]
    merged: list[Merged]
    cells: int


def expand(config: SweepConfig, data: DataSpec, vocab_size: int) -> Grid:
    """Expand a sweep to its trials, in the order to run them.

    `resources.device: auto` stands for the CPU until `on_device` says otherwise.

    Args:
        config: The sweep.
        data: Fingerprint of the corpus and hash of the tokenizer; they enter every id.
        vocab_size: Rows of the embedding.

    Raises:
        InputError: No cell of the grid can be trained.
    """
    trials: dict[str, PlannedTrial] = {}
    dropped: list[Dropped] = []
    merged: list[Merged] = []
    # Of several cells that are one trial, the first names it: the one that changed least.
    ordered = sorted((resolved(config, typed) for typed in cells(config)), key=_changed_axes)
    for matching, cell in product(config.match, ordered):
        found = _trial(config, cell, matching, data, vocab_size)
        if isinstance(found, Dropped):
            dropped.append(found)
            continue
        known = trials.get(found.id)
        if known is None:
            trials[found.id] = found
        elif matching in known.matchings:
            merged.append(Merged(cell.typed, matching, known.id, _difference(cell, known)))
        else:
            trials[known.id] = replace(
                known,
                matchings=(*known.matchings, *found.matchings),
                budget_errors=known.budget_errors | found.budget_errors,
            )
    if not trials:
        raise InputError(_nothing_left(config, dropped))
    seeds = config.grid["seed"]
    order = sorted(
        _with_branch_points(trials), key=lambda t: (seeds.index(t.spec.replicate), -t.flops)
    )
    return Grid(order, dropped, merged, len(config.match) * prod(map(len, config.grid.values())))


def on_device(grid: Grid, device: str) -> Grid:
    """Return the grid with `device` ("cpu" or "cuda") for trials of `resources.device: auto`.

    The device is part of a trial's layout, not of its identity: ids and order stay.
    """

    def moved(trial: PlannedTrial) -> PlannedTrial:
        if trial.cell.base.resources.device != "auto":
            return trial
        layout = trial.spec.layout.model_copy(update={"device": device})
        return replace(trial, spec=trial.spec.model_copy(update={"layout": layout}))

    return replace(grid, trials=[moved(trial) for trial in grid.trials])


def _layout(config: SweepConfig) -> Layout:
    resources = config.resources
    device = "cpu" if resources.device == "auto" else resources.device
    shared = resources.model_dump(include=set(Layout.model_fields))
    return Layout.model_validate({**shared, "device": device})


def _changed_axes(cell: Cell) -> int:
    return sum(change.key in cell.typed for change in cell.changes)


def _with_branch_points(trials: dict[str, PlannedTrial]) -> list[PlannedTrial]:
    """The trials, with a checkpoint in their layout wherever another trial branches off."""
    points = branch_points(trial.spec for trial in trials.values())
    return [
        replace(
            trial,
            spec=trial.spec.model_copy(
                update={
                    "layout": trial.spec.layout.model_copy(
                        update={"branch_points": points.get(trial_id, ())}
                    )
                }
            ),
        )
        for trial_id, trial in trials.items()
    ]


def _trial(
    config: SweepConfig, cell: Cell, matching: str, data: DataSpec, vocab_size: int
) -> PlannedTrial | Dropped:
    """The trial of a cell under a matching, or the reason why there is none."""
    base = cell.base
    try:
        matched = _model(cell, matching, vocab_size)
        if isinstance(matched, Missed):
            return Dropped(cell.typed, matching, matched.why)
        spec = TrialSpec(
            model=matched.model,
            training=TrainingSpec.model_validate(base.training.model_dump()),
            data=data,
            replicate=cell.typed["seed"],
            evaluation=base.evaluation,
            spectra=base.spectra,
            source=config.source,
            layout=_layout(base),
            axes=_named(cell, matched.model),
        )
    except ValidationError as error:
        reasons = [str(item["msg"]).removeprefix("Value error, ") for item in error.errors()]
        return Dropped(cell.typed, matching, "; ".join(reasons))
    errors = {} if matching == "none" else {matching: matched.error}
    return PlannedTrial(spec, cell, (matching,), errors)


def _model(cell: Cell, matching: str, vocab_size: int) -> MatchedModel | Missed:
    """The model of a cell, at the file's d_model or matched to the reference's budget."""
    base, post_layers = cell.base.model, cell.post_layers
    if "ffn_width" in cell.typed:
        width = cell.typed["ffn_width"]
        widths = tuple(width) if isinstance(width, list) else (width,) * base.depth
        if len(widths) != base.depth:
            return Missed(f"ffn_width {width} is for {len(widths)} layers, depth is {base.depth}")
        return MatchedModel(_sized(base, widths, post_layers, vocab_size), 0.0)
    multiplier = cell.typed["width_multiplier"]
    plain_widths = (_width(base, multiplier),) * base.depth
    plain = _sized(base, plain_widths, post_layers, vocab_size)
    if matching == "none" or multiplier == base.reference_multiplier:
        return MatchedModel(plain, 0.0)
    reference_widths = (_width(base, base.reference_multiplier),) * base.depth
    reference = _sized(base, reference_widths, post_layers, vocab_size)
    return match_budget(
        reference, multiplier, "params" if matching == "params" else "flops", base.ffn_multiple
    )


def _width(base: ModelSection, multiplier: float) -> int:
    """D of a typed multiplier: the nearest multiple of ffn_multiple, at least one; ties go up."""
    multiples = floor(multiplier * base.d_model / base.ffn_multiple + 0.5)
    return max(1, multiples) * base.ffn_multiple


def _sized(
    base: ModelSection, widths: tuple[int, ...], post_layers: int, vocab_size: int
) -> ModelSpec:
    shared = base.model_dump(include=set(ModelSpec.model_fields) - {"block"})
    block = _own_block(base.block) if base.block is not None else None
    return ModelSpec(
        **shared, block=block, ffn_widths=widths, post_layers=post_layers, vocab_size=vocab_size
    )


@cache
def _own_block(path: str) -> BlockSpec:
    """A user's own block. Imports it and torch."""
    from trainers.check_block import resolve

    return resolve(path)


def _named(cell: Cell, model: ModelSpec) -> Axes:
    """The axes of a trial: normalised values of the grid's axes, then the model's d_model and D.

    If the file gives `ffn_width`, `width_multiplier` is the achieved mean D / d_model. D is a list
    if the layers differ.
    """
    widths = model.ffn_widths
    achieved = sum(widths) / len(widths) / model.d_model
    return {
        "architecture": model.architecture,
        "norm": model.norm,
        "depth": model.depth,
        "width_multiplier": cell.typed.get("width_multiplier", achieved),
        **{axis: value for axis, value in cell.axes.items() if axis != "ffn_width"},
        "d_model": model.d_model,
        "D": widths[0] if len(set(widths)) == 1 else list(widths),
    }


def _difference(cell: Cell, known: PlannedTrial) -> str:
    """Why a cell is the same trial as an earlier one."""
    into = known.cell
    differing = [
        axis
        for axis, value in cell.typed.items()
        # The trial has its own width and d_model, which the sentence ends with.
        if axis not in ("ffn_width", "d_model") and into.typed[axis] != value
    ]
    if not differing:
        return "the grid has this cell twice"
    reasons = {change.key: change.why for change in (*into.changes, *cell.changes)}
    named: list[str] = []
    why: list[str] = []
    for axis in differing:
        reason = reasons.get(axis) or same_in_other_words(axis, cell.base.model)
        if reason:
            why.append(reason)
        else:
            named.append(f"{axis} {known.axes[axis]}")
    if named:
        size = f"d_model {known.axes['d_model']}, D {known.axes['D']}"
        why.append(f"the same trial as {', '.join(named)}: {size}")
    return "; ".join(dict.fromkeys(why))


def _nothing_left(config: SweepConfig, dropped: list[Dropped]) -> str:
    reasons = list(dict.fromkeys(cell.why for cell in dropped))
    more = f" (and {len(reasons) - 3} other reasons)" if len(reasons) > 3 else ""
    return (
        f"sweep {config.name}: no cell can be trained ({len(dropped)} were dropped): "
        + "; ".join(reasons[:3])
        + more
    )
