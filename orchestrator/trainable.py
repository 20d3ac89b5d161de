"""A trial as Ray runs it: in its own Tune actor, or over several workers through Ray Train.

Both call the same `trainers.train.train`; neither says anything to Ray but that it has ended.
What a trial leaves behind is in its directory.
"""

from typing import Any

from analysis.errors import InputError
from analysis.records import get_json, get_result
from analysis.storage import Storage, open_storage
from orchestrator.ledger import give_up, trial_storage
from trainers.spec import TrialSpec, parse_spec

#: An object of this name in a sweep's directory asks its driver to stop.
STOP_SWEEP = "stop-request.json"

#: What the driver of a trial of several workers holds: it only waits, but Ray places nothing
#: that holds nothing. Its workers leave it this much, so that two of one CPU fit on two CPUs.
DRIVER_CPUS = 0.01

#: What Tune is told of a trial that was stopped on request. The ledger knows it has no result.
UNFINISHED = "unfinished"


class QuietLog:
    """The trial's directory already says everything a scheduler needs to know."""

    def started(self, trial_id: str, attempt: int, step: int, steps: int) -> None:
        pass

    def progress(self, step: int, steps: int, loss: float, tokens_per_s: float) -> None:
        pass

    def checkpointed(self, step: int) -> None:
        pass


def resources(spec: TrialSpec) -> dict[str, float]:
    """What the Tune actor of a trial holds: all of a single worker, next to nothing of several."""
    layout = spec.layout
    if layout.workers > 1:
        return {"CPU": DRIVER_CPUS}
    return worker_resources(spec)


def worker_resources(spec: TrialSpec) -> dict[str, float]:
    """What one worker of a trial holds."""
    layout = spec.layout
    needed = {"CPU": layout.cpus_per_worker - (DRIVER_CPUS if layout.workers > 1 else 0.0)}
    if spec.layout.device == "cuda":
        needed["GPU"] = 1.0
    return needed


def run_trial(config: dict[str, Any]) -> None:
    """The Tune function: `config["trial"]` holds the sweep's URL and the spec as JSON."""
    from ray import tune

    config = config["trial"]
    sweep = open_storage(config["sweep"])
    if get_json(sweep, STOP_SWEEP) is not None:
        tune.report({"outcome": UNFINISHED})
        return
    spec = parse_spec(config["spec"], "trial")
    if config["branch"] is not None:
        _branch_off(sweep, spec, **config["branch"])
    try:
        outcome = _alone(config) if spec.layout.workers == 1 else _over_workers(config, spec)
    except InputError as error:  # trying again cannot mend it
        give_up(trial_storage(sweep, spec.id), str(error))
        outcome = "failed"
    tune.report({"outcome": outcome or UNFINISHED})


def _branch_off(sweep: Storage, spec: TrialSpec, trunk: str, step: int) -> None:
    """Begin the trial with what another has done already, where that is there."""
    from trainers.branch import fork

    fork(trial_storage(sweep, trunk), trial_storage(sweep, spec.id), spec, step)


def _alone(config: dict[str, Any]) -> str | None:
    from trainers.train import train

    spec = parse_spec(config["spec"], "trial")
    return train(spec, trial_storage(open_storage(config["sweep"]), spec.id), QuietLog()).outcome


def _over_workers(config: dict[str, Any], spec: TrialSpec) -> str | None:
    """A Ray Train worker group of the trial's size, gang-scheduled by Ray."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cuda = spec.layout.device == "cuda"
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=spec.layout.workers,
            use_gpu=cuda,
            resources_per_worker=worker_resources(spec),
        ),
        run_config=RunConfig(
            name=spec.id,
            storage_path=config["scratch"],
            # Retries are counted in one place: by Tune.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
    trainer.fit()
    result = get_result(trial_storage(open_storage(config["sweep"]), spec.id))
    return result["outcome"] if result else None


def _worker(config: dict[str, Any]) -> None:
    _alone(config)
