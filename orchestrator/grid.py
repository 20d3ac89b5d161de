"""From a sweep to its trials: the product of the axes, less what makes no sense.

A cell is resolved from the file's base and its own axis values alone. Adding a width or a seed
therefore leaves the id of every other trial as it was.

Trials come in the order in which they are best run: replicate by replicate, in the order of
`grid.seed`, so that a sweep that is cut short has whole replicates; within a replicate the
costliest first, so that no long trial is left over at the end on one worker while others idle.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from math import floor, prod
from typing import Any

from pydantic import ValidationError

from analysis.errors import InputError
from orchestrator.hold import HeldCell, Missed, hold_budget
from orchestrator.sweep_config import AXES, ModelSection, SweepConfig
from trainers.accounting import training_flops_per_token
from trainers.spec import DataSpec, Layout, ModelSpec, TrialSpec

Axes = dict[str, Any]


@dataclass(frozen=True)
class PlannedTrial:
    """One trial of a grid.

    `holds` are the halves of the grid that it belongs to: "none", "params", "flops".
    `budget_errors` gives, for each budget held, by how much (relative, signed) it misses.
    """

    spec: TrialSpec
    holds: tuple[str, ...]
    budget_errors: dict[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The trial's id."""
        return self.spec.id

    @property
    def axes(self) -> Axes:
        """The cell as the file names it, with its d_model and D."""
        return self.spec.axes

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


def expand(
    config: SweepConfig, data: DataSpec, vocab_size: int, *, device: str | None = None
) -> Grid:
    """Every trial of a sweep, in the order in which to run them.

    `device` ("cpu" or "cuda") is what `resources.device: auto` stands for here; without it, cpu.
    Raises InputError where no cell at all can be trained.
    """
    layout = _layout(config, device)
    trials: dict[str, PlannedTrial] = {}
    dropped: list[Dropped] = []
    merged: list[Merged] = []
    for hold, cell in product(config.hold, _cells(config)):
        resolved = _resolve(config, cell, hold, data, vocab_size, layout)
        if isinstance(resolved, Dropped):
            dropped.append(resolved)
            continue
        known = trials.get(resolved.id)
        if known is None:
            trials[resolved.id] = resolved
        elif hold in known.holds:
            merged.append(Merged(cell, hold, known.id, _difference(cell, known)))
        else:
            trials[known.id] = PlannedTrial(
                known.spec,
                (*known.holds, *resolved.holds),
                known.budget_errors | resolved.budget_errors,
            )
    if not trials:
        raise InputError(_nothing_left(config, dropped))
    seeds = config.grid["seed"]
    order = sorted(trials.values(), key=lambda t: (seeds.index(t.spec.replicate), -t.flops))
    return Grid(order, dropped, merged, len(config.hold) * prod(map(len, config.grid.values())))


def _layout(config: SweepConfig, device: str | None) -> Layout:
    resources = config.resources
    chosen = resources.device if resources.device != "auto" else device or "cpu"
    shared = resources.model_dump(include=set(Layout.model_fields))
    return Layout.model_validate({**shared, "device": chosen})


def _cells(config: SweepConfig) -> Iterator[Axes]:
    """Axis -> value for every combination, the last axis of the file turning fastest."""
    for values in product(*config.grid.values()):
        yield dict(zip(config.grid, values, strict=True))


def _resolve(
    config: SweepConfig, cell: Axes, hold: str, data: DataSpec, vocab_size: int, layout: Layout
) -> PlannedTrial | Dropped:
    """One cell as a trial, or why it cannot be one."""
    try:
        base = _with_cell(config, cell)
        held = _model(base.model, cell, hold, vocab_size)
        if isinstance(held, Missed):
            return Dropped(cell, hold, held.why)
        spec = TrialSpec(
            model=held.model,
            training=base.training,
            data=data,
            replicate=cell["seed"],
            evaluation=base.evaluation,
            spectra=base.spectra,
            source=config.source,
            layout=layout,
            axes=_named(cell, held.model),
        )
    except ValidationError as error:
        reasons = [str(item["msg"]).removeprefix("Value error, ") for item in error.errors()]
        return Dropped(cell, hold, "; ".join(reasons))
    errors = {} if hold == "none" else {hold: held.error}
    return PlannedTrial(spec, (hold,), errors)


def _with_cell(config: SweepConfig, cell: Axes) -> SweepConfig:
    """The config with a cell's values in its sections."""
    updates: dict[str, dict[str, Any]] = {}
    for axis in cell.keys() & AXES.keys():
        section, key = AXES[axis]
        updates.setdefault(section, {})[key] = cell[axis]
    # Each value was validated when the file was read; how they fit together is the spec's to say.
    sections = {
        section: getattr(config, section).model_copy(update=update)
        for section, update in updates.items()
    }
    return config.model_copy(update=sections)


def _model(base: ModelSection, cell: Axes, hold: str, vocab_size: int) -> HeldCell | Missed:
    """The model of a cell at the file's d_model, or at the one that keeps the budget."""
    if "ffn_width" in cell:
        width = cell["ffn_width"]
        widths = tuple(width) if isinstance(width, list) else (width,) * base.depth
        if len(widths) != base.depth:
            return Missed(f"ffn_width {width} is for {len(widths)} layers, depth is {base.depth}")
        return HeldCell(_sized(base, widths, vocab_size), 0.0)
    multiplier = cell["width_multiplier"]
    plain = _sized(base, (_width(base, multiplier),) * base.depth, vocab_size)
    if hold == "none" or multiplier == base.reference_multiplier:
        return HeldCell(plain, 0.0)
    reference_widths = (_width(base, base.reference_multiplier),) * base.depth
    reference = _sized(base, reference_widths, vocab_size)
    return hold_budget(
        reference, multiplier, "params" if hold == "params" else "flops", base.ffn_multiple
    )


def _width(base: ModelSection, multiplier: float) -> int:
    """D of a typed multiplier: the nearest multiple of ffn_multiple (halves up), at least one."""
    multiples = floor(multiplier * base.d_model / base.ffn_multiple + 0.5)
    return max(1, multiples) * base.ffn_multiple


def _sized(base: ModelSection, widths: tuple[int, ...], vocab_size: int) -> ModelSpec:
    shared = base.model_dump(include=set(ModelSpec.model_fields))
    return ModelSpec(**shared, ffn_widths=widths, vocab_size=vocab_size)


def _named(cell: Axes, model: ModelSpec) -> Axes:
    """The axes of a trial: as typed, and what the model came to.

    Where the file gives `ffn_width`, `width_multiplier` is the achieved mean D / d_model, and D
    is a list if the layers differ.
    """
    widths = model.ffn_widths
    achieved = sum(widths) / len(widths) / model.d_model
    return {
        "architecture": model.architecture,
        "norm": model.norm,
        "depth": model.depth,
        "width_multiplier": cell.get("width_multiplier", achieved),
        **{axis: value for axis, value in cell.items() if axis != "ffn_width"},
        "d_model": model.d_model,
        "D": widths[0] if len(set(widths)) == 1 else list(widths),
    }


def _difference(cell: Axes, known: PlannedTrial) -> str:
    """How a cell differs from the trial that it turned out to be."""
    typed = [axis for axis in cell if axis not in ("ffn_width", "d_model")]  # named as achieved
    named = [f"{axis} {known.axes[axis]}" for axis in typed if known.axes[axis] != cell[axis]]
    if not named:
        return "the grid has it twice"
    size = f"d_model {known.axes['d_model']}, D {known.axes['D']}"
    return f"the same trial as {', '.join(named)}: {size}"


def _nothing_left(config: SweepConfig, dropped: list[Dropped]) -> str:
    reasons = list(dict.fromkeys(cell.why for cell in dropped))
    more = f" (and {len(reasons) - 3} other reasons)" if len(reasons) > 3 else ""
    return (
        f"sweep {config.name}: none of the {len(dropped)} cells of the grid can be trained: "
        + "; ".join(reasons[:3])
        + more
    )
