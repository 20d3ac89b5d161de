"""What every part of a spec shares: strictness, and how large a number may be."""

from pydantic import BaseModel, ConfigDict

#: No number may be larger: far beyond any experiment, and small enough that sums stay exact and
#: what is allocated for a plan stays small.
MAX_WIDTH = 10_000_000  # d_model and D
MAX_HEAD_DIM = 10_000
MAX_DEPTH = 10_000
MAX_CONTEXT = 10_000_000
MAX_VOCABULARY = 10_000_000
MAX_TOKENS = 10_000_000_000  # of an update or of a measurement
MAX_STEPS = 99_999_999  # checkpoint folders have eight digits


class Frozen(BaseModel):
    """Immutable, strictly typed, and closed: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
