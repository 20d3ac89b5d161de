"""What a trial leaves behind: tables in Parquet parts, a manifest per checkpoint, a result.

    spec.json                                 the trial, complete
    collapse.json                             since when its layers are collapsed; none if healthy
    lease.json                                attempt and heartbeat of the one writer
    metrics/part-<attempt>-<first>-<last>.parquet
    spectra/part-<attempt>-<first>-<last>.parquet
    checkpoints/step-<step>/manifest.json     written last: files, hashes, the parts it rests on
    result.json                               written last: the trial is over
    failure.json                              an infrastructure failure, retried up to a budget

The step of a row is the number of optimiser updates that the weights have had: a training row
of step s is the batch of the s-th update, an evaluation or snapshot of step s is of the weights
after it. A checkpoint of step s is committed when every row up to s is durable.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.errors import InputError
from analysis.storage import Storage

SPEC = "spec.json"
LEASE = "lease.json"
RESULT = "result.json"
FAILURE = "failure.json"
COLLAPSE = "collapse.json"
MANIFEST_NAME = "manifest.json"

METRICS = "metrics"
SPECTRA = "spectra"

OUTCOMES = ("completed", "collapsed", "diverged", "stopped")

#: kind is "train" or "evaluation"; the columns of the other kind are null.
#: Losses are in nats per token, throughput in tokens per second, mfu a share of the peak.
METRICS_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("time_ms", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        ("train_loss", pa.float64()),
        ("learning_rate", pa.float64()),
        ("grad_norm", pa.float64()),
        ("tokens_per_s", pa.float64()),
        ("mfu", pa.float64()),
        ("val_loss", pa.float64()),
        ("val_perplexity", pa.float64()),
        ("val_bits_per_byte", pa.float64()),
    ]
)

#: The metrics of one spectrum, in the order of `analysis.spectrum.SpectrumMetrics`.
SPECTRUM_COLUMNS = (
    "hard_rank",
    "soft_rank",
    "hard_utilisation",
    "soft_utilisation",
    "concentration",
    "top1_share",
    "top10_share",
    "sui",
    "edim",
    "total_variance",
)

#: A bucket is the part of the tokens that a spectrum is of: all, or the share of the most frequent,
#: middling and rare ones (equal shares of occurrences), where the trial tells them apart.
ALL_TOKENS = "all"
BUCKETS = ("head", "mid", "tail")

#: site is "pre" or "post" of the non-linearity, layer counts from 0, D is the FFN width, N the
#: samples. method says how the metrics were found: "exact" carries all D eigenvalues in
#: descending order; "lanczos" carries quadrature nodes and weights instead: how many of the D
#: eigenvalues lie at each node. error_estimate bounds the relative error of soft rank,
#: concentration and eDim in 95 of 100 cases; it is 0 for exact ones.
#: js_divergence (nats) is of pre against post and null where only one site is recorded.
SPECTRA_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("time_ms", pa.int64(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("layer", pa.int32(), nullable=False),
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("D", pa.int32(), nullable=False),
        pa.field("N", pa.int64(), nullable=False),
        ("n_over_d", pa.float64()),
        ("method", pa.string()),
        ("status", pa.string()),  # "well sampled" or "undersampled" (N/D below 10)
        ("eigenvalues", pa.list_(pa.float32())),
        ("nodes", pa.list_(pa.float64())),
        ("weights", pa.list_(pa.float64())),
        *[(name, pa.float64()) for name in SPECTRUM_COLUMNS],
        ("js_divergence", pa.float64()),
        ("error_estimate", pa.float64()),
    ]
)

SCHEMAS = {METRICS: METRICS_SCHEMA, SPECTRA: SPECTRA_SCHEMA}
#: What makes a row one of a kind, and the order of a table.
ROW_KEYS = {METRICS: ("step", "kind"), SPECTRA: ("step", "site", "layer", "bucket")}
#: What a column holds in parts that were written before there was such a column.
BEFORE_THE_COLUMN = {"bucket": ALL_TOKENS}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One Parquet object of a table: rows of steps first..last written by one attempt."""

    table: str
    attempt: int
    first: int
    last: int

    @property
    def key(self) -> str:
        return f"{self.table}/part-{self.attempt}-{self.first}-{self.last}.parquet"

    @classmethod
    def parse(cls, key: str) -> "Part | None":
        """The part that a key names, or None for any other object."""
        match = re.fullmatch(r"(metrics|spectra)/part-(\d+)-(\d+)-(\d+)\.parquet", key)
        if match is None:
            return None
        table, *numbers = match.groups()
        return cls(table, *map(int, numbers))


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of. It exists if and only if the checkpoint is whole."""

    trial_id: str
    step: int
    attempt: int
    files: dict[str, dict[str, Any]]  # name below the checkpoint -> {"sha256", "bytes"}
    records: list[str]  # keys of every part that holds rows up to `step`
    layout: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        return encode_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """Raises ValueError for anything but a manifest."""
        try:
            return cls(**json.loads(data))
        except TypeError as error:
            raise ValueError(f"not a checkpoint manifest: {error}") from error


def checkpoint_folder(step: int) -> str:
    return f"checkpoints/step-{step:08d}"


def manifest_key(step: int) -> str:
    return f"{checkpoint_folder(step)}/{MANIFEST_NAME}"


def committed_steps(keys: Iterable[str]) -> list[int]:
    """Steps of the committed checkpoints among a trial's keys, oldest first."""
    found = (re.fullmatch(r"checkpoints/step-(\d{8})/manifest\.json", key) for key in keys)
    return sorted(int(match.group(1)) for match in found if match)


def encode_json(value: Any) -> bytes:
    """Indented, sorted JSON; NaN and infinity become null, for JSON has neither."""
    return (json.dumps(_finite(value), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class BrokenRecordError(InputError):
    """A record that nobody can read: cut short, overwritten, or not what its name says."""


def get_json(trial: Storage, key: str, needs: Iterable[str] = ()) -> dict[str, Any] | None:
    """The JSON object under a key, or None where there is none.

    Raises BrokenRecordError for anything that is no JSON object, or lacks a key of `needs`.
    """
    place = f"{trial.url}/{key}"
    try:
        value = json.loads(trial.get(key))
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        raise BrokenRecordError(f"{place} is a folder and should be a file") from error
    except (ValueError, RecursionError) as error:
        raise BrokenRecordError(f"{place} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BrokenRecordError(f"{place} is not a JSON object")
    missing = [name for name in needs if name not in value]
    if missing:
        raise BrokenRecordError(f"{place} lacks {', '.join(missing)}")
    return value


def get_result(trial: Storage) -> dict[str, Any] | None:
    """A trial's result, or None while it has none. Raises BrokenRecordError."""
    result = get_json(trial, RESULT, needs=("outcome", "step", "steps", "final", "records"))
    if result is None:
        return None
    if result["outcome"] not in OUTCOMES:
        raise BrokenRecordError(
            f"{trial.url}/{RESULT} says outcome {result['outcome']!r}; there are {OUTCOMES}"
        )
    for name in ("final", "records"):
        if not isinstance(result[name], dict):
            raise BrokenRecordError(f"{trial.url}/{RESULT}: {name} is not an object")
    if not all(isinstance(key, str) for key in result["records"].values()):
        raise BrokenRecordError(f"{trial.url}/{RESULT}: records does not name parts")
    return result


def put_part(trial: Storage, table: str, attempt: int, rows: list[Row]) -> str:
    """Store rows as one part and return its key. `rows` is not empty and in order of step."""
    part = Part(table, attempt, rows[0]["step"], rows[-1]["step"])
    return put_table(trial, part, pa.Table.from_pylist(rows, schema=SCHEMAS[table]))


def compact(trial: Storage, attempt: int, parts: list[str]) -> dict[str, str]:
    """Write the rows of `parts` as one part a table. Returns the key by table.

    The old parts stay until `discard_parts`: a reader may be in the middle of them.
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
    """Remove every part but those in `keep`."""
    kept = set(keep)
    for table in SCHEMAS:
        for key in trial.list(table):
            if key not in kept:
                trial.delete(key)


def current_parts(trial: Storage) -> list[str]:
    """The parts that hold the trial's records now.

    A finished trial names them in its result. Otherwise they are those of the newest checkpoint
    manifest and the newest attempt's tail beyond it: rows of an earlier attempt beyond the
    checkpoint it was cut off at have been, or will be, written again.
    """
    result = get_json(trial, RESULT)
    if result is not None:
        return sorted(result["records"].values())
    return live_parts(trial)


def live_parts(trial: Storage) -> list[str]:
    """`current_parts` of a trial that has no result."""
    keys = trial.list()
    steps = committed_steps(keys)
    manifest = Manifest.from_json(trial.get(manifest_key(steps[-1]))) if steps else None
    listed = manifest.records if manifest else []
    reached = manifest.step if manifest else -1
    parts = [part for part in map(Part.parse, keys) if part]
    newest = max((part.attempt for part in parts), default=0)
    tail = [part.key for part in parts if part.attempt == newest and part.first > reached]
    return sorted({*listed, *tail})


def read_records(trial: Storage, table: str, columns: list[str] | None = None) -> pa.Table:
    """A trial's rows of "metrics" or "spectra" in order of step, each once; empty if none."""
    for _ in range(3):
        try:
            return read_parts(trial, table, current_parts(trial), columns)
        except FileNotFoundError:
            continue  # a checkpoint was pruned or the trial compacted since the listing
    raise FileNotFoundError(f"{trial.url}: the parts of {table} vanish while they are read")


def read_parts(
    trial: Storage, table: str, parts: Iterable[str], columns: list[str] | None = None
) -> pa.Table:
    """`read_records` of those among `parts` that belong to the table."""
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
    """One part in the schema of its table, whatever columns there were when it was written."""
    schema = SCHEMAS[key.partition("/")[0]]
    part = pq.ParquetFile(io.BytesIO(trial.get(key)))
    names = schema.names if columns is None else columns
    stored = part.read(columns=[name for name in names if name in part.schema_arrow.names])
    filled = [
        stored.column(name)
        if name in stored.column_names
        else pa.repeat(pa.scalar(BEFORE_THE_COLUMN.get(name), schema.field(name).type), len(stored))
        for name in names
    ]
    return pa.table(filled, schema=pa.schema([schema.field(name) for name in names]))


def put_table(trial: Storage, part: Part, rows: pa.Table) -> str:
    """Store a table of that part's steps and return its key."""
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd")
    trial.put(part.key, sink.getvalue())
    return part.key
