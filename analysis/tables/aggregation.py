"""The choices of how a trial's ranks become one number, and their names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from analysis.settings import AGGREGATE_LAST
from trialstore.errors import InputError

LayerStatistic = Literal["median", "mean", "first", "deepest"]
LAYER_STATISTICS: tuple[LayerStatistic, ...] = get_args(LayerStatistic)

_OVER_LAYERS = {
    "median": "the median over layers",
    "mean": "the mean over layers",
    "first": "the first layer alone",
    "deepest": "the deepest layer alone",
}


@dataclass(frozen=True)
class Aggregation:
    """How a trial's snapshots become one number. Raises InputError for an impossible choice."""

    last: int = AGGREGATE_LAST  # snapshots of each layer, of which the median is taken
    layers: LayerStatistic = "median"  # the statistic of these medians over layers

    def __post_init__(self) -> None:
        if type(self.last) is not int or self.last < 1:
            raise InputError(
                f"aggregate_last is {self.last!r}; give a number of snapshots, 1 or more"
            )
        if self.layers not in LAYER_STATISTICS:
            raise InputError(
                f"aggregate_layers is {self.layers!r}; choose from {', '.join(LAYER_STATISTICS)}"
            )

    @classmethod
    def of(cls, analysis: Mapping[str, Any], **chosen: Any) -> "Aggregation":
        """Read the choice from a sweep file.

        Args:
            analysis: The file's `analysis` section.
            **chosen: `last` or `layers`, which override the file unless they are None.

        Raises:
            InputError: A value cannot be chosen.
        """
        given = {"last": analysis.get("aggregate_last"), "layers": analysis.get("aggregate_layers")}
        given |= {name: value for name, value in chosen.items() if value is not None}
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def text(self) -> str:
        """The choice in words, for output."""
        snapshots = "the last snapshot" if self.last == 1 else f"the last {self.last} snapshots"
        of_each = snapshots if self.last == 1 else f"the median of {snapshots}"
        return f"of each layer {of_each}, then {_OVER_LAYERS[self.layers]}"
