"""One trial, from its spec to its result: the training loop, top to bottom.

The step of everything recorded is the number of optimiser updates that the weights have had.
"""

import math
import threading
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainers import accounting, check_block
from trainers.data.batches import training_batch
from trainers.data.store import TokenStore, open_store
from trainers.durable import checkpoint
from trainers.durable.begun_layout import continue_from
from trainers.durable.failure import FailureReport
from trainers.durable.memory import for_a_micro_batch
from trainers.durable.writer import stamp
from trainers.engine import hardware
from trainers.engine.engine import Engine, Ranks, start_ranks
from trainers.engine.schedule import learning_rate
from trainers.heldout import Heldout
from trainers.models.build import build, token_loss
from trainers.outcome import Clock, DivergenceError, Ending
from trainers.recorder import Log, Recorder, recording
from trainers.spec import TrialSpec, parse_spec, refuse_other_semantics
from trainers.spectra.snapshots import Snapshots
from trialstore import records
from trialstore.claims import Fence
from trialstore.errors import InputError
from trialstore.records import METRICS, SPECTRA, Row
from trialstore.storage import Storage


@dataclass(frozen=True)
class TrialEnd:
    """How `train` left a trial after `step` updates.

    `outcome` and `result` (the content of result.json) are None if the trial was stopped on
    request and is to be continued.
    """

    outcome: str | None
    step: int
    result: dict[str, Any] | None


def train(
    spec: TrialSpec,
    trial: Storage,
    log: Log,
    cache: Path | None = None,
    stop: threading.Event | None = None,
) -> TrialEnd:
    """Train a trial to its end, from its last checkpoint if it has one.

    Every rank of the trial calls this with the same arguments. A finished trial returns its result
    at once.

    Args:
        spec: The trial.
        trial: Its directory.
        log: Told about progress, on rank 0.
        cache: Folder of token stores; None for the default.
        stop: Once set, the trial writes a checkpoint and returns. So does a stop request in its
            directory.

    Raises:
        InputError: The directory is another trial's, the spec is of another semantics version, or
            the input cannot be used. In the first two cases nothing is written.
        LeaseLostError: A newer attempt writes the trial. Nothing is written any more.
        Exception: Whatever ended the attempt; failure.json then says so.
    """
    refuse_other_semantics(spec, trial.url)
    _refuse_other_trial(spec, trial)
    finished = records.get_result(trial, spec.id)
    if finished is not None:
        return TrialEnd(finished["outcome"], finished["step"], finished)
    # FailureReport exits first: whoever finds the lease free can read how the attempt ended.
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
        recorder = stack.enter_context(
            recording(trial, spec, log) if ranks.is_first else nullcontext(Recorder())
        )
        recorder.begin(spec)
        fence = Fence(trial, ranks.broadcast(recorder.claim))
        report.fence = fence
        store = open_store(spec.source, cache, expected=spec.data)
        manifest = ranks.broadcast(recorder.newest_checkpoint())
        spec = continue_from(spec, trial, manifest)
        _refuse_other_world(spec, ranks)
        torch.set_num_threads(spec.layout.cpus_per_worker)
        recorder.store_spec(spec)

        engine = Engine(build(spec.model, spec.replicate), spec, ranks)
        stack.callback(engine.close)
        step, resumed_at = 0, None
        if manifest is not None:
            state = checkpoint.load(engine, trial, manifest, ranks)
            _refuse_other_tokens(state, store, manifest.step)
            step = resumed_at = manifest.step
            clock.seconds.update(state["seconds"])
            recorder.resume(manifest)
        heldout = Heldout(spec, store, ranks)
        snapshots = Snapshots(spec.spectra, spec.id, ranks)
        stack.callback(snapshots.close)
    recorder.start(step, heldout.unigram_loss)
    peak_rate = _peak_tokens_per_s(spec, ranks)
    run = _Run(spec, ranks, store, engine, heldout, snapshots, recorder, fence, clock, peak_rate)

    on_collapse, divergence = False, None
    try:
        while True:
            on_collapse = run.ends_on_collapse(step)
            last = on_collapse or step == spec.training.steps
            if step != resumed_at:  # the checkpoint's own step has been measured and committed
                run.measure(step, last)
                stopping = _any_rank(stop.is_set() or recorder.stop_requested, ranks)
                run.record(step, last or run.checkpoint_is_due(step) or (stopping and step > 0))
                if stopping and not last:
                    return TrialEnd(None, step, None)
            if last:
                break
            run.update(step)
            step += 1
    except DivergenceError as error:
        divergence = str(error)

    run.record_spectra(wait=True)
    result = recorder.finish(Ending(step, on_collapse, divergence), store, clock)
    ranks.barrier()
    result = ranks.broadcast(result)
    return TrialEnd(result["outcome"], step, result)


@dataclass(frozen=True)
class _Run:
    """The parts of a trial that the loop works with. Every rank calls the same methods."""

    spec: TrialSpec
    ranks: Ranks
    store: TokenStore
    engine: Engine
    heldout: Heldout
    snapshots: Snapshots
    recorder: Recorder
    fence: Fence
    clock: Clock
    peak_rate: float | None  # tokens per second

    def ends_on_collapse(self, step: int) -> bool:
        """Whether the trial ends here because its layers had collapsed one snapshot earlier."""
        if not self.spec.training.stop_on_collapse or step % self.spec.spectra.every:
            return False
        self.record_spectra(wait=True)
        return _any_rank(self.recorder.collapsed_before(step), self.ranks)

    def measure(self, step: int, last: bool) -> None:
        """Evaluate and take spectra where they are due."""
        if last or step % self.spec.evaluation.every == 0:
            with self.clock("evaluation"), for_a_micro_batch(self.spec):
                row = self.heldout.evaluate(self.engine, step)
            self.recorder.add(METRICS, [row])
        if last or step % self.spec.spectra.every == 0:
            with self.clock("spectra"), for_a_micro_batch(self.spec):
                self.heldout.measure_spectra(self.engine, self.snapshots, step, final=last)

    def checkpoint_is_due(self, step: int) -> bool:
        layout = self.spec.layout
        return step > 0 and (step % layout.checkpoint_every == 0 or step in layout.branch_points)

    def record(self, step: int, save: bool) -> None:
        """Record the spectra that are ready, or all of them with a checkpoint."""
        self.record_spectra(wait=save)
        if not save:
            self.recorder.flush_if_due()
            return
        with self.clock("checkpoints"):
            state = {"seconds": dict(self.clock.seconds), "tokens": self.store.digest}
            checkpoint.save(
                self.engine, self.fence, self.recorder, self.ranks, step, state, self.spec.layout
            )
        self.recorder.checkpointed(step)

    def record_spectra(self, wait: bool) -> None:
        """Record finished snapshots; wait for those that are still computed if asked to."""
        with self.clock("spectra"):
            rows = self.snapshots.drain() if wait else self.snapshots.ready()
            self.recorder.add(SPECTRA, rows)

    def update(self, step: int) -> None:
        """Make one update and record it."""
        began = time.perf_counter()
        with self.clock("training"), for_a_micro_batch(self.spec):
            loss, norm = update(self.engine, self.spec, self.store, self.ranks, step)
        rate = self.spec.training.batch_tokens / (time.perf_counter() - began)
        mfu = None if self.peak_rate is None else rate / self.peak_rate
        self.recorder.updated({**_train_row(self.spec, step + 1, loss, norm, rate), "mfu": mfu})


def update(
    engine: Engine, spec: TrialSpec, store: TokenStore, ranks: Ranks, step: int
) -> tuple[float, float | None]:
    """Make one optimiser update, from `step` to `step` + 1. Collective.

    Returns:
        The mean loss over the batch, in nats a token, and the gradient's norm before clipping;
        None for the norm if the engine does not know it.

    Raises:
        DivergenceError: The loss or the norm is not finite. The update is not applied.
    """
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


def _train_row(spec: TrialSpec, step: int, loss: float, norm: float | None, rate: float) -> Row:
    return {
        **stamp(spec, step),
        "kind": "train",
        "train_loss": loss,
        "learning_rate": learning_rate(spec.training, step - 1),
        "grad_norm": norm,
        "tokens_per_s": rate,
    }


def _peak_tokens_per_s(spec: TrialSpec, ranks: Ranks) -> float | None:
    """Tokens per second at the peak of all devices together; None if the peak is not known."""
    peak = hardware.peak_flops(ranks.device, spec.training.precision)
    if peak is None:
        return None
    return peak * ranks.world_size / accounting.training_flops_per_token(spec.model)


def _any_rank(flag: bool, ranks: Ranks) -> bool:
    if ranks.world_size == 1:
        return flag
    return bool(ranks.sum(torch.tensor(float(flag), device=ranks.device)) > 0)


def _refuse_other_world(spec: TrialSpec, ranks: Ranks) -> None:
    """Raise InputError if another number of ranks was started than the layout has workers."""
    if ranks.world_size != spec.layout.workers:
        raise InputError(
            f"trial {spec.id} is laid out for {spec.layout.workers} workers and was started "
            f"with {ranks.world_size}; torchrun --nproc-per-node {spec.layout.workers} "
            "-m trainers starts as many"
        )


def _refuse_other_tokens(state: dict[str, Any], store: TokenStore, step: int) -> None:
    """Raise InputError if a checkpoint was trained on other tokens."""
    trained_on = state.get("tokens", store.digest)
    if trained_on != store.digest:
        raise InputError(
            f"the token store {store.folder} has digest {store.digest}, and the checkpoint of step "
            f"{step} was trained on {trained_on}; remove the store so that it is built again, or "
            "`widthlab rerun` the trial"
        )


def read_spec(trial: Storage) -> TrialSpec:
    """Return the spec of a trial directory. Raises InputError if it has none or a broken one."""
    try:
        return parse_spec(trial.get(records.SPEC), trial.url_of(records.SPEC))
    except FileNotFoundError as error:
        raise InputError(f"{trial.url} is no trial directory: it has no spec.json") from error
