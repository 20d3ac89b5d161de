"""The files for clusters parse, and name only what exists here."""

import re
import subprocess

import pytest
import yaml
from repository import ROOT

CLUSTER = ROOT / "cluster"


@pytest.mark.parametrize("name", ["kuberay.yaml", "mlflow.yaml", "ray-cluster.yaml"])
def test_the_manifests_are_yaml(name: str):
    documents = list(yaml.safe_load_all((CLUSTER / name).read_text()))
    assert documents
    assert all(isinstance(document, dict) for document in documents)


@pytest.mark.processes
def test_the_slurm_script_is_a_shell_script():
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sh")], check=True)
    assert "widthlab run" in (CLUSTER / "slurm.sh").read_text()


def test_the_image_copies_what_exists_and_every_package():
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    copied = {
        source
        for line in re.findall(r"^COPY (.+)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert all((ROOT / source).exists() for source in copied)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {"trialstore", "analysis", "trainers", "orchestrator"} <= packages
    assert packages | {"constraints.txt"} <= copied


def test_the_mlflow_service_runs_the_version_that_is_pinned():
    pinned = re.search(r"^mlflow==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert f"mlflow=={pinned[1]}" in (CLUSTER / "mlflow.yaml").read_text()


def test_the_readme_lists_every_file():
    readme = (CLUSTER / "README.md").read_text()
    for path in CLUSTER.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in readme
