"""What rank 0 records of a trial while it trains, and a silent twin for the other ranks.

The training loop calls the same methods on every rank. None of them communicates between ranks.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any, Protocol

from analysis.stability import SpikeWatch
from trainers.collapse_watch import CollapseWatch
from trainers.data.store import TokenStore
from trainers.durable import checkpoint
from trainers.durable.writer import TrialWriter
from trainers.outcome import Clock, Ending, result_of
from trainers.spec import Layout, TrialSpec
from trialstore import records
from trialstore.claims import Claim
from trialstore.lease import Lease
from trialstore.records import METRICS, Manifest, Row
from trialstore.storage import Storage


class Log(Protocol):
    """Told how a trial goes, on rank 0. Its methods must return quickly: training waits."""

    def started(self, trial_id: str, attempt: int, step: int, steps: int) -> None:
        """Training begins, or continues after `step` of `steps` updates."""

    def progress(self, step: int, steps: int, loss: float, tokens_per_s: float) -> None:
        """An update has been made; `loss` is its mean training loss in nats a token."""

    def checkpointed(self, step: int) -> None:
        """The checkpoint after `step` updates has been committed."""


class Recorder:
    """Records nothing: the recorder of every rank but the first."""

    #: Rank 0's claim to write the trial.
    claim: Claim | None = None

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked, in the trial's directory, that it checkpoint and end."""
        return False

    def begin(self, spec: TrialSpec) -> None:
        """Clear away what earlier attempts left half-written, and store the spec."""

    def newest_checkpoint(self) -> Manifest | None:
        """Return the checkpoint to continue from, as `checkpoint.newest_usable`."""
        return None

    def store_spec(self, spec: TrialSpec) -> None:
        """Store the spec again, in the layout that the trial runs in."""

    def resume(self, manifest: Manifest) -> None:
        """Continue after the rows that a checkpoint rests on."""

    def start(self, step: int, unigram_loss: float) -> None:
        """Say that training begins after `step` updates; watch for collapse and loss spikes.

        `unigram_loss` is the held-out loss of a unigram model, in nats a token.
        """

    def add(self, table: str, rows: list[Row]) -> None:
        """Take rows of a table, in order of step, and judge collapse by them."""

    def updated(self, row: Row) -> None:
        """Take the row of an update that has been made, and say how far the trial is."""

    def collapsed_before(self, step: int) -> bool:
        """Return whether the layers were collapsed at the last snapshot before `step`."""
        return False

    def flush_if_due(self) -> None:
        """Write rows that have waited long enough. Raises what an earlier write raised."""

    def flush(self) -> None:
        """Write every row now."""

    def commit(self, step: int, files: dict[str, dict[str, Any]], layout: Layout) -> None:
        """Commit the checkpoint whose `files` are stored, and remove those no longer needed."""

    def checkpointed(self, step: int) -> None:
        """Tell the log that a checkpoint has been committed."""

    def finish(self, ending: Ending, store: TokenStore, clock: Clock) -> dict[str, Any] | None:
        """Write the trial's result and return it; None from the silent twin."""
        return None


class FirstRankRecorder(Recorder):
    """Keeps rank 0's lease, writes the trial's records, watches for collapse, tells the log.

    Methods that write raise LeaseLostError once a newer attempt has the trial, and OSError.
    """

    def __init__(self, trial: Storage, lease: Lease, writer: TrialWriter, log: Log) -> None:
        self._trial, self._lease, self._writer, self._log = trial, lease, writer, log
        self.claim = lease.fence.claim
        self._spec: TrialSpec
        self._watch: CollapseWatch
        self._spikes: SpikeWatch
        self._unigram_loss: float

    @property
    def stop_requested(self) -> bool:
        return self._lease.stop_requested

    def begin(self, spec: TrialSpec) -> None:
        self._writer.drop_unfinished()
        self._trial.put(records.SPEC, spec.to_json())  # a trial that fails below is known by it

    def newest_checkpoint(self) -> Manifest | None:
        return checkpoint.newest_usable(self._lease.fence)

    def store_spec(self, spec: TrialSpec) -> None:
        self._spec = spec
        self._lease.check()  # a checkpoint may have taken minutes to verify
        self._trial.put(records.SPEC, spec.to_json())

    def resume(self, manifest: Manifest) -> None:
        self._writer.resume(manifest)

    def start(self, step: int, unigram_loss: float) -> None:
        self._lease.began(step)
        self._log.started(self._spec.id, self._lease.attempt, step, self._spec.training.steps)
        self._unigram_loss = unigram_loss
        self._watch = CollapseWatch(self._spec, self._writer, unigram_loss)
        self._spikes = SpikeWatch()
        for row in self._writer.read(METRICS, ["train_loss"]).to_pylist():
            if row["train_loss"] is not None:
                self._spikes.add(row["step"], row["train_loss"])

    def add(self, table: str, rows: list[Row]) -> None:
        self._writer.add(table, rows)
        self._watch.add(rows)

    def updated(self, row: Row) -> None:
        self.add(METRICS, [row])
        step, loss, rate = row["step"], row["train_loss"], row["tokens_per_s"]
        self._spikes.add(step, loss)
        found = self._spikes.found
        self._lease.progress(step, loss, rate, found.count, found.since)
        self._log.progress(step, self._spec.training.steps, loss, rate)

    def collapsed_before(self, step: int) -> bool:
        return self._watch.before(step) is not None

    def flush_if_due(self) -> None:
        self._writer.flush_if_due()

    def flush(self) -> None:
        self._writer.flush()

    def commit(self, step: int, files: dict[str, dict[str, Any]], layout: Layout) -> None:
        self._writer.commit(step, files, layout.model_dump(mode="json"))
        self._writer.prune_checkpoints(layout.keep_checkpoints, layout.branch_points)

    def checkpointed(self, step: int) -> None:
        self._log.checkpointed(step)

    def finish(self, ending: Ending, store: TokenStore, clock: Clock) -> dict[str, Any] | None:
        outcome = "completed" if ending.divergence is None else "diverged"
        reason = ending.divergence
        # A trial that ended early was judged by the snapshot before its last one.
        early = ending.on_collapse and ending.step < self._spec.training.steps
        collapse = self._watch.before(ending.step) if early else self._watch.since
        if reason is None and collapse is not None:
            outcome, reason = "collapsed", collapse.reason
            self._writer.mark_collapse(asdict(collapse))
        self._writer.flush()
        result = result_of(
            self._spec,
            store,
            self._writer,
            outcome,
            reason,
            collapse,
            ending.step,
            clock,
            self._unigram_loss,
        )
        return self._writer.finish(result, self._spec.layout.branch_points)


@contextmanager
def recording(trial: Storage, spec: TrialSpec, log: Log) -> Iterator[Recorder]:
    """Hold the trial's lease for the time of the block, on rank 0, and record into the trial."""
    with (
        Lease(trial, spec.training.steps) as lease,
        closing(TrialWriter(trial, spec.id, lease)) as writer,
    ):
        yield FirstRankRecorder(trial, lease, writer, log)
