"""The writer of one trial directory: parts of its tables, checkpoint manifests, the result."""

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

#: Seconds between writes of rows, or longer while the write before is not done.
FLUSH_S = 5.0
#: A long trial writes thousands of small parts, and a reader that follows it lists them all. This
#: many parts of a table are merged into one, again and again, until it holds LARGE_PART bytes.
MERGED_PARTS = 16
LARGE_PART = 8 * 2**20


class TrialWriter:
    """Collects a trial's rows and commits them in order; only rank 0 has one.

    Between checkpoints a thread writes the rows, so that no update waits for the storage. An error
    of that thread is raised by the next call that writes. Every method that writes raises
    LeaseLostError once a newer attempt has the trial.
    """

    def __init__(self, trial: Storage, trial_id: str, lease: Lease) -> None:
        self._trial = trial
        self._trial_id = trial_id
        self._lease = lease
        self._parts: list[str] = []
        self._pending: dict[str, list[Row]] = {METRICS: [], SPECTRA: []}
        self._small: dict[str, list[str]] = {METRICS: [], SPECTRA: []}  # parts to merge
        self._merged: dict[str, int] = {}  # merged parts, and the step of the checkpoint then
        self._committed: dict[int, list[str]] = {}  # this attempt's checkpoints, and their parts
        self._flushed = time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="records")
        self._writing: Future[None] | None = None

    def drop_unfinished(self) -> None:
        """Remove objects that earlier attempts were writing when they were killed.

        If such an attempt was only suspended, its write fails when it wakes up; it would have to
        stop anyway.
        """
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
        """Start to write the waiting rows if `FLUSH_S` has passed. Call between steps only.

        Raises:
            Exception: Whatever the write before this one raised.
        """
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
        """Wait for the write in progress, and drop the rows that have not been written."""
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
        """Mark the directory with the collapse of the trial's layers; None removes the mark."""
        self._lease.check()
        if collapse is None:
            self._trial.delete(records.COLLAPSE)
        else:
            self._trial.put(records.COLLAPSE, records.encode_json(collapse))

    def read(self, table: str, columns: list[str]) -> pa.Table:
        """Return columns of the stored rows that this attempt rests on.

        Rows that an earlier attempt wrote after its last checkpoint are not among them.
        """
        self._finish_writing()
        return records.read_parts(self._trial, table, self._parts, columns)

    def commit(self, step: int, files: dict[str, dict[str, Any]], layout: dict[str, Any]) -> None:
        """Commit a checkpoint whose `files` are stored, together with every row up to it.

        Args:
            step: Updates that the weights have had.
            files: The manifest's entries, by file name.
            layout: The layout of the trial, as JSON.
        """
        self.flush()
        self._merge(step)
        manifest = Manifest(
            self._trial_id, step, self._lease.attempt, files, list(self._parts), layout
        )
        key = records.manifest_key(step)
        try:
            self._trial.put_new(key, manifest.to_json())
        except FileExistsError:
            # If this process was suspended after its last check, the manifest may be its
            # successor's: then stop. A manifest that an older attempt left is replaced.
            self._lease.check()
            self._trial.put(key, manifest.to_json())
        self._committed[step] = manifest.records

    def _merge(self, step: int) -> None:
        """Merge many small parts into one. The old ones go once no checkpoint names them."""
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
        """Remove parts that were merged before the newest checkpoint, unless one names them.

        Younger ones stay: a reader may have listed them without the part that replaces them. Only
        checkpoints of this attempt can name merged parts.
        """
        newest = max(self._committed, default=0)
        named = {key for parts in self._committed.values() for key in parts}
        for key in [key for key, step in self._merged.items() if step < newest]:
            if key not in named:
                self._trial.delete(key)
                del self._merged[key]

    def _rest_on(self, tables: list[str]) -> None:
        """Make the last checkpoint name the compacted tables, because its parts will be removed."""
        steps = records.committed_steps(self._trial.list("checkpoints"))
        if steps:
            key = records.manifest_key(steps[-1])
            manifest = records.read_manifest(self._trial, steps[-1])
            self._trial.put(key, replace(manifest, records=tables).to_json())

    def prune_checkpoints(self, keep: int, branch_points: Iterable[int] = ()) -> None:
        """Remove checkpoints, their manifests first, and files of uncommitted checkpoints.

        Call only while no checkpoint is being written.

        Args:
            keep: How many of the newest checkpoints stay.
            branch_points: Steps whose checkpoints stay too, because other trials branch off there.
        """
        self._lease.check()
        keys = self._trial.list("checkpoints")
        committed = records.committed_steps(keys)
        steps = {*committed[-keep:], *(set(committed) & set(branch_points))}
        self._committed = {step: parts for step, parts in self._committed.items() if step in steps}
        manifests = {records.manifest_key(step) for step in committed}
        kept = (*map(records.manifest_key, steps), *(f"{self._files(step)}/" for step in steps))
        for key in sorted(keys, key=lambda key: key not in manifests):
            # Leave the files of a newer attempt that may have begun since the check.
            ours = records.checkpoint_attempt(key) <= self._lease.attempt
            if ours and not key.startswith(kept):
                self._trial.delete(key)
        self._drop_merged()

    def _files(self, step: int) -> str:
        """The folder of a checkpoint's files. For a checkpoint of this attempt it is the attempt's
        own: interrupted attempts may have left files beside it."""
        if step in self._committed:
            return records.attempt_folder(step, self._lease.attempt)
        return records.checkpoint_folder(step)

    def finish(self, result: dict[str, Any], branch_points: Iterable[int] = ()) -> dict[str, Any]:
        """Compact the tables, write result.json, and remove the parts.

        Args:
            result: The content of result.json, as `trainers.outcome.result_of` returns it.
            branch_points: As for `prune_checkpoints`.

        Returns:
            The result as stored.

        Raises:
            LeaseLostError: Another attempt has the trial, or has ended it.
        """
        self.flush()
        tables = records.compact(self._trial, self._lease.attempt, self._parts)
        result = {**result, "records": tables, "attempts": self._lease.attempt}
        self._lease.check()
        try:
            self._trial.put_new(records.RESULT, records.encode_json(result))
        except FileExistsError as error:
            raise LeaseLostError(f"{self._trial.url} has been ended by another attempt") from error
        # An object store may have let this overwrite a successor's result. Then stop here, so that
        # the successor's tables stay.
        self._lease.check()
        self._trial.delete(records.FAILURE)
        self._trial.delete(STOP_REQUEST)  # one that came too late
        self._rest_on(list(tables.values()))
        records.discard_parts(self._trial, keep=tables.values())
        self.prune_checkpoints(keep=1, branch_points=branch_points)
        return result


def stamp(spec: TrialSpec, step: int) -> dict[str, int]:
    """Return the columns that place a row in time.

    They are the updates that the weights have had, the tokens that they have seen, and the wall
    clock in milliseconds.
    """
    return {
        "step": step,
        "tokens": step * spec.training.batch_tokens,
        "time_ms": time.time_ns() // 1_000_000,
    }
