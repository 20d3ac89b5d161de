"""Rows of one law must have been trained and measured by the same rules."""

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
    """The table with a version in every row, if it has the column: tables of the first version
    had none, and a row that came from one is empty there."""
    if NAME not in frame.columns:
        return frame
    return frame.assign(**{NAME: [FIRST_SEMANTICS if pd.isna(v) else v for v in frame[NAME]]})


def refuse_mixed(
    frame: pd.DataFrame,
    groups: Iterable[tuple[Mapping[str, Any], NDArray[np.intp]]],
    enters: NDArray[np.bool_],
) -> None:
    """Raises InputError where rows of one group that would enter its law, [n] `enters`, are of
    trials of several semantics versions. `frame` is `stated`; one without the column is taken as
    it is."""
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
                f"{place} {found}: their losses and spectra were measured by different rules, so "
                f"no law can hold both; choose one with --where {NAME}=VERSION, or fit each with "
                f"--group {NAME}"
            )


def _text(version: Any) -> str:
    """A version as people write it: a column with gaps makes 2.0 of a 2."""
    return f"{version:g}" if isinstance(version, float) else str(version)
