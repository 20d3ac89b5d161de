"""Everything that a trial found out, to be compared bit for bit with an undisturbed one."""

from typing import Any

from trialstore.records import METRICS, RESULT, SPECTRA, get_json, read_records
from trialstore.storage import Storage

#: Wall-clock columns, which no two runs share.
CLOCK = {METRICS: ["time_ms", "tokens_per_s", "mfu"], SPECTRA: ["time_ms"]}


def content(trial: Storage) -> dict[str, Any]:
    """Return the records of a trial without the clock, and how it ended; of a trial that has not
    ended, None for the latter."""
    result = get_json(trial, RESULT) or {}
    tables = {
        table: read_records(trial, table).drop_columns(clock).to_pylist()
        for table, clock in CLOCK.items()
    }
    return {**tables, **{name: result.get(name) for name in ("final", "outcome", "step")}}
