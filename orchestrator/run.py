"""One run of a sweep: train what is missing, export it to MLflow, and judge it.

Every decision is made from the trial directories, so the same command continues a sweep however
its last run ended.
"""

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.grid.begun import begun_notes, begun_trials, in_begun_layouts
from orchestrator.grid.branches import drop_used_branch_points
from orchestrator.grid.corpus_view import render_contents
from orchestrator.grid.expand import Grid, PlannedTrial, expand, on_device
from orchestrator.grid.muon_notes import muon_notes
from orchestrator.grid.old_trials import OldTrials, old_trials
from orchestrator.grid.plan import make_plan
from orchestrator.grid.plan_records import resolved_yaml
from orchestrator.grid.planned_data import as_pinned, last_run
from orchestrator.grid.supply import supply_notes, supply_warnings
from orchestrator.ledger.ledger import Ledger, read_ledger, trial_statuses
from orchestrator.ledger.measured_rate import measured_rate
from orchestrator.ledger.progress import Progress
from orchestrator.mlflow.exporter import start_exporter
from orchestrator.mlflow.tracking import git_state
from orchestrator.sweep.config import SweepConfig
from orchestrator.sweep.find import check_importable
from orchestrator.tune import execute
from orchestrator.tune.node_room import Node, trials_at_once
from orchestrator.tune.ray_cluster import check_temporary, cluster, knock
from orchestrator.tune.shared_storage import check_shared
from orchestrator.tune.stopping import (
    forget_stop,
    relaying_stops,
    stop_requested,
    stopping_on_signals,
)
from orchestrator.tune.sweep_run import SweepRun
from trainers.data.batches import heldout_starts, training_batch
from trainers.data.contents import Contents
from trainers.data.hub import pin
from trainers.data.store import TokenStore, open_store
from trainers.spec import TrialSpec
from trialstore import records
from trialstore.driver_lease import driving
from trialstore.errors import InputError
from trialstore.retries import RETRIES, give_up
from trialstore.storage import Storage
from trialstore.sweep_file import SWEEP_FILE, trial_storage
from trialstore.trial_state import finished_trials

#: Seconds that a run waits at its end until MLflow has everything.
EXPORT_PATIENCE_S = 120.0


@dataclass(frozen=True)
class RunOptions:
    """How to run a sweep, beside what its file says.

    Attributes:
        tracking: URI of the MLflow store.
        address: Ray cluster to join, HOST:PORT; None starts Ray on this machine.
        retry_failed: Whether to try trials again that were given up.
        cache: Folder of token stores; None for the default.
    """

    tracking: str
    address: str | None = None
    retry_failed: bool = False
    cache: Path | None = None


@dataclass(frozen=True)
class RunReport:
    """What a run has to say at its end: the ledger, and the judgement if there is one."""

    ledger: Ledger
    trained: int  # trials that this run began or continued
    at_once: int  # of them side by side
    stopped: bool  # on request: the same command continues
    exported: bool  # MLflow has everything
    summary: str | None = None
    recommendation: dict[str, Any] | None = None
    report: str | None = None

    @property
    def failed(self) -> int:
        """Trials that used up their retries."""
        return self.ledger.counts["failed"]


def run_sweep(
    config: SweepConfig, sweep: Storage, options: RunOptions, console: Console
) -> RunReport:
    """Train, export and judge a sweep as far as it goes now; show progress on `console`.

    Raises:
        InputError: The sweep cannot be run. Nothing has been trained or written then, unless
            another driver has taken the sweep meanwhile.
    """
    config = _pinned(config, sweep)
    store = open_store(config.source, options.cache)
    grid = expand(config, store.data_spec, store.vocab_size)
    _check_tokens(store, grid)
    _show_corpus(store.meta.contents, grid, console)
    todo = _left_to_do(sweep, grid, options.retry_failed)
    old = old_trials(sweep)
    if todo and old is not None:
        rate = measured_rate(sweep)
        _say(console, old.notice(make_plan(config, replace(grid, trials=todo), rate).totals))
    _check_place(sweep, todo, options.address)
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(driving(sweep))
        forget_stop(sweep)  # a request from now on is for this run
        for note in muon_notes(_specs(todo)):
            _say(console, f"note: {note}")
        run = SweepRun(config, sweep, grid, todo, 0, held, options.retry_failed)
        if todo:
            address = options.address
            console.print("starting Ray" if address is None else f"joining Ray at {address}")
            run = _laid_out(run, stack.enter_context(cluster(address, _cpus())), console)
        _say_orphans(sweep, grid, old, console)
        sweep.put(
            SWEEP_FILE,
            resolved_yaml(
                config,
                run.grid,
                store.data_spec,
                store.vocab_size,
                git_state(Path.cwd()),
                store.meta.contents,
            ).encode(),
        )
        exporter = start_exporter(sweep.url, options.tracking)
        try:
            if todo:
                _train(run, console)
            if held.replaced:
                raise InputError(
                    f"{sweep.url}: another process has taken the sweep over, because this one "
                    "seemed dead; follow it with `widthlab status`"
                )
            reached = read_ledger(sweep)
            # A request that came after the last trial has stopped nothing.
            stopped = stop_requested(sweep) and not all(trial.over for trial in reached.trials)
            judged = _judge(sweep, reached, options.tracking, console)
        except BaseException:
            exporter.leave(timeout=10)
            raise
        forget_stop(sweep)
        end = exporter.leave if stopped else exporter.finish
        exported = end(timeout=EXPORT_PATIENCE_S)
        return RunReport(reached, len(todo), run.at_once, stopped, exported, **judged)


# --- before anything is trained ------------------------------------------------------------


def _pinned(config: SweepConfig, sweep: Storage) -> SweepConfig:
    """The config with hub revisions resolved: once, by the first run of the sweep."""
    pinned = pin(as_pinned(config.source, last_run(sweep)))
    return config.model_copy(update={"corpus": pinned.corpus, "tokenizer": pinned.tokenizer})


def _check_tokens(store: TokenStore, grid: Grid) -> None:
    """Raise InputError if a split is too short for some trial."""
    fingerprint = store.data_spec.corpus_fingerprint
    asked = {
        (spec.model.context, spec.evaluation.tokens, spec.spectra.tokens)
        for spec in _specs(grid.trials)
    }
    for context, evaluation, spectra in asked:
        heldout_starts(len(store.heldout), max(evaluation, spectra), context, fingerprint)
        training_batch(store.train, 0, 0, 1, context, fingerprint)


def _show_corpus(contents: Contents, grid: Grid, console: Console) -> None:
    """Show what the corpus consists of, and whether it suffices."""
    for line in render_contents(contents):
        console.print(line, soft_wrap=True)
    for text in (*supply_notes(contents, grid.trials), *supply_warnings(contents, grid.trials)):
        _say(console, f"corpus: {text}")


def _left_to_do(sweep: Storage, grid: Grid, retry_failed: bool) -> list[PlannedTrial]:
    """The trials without an outcome; those that were given up only if `retry_failed`."""
    left = []
    cells = [(trial.id, trial.axes, 0) for trial in grid.trials]
    for trial, status in zip(grid.trials, trial_statuses(sweep, cells), strict=True):
        given_up = (
            status.state == "failed" and records.RESULT not in trial_storage(sweep, trial.id).list()
        )
        if not status.over or (given_up and retry_failed):
            left.append(trial)
    return left


def _check_place(sweep: Storage, todo: list[PlannedTrial], address: str | None) -> None:
    """Raise InputError if the trials cannot run here, or at the address, or cannot be stored.

    This is known before Ray starts and before anything is written.
    """
    if todo:
        check_temporary(address)
        check_importable([os.getcwd()])  # Ray puts it first on the search path of its workers
    if address is None:
        here = [Node({"CPU": float(_cpus()), "GPU": float(_gpus())})]
        kept = in_begun_layouts(sweep, todo, begun_trials(sweep))
        trials_at_once(here, _specs(kept), None)
    elif todo:
        knock(address)
    probe = ".writable"
    try:
        sweep.put(probe, b"")
        sweep.delete(probe)
    except OSError as error:
        raise InputError(
            f"storage {sweep.url} cannot be written: {error.strerror or error}; "
            "choose another with --storage"
        ) from error


def _laid_out(run: SweepRun, nodes: list[Node], console: Console) -> SweepRun:
    """The run with its trials in the layouts that they have on these nodes. Says what they keep."""
    device = "cuda" if any(node.resources.get("GPU", 0) for node in nodes) else "cpu"
    grid = on_device(run.grid, device)
    wanted = {trial.id for trial in run.todo}
    asked = [trial for trial in grid.trials if trial.id in wanted]
    todo = in_begun_layouts(run.sweep, asked, begun_trials(run.sweep))
    for note in begun_notes(asked, todo):
        _say(console, f"note: {note}")
    limit, grows = run.config.resources.concurrent, run.config.resources.wait_for_nodes
    at_once = trials_at_once(nodes, _specs(todo), limit, grows)
    check_shared(run.sweep, nodes, _specs(todo))
    return replace(run, grid=grid, todo=todo, at_once=at_once)


def _say_orphans(sweep: Storage, grid: Grid, old: OldTrials | None, console: Console) -> None:
    """Say how many finished trials the sweep file does not name any more. Trials of another
    semantics version have been mentioned already."""
    named = {trial.id for trial in grid.trials}.union(old.finished if old else ())
    orphans = len(finished_trials(sweep) - named)
    if orphans:
        console.print(
            f"{orphans} finished trial{'s' if orphans > 1 else ''} of an earlier version of this "
            "sweep no longer belong to it; they are kept, and count again when the file names "
            "them. Use another name to keep two sweeps apart.",
            highlight=False,
            soft_wrap=True,
        )


# --- training and judging ------------------------------------------------------------------


def _train(run: SweepRun, console: Console) -> None:
    if run.retry_failed:
        for trial in run.todo:
            # The count first: a trial without its failure would not be retried by the next run.
            trial_storage(run.sweep, trial.id).delete(RETRIES)
            trial_storage(run.sweep, trial.id).delete(records.FAILURE)
    before = read_ledger(run.sweep)
    flops = {cell.id: 0 for cell in before.trials} | {trial.id: trial.flops for trial in run.todo}
    rate = f"{run.at_once} at a time" if run.at_once else "when nodes have joined"
    console.print(
        f"{run.config.name}: {len(run.todo)} of {len(before.trials)} trials to train, {rate}",
        highlight=False,
    )
    with (
        relaying_stops(run.sweep),
        stopping_on_signals(run.sweep, lambda text: console.print(text, highlight=False)),
        Progress(run.sweep, before, flops, console).shown(),
    ):
        errors = execute.run_trials(run)
        if run.held.replaced:
            return  # the new driver judges what has failed and what is left
        if not stop_requested(run.sweep):
            for trial_id, message in errors.items():
                _give_up(trial_storage(run.sweep, trial_id), trial_id, message, console)
    drop_used_branch_points(run.sweep, _specs(run.grid.trials))


def _give_up(trial: Storage, trial_id: str, message: str, console: Console) -> None:
    """Record that a trial is given up. If its disk is full, only say so; the next run goes on."""
    try:
        give_up(trial, message)
    except OSError as error:
        _say(
            console,
            f"trial {trial_id} failed: {message}; its directory could not take that: {error}",
        )


def _judge(sweep: Storage, reached: Ledger, tracking: str, console: Console) -> dict[str, Any]:
    """Analyse what there is; return nothing if no trial has ended yet."""
    if not any(trial.state in records.OUTCOMES for trial in reached.trials):
        return {}
    from analysis.pipeline import analyse
    from orchestrator.mlflow.from_mlflow import run_links

    console.print("fitting laws and writing the report", highlight=False)
    done = analyse(sweep, links=run_links(sweep, tracking))
    return {
        "summary": done.summary,
        "recommendation": done.recommendation,
        "report": done.report_url,
    }


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _specs(trials: list[PlannedTrial]) -> list[TrialSpec]:
    return [trial.spec for trial in trials]


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _gpus() -> int:
    """CUDA devices of this machine, as far as can be told without loading torch."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))
