"""Fit laws to tables from Python."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from analysis.fit.fit_text import as_text
from analysis.fit.request import Law, Request, Role
from analysis.fit.scaling_fit import RESAMPLES
from analysis.fit.table_fit import TableFit, intervals_of, parameters_of, warnings_of
from analysis.fit_pipeline import fit_and_draw
from analysis.refusal import Refusal
from trialstore.errors import InputError
from widthlab import html
from widthlab.arguments import naming_arguments


@dataclass(frozen=True, repr=False)
class LawFit:
    """A law fitted to every group of a table. Prints as `widthlab fit` does.

    Attributes:
        fitted: The fits with everything that is known of them.
    """

    fitted: TableFit

    @property
    def parameters(self) -> pd.DataFrame:
        """One row per group and parameter: the columns that were grouped by, parameter, value, and
        the 90 % interval low to high, missing where none was asked for. A group without a law has
        no rows."""
        rows = []
        for group in self.fitted.groups:
            if isinstance(group.fit, Refusal):
                continue
            intervals = intervals_of(group.fit)
            for name, value in parameters_of(group.fit).items():
                low, high = intervals.get(name, (float("nan"), float("nan")))
                found = {"parameter": name, "value": value, "low": low, "high": high}
                rows.append({**group.group, **found})
        return pd.DataFrame(rows)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before quoting a number, each with its group."""
        found = []
        for group in self.fitted.groups:
            if isinstance(group.fit, Refusal):
                texts = [f"no law: {group.fit.sentence}"]
            else:
                texts = warnings_of(group.fit)
            found += [f"{group.label}: {text}" if group.group else text for text in texts]
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return what `widthlab fit --json` prints."""
        return self.fitted.to_json()

    def __str__(self) -> str:
        return as_text(self.fitted)

    __repr__ = __str__  # a Python prompt shows a result by its repr

    def _repr_html_(self) -> str:
        return "".join(
            [
                html.heading(f"Law: {self.fitted.law}"),
                html.table(self.parameters),
                html.listing(f"warning: {text}" for text in self.warnings),
                html.folded("as widthlab fit prints it", str(self)),
            ]
        )


def fit(
    table: pd.DataFrame | str | Path,
    law: Law,
    *,
    x: str | None = None,
    y: str | None = None,
    params: str | None = None,
    tokens: str | None = None,
    width: str | None = None,
    depth: str | None = None,
    loss: str | None = None,
    replicate: str | None = None,
    where: Mapping[str, Any] | None = None,
    group: str | Sequence[str] = (),
    bootstrap: int = RESAMPLES,
    seed: int = 0,
    figure: str | Path | None = None,
) -> LawFit:
    """Fit a law to a tidy table, with 90 % intervals and what the data cannot tell.

    Args:
        table: A frame, or the path of a .csv, .tsv or .parquet file.
        law: `power` and `saturating` take the columns x and y; `kaplan` loss with params, tokens or
            both; `chinchilla` params, tokens and loss; `width-depth` width, depth and loss, and
            tokens where they vary. docs/fit.md has the formulas and their sources.
        x: Column of the variable.
        y: Column of what depends on it.
        params: Column of parameter counts N.
        tokens: Column of training tokens D.
        width: Column of widths.
        depth: Column of depths [layers].
        loss: Column of losses [nats per token].
        replicate: Column that labels paired replicates; for power and saturating.
        where: Only rows with these values: `{"state": "completed"}`.
        group: A column, or several: a fit for every combination of their values.
        bootstrap: Resamples for the intervals of loss laws; 0 gives none.
        seed: Seed of the resamples.
        figure: A .svg or .png file to draw to.

    Raises:
        InputError: Law and columns do not go together, a column does not hold numbers, or no group
            carries the law.

    Example:
        >>> frame = pd.DataFrame({"D": [64, 128, 256, 512], "rank": [8.1, 11.2, 16.3, 22.4]})
        >>> widthlab.fit(frame, "power", x="D", y="rank").parameters
    """
    if law not in get_args(Law):
        raise InputError(f"law {law!r} is unknown; there are {', '.join(get_args(Law))}")
    if where is not None and not isinstance(where, Mapping):
        raise InputError(f"where is {where!r}; give a mapping such as {{'state': 'completed'}}")
    columns: dict[Role, str | None] = {
        "x": x, "y": y, "params": params, "tokens": tokens, "width": width, "depth": depth,
        "loss": loss,
    }  # fmt: skip
    with naming_arguments():
        request = Request(
            law,
            {role: column for role, column in columns.items() if column is not None},
            where=tuple((column, str(value)) for column, value in (where or {}).items()),
            group=(group,) if isinstance(group, str) else tuple(group),
            replicate=replicate,
            resamples=bootstrap,
            seed=seed,
        )
        source = table if isinstance(table, pd.DataFrame) else Path(table)
        drawn = None if figure is None else Path(figure)
        return LawFit(fit_and_draw(source, request, drawn))
