"""One run of a sweep: train what is missing, exporter it to MLflow, judge it.

Everything it decides is decided from the trial directories, so the same command continues a
sweep whatever ended the last one.
"""

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.grid.branches import branches, drop_used_branch_points
from orchestrator.grid.corpus_view import render_contents
from orchestrator.grid.expand import Grid, PlannedTrial, expand
from orchestrator.grid.muon_notes import muon_notes
from orchestrator.grid.old_trials import OldTrials, old_trials
from orchestrator.grid.plan import make_plan, resolved_yaml
from orchestrator.grid.planned_data import as_pinned, last_run
from orchestrator.grid.supply import supply_notes, supply_warnings
from orchestrator.ledger import ledger
from orchestrator.ledger.ledger import Ledger, give_up, read_ledger, trial_storage
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
from trainers.data.batches import heldout_starts, training_batch
from trainers.data.contents import Contents
from trainers.data.hub import pin
from trainers.data.store import TokenStore, open_store
from trialstore import records
from trialstore.driver_lease import Driving, driving
from trialstore.errors import InputError
from trialstore.retries import RETRIES, Budget
from trialstore.storage import Storage

#: Seconds that a run waits at its end for MLflow to have everything.
EXPORT_PATIENCE_S = 120.0


@dataclass(frozen=True)
class RunReport:
    """What a run leaves to be said: the ledger, and the judgement where there is one."""

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
    config: SweepConfig,
    sweep: Storage,
    tracking: str,
    console: Console,
    *,
    address: str | None = None,
    retry_failed: bool = False,
    cache: Path | None = None,
) -> RunReport:
    """Bring a sweep as far as it goes. Progress goes to `console`; nothing to stdout.

    Raises InputError before anything is trained or written if the sweep cannot be run.
    """
    config = _pinned(config, sweep)
    store = open_store(config.source, cache)
    grid = expand(config, store.data_spec, store.vocab_size)
    _check_tokens(store, grid)
    _tell_of_corpus(store.meta.contents, grid, console)
    todo = _left_to_do(sweep, grid, retry_failed)
    old = old_trials(sweep)
    if todo:
        if old is not None:
            trains = replace(grid, trials=todo)
            totals = make_plan(config, trains, ledger.measured_rate(sweep)).totals
            console.print(old.notice(totals), highlight=False, markup=False, soft_wrap=True)
        check_temporary(address)
        check_importable([os.getcwd()])  # which Ray puts first on its workers' search path
    if address is None:  # known before Ray is started, and before anything is written
        here = [Node({"CPU": float(_cpus()), "GPU": float(_gpus())})]
        trials_at_once(here, _specs(_as_begun(sweep, todo)), None)
    elif todo:
        knock(address)
    _check_writable(sweep)
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(driving(sweep))
        forget_stop(sweep)  # from here on a request is for this run
        at_once = 0
        for note in muon_notes(_specs(todo)):
            console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
        if todo:
            console.print("starting Ray" if address is None else f"joining Ray at {address}")
            nodes = stack.enter_context(cluster(address, _cpus()))
            grid = expand(config, store.data_spec, store.vocab_size, device=_device(nodes))
            wanted = {trial.id for trial in todo}
            todo = _as_begun(sweep, [trial for trial in grid.trials if trial.id in wanted])
            limit, grows = config.resources.concurrent, config.resources.wait_for_nodes
            at_once = trials_at_once(nodes, _specs(todo), limit, grows)
            check_shared(sweep, nodes, _specs(todo))
        _tell_of_orphans(sweep, grid, old, console)
        sweep.put(
            ledger.SWEEP_FILE,
            resolved_yaml(
                config,
                grid,
                store.data_spec,
                store.vocab_size,
                git_state(Path.cwd()),
                store.meta.contents,
            ).encode(),
        )
        exporter = start_exporter(sweep.url, tracking)
        try:
            if todo:
                _train(sweep, grid, todo, at_once, config, console, held, retry_failed)
            if held.replaced:
                raise InputError(
                    f"{sweep.url}: this process was taken for gone, and another goes on with the "
                    "sweep; follow it with `widthlab status`"
                )
            reached = read_ledger(sweep)
            # A request that came after the last trial has stopped nothing.
            stopped = stop_requested(sweep) and not all(trial.over for trial in reached.trials)
            judged = _judge(sweep, reached, tracking, console)
        except BaseException:
            exporter.leave(timeout=10)
            raise
        forget_stop(sweep)
        end = exporter.leave if stopped else exporter.finish
        exported = end(timeout=EXPORT_PATIENCE_S)
        return RunReport(reached, len(todo), at_once, stopped, exported, **judged)


def _pinned(config: SweepConfig, sweep: Storage) -> SweepConfig:
    """The config with hub revisions resolved: once, by the first run of the sweep."""
    pinned = pin(as_pinned(config.source, last_run(sweep)))
    return config.model_copy(update={"corpus": pinned.corpus, "tokenizer": pinned.tokenizer})


def _check_tokens(store: TokenStore, grid: Grid) -> None:
    """Raises InputError if a split is too short for what some trial would ask of it."""
    fingerprint = store.data_spec.corpus_fingerprint
    asked = {
        (spec.model.context, spec.evaluation.tokens, spec.spectra.tokens)
        for spec in _specs(grid.trials)
    }
    for context, evaluation, spectra in asked:
        heldout_starts(len(store.heldout), max(evaluation, spectra), context, fingerprint)
        training_batch(store.train, 0, 0, 1, context, fingerprint)


def _tell_of_corpus(contents: Contents, grid: Grid, console: Console) -> None:
    """What the losses of this sweep will be made of."""
    for line in render_contents(contents):
        console.print(line, soft_wrap=True)
    for text in (*supply_notes(contents, grid.trials), *supply_warnings(contents, grid.trials)):
        console.print(f"corpus: {text}", highlight=False, markup=False, soft_wrap=True)


def _left_to_do(sweep: Storage, grid: Grid, retry_failed: bool) -> list[PlannedTrial]:
    """The trials without an outcome; those that were given up only if asked for."""
    left = []
    cells = [(trial.id, trial.axes, 0) for trial in grid.trials]
    for trial, status in zip(grid.trials, ledger.trial_statuses(sweep, cells), strict=True):
        given_up = (
            status.state == "failed" and records.RESULT not in trial_storage(sweep, trial.id).list()
        )
        if not status.over or (given_up and retry_failed):
            left.append(trial)
    return left


def _tell_of_orphans(sweep: Storage, grid: Grid, old: OldTrials | None, console: Console) -> None:
    """Say so if finished trials lie here that this version of the sweep file does not name; of
    those of another semantics version it has been said already."""
    named = {trial.id for trial in grid.trials}.union(old.finished if old else ())
    orphans = len(ledger.with_results(sweep) - named)
    if orphans:
        console.print(
            f"{orphans} finished trial{'s' if orphans > 1 else ''} of an earlier version of this "
            "sweep no longer belong to it; they are kept, and count again when the file names "
            "them. Use another name to keep two sweeps apart.",
            highlight=False,
            soft_wrap=True,
        )


def _train(
    sweep: Storage,
    grid: Grid,
    todo: list[PlannedTrial],
    at_once: int,
    config: SweepConfig,
    console: Console,
    held: Driving,
    retry_failed: bool,
) -> None:
    if retry_failed:
        for trial in todo:
            # The count first: a trial without its failure is not asked for again.
            trial_storage(sweep, trial.id).delete(RETRIES)
            trial_storage(sweep, trial.id).delete(records.FAILURE)
    before = read_ledger(sweep)
    flops = {cell.id: 0 for cell in before.trials} | {trial.id: trial.flops for trial in todo}
    rate = f"{at_once} at a time" if at_once else "when nodes have joined"
    console.print(
        f"{config.name}: {len(todo)} of {len(before.trials)} trials to train, {rate}",
        highlight=False,
    )
    with (
        relaying_stops(sweep),
        stopping_on_signals(sweep, lambda text: console.print(text, highlight=False)),
        Progress(sweep, before, flops, console).shown(),
    ):
        errors = execute.run_trials(
            sweep,
            _specs(todo),
            config.resources.concurrent,
            Budget(config.resources.retries, config.resources.preemptions),
            branches(_specs(grid.trials)),
            held,
            config.resources.wait_for_nodes,
        )
        if held.replaced:
            return  # what has failed, and what is left over, is for the other to judge
        if not stop_requested(sweep):
            for trial_id, message in errors.items():
                _give_up(trial_storage(sweep, trial_id), trial_id, message, console)
    drop_used_branch_points(sweep, _specs(grid.trials))


def _give_up(trial: Storage, trial_id: str, message: str, console: Console) -> None:
    """On a disk that is full nothing can be noted; then it is said, and the next run goes on."""
    try:
        give_up(trial, message)
    except OSError as error:
        console.print(
            f"trial {trial_id} failed: {message}; its directory could not take that: {error}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _judge(sweep: Storage, reached: Ledger, tracking: str, console: Console) -> dict[str, Any]:
    """The analysis of what there is; nothing where no trial has ended yet."""
    if not any(trial.state in records.OUTCOMES for trial in reached.trials):
        return {}
    from analysis.pipeline import analyse
    from orchestrator.mlflow.run_links import run_links

    console.print("fitting laws and writing the report", highlight=False)
    done = analyse(sweep, links=run_links(sweep, tracking))
    return {
        "summary": done.summary,
        "recommendation": done.recommendation,
        "report": done.report_url,
    }


def _check_writable(sweep: Storage) -> None:
    """A storage that cannot be written is the user's to mend, and known before any work."""
    probe = ".writable"
    try:
        sweep.put(probe, b"")
        sweep.delete(probe)
    except OSError as error:
        raise InputError(
            f"storage {sweep.url} cannot be written: {error.strerror or error}; "
            "choose another with --storage"
        ) from error


def _specs(trials: list[PlannedTrial]) -> list[Any]:
    return [trial.spec for trial in trials]


def _as_begun(sweep: Storage, trials: list[PlannedTrial]) -> list[PlannedTrial]:
    """What has begun goes on with as many workers, whatever the file says by now."""
    return [replace(trial, spec=execute.as_begun(sweep, trial.spec)) for trial in trials]


def _device(nodes: list[Node]) -> str:
    return "cuda" if any(node.resources.get("GPU", 0) for node in nodes) else "cpu"


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _gpus() -> int:
    """CUDA devices of this machine, as far as can be told without loading torch."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))
