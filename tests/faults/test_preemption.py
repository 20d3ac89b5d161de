"""Notice that a process is to go: what gives it, and what a trial makes of it on real nodes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.tune import preemption
from orchestrator.tune.preemption import preemption_notice
from trialstore.records import committed_steps, get_json
from trialstore.storage import LocalStorage

from .fault_sweep import SWEEP
from .ray_nodes import Nodes, nodes, wait_for


@pytest.fixture
def own_sigterm() -> Iterator[list[int]]:
    """What this process does with a SIGTERM by itself."""
    heard: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda kind, _: heard.append(kind))
    yield heard
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture(autouse=True)
def no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_node_is_drained", lambda: False)


def test_the_first_sigterm_gives_notice_and_the_second_does_what_it_always_did(own_sigterm) -> None:
    with preemption_notice() as notice:
        assert not notice.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.wait(10)
        assert own_sigterm == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert own_sigterm == [signal.SIGTERM]


def test_afterwards_a_sigterm_is_what_it_was_before(own_sigterm) -> None:
    with preemption_notice():
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert own_sigterm == [signal.SIGTERM]


def test_a_node_that_is_drained_gives_notice_in_any_thread(monkeypatch, own_sigterm) -> None:
    drained = threading.Event()
    monkeypatch.setattr(preemption, "LOOK_S", 0.001)
    monkeypatch.setattr(preemption, "_node_is_drained", drained.is_set)
    given: list[bool] = []

    def watch() -> None:
        with preemption_notice() as notice:
            drained.set()
            given.append(notice.wait(30))

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join(60)
    assert given == [True]


def test_without_ray_no_node_is_drained(monkeypatch) -> None:
    monkeypatch.undo()
    assert not preemption._node_is_drained()


# --- real nodes ----------------------------------------------------------------------------


@pytest.fixture
def two_nodes() -> Iterator[Nodes]:
    with nodes() as made:
        for name in ("a", "b"):
            made.add(name, "--num-cpus=1")
        yield made


def running(sweep: Path) -> dict:
    """The lease of the one trial, once it has done some updates."""
    for path in (sweep / "trials").glob("*"):
        lease = get_json(LocalStorage(path), "lease.json")
        if lease is not None and lease["step"] > 20 and "released" not in lease:
            return lease
    return {}


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("whom", ["the node", "the trial"])
def test_a_sigterm_costs_an_update_and_no_checkpoint_interval(two_nodes, tmp_path, whom) -> None:
    """There are no checkpoints but the last, and the one that the SIGTERM is answered with."""
    sets = {"grid.width_multiplier": "2", "training.steps": "3000",
            "resources.checkpoint_every": "100000"}  # fmt: skip
    command = [sys.executable, "-m", "orchestrator.cli", "run", str(SWEEP), "--json"]
    command += ["--storage", str(tmp_path), "--address", two_nodes.address]
    for name, value in sets.items():
        command += ["--set", f"{name}={value}"]
    sweep = tmp_path / "tiny"
    with subprocess.Popen(
        command, env=two_nodes.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as driver:  # fmt: skip
        wait_for(lambda: driver.poll() is not None or running(sweep), two_nodes)
        assert driver.poll() is None, driver.communicate()
        before = running(sweep)
        (trial,) = (LocalStorage(path) for path in (sweep / "trials").glob("*"))
        worker = psutil.Process(before["pid"])
        began = time.monotonic()
        if whom == "the node":
            raylet = worker.parent()
            (name,) = (
                name for name, process in two_nodes.processes.items()
                if process.pid in {parent.pid for parent in raylet.parents()}
            )  # fmt: skip
            node = two_nodes.processes.pop(name)
            node.send_signal(signal.SIGTERM)
        else:
            worker.send_signal(signal.SIGTERM)
        wait_for(lambda: committed_steps(trial.list("checkpoints")), two_nodes)
        print(f"\nSIGTERM of {whom}: checkpoint after {time.monotonic() - began:.1f} s")
        (step,) = committed_steps(trial.list("checkpoints"))
        if whom == "the node":
            node.wait(120)
            print(f"the node has gone after {time.monotonic() - began:.1f} s")
        output, errors = driver.communicate(timeout=1800)
    assert driver.returncode == 0, errors
    assert json.loads(output)["counts"]["completed"] == 1
    assert step >= before["step"]
    retries = get_json(trial, "retries.json")
    assert (retries["preemptions"], retries["failures"]) == (1, 0)
    assert retries["open"]["step"] == step  # where the second attempt began
