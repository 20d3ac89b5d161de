"""The writer of one trial directory: rows become parts, checkpoints, and in the end a result."""

import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa

from trainers.spec import TrialSpec
from trialstore import records
from trialstore.lease import STOP_REQUEST, Lease, LeaseLostError
from trialstore.records import METRICS, SPECTRA, Manifest, Part, Row
from trialstore.storage import Storage

#: Rows become readable to others this often (seconds), or as soon as the write before is done.
FLUSH_S = 5.0
#: A long trial writes thousands of small parts, and whoever follows it lists them all: so many of
#: a table become one, which is merged again until it holds so many bytes.
MERGED_PARTS = 16
LARGE_PART = 8 * 2**20


class TrialWriter:
    """Collects rows and commits them in order; used by rank 0 alone.

    Between checkpoints rows are written on a thread of its own, so that no update waits for the
    storage; what fails there is raised by the next call that writes.
    """

    def __init__(self, trial: Storage, trial_id: str, lease: Lease) -> None:
        self._trial = trial
        self._trial_id = trial_id
        self._lease = lease
        self._parts: list[str] = []
        self._pending: dict[str, list[Row]] = {METRICS: [], SPECTRA: []}
        self._small: dict[str, list[str]] = {METRICS: [], SPECTRA: []}  # parts to be merged
        self._merged: dict[str, int] = {}  # parts that were, and at which checkpoint
        self._committed: dict[int, list[str]] = {}  # checkpoints of this attempt and their parts
        self._flushed = time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="records")
        self._writing: Future[None] | None = None

    def drop_unfinished(self) -> None:
        """Clear away what earlier attempts were putting when they were killed. One that was only
        halted fails at that, and was to stop anyway."""
        self._lease.check()
        for folder in ("checkpoints", METRICS, SPECTRA):
            for key in self._trial.unfinished(folder):
                self._trial.delete(key)

    def resume(self, manifest: Manifest) -> None:
        """Continue after the rows that a checkpoint rests on."""
        self._parts = list(manifest.records)

    def add(self, table: str, rows: list[Row]) -> None:
        """Take rows of the current step; all rows of a step come before those of the next."""
        self._pending[table].extend(rows)

    def flush_if_due(self) -> None:
        """Begin to write what has waited long enough. Call between steps only, when a step is
        complete. Raises what the write before it raised."""
        if time.monotonic() - self._flushed < FLUSH_S:
            return
        if self._writing is None or self._writing.done():
            self._finish_writing()
            self._flushed = time.monotonic()
            self._writing = self._pool.submit(self._write, self._take())

    def flush(self) -> None:
        """Make every row durable. Raises LeaseLostError or OSError."""
        self._finish_writing()
        self._write(self._take())
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Let the write that has begun come to its end; rows that wait are dropped."""
        self._pool.shutdown(wait=True)

    def _take(self) -> dict[str, list[Row]]:
        taken = self._pending
        self._pending = {table: [] for table in taken}
        return taken

    def _finish_writing(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, tables: dict[str, list[Row]]) -> None:
        self._lease.check()
        for table, rows in tables.items():
            if rows:
                key = records.put_part(self._trial, table, self._lease.attempt, rows)
                self._parts.append(key)
                self._small[table].append(key)

    def mark_collapse(self, collapse: dict[str, Any] | None) -> None:
        """Tell whoever looks that the trial's layers are collapsed, and since when, or are not."""
        self._lease.check()
        if collapse is None:
            self._trial.delete(records.COLLAPSE)
        else:
            self._trial.put(records.COLLAPSE, records.encode_json(collapse))

    def read(self, table: str, columns: list[str]) -> pa.Table:
        """The durable rows that this attempt rests on, and none that an earlier one lost."""
        self._finish_writing()
        return records.read_parts(self._trial, table, self._parts, columns)

    def commit(self, step: int, files: dict[str, dict[str, Any]], layout: dict[str, Any]) -> None:
        """Make the checkpoint whose `files` are in place count, and every row up to it."""
        self.flush()
        self._merge(step)
        manifest = Manifest(
            self._trial_id, step, self._lease.attempt, files, list(self._parts), layout
        )
        key = records.manifest_key(step)
        try:
            self._trial.put_new(key, manifest.to_json())
        except FileExistsError:
            # An orphan that was halted since the check meets its successor's here, and stops; one
            # that an orphan has left behind is replaced.
            self._lease.check()
            self._trial.put(key, manifest.to_json())
        self._committed[step] = manifest.records

    def _merge(self, step: int) -> None:
        """Write many small parts anew as one. The old ones go when no checkpoint names them."""
        for table, small in self._small.items():
            if len(small) < MERGED_PARTS:
                continue
            rows = records.read_parts(self._trial, table, small)
            steps = rows.column("step")
            part = Part(table, self._lease.attempt, steps[0].as_py(), steps[-1].as_py())
            key = records.put_table(self._trial, part, rows)
            self._merged |= {old: step for old in small if old != key}
            self._parts = [one for one in self._parts if one not in small] + [key]
            self._small[table] = [key] if rows.nbytes < LARGE_PART else []

    def _drop_merged(self) -> None:
        """Remove parts whose rows are in others since an earlier checkpoint than the newest: a
        reader's listing may still show them alone. Only checkpoints of this attempt name them."""
        newest = max(self._committed, default=0)
        named = {key for parts in self._committed.values() for key in parts}
        for key in [key for key, step in self._merged.items() if step < newest]:
            if key not in named:
                self._trial.delete(key)
                del self._merged[key]

    def _rest_on(self, tables: list[str]) -> None:
        """Let the last checkpoint name the compacted tables: its parts are about to go."""
        steps = records.committed_steps(self._trial.list("checkpoints"))
        if steps:
            key = records.manifest_key(steps[-1])
            manifest = records.read_manifest(self._trial, steps[-1])
            self._trial.put(key, replace(manifest, records=tables).to_json())

    def prune_checkpoints(self, keep: int, branch_points: Iterable[int] = ()) -> None:
        """Remove all but the newest `keep` checkpoints and those that other trials branch off
        from, their manifests first, and files of checkpoints that were never committed. Call only
        when none is being written."""
        self._lease.check()
        keys = self._trial.list("checkpoints")
        committed = records.committed_steps(keys)
        steps = {*committed[-keep:], *(set(committed) & set(branch_points))}
        self._committed = {step: parts for step, parts in self._committed.items() if step in steps}
        manifests = {records.manifest_key(step) for step in committed}
        kept = (*map(records.manifest_key, steps), *(f"{self._files(step)}/" for step in steps))
        for key in sorted(keys, key=lambda key: key not in manifests):
            # What a newer attempt writes is none of ours, should one have come since the check.
            ours = records.checkpoint_attempt(key) <= self._lease.attempt
            if ours and not key.startswith(kept):
                self._trial.delete(key)
        self._drop_merged()

    def _files(self, step: int) -> str:
        """The folder of a checkpoint's files. In one of this attempt's, others that were cut off
        may have left files too."""
        if step in self._committed:
            return records.attempt_folder(step, self._lease.attempt)
        return records.checkpoint_folder(step)

    def finish(self, result: dict[str, Any], branch_points: Iterable[int] = ()) -> dict[str, Any]:
        """Compact the tables, write the result, drop the parts. Returns the stored result.

        Raises LeaseLostError where another attempt has ended the trial.
        """
        self.flush()
        tables = records.compact(self._trial, self._lease.attempt, self._parts)
        result = {**result, "records": tables, "attempts": self._lease.attempt}
        self._lease.check()
        try:
            self._trial.put_new(records.RESULT, records.encode_json(result))
        except FileExistsError as error:
            raise LeaseLostError(f"{self._trial.url} has been ended by another attempt") from error
        # In an object store a successor's result may have come just before, and be gone: what it
        # names must stay.
        self._lease.check()
        self._trial.delete(records.FAILURE)
        self._trial.delete(STOP_REQUEST)  # it came too late
        self._rest_on(list(tables.values()))
        records.discard_parts(self._trial, keep=tables.values())
        self.prune_checkpoints(keep=1, branch_points=branch_points)
        return result


def stamp(spec: TrialSpec, step: int) -> dict[str, int]:
    """When a row is of: updates the weights have had, tokens they have seen, and the clock."""
    return {
        "step": step,
        "tokens": step * spec.training.batch_tokens,
        "time_ms": time.time_ns() // 1_000_000,
    }
