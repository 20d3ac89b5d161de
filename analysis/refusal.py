"""The one form in which the analysis declines to answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Refusal:
    """Why a law, an optimum or a verdict could not be found.

    Functions return it in place of their result, so that a caller must look before it uses a
    number. Input that is wrong, rather than insufficient, raises `InputError` instead.

    Example:
        >>> found = fit_power_law([64, 128], [12.0, 17.0])
        >>> found.sentence
        'a power law needs at least 3 widths, and there are 2'
    """

    reason: str  # a clause without a final full stop
    next_step: str | None = None  # what to run or to change for an answer, where that is known
    excluded: Mapping[str, int] = field(default_factory=dict)  # reason -> points left out

    @property
    def sentence(self) -> str:
        """The reason, and the next step where one is known."""
        return self.reason if self.next_step is None else f"{self.reason}; {self.next_step}"
