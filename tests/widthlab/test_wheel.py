"""A wheel works where there is no checkout: in a clean environment, from an empty folder."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.processes, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
#: What a wheel is made of.
PACKAGED = (
    "_widthlab.py", "analysis", "orchestrator", "trainers", "trialstore", "widthlab",
    "pyproject.toml", "README.md", "LICENSE",
)  # fmt: skip


def tracked() -> list[str]:
    """Files of the packages that git knows, or will: no caches, no earlier builds."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGED],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).exists()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(folder / "dist"), str(folder / "source")],
        check=True,
    )  # fmt: skip
    (built,) = (folder / "dist").glob("widthlab-*.whl")
    return built


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a new environment with the wheel in it.

    Its dependencies are those of the running Python, by a path file: such a folder's own path
    files are not read, and an editable installation of widthlab stays out.
    """
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--python", str(folder / "bin" / "python"),
         "install", "--no-deps", "--no-index", str(wheel)],
        check=True,
    )  # fmt: skip
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    Path(paths["purelib"], "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty one to work in."""
    return tmp_path_factory.mktemp("empty")


def ran(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """A command that must succeed, without the checkout in its environment."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    packaged = [name for name in tracked() if name.endswith((".py", ".yaml", ".html"))]
    assert set(packaged) <= set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in packaged if not name.endswith(".py")} >= {
        "orchestrator/sweeps/tiny.yaml",
        "analysis/report/templates/report.html",
    }


def test_the_wheel_is_what_is_imported(scripts: Path, folder: Path) -> None:
    names = "_widthlab, widthlab, orchestrator, trainers, analysis, trialstore"
    script = f"import {names}\nfor one in ({names}): print(one.__file__)"
    places = ran(folder, scripts / "python", "-c", script).stdout.splitlines()
    site = Path(places[0]).parent
    assert site.parents[2] == scripts.parent
    assert {Path(place).relative_to(site).parts[0] for place in places[1:]} == set(
        names.split(", ")[1:]
    )
    version = ran(folder, scripts / "python", "-c", "import widthlab; print(widthlab.__version__)")
    assert version.stdout.strip() == "0.1.0"


def test_a_shipped_sweep_is_planned_run_and_its_trials_trained_alone(
    scripts: Path, folder: Path
) -> None:
    planned = ran(folder, scripts / "widthlab", "plan", "tiny.yaml")
    assert "Sweep tiny" in planned.stdout
    assert "sweeps/tiny.yaml" in planned.stderr  # said, as there is no such file in the folder
    done = ran(folder, scripts / "widthlab", "run", "tiny.yaml")
    assert "tiny: 3 trials, 3 completed" in done.stdout
    assert (folder / "widthlab-runs" / "tiny" / "report" / "report.html").is_file()
    spec = next((folder / "widthlab-runs" / "tiny" / "trials").glob("*/spec.json"))
    alone = ran(folder, scripts / "python", "-m", "trainers", spec, "--out", "alone")
    assert "completed at step 20" in alone.stderr
    assert (folder / "alone" / "result.json").is_file()
