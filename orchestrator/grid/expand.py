"""From a sweep to its trials: the product of the axes, less what makes no sense.

A cell is resolved from the file's base, its overrides and its own axis values alone. Adding a
width or a seed therefore leaves the id of every other trial as it was.

Trials come in the order in which they are best run: replicate by replicate, in the order of
`grid.seed`, so that a sweep that is cut short has whole replicates; within a replicate the
costliest first, so that no long trial is left over at the end on one worker while others idle.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from math import floor, prod

from pydantic import ValidationError

from orchestrator.grid.branches import branch_points
from orchestrator.grid.equal_budget import HeldCell, Missed, hold_budget
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

    `cell` is the one of its cells that came nearest to the file's words. `holds` are the halves
    of the grid that it belongs to: "none", "params", "flops". `budget_errors` gives, for each
    budget held, by how much (relative, signed) it misses.
    """

    spec: TrialSpec
    cell: Cell
    holds: tuple[str, ...]
    budget_errors: dict[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The trial's id."""
        return self.spec.id

    @property
    def axes(self) -> Axes:
        """The cell as the file names it and as it came to be, with its d_model and D."""
        return self.spec.axes

    @property
    def changes(self) -> tuple[Change, ...]:
        """What is not as the file says."""
        return self.cell.changes

    @property
    def flops(self) -> int:
        """Training FLOPs of the whole trial."""
        training = self.spec.training
        return training_flops_per_token(self.spec.model) * training.steps * training.batch_tokens


@dataclass(frozen=True)
class Dropped:
    """A cell that cannot be, in which half of the grid, and why."""

    axes: Axes
    hold: str
    why: str


@dataclass(frozen=True)
class Merged:
    """A cell that resolves to the same trial as an earlier one of the same half."""

    axes: Axes
    hold: str
    into: str  # the id of the trial
    why: str


@dataclass(frozen=True)
class Grid:
    """What a sweep trains. `cells` counts axis combinations times holds, before all else."""

    trials: list[PlannedTrial]
    dropped: list[Dropped]
    merged: list[Merged]
    cells: int


def expand(config: SweepConfig, data: DataSpec, vocab_size: int) -> Grid:
    """Return every trial of a sweep, in the order in which to run them.

    `resources.device: auto` stands for the CPU until `on_device` says otherwise.

    Raises:
        InputError: No cell of the grid can be trained.
    """
    trials: dict[str, PlannedTrial] = {}
    dropped: list[Dropped] = []
    merged: list[Merged] = []
    # A cell that is as the file says is the one that others come to be.
    ordered = sorted((resolved(config, typed) for typed in cells(config)), key=_changed_axes)
    for hold, cell in product(config.hold, ordered):
        found = _trial(config, cell, hold, data, vocab_size)
        if isinstance(found, Dropped):
            dropped.append(found)
            continue
        known = trials.get(found.id)
        if known is None:
            trials[found.id] = found
        elif hold in known.holds:
            merged.append(Merged(cell.typed, hold, known.id, _difference(cell, known)))
        else:
            trials[known.id] = replace(
                known,
                holds=(*known.holds, *found.holds),
                budget_errors=known.budget_errors | found.budget_errors,
            )
    if not trials:
        raise InputError(_nothing_left(config, dropped))
    seeds = config.grid["seed"]
    order = sorted(
        _with_branch_points(trials), key=lambda t: (seeds.index(t.spec.replicate), -t.flops)
    )
    return Grid(order, dropped, merged, len(config.hold) * prod(map(len, config.grid.values())))


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
    """The trials, those from which others branch with a checkpoint there."""
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
    config: SweepConfig, cell: Cell, hold: str, data: DataSpec, vocab_size: int
) -> PlannedTrial | Dropped:
    """One cell as a trial, or why it cannot be one."""
    base = cell.base
    try:
        held = _model(cell, hold, vocab_size)
        if isinstance(held, Missed):
            return Dropped(cell.typed, hold, held.why)
        spec = TrialSpec(
            model=held.model,
            training=TrainingSpec.model_validate(base.training.model_dump()),
            data=data,
            replicate=cell.typed["seed"],
            evaluation=base.evaluation,
            spectra=base.spectra,
            source=config.source,
            layout=_layout(base),
            axes=_named(cell, held.model),
        )
    except ValidationError as error:
        reasons = [str(item["msg"]).removeprefix("Value error, ") for item in error.errors()]
        return Dropped(cell.typed, hold, "; ".join(reasons))
    errors = {} if hold == "none" else {hold: held.error}
    return PlannedTrial(spec, cell, (hold,), errors)


def _model(cell: Cell, hold: str, vocab_size: int) -> HeldCell | Missed:
    """The model of a cell at the file's d_model, or at the one that keeps the budget."""
    base, post_layers = cell.base.model, cell.post_layers
    if "ffn_width" in cell.typed:
        width = cell.typed["ffn_width"]
        widths = tuple(width) if isinstance(width, list) else (width,) * base.depth
        if len(widths) != base.depth:
            return Missed(f"ffn_width {width} is for {len(widths)} layers, depth is {base.depth}")
        return HeldCell(_sized(base, widths, post_layers, vocab_size), 0.0)
    multiplier = cell.typed["width_multiplier"]
    plain_widths = (_width(base, multiplier),) * base.depth
    plain = _sized(base, plain_widths, post_layers, vocab_size)
    if hold == "none" or multiplier == base.reference_multiplier:
        return HeldCell(plain, 0.0)
    reference_widths = (_width(base, base.reference_multiplier),) * base.depth
    reference = _sized(base, reference_widths, post_layers, vocab_size)
    return hold_budget(
        reference, multiplier, "params" if hold == "params" else "flops", base.ffn_multiple
    )


def _width(base: ModelSection, multiplier: float) -> int:
    """D of a typed multiplier: the nearest multiple of ffn_multiple (halves up), at least one."""
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
    """A user's own block, which has to be imported to be known: torch is needed then."""
    from trainers.check_block import resolve

    return resolve(path)


def _named(cell: Cell, model: ModelSpec) -> Axes:
    """The axes of a trial: as they came to be, and what the model came to.

    Where the file gives `ffn_width`, `width_multiplier` is the achieved mean D / d_model, and D
    is a list if the layers differ.
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
    """Why a cell is the trial that it turned out to be."""
    into = known.cell
    differing = [
        axis
        for axis, value in cell.typed.items()
        if axis not in ("ffn_width", "d_model") and into.typed[axis] != value
    ]  # those two are named as achieved
    if not differing:
        return "the grid has it twice"
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
        f"sweep {config.name}: none of the {len(dropped)} cells of the grid can be trained: "
        + "; ".join(reasons[:3])
        + more
    )
