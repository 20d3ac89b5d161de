"""What orchestration costs: wall time of a sweep against the training that it is made of.

    python benchmarks/orchestration.py [SWEEP.yaml] [--storage DIR]

Runs the sweep as a user would, in a new storage, with a warm token store, and prints

    wall seconds / (sum of the trials' own training seconds / trials side by side)

Wall is the whole command: Ray's start, actors, imports, MLflow, analysis and report included.
A trial's own training seconds are those of its loop, read from its result.json: optimiser
updates, evaluations, snapshots and checkpoints; its imports and engine start-up are not in them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from orchestrator.sweep.load import load_sweep
from trainers.data.store import open_store

SMALL = Path(__file__).parents[1] / "orchestrator" / "sweeps" / "small.yaml"
LOOP = ("training", "evaluation", "spectra", "checkpoints")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", nargs="?", type=Path, default=SMALL)
    parser.add_argument("--storage", type=Path, help="kept; default: a temporary folder")
    options = parser.parse_args()
    open_store(load_sweep(options.sweep).source)  # tokenised once per machine, not per sweep
    with tempfile.TemporaryDirectory(prefix="widthlab-benchmark-") as scratch:
        measure(options.sweep, options.storage or Path(scratch))


def measure(sweep: Path, storage: Path) -> None:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "run", str(sweep), "--storage", str(storage),
         "--json"],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    wall = time.perf_counter() - began
    report = json.loads(done.stdout)
    if report["trained"] != len(report["trials"]):
        sys.exit(f"{storage} already held some of the sweep: nothing to measure")
    results = [
        json.loads((storage / report["sweep"] / "trials" / cell["id"] / "result.json").read_text())
        for cell in report["trials"]
    ]
    seconds = [result["seconds"] for result in results]
    side_by_side = report["at_once"]
    loop = sum(each[kind] for each in seconds for kind in LOOP)
    print(f"{report['sweep']}: {len(results)} trials, {side_by_side} side by side")
    print(f"{'wall seconds':40}{wall:10.1f}")
    for kind in LOOP:
        print(f"{'  ' + kind + ', all trials':40}{sum(each[kind] for each in seconds):10.1f}")
    print(f"{'loop seconds, all trials':40}{loop:10.1f}")
    print(f"{'start-up seconds inside trials':40}{sum(each['start'] for each in seconds):10.1f}")
    print(f"{'cost of orchestration (goal: 1.25)':40}{wall / (loop / side_by_side):10.3f}")


if __name__ == "__main__":
    main()
