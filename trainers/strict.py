"""The strict base class of all sections of a spec, and the largest numbers they accept."""

from pydantic import BaseModel, ConfigDict

#: Upper limits, far above any experiment. They keep sums exact and the memory of a plan small.
MAX_WIDTH = 10_000_000  # d_model and D
MAX_HEAD_DIM = 10_000
MAX_DEPTH = 10_000
MAX_CONTEXT = 10_000_000
MAX_VOCABULARY = 10_000_000
MAX_TOKENS = 10_000_000_000  # per update or per measurement
MAX_STEPS = 99_999_999  # checkpoint folders have eight digits


class Frozen(BaseModel):
    """Base of a spec's sections: immutable, strictly typed, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
