"""Records: what a trial wrote is read once and in order, whatever became of its attempts."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs
from storages import Call, ScriptedStorage

from trialstore import records
from trialstore.records import (
    METRICS,
    METRICS_SCHEMA,
    RESULT,
    ROW_KEYS,
    SCHEMAS,
    SPECTRA,
    SPECTRA_SCHEMA,
    Manifest,
    Part,
    Row,
    checkpoint_folder,
    committed_steps,
    compact,
    current_parts,
    discard_parts,
    encode_json,
    get_json,
    live_parts,
    manifest_key,
    put_part,
    read_records,
)
from trialstore.storage import ArrowStorage, LocalStorage, Storage


@pytest.fixture
def trial(tmp_path: Path) -> Storage:
    return LocalStorage(tmp_path / "trial")


def in_memory() -> Storage:
    return ArrowStorage(fs._MockFileSystem(), "trial", "mock:///trial")


def metric(step: int, kind: str = "train", loss: float | None = None) -> Row:
    return {"step": step, "tokens": 8 * step, "time_ms": 5, "kind": kind, "train_loss": loss}


def spectrum(step: int, site: str = "post", layer: int = 0) -> Row:
    return {
        "step": step,
        "tokens": 8 * step,
        "time_ms": 5,
        "site": site,
        "layer": layer,
        "bucket": "all",
        "D": 2,
        "N": 20,
        "eigenvalues": [2.0, 1.0],
        "hard_rank": 1.8,
    }


def commit(trial: Storage, step: int, attempt: int, parts: list[str]) -> None:
    manifest = Manifest("0a1b", step, attempt, {}, parts)
    trial.put(manifest_key(step), manifest.to_json())


def steps(trial: Storage, table: str = METRICS) -> list[int]:
    found: list[int] = read_records(trial, table).column("step").to_pylist()
    return found


# --- round trips ---------------------------------------------------------------------------


def test_rows_come_back_as_they_were_with_nulls_where_nothing_was_said(trial: Storage) -> None:
    rows = [metric(1, loss=2.5), metric(1, "evaluation"), metric(2, loss=2.25)]
    put_part(trial, METRICS, 1, rows)
    table = read_records(trial, METRICS)
    assert table.schema == METRICS_SCHEMA
    expected = [{**dict.fromkeys(METRICS_SCHEMA.names), **row} for row in rows]
    assert table.to_pylist() == [expected[1], expected[0], expected[2]]  # by step, then kind


def test_a_spectrum_comes_back_with_its_eigenvalues(trial: Storage) -> None:
    put_part(trial, SPECTRA, 1, [spectrum(0)])
    table = read_records(trial, SPECTRA)
    assert table.schema == SPECTRA_SCHEMA
    (row,) = table.to_pylist()
    assert (row["eigenvalues"], row["hard_rank"], row["nodes"]) == ([2.0, 1.0], 1.8, None)


@pytest.mark.parametrize("table", [METRICS, SPECTRA])
def test_a_trial_without_records_reads_as_an_empty_table_of_the_right_columns(
    trial: Storage, table: str
) -> None:
    assert read_records(trial, table) == SCHEMAS[table].empty_table()
    some = read_records(trial, table, ["tokens"])
    assert some.column_names == [*ROW_KEYS[table], "tokens"]
    assert some.num_rows == 0


def test_chosen_columns_come_with_the_keys_of_the_rows(trial: Storage) -> None:
    put_part(trial, METRICS, 1, [metric(1, loss=2.5)])
    table = read_records(trial, METRICS, ["train_loss", "step"])
    assert table.to_pylist() == [{"step": 1, "kind": "train", "train_loss": 2.5}]


def test_a_row_without_its_step_is_refused(trial: Storage) -> None:
    with pytest.raises(pa.ArrowInvalid, match="step"):
        put_part(trial, METRICS, 1, [metric(1), {**metric(2), "step": None}, metric(3)])


@given(st.sampled_from([METRICS, SPECTRA]), *[st.integers(0, 10**9)] * 3)
def test_a_part_is_known_by_its_key(table: str, attempt: int, first: int, last: int) -> None:
    part = Part(table, attempt, first, last)
    assert Part.parse(part.key) == part


@pytest.mark.parametrize(
    "key",
    ["result.json", "metrics/part-1-2.parquet", "metrics/part-1-2-3.parquet.tmp", "x/part-1-2-3"],
)
def test_other_objects_are_no_parts(key: str) -> None:
    assert Part.parse(key) is None


def test_a_manifest_comes_back(trial: Storage) -> None:
    files = {"model.pt": {"sha256": "00", "bytes": 3}}
    manifest = Manifest("0a1b", 20, 2, files, ["metrics/part-1-0-20.parquet"], {"workers": 2})
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b'{"step": 1, "stop": 2}'])
def test_anything_else_is_no_manifest(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"manifest|Expecting"):
        Manifest.from_json(data)


def test_only_a_manifest_makes_a_checkpoint_committed() -> None:
    keys = [manifest_key(20), manifest_key(100), f"{checkpoint_folder(30)}/model.pt"]
    assert committed_steps([*reversed(keys), "checkpoints/step-7/manifest.json"]) == [20, 100]


# --- JSON ----------------------------------------------------------------------------------


def test_json_holds_no_nan_and_no_infinity() -> None:
    content = {"a": math.nan, "b": [1.0, -math.inf, (math.inf,)], 3: {"c": 0.5}}
    expected = {"a": None, "b": [1.0, None, [None]], "3": {"c": 0.5}}
    assert json.loads(encode_json(content)) == expected


def test_an_object_that_is_not_there_is_none(trial: Storage) -> None:
    assert get_json(trial, RESULT) is None


@pytest.mark.parametrize(("data", "what"), [(b'{"a": ', "JSON"), (b"[1]", "a JSON object")])
def test_broken_json_is_named(trial: Storage, data: bytes, what: str) -> None:
    trial.put(RESULT, data)
    with pytest.raises(ValueError, match=rf"{trial.url}/result\.json .*{what}"):
        get_json(trial, RESULT)


# --- whose rows are read -------------------------------------------------------------------


def test_before_the_first_checkpoint_the_newest_attempt_counts(trial: Storage) -> None:
    put_part(trial, METRICS, 1, [metric(0), metric(1), metric(2)])
    assert steps(trial) == [0, 1, 2]
    put_part(trial, METRICS, 2, [metric(0), metric(1)])
    assert steps(trial) == [0, 1]


def test_rows_beyond_the_checkpoint_are_read_until_a_newer_attempt_writes_them_again(
    trial: Storage,
) -> None:
    kept = put_part(trial, METRICS, 1, [metric(1), metric(2)])
    commit(trial, 2, 1, [kept])
    put_part(trial, METRICS, 1, [metric(3, loss=1.0), metric(4, loss=1.0)])
    assert steps(trial) == [1, 2, 3, 4]
    put_part(trial, METRICS, 2, [metric(3, loss=2.0)])
    assert steps(trial) == [1, 2, 3]
    assert read_records(trial, METRICS).column("train_loss").to_pylist() == [None, None, 2.0]


def test_a_compaction_that_was_cut_off_is_not_read_beside_its_parts(trial: Storage) -> None:
    parts = [put_part(trial, METRICS, 1, [metric(step)]) for step in (1, 2)]
    commit(trial, 2, 1, parts)
    parts.append(put_part(trial, METRICS, 1, [metric(3)]))
    compact(trial, 1, parts)
    assert live_parts(trial) == parts
    assert steps(trial) == [1, 2, 3]


def test_parts_that_overlap_are_read_once(trial: Storage) -> None:
    put_part(trial, METRICS, 1, [metric(1), metric(2)])
    put_part(trial, METRICS, 1, [metric(2, "evaluation"), metric(3)])
    put_part(trial, METRICS, 1, [metric(1), metric(2), metric(3)])
    rows = read_records(trial, METRICS).to_pylist()
    found = [(row["step"], row["kind"]) for row in rows]
    assert found == [(1, "train"), (2, "evaluation"), (2, "train"), (3, "train")]


def test_a_layer_and_a_site_make_a_row_of_their_own(trial: Storage) -> None:
    rows = [spectrum(1, site, layer) for layer in (1, 0) for site in ("pre", "post")]
    put_part(trial, SPECTRA, 1, rows)
    found = read_records(trial, SPECTRA).to_pylist()
    assert [(row["site"], row["layer"]) for row in found] == [
        ("post", 0), ("post", 1), ("pre", 0), ("pre", 1),
    ]  # fmt: skip


def test_a_result_names_the_tables_and_nothing_else_is_read(trial: Storage) -> None:
    whole = put_part(trial, METRICS, 1, [metric(1), metric(2)])
    put_part(trial, METRICS, 2, [metric(1), metric(2), metric(3)])  # of an orphan, too late
    trial.put(RESULT, encode_json({"records": {METRICS: whole}}))
    assert current_parts(trial) == [whole]
    assert steps(trial) == [1, 2]


def test_compaction_leaves_the_same_rows_in_one_part_a_table(trial: Storage) -> None:
    parts = [
        put_part(trial, METRICS, 1, [metric(0, "evaluation"), metric(1)]),
        put_part(trial, SPECTRA, 1, [spectrum(0)]),
        put_part(trial, METRICS, 2, [metric(2), metric(3)]),
    ]
    commit(trial, 3, 2, parts)
    before = {table: read_records(trial, table) for table in SCHEMAS}
    tables = compact(trial, 2, parts)
    assert {table: read_records(trial, table) for table in SCHEMAS} == before
    trial.put(RESULT, encode_json({"records": tables}))
    discard_parts(trial, keep=tables.values())
    assert {table: read_records(trial, table) for table in SCHEMAS} == before
    assert trial.list(METRICS) == ["metrics/part-2-0-3.parquet"]
    assert trial.list(SPECTRA) == ["spectra/part-2-0-0.parquet"]


def test_a_table_without_rows_is_compacted_to_nothing(trial: Storage) -> None:
    part = put_part(trial, METRICS, 1, [metric(1)])
    assert compact(trial, 1, [part]) == {METRICS: part}


# --- reading while it is written -----------------------------------------------------------


def vanish(call: Call) -> None:
    """What a reader has just listed is gone when it comes to get it."""
    raise FileNotFoundError(call.key)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_reader_overtaken_by_a_compaction_looks_again(tmp_path: Path, checkpointed: bool) -> None:
    """Either the manifest or a part may be the thing that has just been replaced."""
    trial = ScriptedStorage(tmp_path)
    part = put_part(trial, METRICS, 1, [metric(1)])
    if checkpointed:
        commit(trial, 1, 1, [part])
    trial.before("get", vanish, keys=lambda key: key != RESULT, times=1)
    assert steps(trial) == [1]


def test_a_part_that_is_lost_is_not_passed_over(tmp_path: Path) -> None:
    trial = ScriptedStorage(tmp_path)
    put_part(trial, METRICS, 1, [metric(1)])
    trial.before("get", vanish, keys=lambda key: key != RESULT)
    with pytest.raises(FileNotFoundError, match="metrics"):
        read_records(trial, METRICS)


# --- any history ---------------------------------------------------------------------------


@dataclass
class History:
    """A trial that is trained, checkpointed and cut off; and what should be left to read.

    The loss of a row is the number of the attempt that wrote it.
    """

    trial: Storage = field(default_factory=in_memory)
    attempt: int = 1
    parts: list[str] = field(default_factory=list)
    rows: list[tuple[int, int]] = field(default_factory=list)  # (step, attempt) of this attempt
    checkpoints: list[tuple[list[str], list[tuple[int, int]]]] = field(default_factory=list)
    wrote: bool = False  # whether this attempt has

    @property
    def step(self) -> int:
        return len(self.rows)

    def train(self, updates: int) -> None:
        new = [(self.step + 1 + i, self.attempt) for i in range(updates)]
        rows = [metric(step, loss=attempt) for step, attempt in new]
        self.parts.append(put_part(self.trial, METRICS, self.attempt, rows))
        snapshots = [spectrum(step) for step, _ in new if step % 2 == 0]
        if snapshots:
            self.parts.append(put_part(self.trial, SPECTRA, self.attempt, snapshots))
        self.rows += new
        self.wrote = True

    def checkpoint(self) -> None:
        if self.step and manifest_key(self.step) not in self.trial.list("checkpoints"):
            commit(self.trial, self.step, self.attempt, list(self.parts))
            self.checkpoints.append((list(self.parts), list(self.rows)))

    def die(self) -> None:
        parts, rows = self.checkpoints[-1] if self.checkpoints else ([], [])
        self.attempt += 1
        self.parts, self.rows, self.wrote = list(parts), list(rows), False

    def die_while_compacting(self) -> None:
        compact(self.trial, self.attempt, self.parts)
        self.die()

    def lose_newest_checkpoint(self) -> None:
        if len(self.checkpoints) > 1:
            _, rows = self.checkpoints.pop()
            self.trial.delete(manifest_key(len(rows)))
            self.die()


OPERATIONS = st.one_of(
    st.tuples(st.just("train"), st.integers(1, 3)),
    st.tuples(
        st.sampled_from(["checkpoint", "die", "die_while_compacting", "lose_newest_checkpoint"])
    ),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(OPERATIONS, min_size=1, max_size=25))
@pytest.mark.long
def test_the_rows_read_are_those_of_the_surviving_history_each_once(
    operations: list[tuple[str] | tuple[str, int]],
) -> None:
    history = History()
    for name, *arguments in operations:
        getattr(history, name)(*arguments)
        if history.wrote:
            check(history)
    if not history.rows:
        return
    # Over: a result names the compacted tables, and the parts of all attempts are dropped.
    tables = compact(history.trial, history.attempt, history.parts)
    history.trial.put(RESULT, encode_json({"records": tables}))
    check(history)
    discard_parts(history.trial, keep=tables.values())
    check(history)


def check(history: History) -> None:
    table = read_records(history.trial, METRICS, ["train_loss"])
    read = list(zip(table["step"].to_pylist(), table["train_loss"].to_pylist(), strict=True))
    assert read == history.rows
    assert [step for step, _ in read] == list(range(1, history.step + 1))
    assert steps(history.trial, SPECTRA) == list(range(2, history.step + 1, 2))


def test_parts_of_before_there_were_buckets_are_of_all_tokens(tmp_path: Path) -> None:
    """A trial that was begun then goes on, and is read as one table."""
    trial = LocalStorage(tmp_path)
    rows = [spectrum(0)]
    older = pa.Table.from_pylist(rows, schema=SPECTRA_SCHEMA).drop_columns(["bucket"])
    records.put_table(trial, Part(SPECTRA, 1, 0, 0), older)
    put_part(trial, SPECTRA, 1, [spectrum(5)])
    table = read_records(trial, SPECTRA)
    assert table.schema == SPECTRA_SCHEMA
    assert table["bucket"].to_pylist() == ["all", "all"]
    assert read_records(trial, SPECTRA, ["hard_rank"])["step"].to_pylist() == [0, 5]
