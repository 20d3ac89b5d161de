"""Sweeps over several real Ray nodes: a raylet each, on this machine.

pytest -m slow -s tests/faults/test_nodes.py      # prints what ran where
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")
from trialstore.records import committed_steps, get_json
from trialstore.storage import LocalStorage

from .ray_nodes import Nodes, Seen, nodes, wait_for
from .trial_content import content

pytestmark = pytest.mark.slow

SWEEP = """\
name: mix
corpus: {kind: python-source}
tokenizer: {kind: bytes}
model: {architecture: gpt2, norm: pre, depth: 2, d_model: 32, head_dim: 16, context: 32}
grid:
  width_multiplier: [1, 2, 4, 8]
overrides:
  - {when: {width_multiplier: 8}, set: {workers: 2, zero_stage: 2}}
training: {steps: 20, batch_tokens: 512, learning_rate: 6.0e-3}
evaluation: {every: 10, tokens: 2048}
spectra: {every: 10, tokens: 2048}
resources: {checkpoint_every: 5}
"""
ALL_OF_TWO = ("overrides=[]", "workers=2", "zero_stage=2", "width_multiplier=[2, 4, 8]")
LONG = ("overrides=[]", "workers=2", "zero_stage=2", "width_multiplier=4", "steps=400",
        "checkpoint_every=20")  # fmt: skip


@pytest.fixture(scope="module")
def three() -> Iterator[Nodes]:
    """A head without CPUs and three nodes of one; one of them has a resource that no other has."""
    with nodes() as made:
        made.add("a", "--num-cpus=1")
        made.add("b", "--num-cpus=1", "--labels=ray.io/market-type=spot")
        made.add("c", "--num-cpus=1", '--resources={"licence": 2}')
        yield made


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "mix.yaml"
    path.write_text(SWEEP)
    return path


def start(cluster: Nodes, sweep: Path, storage: Path, *settings: str) -> subprocess.Popen:
    sets = [word for setting in settings for word in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "run", str(sweep), "--json",
         *["--storage", str(storage), "--address", cluster.address], *sets],
        env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def follow(driver: subprocess.Popen, cluster: Nodes, seen: Seen) -> dict:
    """Look at the nodes until the sweep is over; its report."""

    def over() -> bool:
        seen.look(cluster)
        return driver.poll() is not None

    with driver:
        try:
            wait_for(over, cluster)
            output, errors = driver.communicate()
        finally:
            driver.kill()
    print(f"\n{seen.table()}")
    assert driver.returncode == 0, errors
    return json.loads(output)


def undisturbed(trial: LocalStorage, out: Path) -> dict:
    """The same trial with neither Ray nor a second machine: as torchrun or Python starts it."""
    workers = get_json(trial, "spec.json")["layout"]["workers"]
    launcher = (
        ["torch.distributed.run", "--standalone", f"--nproc-per-node={workers}", "-m"]
        if workers > 1
        else []
    )
    subprocess.run(
        [sys.executable, "-m", *launcher, "trainers", str(trial.path("spec.json")),
         *["--out", str(out)]],
        check=True, capture_output=True,
    )  # fmt: skip
    return content(LocalStorage(out))


def trials(storage: Path) -> list[LocalStorage]:
    return [LocalStorage(path) for path in sorted((storage / "mix" / "trials").iterdir())]


def workers_of(trial: LocalStorage) -> int:
    return get_json(trial, "result.json")["layout"]["workers"]


def test_a_trial_of_two_workers_on_two_nodes_beside_trials_of_one(
    three: Nodes, sweep: Path, tmp_path: Path
):
    seen = Seen()
    report = follow(start(three, sweep, tmp_path), three, seen)
    assert report["counts"]["completed"] == 4
    (pair,) = [trial for trial in trials(tmp_path) if workers_of(trial) == 2]
    where = [seen.ranks[pair.root.name, rank] for rank in (0, 1)]
    assert all(len(node) == 1 for node in where)
    assert where[0] != where[1]
    layout = get_json(pair, "result.json")["layout"]
    assert (layout["workers"], layout["zero_stage"]) == (2, 2)
    for number, trial in enumerate(trials(tmp_path)):
        assert content(trial) == undisturbed(trial, tmp_path / f"alone-{number}"), trial.url


def test_more_trials_of_several_workers_than_there_is_room_for_do_not_wait_for_each_other(
    three: Nodes, sweep: Path, tmp_path: Path
):
    """Three trials of two workers on three CPUs, where one fits at a time."""
    seen = Seen()
    report = follow(start(three, sweep, tmp_path, *ALL_OF_TWO), three, seen)
    assert report["counts"]["completed"] == 3
    assert {workers_of(trial) for trial in trials(tmp_path)} == {2}
    assert {trial for trial, _ in seen.ranks} <= {trial.root.name for trial in trials(tmp_path)}


def test_a_node_that_does_not_see_the_storage_is_named_before_anything_is_trained(
    three: Nodes, sweep: Path, tmp_path: Path
):
    private = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*private, "true"], capture_output=True).returncode:
        pytest.skip("no private mounts here: unshare needs user namespaces or root")
    storage = tmp_path / "storage"
    storage.mkdir()
    hidden = f'mount -t tmpfs none "{storage}" && exec "$@"'
    three.add("blind", "--num-cpus=1", prefix=[*private, "sh", "-c", hidden, "sh"])
    try:
        output, errors = start(three, sweep, storage).communicate()
    finally:
        three.kill("blind")
    assert output == ""

    assert str(storage) in errors
    assert "node(s) " in errors
    assert not list(storage.rglob("*"))


def test_a_sweep_waits_for_nodes_when_its_own_go_and_ends_as_if_nothing_had_happened(
    sweep: Path, tmp_path: Path
):
    seen = Seen()
    with nodes() as cluster:
        cluster.add("a", "--num-cpus=1")
        cluster.add("b", "--num-cpus=1")
        driver = start(cluster, sweep, tmp_path, *LONG)

        def has_a_checkpoint() -> bool:
            seen.look(cluster)
            assert driver.poll() is None, driver.communicate()
            folder = tmp_path / "mix" / "trials"
            return folder.is_dir() and any(committed_steps(t.list()) for t in trials(tmp_path))

        wait_for(has_a_checkpoint, cluster)
        cluster.kill("b")
        cluster.add("late", "--num-cpus=1")
        report = follow(driver, cluster, seen)
    assert report["counts"]["completed"] == 1
    (trial,) = trials(tmp_path)
    assert get_json(trial, "result.json")["attempts"] >= 2
    assert set().union(*seen.ranks.values()) == {"a", "b", "late"}
    assert content(trial) == undisturbed(trial, tmp_path / "alone")
