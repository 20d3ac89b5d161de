"""The request of `widthlab fit`: a law, its columns, rows and groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from analysis.fit.scaling_fit import RESAMPLES
from analysis.fit.scaling_laws import LossLaw
from trialstore.errors import InputError

Law = Literal["power", "saturating", "kaplan", "chinchilla", "width-depth"]
Role = Literal["x", "y", "params", "tokens", "loss", "width", "depth"]

#: Columns that a law must have, and columns that it may have.
_NEEDED: Mapping[Law, tuple[Role, ...]] = {
    "power": ("x", "y"),
    "saturating": ("x", "y"),
    "kaplan": ("loss",),
    "chinchilla": ("params", "tokens", "loss"),
    "width-depth": ("width", "depth", "loss"),
}
_OPTIONAL: Mapping[Law, tuple[Role, ...]] = {
    "power": (),
    "saturating": (),
    "kaplan": ("params", "tokens"),
    "chinchilla": (),
    "width-depth": ("tokens",),
}


@dataclass(frozen=True)
class Request:
    """A law to fit, the columns to fit it to, and the rows to use.

    Raises:
        InputError: the law does not take these columns, or a count is out of range.

    Example:
        >>> Request("power", {"x": "D", "y": "rank"}, where=[("norm", "pre")], group=["depth"])
    """

    law: Law
    columns: Mapping[Role, str]  # role -> column name
    where: Sequence[tuple[str, str]] = ()  # (column, value): use only rows with that value
    group: Sequence[str] = ()  # fit every combination of these columns' values separately
    replicate: str | None = None  # column that labels paired replicates; power and saturating only
    resamples: int = RESAMPLES  # of the bootstrap; 0 for no intervals; loss laws only
    seed: int = 0  # of the resamples

    def __post_init__(self) -> None:
        for role in _NEEDED[self.law]:
            if role not in self.columns:
                raise InputError(f"--law {self.law} needs --{role} COLUMN")
        allowed = _NEEDED[self.law] + _OPTIONAL[self.law]
        for role in self.columns:
            if role not in allowed:
                takes = ", ".join(f"--{name}" for name in allowed)
                raise InputError(f"--law {self.law} does not take --{role}; it takes {takes}")
        if self.law == "kaplan" and len(self.columns) == 1:
            raise InputError("--law kaplan needs --params, --tokens or both, in addition to --loss")
        if self.replicate is not None and self.over_losses:
            raise InputError(
                f"--law {self.law} does not take --replicate: rows of equal "
                f"{', '.join(role for role in allowed if role != 'loss')} are its replicates"
            )
        if self.resamples and self.resamples < 100:
            raise InputError(
                f"--bootstrap {self.resamples} is too few for a 90 % interval: use at least 100, "
                "or 0 for no intervals"
            )
        if self.resamples < 0 or self.seed < 0:
            raise InputError(
                f"--bootstrap {self.resamples} and --seed {self.seed} must be 0 or more"
            )

    @property
    def over_losses(self) -> bool:
        """Whether the law is a loss law, fitted with a bootstrap."""
        return self.law in get_args(LossLaw)


def parse_where(pairs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Split each `column=value` at its first equals sign. Raises InputError without one."""
    found = []
    for pair in pairs:
        column, sign, value = pair.partition("=")
        if not sign or not column:
            raise InputError(f"--where {pair!r} is not column=value")
        found.append((column.strip(), value.strip()))
    return tuple(found)
