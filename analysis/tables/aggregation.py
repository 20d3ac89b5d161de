"""How the ranks of a trial become one number: what may be chosen, and its name."""

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
    """How a trial's snapshots become one number: of each layer the median of its `last`
    snapshots, then `layers` of these."""

    last: int = AGGREGATE_LAST
    layers: LayerStatistic = "median"

    def __post_init__(self) -> None:
        if type(self.last) is not int or self.last < 1:
            raise InputError(
                f"aggregate_last is {self.last!r}; it counts snapshots and is a whole number "
                "from 1 on"
            )
        if self.layers not in LAYER_STATISTICS:
            raise InputError(
                f"aggregate_layers is {self.layers!r}; there are {', '.join(LAYER_STATISTICS)}"
            )

    @classmethod
    def of(cls, analysis: Mapping[str, Any], **chosen: Any) -> "Aggregation":
        """That of a sweep file's `analysis` section; what is `chosen` and not None goes first.

        Raises InputError for what cannot be chosen.
        """
        given = {"last": analysis.get("aggregate_last"), "layers": analysis.get("aggregate_layers")}
        given |= {name: value for name, value in chosen.items() if value is not None}
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def text(self) -> str:
        """Its name in the output."""
        snapshots = "the last snapshot" if self.last == 1 else f"the last {self.last} snapshots"
        of_each = snapshots if self.last == 1 else f"the median of {snapshots}"
        return f"of each layer {of_each}, then {_OVER_LAYERS[self.layers]}"
