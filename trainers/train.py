"""One trial, from its spec to its result: the training loop, top to bottom.

The step on everything recorded is the number of optimiser updates that the weights have had.
"""

import math
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from trainers import accounting, check_block
from trainers.collapse_watch import CollapseWatch
from trainers.data.batches import training_batch
from trainers.data.store import TokenStore, open_store
from trainers.durable import checkpoint
from trainers.durable.failure import FailureReport
from trainers.durable.memory import for_a_micro_batch
from trainers.durable.writer import TrialWriter, stamp
from trainers.engine import hardware
from trainers.engine.engine import Engine, Ranks, start_ranks
from trainers.engine.schedule import learning_rate
from trainers.heldout import Heldout
from trainers.models.build import build, token_loss
from trainers.outcome import Clock, DivergenceError, result_of
from trainers.spec import TrialSpec, parse_layout, parse_spec, refuse_other_semantics
from trainers.spectra.snapshots import Snapshots
from trialstore import records
from trialstore.claims import Fence
from trialstore.errors import InputError
from trialstore.lease import Lease
from trialstore.records import METRICS, SPECTRA, Manifest, Row
from trialstore.storage import Storage


class Log(Protocol):
    """Whoever runs the trial is told how it goes. Called on rank 0, seldom and briefly."""

    def started(self, trial_id: str, attempt: int, step: int, steps: int) -> None:
        """Training begins, or continues after `step` updates."""

    def progress(self, step: int, steps: int, loss: float, tokens_per_s: float) -> None:
        """Called after every update."""

    def checkpointed(self, step: int) -> None:
        """A checkpoint has been committed."""


@dataclass(frozen=True)
class TrialEnd:
    """How `train` left the trial: with an outcome and its result, or stopped on request."""

    outcome: str | None  # None: stopped on request, to be continued
    step: int
    result: dict[str, Any] | None


def train(
    spec: TrialSpec,
    trial: Storage,
    log: Log,
    cache: Path | None = None,
    stop: threading.Event | None = None,
) -> TrialEnd:
    """Train a trial to its end, from its last checkpoint where there is one.

    Every rank calls it with the same arguments. A finished trial returns its result at once.
    Setting `stop`, like a stop request in the trial's directory, makes it checkpoint and return.
    Any exception but LeaseLostError is also left in failure.json and raised again. Raises
    InputError at once, and leaves no failure, where the directory is another trial's, or the spec
    of another semantics version.
    """
    refuse_other_semantics(spec, trial.url)
    _refuse_other_trial(spec, trial)
    finished = records.get_result(trial, spec.id)
    if finished is not None:
        return TrialEnd(finished["outcome"], finished["step"], finished)
    # A failure is left before the lease goes: whoever sees it free knows how it ended.
    with ExitStack() as stack, FailureReport(trial) as report:
        return _train(spec, trial, log, cache, stop or threading.Event(), stack, report)


def _refuse_other_trial(spec: TrialSpec, trial: Storage) -> None:
    stored = records.get_json(trial, records.SPEC)
    if stored is not None and stored.get("id") != spec.id:
        raise InputError(
            f"{trial.url} holds trial {stored.get('id')} and the spec is trial {spec.id}; "
            "give each trial a directory of its own"
        )


def _train(
    spec: TrialSpec,
    trial: Storage,
    log: Log,
    cache: Path | None,
    stop: threading.Event,
    stack: ExitStack,
    report: FailureReport,
) -> TrialEnd:
    clock = Clock()
    with clock("start"):
        if spec.model.block is not None:
            check_block.check(spec.model.block)
        ranks = start_ranks(spec.layout.device)

        lease: Lease | None = None
        writer: TrialWriter | None = None
        if ranks.is_first:
            lease = stack.enter_context(Lease(trial, spec.training.steps))
            writer = TrialWriter(trial, spec.id, lease)
            stack.callback(writer.close)
            writer.drop_unfinished()
            trial.put(records.SPEC, spec.to_json())  # a trial that fails below is known by it
        fence = Fence(trial, ranks.broadcast(None if lease is None else lease.fence.claim))
        report.fence = fence
        store = open_store(spec.source, cache, expected=spec.data)
        manifest = ranks.broadcast(checkpoint.newest_usable(fence) if ranks.is_first else None)
        spec = _keeping_layout(spec, trial, manifest)
        if ranks.world_size != spec.layout.workers:
            raise InputError(
                f"trial {spec.id} is laid out for {spec.layout.workers} workers and was started "
                f"with {ranks.world_size}; torchrun --nproc-per-node {spec.layout.workers} "
                "-m trainers starts as many"
            )
        torch.set_num_threads(spec.layout.cpus_per_worker)
        if writer is not None:
            fence.check()  # a checkpoint may have taken minutes to verify
            trial.put(records.SPEC, spec.to_json())  # in the layout that it keeps

        engine = Engine(build(spec.model, spec.replicate), spec, ranks)
        stack.callback(engine.close)
        step = 0
        if manifest is not None:
            state = checkpoint.load(engine, trial, manifest, ranks)
            _refuse_other_tokens(state, store, manifest.step)
            step = manifest.step
            clock.seconds.update(state["seconds"])
            if writer is not None:
                writer.resume(manifest)
        heldout = Heldout(spec, store, ranks)
        snapshots = Snapshots(spec.spectra, spec.id, ranks)
        stack.callback(snapshots.close)
    if lease is not None:
        lease.began(step)
        log.started(spec.id, lease.attempt, step, spec.training.steps)

    watch = None if writer is None else CollapseWatch(spec, writer, heldout.unigram_loss)

    def record(table: str, rows: list[Row]) -> None:
        if writer is not None and watch is not None:
            writer.add(table, rows)
            watch.add(rows)

    def stops_here(step: int) -> bool:
        """Whether the layers had collapsed by the snapshot before this one."""
        if not spec.training.stop_on_collapse or step % spec.spectra.every:
            return False
        with clock("spectra"):
            record(SPECTRA, snapshots.drain())
        return _any_rank(watch is not None and watch.before(step) is not None, ranks)

    peak_rate = _peak_tokens_per_s(spec, ranks)
    resumed_at = step if manifest is not None else None
    stopped, reason = False, None
    try:
        while True:
            stopped = stops_here(step)
            last = stopped or step == spec.training.steps
            if step != resumed_at:  # the checkpoint's own step has been measured and committed
                if last or step % spec.evaluation.every == 0:
                    with clock("evaluation"), for_a_micro_batch(spec):
                        row = heldout.evaluate(engine, step)
                    record(METRICS, [row])
                if last or step % spec.spectra.every == 0:
                    with clock("spectra"), for_a_micro_batch(spec):
                        heldout.measure_spectra(engine, snapshots, step, final=last)
                stopping = _any_rank(
                    stop.is_set() or (lease is not None and lease.stop_requested), ranks
                )
                due = step > 0 and (
                    step % spec.layout.checkpoint_every == 0 or step in spec.layout.branch_points
                )
                saving = last or due or (stopping and step > 0)
                with clock("spectra"):
                    record(SPECTRA, snapshots.drain() if saving else snapshots.ready())
                if saving:
                    with clock("checkpoints"):
                        state = {"seconds": dict(clock.seconds), "tokens": store.digest}
                        checkpoint.save(engine, fence, writer, ranks, step, state, spec.layout)
                    if writer is not None:
                        log.checkpointed(step)
                elif writer is not None:
                    writer.flush_if_due()
                if stopping and not last:
                    return TrialEnd(None, step, None)
            if last:
                break

            began = time.perf_counter()
            with clock("training"), for_a_micro_batch(spec):
                loss, norm = update(engine, spec, store, ranks, step)
            step += 1
            if writer is not None and lease is not None:
                rate = spec.training.batch_tokens / (time.perf_counter() - began)
                record(METRICS, [_train_row(spec, step, loss, norm, rate, peak_rate)])
                lease.progress(step, loss, rate)
                log.progress(step, spec.training.steps, loss, rate)
    except DivergenceError as error:
        reason = str(error)

    outcome = "completed" if reason is None else "diverged"
    result: dict[str, Any] | None = None
    with clock("spectra"):
        record(SPECTRA, snapshots.drain())
    if writer is not None and watch is not None:
        ended_early = stopped and step < spec.training.steps
        collapse = watch.before(step) if ended_early else watch.since
        if reason is None and collapse is not None:
            outcome, reason = "collapsed", collapse.reason
            writer.mark_collapse(asdict(collapse))  # whatever the last snapshot made of it
        writer.flush()
        result = result_of(spec, store, writer, outcome, reason, collapse, step, clock)
        result = writer.finish(result, spec.layout.branch_points)
    ranks.barrier()
    result = ranks.broadcast(result)
    return TrialEnd(result["outcome"], step, result)


def update(
    engine: Engine, spec: TrialSpec, store: TokenStore, ranks: Ranks, step: int
) -> tuple[float, float | None]:
    """One optimiser update from `step` to step + 1: the mean loss over the batch, in nats, and
    the gradient's norm before clipping. Raises DivergenceError before a bad update is applied."""
    batch = training_batch(
        store.train,
        replicate=spec.replicate,
        step=step,
        sequences=spec.sequences,
        context=spec.model.context,
        fingerprint=spec.data.corpus_fingerprint,
    )
    share = spec.sequences // ranks.world_size
    mine = torch.from_numpy(batch[ranks.rank * share : (ranks.rank + 1) * share])
    losses, norm = [], None
    engine.train()
    for micro in torch.split(mine, spec.layout.micro_batch or share):
        micro = micro.to(ranks.device)
        loss = token_loss(engine.forward(micro[:, :-1]), micro[:, 1:]).mean()
        mean = ranks.sum(loss.detach().clone()) / ranks.world_size
        if not bool(torch.isfinite(mean)):
            raise DivergenceError(f"the training loss is {mean.item()} at step {step}")
        losses.append(float(mean))
        engine.backward(loss)
        norm = engine.step()
    if norm is not None and not math.isfinite(norm):
        raise DivergenceError(f"the gradient norm is {norm} at step {step}")
    return float(np.mean(losses)), norm


def _peak_tokens_per_s(spec: TrialSpec, ranks: Ranks) -> float | None:
    """Tokens per second at the peak of all devices together; None where it is not known."""
    peak = hardware.peak_flops(ranks.device, spec.training.precision)
    if peak is None:
        return None
    return peak * ranks.world_size / accounting.training_flops_per_token(spec.model)


def _train_row(
    spec: TrialSpec,
    step: int,
    loss: float,
    norm: float | None,
    rate: float,
    peak_rate: float | None,
) -> Row:
    return {
        **stamp(spec, step),
        "kind": "train",
        "train_loss": loss,
        "learning_rate": learning_rate(spec.training, step - 1),
        "grad_norm": norm,
        "tokens_per_s": rate,
        "mfu": None if peak_rate is None else rate / peak_rate,
    }


def _any_rank(flag: bool, ranks: Ranks) -> bool:
    if ranks.world_size == 1:
        return flag
    return bool(ranks.sum(torch.tensor(float(flag), device=ranks.device)) > 0)


def _refuse_other_tokens(state: dict[str, Any], store: TokenStore, step: int) -> None:
    """Raises InputError where the tokens are not those that a checkpoint was trained on."""
    trained_on = state.get("tokens", store.digest)
    if trained_on != store.digest:
        raise InputError(
            f"the token store {store.folder} is not the one that the checkpoint of step {step} was "
            f"trained on: its digest is {store.digest}, and it was {trained_on}; remove the store "
            "so that it is made anew, or `widthlab rerun` the trial"
        )


def _keeping_layout(spec: TrialSpec, trial: Storage, manifest: Manifest | None) -> TrialSpec:
    """A trial that has been checkpointed goes on in the layout it began with, but for the
    micro-batch of a retry that ran out of memory. Raises InputError for another kind of device,
    and for what is no layout."""
    if manifest is None or not manifest.layout:
        return spec
    place = f"{trial.url_of(records.manifest_key(manifest.step))}: layout"
    began, asked = parse_layout(manifest.layout, place), spec.layout
    if began.device != asked.device:
        raise InputError(
            f"trial {spec.id} was begun on {began.device} and layout.device is now "
            f"{asked.device}; go on with {began.device}, or train it anew in another directory"
        )
    began = began.model_copy(update={"branch_points": asked.branch_points})
    if asked.retried_smaller:
        smaller = {"micro_batch": asked.micro_batch, "retried_smaller": True}
        began = began.model_copy(update=smaller)
    return spec.model_copy(update={"layout": began})


def read_spec(trial: Storage) -> TrialSpec:
    """The spec of a trial directory. Raises InputError if it has none or it is broken."""
    try:
        return parse_spec(trial.get(records.SPEC), trial.url_of(records.SPEC))
    except FileNotFoundError as error:
        raise InputError(f"{trial.url} is no trial directory: it has no spec.json") from error
