"""The command: run every fault, check, print the table."""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.mlflow.tracking import embedded_uri
from trialstore.storage import LocalStorage
from trialstore.trial_state import read_state

from .checks import differences, lost, wrong_points
from .faults import Fault, faults
from .mlflow_server import MlflowServer
from .nodes import Nodes, free_port
from .scene import CHECKPOINT_EVERY, Scene
from .trial_content import content
from .updates import counting

#: Bytes of the file system that fills up.
SMALL_DISK = "24m"

Undisturbed = dict[str, dict[str, dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Take a sweep through every fault at random moments and compare the results."
    )
    parser.add_argument("--moments", type=int, default=3, help="random moments of each fault")
    parser.add_argument("--only", nargs="*", default=[], help="words in the names of the faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for what the sweeps leave")
    options = parser.parse_args()
    chosen = [f for f in faults() if not options.only or any(w in f.name for w in options.only)]
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        undisturbed: Undisturbed = {}
        print(f"{'fault':42}{'moment':>7}{'ends':>22}{'same bits':>11}{'lost':>6}"
              f"{'MLflow':>8}{'typed':>7}{'s':>6}", flush=True)  # fmt: skip
        good = True
        for fault in chosen:
            for moment in range(options.moments):
                place = folder / f"{len(list(folder.iterdir())):03d}"
                good &= once(fault, moment, options.seed, place, undisturbed)
    print("holds" if good else "FAILS")
    sys.exit(0 if good else 1)


def once(fault: Fault, moment: int, seed: int, folder: Path, undisturbed: Undisturbed) -> bool:
    """One fault at one moment; a row of the table."""
    key = repr((fault.overrides, fault.where))
    if key not in undisturbed:
        undisturbed[key] = train_undisturbed(fault, folder.with_name(f"{folder.name}-calm"))
    began = time.monotonic()
    scene = set_up(fault, folder, random.Random(f"{seed} {fault.name} {moment}"))
    problems: list[str] = []
    try:
        scene.run()
        fault.strike(scene)
        scene.to_the_end()
        uri = collect(fault, scene)
        states = outcomes(scene)
        broken = differences(scene, undisturbed[key], completed_only=fault.reported)
        again, wrong = lost(scene), wrong_points(scene, uri)
        most = max(again, default=0)
        ended = scene.complete() or (fault.reported and "failed" in states)
        problems = [*broken, *wrong]
        if not ended:
            problems.append(f"ended with {states}")
        if fault.cuts and not again:
            problems.append("no trial was cut off")
        if most > (1 + fault.harmed) * CHECKPOINT_EVERY:
            problems.append(f"{most} updates of a trial were done again")
        row(fault, moment, states, not broken, most, not wrong, scene, began)
        good = not problems
    except Exception as error:
        problems.append(f"{type(error).__name__}: {error}")
        print(f"{fault.name:42}{moment:7}  could not be judged", flush=True)
        good = False
    finally:
        tear_down(fault, scene)
    for text in [*problems, *scene.notes]:
        print(f"    {text}", flush=True)
    return good


def row(
    fault: Fault, moment: int, states: str, same: bool, lost: int, points: bool, scene: Scene,
    began: float,
) -> None:  # fmt: skip
    bits = "yes" if same else "NO"
    print(
        f"{fault.name:42}{moment:7}{states:>22}{bits:>11}{lost:6}"
        f"{'all' if points else 'NO':>8}{len(scene.runs):7}{time.monotonic() - began:6.0f}",
        flush=True,
    )


def outcomes(scene: Scene) -> str:
    found: dict[str, int] = {}
    for trial_id in scene.trials():
        state = read_state(scene.trial(trial_id), trial_id).state
        found[state] = found.get(state, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in sorted(found.items()))


def set_up(fault: Fault, folder: Path, rng: random.Random) -> Scene:
    folder.mkdir()
    scene = Scene(folder, rng, dict(fault.overrides))
    scene.cache = folder / "cache"
    if fault.where == "nodes":
        scene.nodes = Nodes(folder, counting(scene.updates))
        scene.nodes.start()
    if fault.tracking == "server":
        scene.server = MlflowServer(folder / "mlflow")
        scene.server.start()
        scene.tracking = scene.server.uri
    elif fault.tracking == "never up":
        scene.tracking = f"http://127.0.0.1:{free_port()}"
    if fault.full:
        scene.storage.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(scene.storage)],
            check=True,
        )
    return scene


def tear_down(fault: Fault, scene: Scene) -> None:
    scene.end()
    if scene.server is not None:
        scene.server.kill()
    if fault.full:
        subprocess.run(["umount", "--lazy", str(scene.storage)], check=True)


def train_undisturbed(fault: Fault, folder: Path) -> dict[str, dict[str, Any]]:
    """The same sweep with nothing done to it."""
    scene = set_up(Fault("nothing", lambda _: None, fault.where), folder, random.Random(0))
    scene.overrides = dict(fault.overrides)
    try:
        scene.run()
        scene.to_the_end()
        if not scene.complete():
            raise RuntimeError(f"the undisturbed sweep did not end; see {folder}")
        return {trial_id: content(scene.trial(trial_id)) for trial_id in scene.trials()}
    finally:
        scene.end()


def collect(fault: Fault, scene: Scene) -> str:
    """Where MLflow's points are. What the server did not get in time is sent as the command said:
    by `widthlab sync`."""
    if fault.tracking == "embedded":
        return embedded_uri(LocalStorage(scene.storage))
    if scene.server is None:
        scene.server = MlflowServer(scene.folder / "mlflow")
        scene.server.start()
    logs = (scene.folder / f"run-{len(scene.runs) - 1}.log").read_text()
    if "widthlab sync" in logs:
        command = [sys.executable, "-P", "-m", "orchestrator.cli", "sync"]
        command += [str(scene.storage / "tiny"), "--tracking-uri", scene.server.uri]
        subprocess.run(command, check=True, capture_output=True)
        scene.notes.append("the server was back too late: the rest was sent with `widthlab sync`")
    return scene.server.uri


if __name__ == "__main__":
    main()
