"""The verdicts on a sweep that a test has made up."""

from collections.abc import Callable

from analysis.tables.sweep_tables import load_sweep
from analysis.verdict.recommend import GroupVerdict, recommend
from trialstore.storage import LocalStorage

#: The fixture `build_sweep`.
Build = Callable[..., LocalStorage]


def verdicts(sweep: LocalStorage) -> list[GroupVerdict]:
    return list(recommend(load_sweep(sweep)).groups)
