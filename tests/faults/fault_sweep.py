"""A sweep that is disturbed, and the same trials left alone, to be compared bit for bit."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

from trialstore.records import METRICS, SPECTRA, committed_steps, get_json
from trialstore.storage import LocalStorage, Storage

from .trial_content import content

ROOT = Path(__file__).parents[2]
SWEEP = ROOT / "orchestrator" / "sweeps" / "tiny.yaml"
STEPS = 300
EVERY = 50
PATIENCE_S = 200
#: Between two looks, so that looking does not take the core that the driver needs.
LOOK_S = 0.05

OVERRIDES = [
    f"training.steps={STEPS}",
    "resources.checkpoint_every=40",
    f"evaluation.every={EVERY}",
    f"spectra.every={EVERY}",
    "grid.width_multiplier=[2, 4, 8]",
]


def command(storage: object, *options: str) -> list[str]:
    """What is typed, again and again until the sweep is complete."""
    return [
        *[sys.executable, "-m", "orchestrator.cli", "run", str(SWEEP)],
        *["--storage", str(storage), "--json", *options],
        *[word for override in OVERRIDES for word in ("--set", override)],
    ]


def run(storage: object, *options: str) -> dict:
    done = subprocess.run(
        command(storage, *options), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wait_for_a_running_trial(
    sweep: Storage, driver: subprocess.Popen, but_not: set[str], earlier: Collection[str] = ()
) -> str:
    """The id of a trial that has a committed checkpoint and is not over yet, in an attempt that
    is not among `earlier` keys of the sweep."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(LOOK_S)
        assert driver.returncode is None, driver.communicate()
        keys = sweep.list("trials")
        for trial_id in sorted({key.split("/")[1] for key in keys} - but_not):
            place = f"trials/{trial_id}/"
            own = [key.removeprefix(place) for key in keys if key.startswith(place)]
            runs = any(key.startswith(f"{place}attempts/") for key in keys if key not in earlier)
            if runs and "result.json" not in own and committed_steps(own):
                return trial_id
    raise AssertionError("no trial got as far as a checkpoint")


def train_undisturbed(sweep: Storage, trials: list[str], folder: Path) -> None:
    """The same trials below `folder`, one after the other in one process: without Ray, and
    without anything that is done to them."""
    for trial_id in trials:
        (folder / f"{trial_id}.json").write_bytes(sweep.get(f"trials/{trial_id}/spec.json"))
    each = ROOT / "tests" / "support" / "train_each.py"
    subprocess.run([sys.executable, each, folder], check=True, capture_output=True, timeout=240)


def assert_same_bits(sweep: Storage, trials: list[str], undisturbed: Path) -> None:
    assert len(trials) == 3
    for trial_id in trials:
        expected = content(LocalStorage(undisturbed / trial_id))
        assert content(sweep.child(f"trials/{trial_id}")) == expected
        assert len(expected[METRICS]) == STEPS + STEPS // EVERY + 1
        assert len(expected[SPECTRA]) == 2 * (STEPS // EVERY + 1)


def pid_of(sweep: Storage, trial_id: str) -> int:
    """The process that trains a trial."""
    return int(get_json(sweep.child(f"trials/{trial_id}"), "lease.json")["pid"])
