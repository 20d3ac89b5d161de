"""The Slurm script for real: two Ray nodes on this machine in the place of an allocation's."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from repository import ROOT

from trialstore.records import committed_steps, get_json
from trialstore.storage import LocalStorage

pytestmark = pytest.mark.slow

PATIENCE_S = 600
SWEEP = """\
name: slurm
corpus: {kind: python-source}
tokenizer: {kind: bytes}
model: {architecture: gpt2, norm: pre, depth: 1, d_model: 32, head_dim: 16, context: 32}
grid: {width_multiplier: [2, 4]}
training: {steps: 2000, batch_tokens: 512, learning_rate: 6.0e-3}
evaluation: {every: 1000, tokens: 2048}
spectra: {every: 1000, tokens: 2048}
resources: {checkpoint_every: 20}
"""

#: What Slurm would start on a node starts here; the second node is the only one with CPUs.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
echo $$ >> "$PIDS"
options=(--disable-usage-stats --object-store-memory=100000000 --dashboard-agent-listen-port=0
  --min-worker-port=0 --max-worker-port=0 --temp-dir="$RAY_FOLDER")
if [[ " $* " == *" --head "* ]]; then
  options+=(--num-cpus=0 --include-dashboard=false --ray-client-server-port="$RAY_CLIENT_PORT")
else
  options+=(--num-cpus=1)
fi
exec "$@" "${options[@]}"
"""
SCONTROL = "#!/bin/sh\necho 127.0.0.1\necho the-other-node\n"


class Allocation:
    """What the script finds in one, and everything that it started there."""

    def __init__(self, tmp_path: Path, folder: Path) -> None:
        self.storage = tmp_path / "runs"
        self._sweep = tmp_path / "slurm.yaml"
        self._sweep.write_text(SWEEP)
        self._pids = tmp_path / "pids"
        commands = tmp_path / "bin"
        commands.mkdir()
        for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join(
                [str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]
            ),
            "PYTHONPATH": str(ROOT),
            "SLURM_JOB_ID": str(secrets.randbelow(10_000)),
            "RAY_CLIENT_PORT": str(30_000 + secrets.randbelow(10_000)),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "WIDTHLAB_STORAGE": str(self.storage),
            "PIDS": str(self._pids),
            "RAY_FOLDER": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "OMP_NUM_THREADS": "1",
        }
        self.output = tmp_path / "slurm.out"

    @contextlib.contextmanager
    def job(self) -> Iterator[subprocess.Popen[bytes]]:
        """The script, and at the end what Slurm does to all that is left of it."""
        with self.output.open("ab") as output:
            script = subprocess.Popen(
                ["bash", str(ROOT / "cluster" / "slurm.sh"), str(self._sweep)],
                env=self._environment, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            yield script
        finally:
            left = _family(script.pid)
            for pid in self._pids.read_text().split() if self._pids.exists() else []:
                left += _family(int(pid))
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            script.wait()
            self._pids.unlink(missing_ok=True)

    def trials(self) -> list[LocalStorage]:
        return [LocalStorage(path) for path in self.storage.glob("slurm/trials/*")]


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Allocation]:
    # Ray's sockets lie in there, and their paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
    yield Allocation(tmp_path, folder)
    shutil.rmtree(folder, ignore_errors=True)


def test_an_allocation_that_ends_early_leaves_checkpoints_and_the_next_one_goes_on(
    allocation: Allocation,
) -> None:
    with allocation.job() as script:
        deadline = time.monotonic() + PATIENCE_S
        while not any(committed_steps(trial.list("checkpoints")) for trial in allocation.trials()):
            assert script.poll() is None, allocation.output.read_text()
            assert time.monotonic() < deadline, allocation.output.read_text()
            time.sleep(0.05)
        script.send_signal(signal.SIGTERM)  # as Slurm does two minutes before the end
        assert script.wait(PATIENCE_S) != 0
    ended = [trial for trial in allocation.trials() if get_json(trial, "result.json")]
    assert len(ended) < 2, allocation.output.read_text()
    leases = [get_json(trial, "lease.json") for trial in allocation.trials()]
    assert all(lease is None or lease["released"] for lease in leases), (
        allocation.output.read_text()
    )

    with allocation.job() as script:
        assert script.wait(PATIENCE_S) == 0, allocation.output.read_text()
    results = [get_json(trial, "result.json") for trial in allocation.trials()]
    assert [result["outcome"] for result in results] == ["completed", "completed"]
    assert max(result["attempts"] for result in results) == 2
