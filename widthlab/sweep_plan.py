"""Plan a sweep from Python."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from orchestrator.grid.plan import Plan
from orchestrator.grid.plan_records import plan_json
from orchestrator.grid.plan_sweep import plan_sweep
from orchestrator.grid.plan_view import render_plan
from orchestrator.sweep.find import open_sweep
from widthlab import html
from widthlab.arguments import Overrides, naming_arguments, settings_of, storage_of, sweep_file_of

#: Columns of text: wide enough for a row of the plan.
COLUMNS = 160


@dataclass(frozen=True, repr=False)
class SweepPlan:
    """A sweep before it runs. Prints as `widthlab plan` does; a notebook shows tables.

    Attributes:
        plan: Everything that is known of the plan.
    """

    plan: Plan

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial: id (missing until the corpus is fetched), the axes of the grid,
        parameters and parameters_non_embedding, tokens, FLOPs of training, memory_bytes of one
        worker, workers, and the estimated seconds."""
        return pd.DataFrame(
            [
                {
                    "id": row.trial.id if self.plan.ids_known else None,
                    "match": "+".join(row.trial.matchings),
                    **row.trial.axes,
                    "parameters": row.parameters.total,
                    "parameters_non_embedding": row.parameters.non_embedding,
                    "tokens": row.tokens,
                    "flops": row.flops,
                    "memory_bytes": row.memory_bytes,
                    "workers": row.workers,
                    "seconds": row.seconds,
                }
                for row in self.plan.rows
            ]
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the sweep cannot answer, or will answer badly."""
        return tuple(self.plan.warnings)

    def to_json(self) -> dict[str, Any]:
        """Return what `widthlab plan --json` prints."""
        return plan_json(self.plan)

    def __str__(self) -> str:
        # Jupyter's own console would get escape codes for bold and colours.
        console = Console(
            file=io.StringIO(),
            width=COLUMNS,
            force_jupyter=False,
            force_terminal=False,
            color_system=None,
        )
        with console.capture() as captured:
            console.print(render_plan(self.plan))
        return captured.get().rstrip("\n")

    __repr__ = __str__  # a Python prompt shows a result by its repr

    def _repr_html_(self) -> str:
        totals = self.plan.totals
        trials = self.trials
        differing = [name for name in trials if trials[name].map(repr).nunique() > 1]
        return "".join(
            [
                html.heading(f"Sweep {self.plan.sweep}: {totals.trials} trials"),
                html.table(trials[differing or list(trials)]),
                html.paragraph(
                    f"{totals.flops:.3g} FLOPs of training, about {totals.device_hours * 3600:,.0f}"
                    f" s of device time at {self.plan.rate:.2g} FLOP/s "
                    f"({'measured' if self.plan.rate_measured else 'assumed'})"
                ),
                html.listing(f"note: {note}" for note in self.plan.notes),
                html.listing(f"warning: {warning}" for warning in self.plan.warnings),
                html.folded("as widthlab plan prints it", str(self)),
            ]
        )


def plan(
    sweep: str | Path, overrides: Overrides | None = None, *, storage: str | Path | None = None
) -> SweepPlan:
    """Return every trial of a sweep with its size and cost. Runs nothing, writes nothing.

    Args:
        sweep: The path of a sweep file. A bare file name that is not in the working directory may
            name a sweep that comes with widthlab: `tiny.yaml`, `small.yaml`, ...
        overrides: Keys of the file to change: `{"training.steps": 100}`. Relative paths among
            their values mean the working directory.
        storage: The path or URL of the folder that sweeps are kept in; by default
            $WIDTHLAB_STORAGE, or `widthlab-runs`. Trials that finished there give measured times.

    Raises:
        InputError: The sweep file or an override cannot be used.

    Example:
        >>> widthlab.plan("tiny.yaml", {"training.steps": 100}).trials[["D", "parameters"]]
    """
    with naming_arguments():
        return SweepPlan(
            plan_sweep(
                *open_sweep(sweep_file_of(sweep), settings_of(overrides), storage_of(storage))
            )
        )
