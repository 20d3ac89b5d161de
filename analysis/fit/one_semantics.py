"""Check that the rows of one law have one semantics version, so were measured by the same rules."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.tables.semantics import NAME
from analysis.wording import group_label, plural
from trialstore.errors import InputError
from trialstore.records import FIRST_SEMANTICS


def stated(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table with a version in every row, if it has the column at all.

    Tables of the first version had no such column, so an empty field means version 1.
    """
    if NAME not in frame.columns:
        return frame
    return frame.assign(**{NAME: [FIRST_SEMANTICS if pd.isna(v) else v for v in frame[NAME]]})


def refuse_mixed(
    frame: pd.DataFrame,
    groups: Iterable[tuple[Mapping[str, Any], NDArray[np.intp]]],
    enters: NDArray[np.bool_],
) -> None:
    """Refuse groups whose rows come from several semantics versions.

    Args:
        frame: the table, after `stated`; without the column every row is accepted.
        groups: the values of each group, and the positions of its rows.
        enters: [n] whether a row enters the fit; others are ignored.

    Raises:
        InputError: rows of one group that enter have several versions.
    """
    if NAME not in frame.columns:
        return
    versions = np.array([_text(version) for version in frame[NAME]], object)
    for group, rows in groups:
        counts = Counter(versions[rows][enters[rows]])
        if len(counts) > 1:
            found = " and ".join(
                f"{plural(number, 'row')} of semantics version {version}"
                for version, number in sorted(counts.items())
            )
            place = f"group {group_label(group)} has" if group else "the table has"
            raise InputError(
                f"{place} {found}, whose losses and spectra were measured by different rules; "
                f"choose one with --where {NAME}=VERSION, or fit each with --group {NAME}"
            )


def _text(version: Any) -> str:
    """A version as text: pandas reads 2 as 2.0 in a column with empty fields."""
    return f"{version:g}" if isinstance(version, float) else str(version)
