"""Sweeps as jobs of a real Ray head with token authentication, on this machine."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from repository import TINY

pytestmark = pytest.mark.slow

WIDTHLAB = [sys.executable, "-m", "orchestrator.cli"]
PATIENCE_S = 600.0
PASSWORD = "mlflow-4711"
LIST_JOBS = """
import json, sys
from orchestrator.jobs.server import connect
print(json.dumps([job.to_json() for job in connect(sys.argv[1]).jobs()]))
"""


@dataclass(frozen=True)
class Cluster:
    """A Ray head, and where this test keeps what belongs to it."""

    address: str
    process: psutil.Process
    folder: Path
    environment: dict[str, str]

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    @property
    def token(self) -> str:
        return (self.folder / "token").read_text()

    def submit(self, *arguments: str | Path, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*WIDTHLAB, "submit", *map(str, arguments), "--address", self.address],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**self.environment, **environment},
            # Whatever started the tests may ignore Ctrl-C, as a shell's background jobs do.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def submitted(self, *arguments: str | Path, **environment: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command that ends."""
        process = self.submit(*arguments, **environment)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in err
        return process.returncode, out, err

    def jobs(self) -> dict[str, dict]:
        """The jobs by sweep."""
        done = subprocess.run(
            [sys.executable, "-c", LIST_JOBS, self.address],
            capture_output=True, text=True, check=True, env=self.environment,
        )  # fmt: skip
        return {job["sweep"]: job for job in json.loads(done.stdout)}

    def driver(self, sweep: str) -> psutil.Process:
        """The process that runs a sweep."""
        for process in self.process.children(recursive=True):
            try:
                command = process.cmdline()
            except psutil.Error:
                continue
            if "orchestrator.cli" in command and f"name={sweep}" in command:
                return process
        raise LookupError(sweep)

    def status(self, sweep: str) -> dict:
        command = [*WIDTHLAB, "status", str(self.storage / sweep), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)


@contextmanager
def head() -> Iterator[Cluster]:
    """A Ray head of our own, ended with all its processes."""
    # Ray's sockets need a short path, which pytest's folders are not.
    folder = Path(tempfile.mkdtemp(prefix="wl-", dir="/tmp"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_gcs_server_port_wait_time_s": "300",  # where others keep the cores busy
        "RAY_gcs_server_request_timeout_seconds": "300",
        "WIDTHLAB_STORAGE": str(folder / "storage"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    command = [
        Path(sys.executable).parent / "ray", "start", "--head", "--block", "--port", "0",
        "--dashboard-port", "0", "--dashboard-agent-listen-port", "0",
        "--dashboard-host", "127.0.0.1", "--num-cpus", "2",
        "--object-store-memory", "100000000", "--temp-dir", folder / "ray",
    ]  # fmt: skip
    log = folder / "head.log"
    with log.open("w") as out:
        started = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    process = psutil.Process(started.pid)
    try:
        url = r"http://127\.0\.0\.1:\d+"
        found = until(lambda: re.search(url, log.read_text()), started, log)
        yield Cluster(found[0], process, folder, environment)
    finally:
        everything = process.children(recursive=True) if process.is_running() else []
        started.terminate()
        started.wait(60)
        for left in psutil.wait_procs(everything, timeout=10)[1]:
            left.kill()
        shutil.rmtree(folder, ignore_errors=True)


def until(
    what: Callable[[], Any], process: "subprocess.Popen[Any]", log: Path | None = None
) -> Any:
    """Wait for something to be there, for as long as a process lives."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := what()):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            said = process.communicate() if log is None else [log.read_text()]
            pytest.fail("\n".join(said))
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with head() as cluster:
        yield cluster


def named(name: str, *settings: str) -> list[str]:
    return [word for setting in (f"name={name}", *settings) for word in ("--set", setting)]


def trained_to(cluster: Cluster, sweep: str) -> bool:
    """Whether some trial of a sweep has a checkpoint."""
    return any(cluster.storage.glob(f"{sweep}/trials/*/checkpoints/*/manifest.json"))


LONG = ("grid.width_multiplier=[1]", "training.steps=100000", "resources.checkpoint_every=40")


def test_a_job_followed_to_its_end_leaves_what_a_run_leaves_and_tells_no_secret(
    cluster: Cluster, tmp_path: Path
):
    settings = named("done", "grid.width_multiplier=[1, 2]")
    code, out, err = cluster.submitted(
        TINY, *settings, "--follow", "--json",
        MLFLOW_TRACKING_USERNAME="me", MLFLOW_TRACKING_PASSWORD=PASSWORD,
    )  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert (told["state"], told["exit_code"], told["sweep"]) == ("succeeded", 0, "done")
    assert "report   " in err  # the log's last lines are not lost
    assert cluster.jobs()["done"]["state"] == "succeeded"

    local = [*WIDTHLAB, "run", str(TINY), *settings, "--storage", str(tmp_path), "--json"]
    run = subprocess.run(local, capture_output=True, text=True, check=True)
    losses = {trial["id"]: trial["loss"] for trial in json.loads(run.stdout)["trials"]}
    assert {trial["id"]: trial["loss"] for trial in cluster.status("done")["trials"]} == losses
    assert (cluster.storage / "done" / "report" / "report.html").exists()
    resolved = [
        yaml.safe_load((storage / "done" / "sweep.yaml").read_text())["resolved"]
        for storage in (cluster.storage, tmp_path)
    ]
    assert resolved[0] == resolved[1]  # the commit, too, though the job runs in no checkout

    logs = [path for path in (cluster.folder / "ray").rglob("*.log") if path.is_file()]
    assert [path for path in logs if "_ray_pkg_" in path.read_text(errors="replace")]
    for path in logs:
        text = path.read_text(errors="replace")
        assert PASSWORD not in text, path
        assert cluster.token not in text, path


def test_a_wrong_and_a_missing_token_are_told_apart(cluster: Cluster, tmp_path: Path):
    wrong = tmp_path / "wrong"
    wrong.write_text(secrets.token_hex(32))
    code, out, err = cluster.submitted(TINY, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert (code, out) == (2, "")
    assert "does not accept the token" in err
    assert wrong.read_text() not in err
    code, _, err = cluster.submitted(TINY, RAY_AUTH_MODE="disabled")
    assert (code, "asks for a token" in err) == (2, True)
    code, _, err = cluster.submitted(TINY, RAY_AUTH_TOKEN_PATH=str(tmp_path / "none"))
    assert (code, str(tmp_path / "none") in err) == (2, True)


def test_what_the_cluster_cannot_use_is_bad_input_of_the_job(cluster: Cluster):
    corpus = "corpus={kind: text, paths: [/nowhere/at/all.txt]}"
    code, _, err = cluster.submitted(TINY, *named("lost", corpus), "--follow")
    assert code == 2
    assert "/nowhere/at/all.txt" in err
    assert re.search(r"job \S+ failed: .*/nowhere/at/all", err.splitlines()[-1])


BLOCK = '''
from trainers.models.decoder import Block


class Mine(Block):
    """widthlab's own, under a name of the user's."""

    replaces = "block"
'''


def test_a_block_of_the_users_own_is_there_for_the_driver_and_the_trials(
    cluster: Cluster, tmp_path: Path
):
    (tmp_path / "mine.py").write_text(BLOCK)
    sweep = tmp_path / "sweep.yaml"
    shutil.copyfile(TINY, sweep)
    settings = named("block", "grid.width_multiplier=[1]", "model.block=mine:Mine")
    code, _, err = cluster.submitted(sweep, *settings, "--follow")
    assert code == 0, err
    assert cluster.status("block")["counts"]["completed"] == 1


def test_a_job_killed_from_outside_is_reported_and_continued(cluster: Cluster):
    settings = named("killed", "grid.width_multiplier=[1]", "training.steps=400")
    following = cluster.submit(TINY, *settings, "--follow")
    until(lambda: trained_to(cluster, "killed"), following)
    cluster.driver("killed").kill()
    _, err = following.communicate(timeout=PATIENCE_S)
    assert following.returncode == 1
    assert "SIGKILL" in err.splitlines()[-1]
    assert cluster.jobs()["killed"]["state"] == "failed"
    code, _, err = cluster.submitted(TINY, *settings, "--follow")
    assert code == 0, err
    assert cluster.status("killed")["counts"]["completed"] == 1


def test_an_interrupted_follower_leaves_the_job_which_stops_with_a_checkpoint(cluster: Cluster):
    following = cluster.submit(TINY, *named("long", *LONG), "--follow")
    until(lambda: trained_to(cluster, "long"), following)
    code, _, err = cluster.submitted(TINY, *named("long"))
    assert (code, "runs sweep long already" in err) == (2, True)

    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=PATIENCE_S)
    assert following.returncode == 130
    job = cluster.jobs()["long"]
    assert job["state"] == "running"
    assert f"job {job['id']} " in err

    code, _, err = cluster.submitted("--stop", job["id"])
    assert (code, "was stopped" in err) == (0, True)
    (trial,) = cluster.status("long")["trials"]
    assert trial["state"] == "waiting"  # it has given its lease back
    (last,) = (cluster.storage / "long" / "trials").glob(f"*/checkpoints/*{trial['step']:08d}")
    assert (last / "manifest.json").exists()
    code, _, err = cluster.submitted("--attach", job["id"])
    assert (code, "was stopped" in err) == (1, True)


def test_a_head_that_dies_ends_the_following_with_a_message():
    with head() as cluster:
        following = cluster.submit(TINY, *named("headless", *LONG), "--follow")
        until(lambda: trained_to(cluster, "headless"), following)
        cluster.process.terminate()
        _, err = following.communicate(timeout=PATIENCE_S)
        assert following.returncode == 1
        assert cluster.address in err
        assert "Traceback" not in err
