"""Ray Tune over the trials that are left to do. Tune schedules; the ledger remembers."""

import contextlib
import logging
import os
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from analysis.errors import InputError
from analysis.storage import Storage, open_storage
from orchestrator.branches import Branch
from orchestrator.trainable import resources, run_trial, worker_resources
from trainers.spec import TrialSpec

#: Ray is told before it is imported. Without these, Tune writes its own logs of every trial,
#: prints its own tables, and polls a worker group every two seconds.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}

#: An object that every node of a cluster must be able to read.
SHARED_PROBE = "shared-probe"


@contextlib.contextmanager
def cluster(address: str | None, cpus: int | None = None) -> Iterator[list[dict[str, float]]]:
    """Join the Ray cluster at `address`, or start one of this machine; the nodes' resources.

    Only a cluster that was started here is shut down. Raises InputError if nobody answers.
    """
    if address is not None:
        _knock(address)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # A trial's own failure is in its failure.json, and is said once, at the end.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if address is None:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    else:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"no Ray cluster answers at {address}: {error}") from error
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises InputError within seconds where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not port.isdigit():
        return  # "auto", or a name that Ray looks up
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {address}: {error}; give the HOST:PORT of a Ray head, "
            "or leave --address out to start one here"
        ) from error


def slots(nodes: Sequence[dict[str, float]], worker: dict[str, float]) -> int:
    """How many workers of those resources fit on the nodes at once."""
    return sum(
        min(int(node.get(name, 0) // amount) for name, amount in worker.items()) for node in nodes
    )


def trials_at_once(
    nodes: Sequence[dict[str, float]], trials: Sequence[TrialSpec], limit: int | None
) -> int:
    """How many trials run side by side, at most `limit`.

    Tune counts only what a trial's actor holds, so trials of several workers would all be
    started and wait for each other's workers: they are admitted by this number instead.
    Raises InputError, with the numbers, for a trial that can never fit.
    """
    most = 0
    for spec in trials:
        worker = {**worker_resources(spec), "CPU": float(spec.layout.cpus_per_worker)}
        fitting = slots(nodes, worker)
        if fitting < spec.layout.workers:
            have = {name: sum(node.get(name, 0) for node in nodes) for name in worker}
            raise InputError(
                f"trial {spec.id} needs {spec.layout.workers} workers of {_amounts(worker)} "
                f"each, and the cluster of {len(nodes)} nodes, with {_amounts(have)} in all, "
                f"has room for {fitting}; lower resources.workers or resources.cpus_per_worker, "
                "or join a larger cluster with --address"
            )
        most = max(most, fitting // spec.layout.workers)
    return min(most, limit) if limit else most


def _amounts(resources: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def check_shared(sweep: Storage, nodes: Sequence[dict[str, float]]) -> None:
    """Every node of a cluster must read what the driver writes.

    Raises InputError naming the nodes that cannot. One node needs no check.
    """
    if len(nodes) < 2:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = uuid.uuid4().hex
    sweep.put(SHARED_PROBE, token.encode())
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
        answers = [
            ray.remote(_reads_back)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote(sweep.url, token)
            for node in alive
        ]
        blind = [
            node["NodeManagerHostname"]
            for node, sees in zip(alive, ray.get(answers), strict=True)
            if not sees
        ]
    finally:
        sweep.delete(SHARED_PROBE)
    if blind:
        raise InputError(
            f"storage {sweep.url} is not shared: node(s) {', '.join(blind)} cannot read what "
            "the driver wrote there; use a path on a shared file system or an object store"
        )


def _reads_back(url: str, token: str) -> bool:
    try:
        return open_storage(url).get(SHARED_PROBE) == token.encode()
    except OSError:
        return False


def run_trials(
    sweep: Storage,
    trials: Sequence[TrialSpec],
    at_once: int,
    retries: int,
    branches: Mapping[str, Branch],
) -> dict[str, str]:
    """Train every trial; a trial that fails is tried again `retries` times.

    Those that `branches` names come when all others are over, and begin where they branch off.
    Returns the error by trial id of those that used up their retries. Blocks until all is over.
    """
    trunks = [spec for spec in trials if spec.id not in branches]
    others = [spec for spec in trials if spec.id in branches]
    errors: dict[str, str] = {}
    for wave in (trunks, others):
        if wave:
            errors |= _run_wave(sweep, wave, at_once, retries, branches)
    return errors


def _run_wave(
    sweep: Storage,
    trials: Sequence[TrialSpec],
    at_once: int,
    retries: int,
    branches: Mapping[str, Branch],
) -> dict[str, str]:
    from ray import tune
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig

    with tempfile.TemporaryDirectory(prefix="widthlab-tune-") as scratch:
        base = {"sweep": sweep.url, "scratch": scratch}
        specs = {spec.id: spec for spec in trials}
        off = {trial_id: asdict(branch) for trial_id, branch in branches.items()}
        configs = [
            {
                **base,
                "id": spec.id,
                "spec": spec.to_json().decode(),
                "branch": off.get(spec.id),
            }
            for spec in trials
        ]
        tuner = tune.Tuner(
            tune.with_resources(run_trial, lambda config: resources(specs[config["trial"]["id"]])),
            param_space={"trial": tune.grid_search(configs)},
            tune_config=tune.TuneConfig(max_concurrent_trials=at_once, reuse_actors=True),
            run_config=RunConfig(
                name="sweep",
                storage_path=scratch,
                verbose=0,
                failure_config=FailureConfig(max_failures=retries),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
        )
        # Tune prints of its own accord; stdout belongs to the command that was asked for.
        with contextlib.redirect_stdout(sys.stderr):
            results = tuner.fit()
    return {
        result.config["trial"]["id"]: _last_line(result.error)
        for result in results
        if result.error is not None
    }


def _last_line(error: BaseException) -> str:
    """Ray puts the remote traceback into the message; its last line is the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
