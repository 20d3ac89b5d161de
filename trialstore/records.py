"""The records of a trial: tables in Parquet parts, a manifest per checkpoint, a result.

    spec.json                                 the complete trial
    collapse.json                             step since which its layers are collapsed, if they are
    attempts/<attempt>-<owner>.json           claims on the trial; only the newest may write
    lease.json                                progress and heartbeat of the newest attempt
    metrics/part-<attempt>-<first>-<last>.parquet
    spectra/part-<attempt>-<first>-<last>.parquet
    checkpoints/step-<step>/attempt-<attempt>/...
    checkpoints/step-<step>/manifest.json     written last: files, hashes, parts up to its step
    result.json                               written last: the trial is over
    failure.json                              how the last attempt failed, if it did

The step of a row counts optimiser updates. A training row of step s describes the batch of the
s-th update; an evaluation or snapshot of step s describes the weights after it. A checkpoint of
step s is committed once every row up to s is durable.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trialstore.json_objects import (
    COUNT,
    NUMBER,
    OBJECT,
    TEXT,
    short,
    small_object,
)
from trialstore.json_objects import BrokenRecordError as BrokenRecordError
from trialstore.json_objects import encode_json as encode_json
from trialstore.json_objects import get_json as get_json
from trialstore.schemas import ALL_TOKENS as ALL_TOKENS
from trialstore.schemas import BEFORE_THE_COLUMN
from trialstore.schemas import BUCKETS as BUCKETS
from trialstore.schemas import METRICS as METRICS
from trialstore.schemas import METRICS_SCHEMA as METRICS_SCHEMA
from trialstore.schemas import ROW_KEYS as ROW_KEYS
from trialstore.schemas import SCHEMAS as SCHEMAS
from trialstore.schemas import SPECTRA as SPECTRA
from trialstore.schemas import SPECTRA_SCHEMA as SPECTRA_SCHEMA
from trialstore.schemas import SPECTRUM_COLUMNS as SPECTRUM_COLUMNS
from trialstore.storage import Storage

SPEC = "spec.json"
LEASE = "lease.json"
RESULT = "result.json"
FAILURE = "failure.json"
COLLAPSE = "collapse.json"
MANIFEST_NAME = "manifest.json"

#: Rows of one part at most; a part that claims more is broken.
MAX_ROWS = 2**25

#: The semantics version of a spec or result without one: version 1 did not write it.
FIRST_SEMANTICS = 1

OUTCOMES = ("completed", "collapsed", "diverged", "stopped")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One Parquet object of a table: the rows of steps first..last, written by one attempt."""

    table: str
    attempt: int
    first: int
    last: int

    @property
    def key(self) -> str:
        """Its object in the trial's directory."""
        return f"{self.table}/part-{self.attempt}-{self.first}-{self.last}.parquet"

    @classmethod
    def parse(cls, key: str) -> "Part | None":
        """Return the part that a key names, or None for any other object."""
        match = re.fullmatch(
            r"(metrics|spectra)/part-(\d{1,18})-(\d{1,18})-(\d{1,18})\.parquet", key
        )
        if match is None:
            return None
        table, *numbers = match.groups()
        return cls(table, *map(int, numbers))


@dataclass(frozen=True)
class Manifest:
    """The content of a checkpoint. It exists if and only if the checkpoint is complete."""

    trial_id: str
    step: int
    attempt: int
    files: dict[str, dict[str, Any]]  # name below the checkpoint -> {"sha256", "bytes"}
    records: list[str]  # keys of every part that holds rows up to `step`
    layout: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return the manifest as JSON."""
        return encode_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """Parse a manifest.

        Raises:
            ValueError: The data are not a manifest, or a file name leads out of the checkpoint.
        """
        try:
            manifest = cls(**json.loads(data))
        except (TypeError, RecursionError) as error:
            raise ValueError(f"not a checkpoint manifest: {error}") from error
        manifest._check()
        return manifest

    def _check(self) -> None:
        for name, kind in (("trial_id", TEXT), ("step", COUNT), ("attempt", COUNT),
                           ("files", OBJECT), ("layout", OBJECT)):  # fmt: skip
            if not kind.holds(getattr(self, name)):
                raise ValueError(f"its {name} is not {kind.name}")
        for name, about in self.files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
                raise ValueError(f"it names the file {name!r}, which is not inside its folder")
            if not (OBJECT.holds(about) and TEXT.holds(about.get("sha256"))):
                raise ValueError(f"it has no hash of {name}")
        if not (isinstance(self.records, list) and all(map(_is_part, self.records))):
            raise ValueError("its records are not parts")


def read_manifest(trial: Storage, step: int) -> Manifest:
    """Read the manifest of a committed checkpoint.

    Raises:
        BrokenRecordError: The object is not a manifest, or is of another step.
        FileNotFoundError: There is no committed checkpoint of that step.
    """
    place = trial.url_of(manifest_key(step))
    try:
        manifest = Manifest.from_json(small_object(trial, manifest_key(step)))
    except ValueError as error:
        raise BrokenRecordError(f"{place}: {error}") from error
    if manifest.step != step:
        raise BrokenRecordError(f"{place} is of step {manifest.step}")
    return manifest


def checkpoint_folder(step: int) -> str:
    """Return the folder of a checkpoint in the trial's directory."""
    return f"checkpoints/step-{step:08d}"


def attempt_folder(step: int, attempt: int) -> str:
    """Return the folder for the files of a checkpoint; each attempt has its own."""
    return f"{checkpoint_folder(step)}/attempt-{attempt}"


def checkpoint_attempt(key: str) -> int:
    """Return the attempt that wrote an object of a checkpoint; 0 if its key does not say."""
    match = re.match(r"checkpoints/step-\d{8}/attempt-(\d{1,9})/", key)
    return int(match.group(1)) if match else 0


def manifest_key(step: int) -> str:
    """Return the key of a checkpoint's manifest."""
    return f"{checkpoint_folder(step)}/{MANIFEST_NAME}"


def committed_steps(keys: Iterable[str]) -> list[int]:
    """Return the steps of the committed checkpoints among a trial's keys, ascending."""
    found = (re.fullmatch(r"checkpoints/step-(\d{8})/manifest\.json", key) for key in keys)
    return sorted(int(match.group(1)) for match in found if match)


RESULT_NEEDS = {
    "outcome": TEXT, "step": COUNT, "steps": COUNT, "final": OBJECT, "records": OBJECT
}  # fmt: skip


def get_result(trial: Storage, trial_id: str | None = None) -> dict[str, Any] | None:
    """Read a trial's result, None while it has none.

    Args:
        trial: The trial's directory.
        trial_id: The expected id; None accepts any.

    Raises:
        BrokenRecordError: The result cannot be read, has an unknown outcome, a value of the wrong
            kind, a part that is not one, or the id of another trial.
    """
    place = trial.url_of(RESULT)
    result = get_json(trial, RESULT, needs=RESULT_NEEDS)
    if result is None:
        return None
    if result["outcome"] not in OUTCOMES:
        raise BrokenRecordError(
            f"{place} has outcome {result['outcome']!r}; choose from {OUTCOMES}"
        )
    if trial_id is not None and result.get("trial_id", trial_id) != trial_id:
        raise BrokenRecordError(f"{place} is of trial {result['trial_id']!r}, not {trial_id}")
    for name, value in result["final"].items():
        if not NUMBER.holds(value):
            raise BrokenRecordError(
                f"{place} has final {name} {short(value)}, which is not a number"
            )
    _named_parts(trial, result)
    return result


def _named_parts(trial: Storage, result: Mapping[str, Any]) -> list[str]:
    """Return the parts that a result names. Raises BrokenRecordError for any other key."""
    for table, key in result["records"].items():
        if not (_is_part(key) and key.startswith(f"{table}/")):
            raise BrokenRecordError(
                f"{trial.url_of(RESULT)} names {short(key)} for its {table}, which is not a part"
            )
    return sorted(result["records"].values())


def _is_part(key: object) -> bool:
    return isinstance(key, str) and Part.parse(key) is not None


def put_part(trial: Storage, table: str, attempt: int, rows: list[Row]) -> str:
    """Write rows as one part and return its key. `rows` is not empty and sorted by step."""
    part = Part(table, attempt, rows[0]["step"], rows[-1]["step"])
    return put_table(trial, part, pa.Table.from_pylist(rows, schema=SCHEMAS[table]))


def compact(trial: Storage, attempt: int, parts: list[str]) -> dict[str, str]:
    """Write the rows of `parts` as one part per table.

    The old parts stay until `discard_parts`, because a reader may be reading them.

    Returns:
        The key of the new part by table, without tables that have no rows.
    """
    keys = {}
    for table in SCHEMAS:
        rows = read_parts(trial, table, parts)
        if rows.num_rows:
            steps = rows.column("step")
            part = Part(table, attempt, steps[0].as_py(), steps[-1].as_py())
            keys[table] = put_table(trial, part, rows)
    return keys


def discard_parts(trial: Storage, keep: Iterable[str]) -> None:
    """Delete every part except the keys in `keep`."""
    kept = set(keep)
    for table in SCHEMAS:
        for key in trial.list(table):
            if key not in kept:
                trial.delete(key)


def current_parts(trial: Storage) -> list[str]:
    """Return the keys of the parts that hold the trial's records now.

    A finished trial names them in its result. Otherwise they are the parts of the newest checkpoint
    manifest, and the parts of the newest attempt beyond that checkpoint. Later rows of earlier
    attempts are left out: the newest attempt writes them again.

    Raises:
        BrokenRecordError: The result or the manifest cannot be read.
    """
    result = get_json(trial, RESULT, needs={"records": OBJECT})
    if result is not None:
        return _named_parts(trial, result)
    return live_parts(trial)


def live_parts(trial: Storage, keys: list[str] | None = None) -> list[str]:
    """Return `current_parts` of a trial without a result. `keys`: its keys if just listed."""
    keys = trial.list() if keys is None else keys
    steps = committed_steps(keys)
    manifest = read_manifest(trial, steps[-1]) if steps else None
    listed = manifest.records if manifest else []
    reached = manifest.step if manifest else -1
    parts = [part for part in map(Part.parse, keys) if part]
    newest = max((part.attempt for part in parts), default=0)
    tail = [part.key for part in parts if part.attempt == newest and part.first > reached]
    return sorted({*listed, *tail})


def read_records(trial: Storage, table: str, columns: list[str] | None = None) -> pa.Table:
    """Read a trial's table.

    Args:
        trial: The trial's directory.
        table: METRICS or SPECTRA.
        columns: The columns to read beside the row's key; None for all.

    Returns:
        The rows in order of step, each once; an empty table if there are none.

    Raises:
        BrokenRecordError: A part, the manifest or the result cannot be read.
        FileNotFoundError: Parts were deleted during three attempts to read them.
    """
    for _ in range(3):
        try:
            return read_parts(trial, table, current_parts(trial), columns)
        except FileNotFoundError:
            continue  # a checkpoint was pruned or the parts were compacted after the listing
    raise FileNotFoundError(f"{trial.url}: parts of {table} were deleted while they were read")


def read_parts(
    trial: Storage, table: str, parts: Iterable[str], columns: list[str] | None = None
) -> pa.Table:
    """Do `read_records` for the keys in `parts` that belong to the table."""
    schema, keys = SCHEMAS[table], ROW_KEYS[table]
    wanted = None if columns is None else list(dict.fromkeys([*keys, *columns]))
    tables = [read_part(trial, part, wanted) for part in parts if part.startswith(f"{table}/")]
    if not tables:
        empty = schema.empty_table()
        return empty if wanted is None else empty.select(wanted)
    merged = pa.concat_tables(tables).sort_by([(key, "ascending") for key in keys])
    identity = list(zip(*(merged.column(key).to_pylist() for key in keys), strict=True))
    once = [i for i, row in enumerate(identity) if i == 0 or row != identity[i - 1]]
    return merged if len(once) == merged.num_rows else merged.take(once)


def read_part(trial: Storage, key: str, columns: list[str] | None = None) -> pa.Table:
    """Read one part in the current schema of its table.

    Args:
        trial: The trial's directory.
        key: The part's key in it; the key names the table.
        columns: Columns of the table to read; None for all.

    Returns:
        The rows of the part. Columns that are newer than the part have null or their value of
        BEFORE_THE_COLUMN.

    Raises:
        BrokenRecordError: The object is not a part of the table, or is damaged.
        FileNotFoundError: There is no such object.
        OSError: The storage does not answer.
    """
    schema = SCHEMAS[key.partition("/")[0]]
    names = schema.names if columns is None else columns
    data = trial.get(key)
    try:
        part = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        if part.metadata.num_rows > MAX_ROWS:
            raise pa.ArrowInvalid(f"it claims {part.metadata.num_rows:,} rows")
        there = set(part.schema_arrow.names)
        stored = part.read(columns=[name for name in names if name in there])
        filled = [
            stored.column(name)
            if name in there
            else pa.repeat(
                pa.scalar(BEFORE_THE_COLUMN.get(name), schema.field(name).type), len(stored)
            )
            for name in names
        ]
        whole = pa.table(filled, schema=pa.schema([schema.field(name) for name in names]))
        for field, column in zip(whole.schema, whole.columns, strict=True):
            if column.null_count and not field.nullable:
                raise pa.ArrowInvalid(f"a row has no {field.name}")
        return whole
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BrokenRecordError(f"{trial.url_of(key)} cannot be read: {reason}") from error


def put_table(trial: Storage, part: Part, rows: pa.Table) -> str:
    """Write a table as a part and return its key. `part` names the steps of the rows."""
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd", write_page_checksum=True)
    trial.put(part.key, sink.getvalue())
    return part.key
