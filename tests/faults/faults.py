"""The faults, each as what is done to a running sweep. Every one picks its own random moment."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from trialstore.records import checkpoint_folder

from .nodes import node_of, resume, suspend
from .scene import Scene

Where = Literal["this machine", "nodes"]

#: How long an old trainer may go on beside its successor: it writes every five seconds.
SECONDS_AWAKE = 12.0


@dataclass(frozen=True)
class Fault:
    """One row of the matrix."""

    name: str
    strike: Callable[[Scene], None]
    where: Where = "this machine"
    overrides: tuple[tuple[str, Any], ...] = ()
    tracking: Literal["embedded", "server", "never up"] = "embedded"
    full: bool = False  # storage on a file system that fills up
    cuts: bool = False  # a trial off, which another attempt has to take over
    harmed: int = 0  # checkpoints, the newest ones
    reported: bool = False  # the trial itself ends with an outcome or failure of its own


def faults() -> list[Fault]:
    two = (("resources.workers", 2), ("resources.zero_stage", 2), ("grid.width_multiplier", [2, 4]))
    return [
        Fault("kill -9 a training worker of two", kill_worker_of_two, "nodes", two, cuts=True),
        Fault("kill -9 a Tune actor that trains", kill_trainer, cuts=True),
        Fault("kill -9 a raylet", kill_raylet, "nodes", cuts=True),
        # Trials may outlive the head and the driver for the seconds that they need to their end.
        Fault("kill -9 the head node", kill_head, "nodes"),
        Fault("kill -9 the driver", kill_driver),
        Fault("kill -9 the exporter", kill_exporter),
        Fault("SIGTERM of a node", terminate_node, "nodes", cuts=True),
        Fault("SIGSTOP until replaced, then SIGCONT", suspend_until_replaced, "nodes", cuts=True),
        Fault("MLflow server killed and restarted", restart_mlflow, tracking="server"),
        Fault("MLflow server never up", lambda scene: None, tracking="never up"),
        Fault("newest checkpoint truncated", truncate_checkpoint, cuts=True, harmed=1),
        Fault("a flipped byte in the newest checkpoint", flip_byte, cuts=True, harmed=1),
        Fault("storage full", fill_storage, cuts=True, full=True),
        Fault(
            "a NaN loss",
            lambda scene: None,
            overrides=(("grid.learning_rate", [6.0e-3, 1e12]), ("grid.width_multiplier", [2, 4])),
            reported=True,
        ),
        Fault("a data file that vanishes", remove_data, reported=True),
    ]


# --- processes ------------------------------------------------------------------------------


def trainer_of(scene: Scene, trial_id: str) -> int:
    return int(scene.lease(trial_id)["pid"])


def kill_trainer(scene: Scene) -> None:
    os.kill(trainer_of(scene, scene.at_a_random_moment()), signal.SIGKILL)


def kill_worker_of_two(scene: Scene) -> None:
    """The rank that does not write: the other one waits in a collective for it."""
    trial_id = scene.at_a_random_moment()
    assert scene.nodes is not None
    (second,) = (
        process
        for node in scene.nodes.others
        for process in node.daemons()
        if f"{trial_id} rank 1" in " ".join(cmdline(process))
    )
    second.kill()


def cmdline(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def kill_raylet(scene: Scene) -> None:
    """The raylet under a trial; a new node comes in its place, as a cluster would have it."""
    trial_id = scene.at_a_random_moment()
    assert scene.nodes is not None
    node = node_of(scene.nodes, trainer_of(scene, trial_id))
    node.named("raylet").kill()
    time.sleep(1.0)
    node.end()
    scene.nodes.others.remove(node)
    scene.nodes.add()


def terminate_node(scene: Scene) -> None:
    """As a machine that is taken away in good order: SIGTERM to everything on it."""
    trial_id = scene.at_a_random_moment()
    assert scene.nodes is not None
    node = node_of(scene.nodes, trainer_of(scene, trial_id))
    node.process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        node.process.wait(30)
    node.end()
    scene.nodes.others.remove(node)
    scene.nodes.add()


def kill_head(scene: Scene) -> None:
    """The head and, as they cannot live without it, the other nodes; then all anew."""
    scene.at_a_random_moment()
    assert scene.nodes is not None
    assert scene.nodes.head is not None
    scene.nodes.head.end()
    with contextlib.suppress(subprocess.TimeoutExpired):
        scene.driver.wait(120)
    if scene.driver.poll() is None:
        scene.notes.append("the driver had to be killed")
        scene.driver.kill()
    scene.nodes.end()
    scene.nodes.start()


def kill_driver(scene: Scene) -> None:
    scene.at_a_random_moment()
    scene.driver.kill()


def kill_exporter(scene: Scene) -> None:
    scene.at_a_random_moment()
    scene.exporter().kill()


def suspend_until_replaced(scene: Scene) -> None:
    """A node is halted as a machine may be. Ray takes it for dead, the trial goes on elsewhere, and
    then the old trainer wakes up beside its successor; later its raylet too, which ends it."""
    assert scene.nodes is not None
    while True:
        trial_id = scene.at_a_random_moment()
        old, attempt = trainer_of(scene, trial_id), scene.lease(trial_id)["attempt"]
        try:
            suspend(old)
        except ProcessLookupError:  # it has just ended: another one
            continue
        if "result.json" not in scene.trial(trial_id).list():
            break
        resume(old)  # it was at its end: another one
    node = node_of(scene.nodes, old)
    others = [process for process in node.daemons() if process.pid != old]
    for process in others:
        process.suspend()
    scene.nodes.others.remove(node)
    try:
        scene.nodes.add()
        scene.wait_until(
            "for the lease to be taken over",
            lambda: scene.lease(trial_id).get("attempt", 0) > attempt,
        )
        resume(old)
        time.sleep(SECONDS_AWAKE)
        for process in others:
            process.resume()
        scene.notes.append("the old trainer woke up beside its successor")
        time.sleep(SECONDS_AWAKE)
    finally:
        node.end()


# --- files ----------------------------------------------------------------------------------


@contextlib.contextmanager
def while_stopped(scene: Scene) -> Iterator[Path]:
    """The newest checkpoint of a trial, everything having been killed; then all goes on."""
    trial_id = scene.at_a_random_moment()
    everything = psutil.Process(scene.driver.pid).children(recursive=True)
    for process in [psutil.Process(scene.driver.pid), *everything]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    scene.driver.wait()
    newest = max(scene.committed(trial_id))
    yield scene.storage / "tiny" / "trials" / trial_id / checkpoint_folder(newest)
    scene.run()


def largest_file(folder: Path) -> Path:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"]
    return max(files, key=lambda path: path.stat().st_size)


def truncate_checkpoint(scene: Scene) -> None:
    with while_stopped(scene) as folder:
        path = largest_file(folder)
        os.truncate(path, scene.random.randrange(path.stat().st_size))


def flip_byte(scene: Scene) -> None:
    with while_stopped(scene) as folder:
        path = largest_file(folder)
        content = bytearray(path.read_bytes())
        content[scene.random.randrange(len(content))] ^= 1 << scene.random.randrange(8)
        path.write_bytes(content)


def fill_storage(scene: Scene) -> None:
    """The rest of the file system is taken by somebody else, and given back when the command has
    ended."""
    scene.at_a_random_moment()
    ballast = scene.storage / "ballast"
    free = shutil.disk_usage(scene.storage).free
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while free > 0:
            file.write(bytes(min(free, 1 << 20)))
            free -= 1 << 20
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(512))
    code = scene.driver.wait(240)
    scene.notes.append(f"full: the command ended with {code}")
    ballast.unlink()
    scene.run()


def remove_data(scene: Scene) -> None:
    """The token store goes in the midst of training."""
    scene.at_a_random_moment()
    assert scene.cache is not None
    for path in scene.cache.rglob("*"):
        if path.is_file():
            path.unlink()


# --- MLflow ---------------------------------------------------------------------------------


def restart_mlflow(scene: Scene) -> None:
    scene.at_a_random_moment()
    scene.server.kill()
    time.sleep(scene.random.uniform(2, 6))
    scene.server.start()
