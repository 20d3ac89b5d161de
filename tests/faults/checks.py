"""What must hold after a fault: the same bits, little done twice, MLflow's points each once."""

from collections import Counter
from typing import Any

from trialstore.records import METRICS, SPECTRA, get_json, read_records

from .scene import STEPS, Scene
from .trial_content import content
from .updates import read_updates, updates_lost

#: Points of one key in MLflow, and the kind of row that they come from.
KEYS = {"train/loss": "train", "val/loss": "evaluation"}


def differences(
    scene: Scene, undisturbed: dict[str, dict[str, Any]], completed_only: bool
) -> list[str]:
    """Trials that do not equal those of the undisturbed run bit for bit, and what differs."""
    found = []
    for trial_id, expected in undisturbed.items():
        have = content(scene.trial(trial_id))
        if completed_only and have["outcome"] != "completed":
            continue
        differing = [name for name, value in expected.items() if have[name] != value]
        if differing:
            found.append(f"{trial_id}: {', '.join(differing)}")
    return found


def lost(scene: Scene) -> list[int]:
    """Of every attempt that took a trial over, how many updates it had to do again.

    Raises RuntimeError if a trial that is complete was not seen to do every update.
    """
    updates = read_updates(scene.updates)
    for trial_id in scene.trials():
        seen = {step for _, step in updates[trial_id]}
        result = get_json(scene.trial(trial_id), "result.json") or {}
        if result.get("outcome") == "completed" and seen != set(range(1, STEPS + 1)):
            raise RuntimeError(f"{trial_id} is complete, and {len(seen)} updates of it were seen")
    return [each for one in updates.values() for each in updates_lost(one)]


def wrong_points(scene: Scene, uri: str) -> list[str]:
    """Keys of MLflow whose steps are not those of the trial's records, each once."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = []
    for trial_id in scene.trials():
        runs = client.search_runs(experiments, f"tags.trial_id = '{trial_id}'")
        if len(runs) != 1:
            found.append(f"{trial_id}: {len(runs)} runs")
            continue
        trial = scene.trial(trial_id)
        rows = read_records(trial, METRICS).to_pylist()
        wanted = {key: [r["step"] for r in rows if r["kind"] == kind] for key, kind in KEYS.items()}
        snapshots = read_records(trial, SPECTRA).to_pylist()
        for row in snapshots:
            key = f"spectra/{row['site']}/L{row['layer']:02d}/hard_rank"
            wanted.setdefault(key, []).append(row["step"])
        for key, steps in wanted.items():
            points = client.get_metric_history(runs[0].info.run_id, key)
            have = Counter(point.step for point in points)
            if have != Counter(steps):
                missing = sum((Counter(steps) - have).values())
                doubled = sum((have - Counter(steps)).values())
                found.append(f"{trial_id} {key}: {missing} missing, {doubled} too many")
        if runs[0].info.status not in ("FINISHED", "FAILED"):
            found.append(f"{trial_id}: {runs[0].info.status}")
    return found
