"""From a table file to fitted laws and their figure: read, fit, draw, write."""

from pathlib import Path

import pandas as pd

from analysis.fit.fit_table import fit_table
from analysis.fit.request import Request
from analysis.fit.table_file import check_headers, read_table
from analysis.fit.table_fit import TableFit
from trialstore.errors import InputError

_FIGURES = (".svg", ".png")


def fit_and_draw(
    table: Path | pd.DataFrame, request: Request, figure: Path | None = None
) -> TableFit:
    """Fit a law to a table, and draw the fits if a figure is asked for.

    Args:
        table: a .csv, .tsv or .parquet file, or a frame.
        request: the law, its columns, the rows and the groups.
        figure: where to write the figure; the name must end in .svg or .png.

    Returns:
        One fit per group.

    Raises:
        InputError: the table, a column or the figure's path is unusable, or no group can carry
            the law. An unusable figure path is refused before anything is fitted.
    """
    if figure is not None:
        _check_figure(figure)
    fitted = fit_table(_frame(table), request)
    if figure is not None:
        # Matplotlib takes a second to import: only a fit with a figure pays for it.
        from analysis.figures.fit_figure import fit_figure
        from analysis.figures.style import render

        drawn = render(fit_figure(fitted, request.columns))
        try:
            figure.write_bytes(drawn[figure.suffix.lower().removeprefix(".")])
        except OSError as error:
            raise InputError(f"--figure {figure}: {error.strerror}") from error
    return fitted


def _frame(table: Path | pd.DataFrame) -> pd.DataFrame:
    if isinstance(table, Path):
        return read_table(table)
    check_headers("the table", list(map(str, table.columns)))
    return table.reset_index(drop=True)  # rows are named by their number, as in a file


def _check_figure(path: Path) -> None:
    if path.suffix.lower() not in _FIGURES:
        raise InputError(f"--figure {path}: the name must end in {' or '.join(_FIGURES)}")
    if not path.parent.is_dir():
        raise InputError(f"--figure {path}: there is no directory {path.parent}")
