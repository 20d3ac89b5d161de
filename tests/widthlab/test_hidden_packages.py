"""A user's own analysis.py, trainers.py ... is named, and never imported in place of widthlab's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import _widthlab
from orchestrator.cli import __main__ as cli
from orchestrator.sweep.find import open_sweep
from trialstore.errors import InputError

NAMES = ("orchestrator", "trainers", "analysis", "trialstore")
TINY = Path(cli.__file__).parents[1] / "sweeps" / "tiny.yaml"
#: As the script `widthlab` that is installed.
SCRIPT = "import sys\nfrom _widthlab import main\nsys.exit(main())\n"


def hide(folder: Path, name: str, kind: str = "file") -> Path:
    """A module of that name, which says so when it is imported."""
    file = folder / f"{name}.py" if kind == "file" else folder / name / "__init__.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text("print('imported in place of widthlab')\n")
    return file if kind == "file" else file.parent


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("name", NAMES)
def test_what_hides_a_package_is_found_by_its_path(tmp_path: Path, name: str, kind: str) -> None:
    place = hide(tmp_path, name, kind)
    assert _widthlab.hiding_module("widthlab", [tmp_path]) == (name, place)
    with pytest.raises(_widthlab.HiddenPackageError, match=str(place)):
        _widthlab.check_packages("widthlab", [tmp_path])


def test_nothing_is_hidden_by_the_folder_of_widthlab_itself() -> None:
    assert _widthlab.hiding_module("widthlab", [_widthlab.HOME]) is None
    assert _widthlab.hiding_module("widthlab") is None


def test_only_what_a_package_imports_can_be_hidden_from_it(tmp_path: Path) -> None:
    hide(tmp_path, "widthlab")
    hide(tmp_path, "orchestrator")
    assert _widthlab.hiding_module("trainers", [tmp_path]) is None
    assert _widthlab.hiding_module("orchestrator", [tmp_path]) is not None


def test_a_block_beside_a_hiding_module_is_refused(tmp_path: Path) -> None:
    """Its folder would come first on the path."""
    place = hide(tmp_path, "analysis")
    sweep = tmp_path / "own.yaml"
    sweep.write_text(TINY.read_text().replace("norm: pre", "norm: pre\n  block: mine:Block"))
    path = list(sys.path)
    with pytest.raises(InputError, match=str(place)):
        open_sweep(sweep, [], str(tmp_path))
    assert sys.path == path


def test_ray_is_not_started_where_its_workers_would_import_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Ray puts the working directory first on their path."""
    place = hide(tmp_path, "trainers", "folder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(sys, "argv", ["widthlab", "run", str(TINY), "--storage", "runs"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert str(place) in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# --- commands ------------------------------------------------------------------------------


def ended(folder: Path, *command: object, path: Path | None = None):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.mark.processes
@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("-m", "orchestrator.cli", "plan", TINY), "trainers"),
        (("-m", "orchestrator.cli", "plan", TINY), "analysis"),
        (("-m", "orchestrator.cli", "plan", TINY), "trialstore"),
        (("-m", "trainers", "spec.json", "--out", "trial"), "analysis"),
        (("-m", "trainers", "spec.json", "--out", "trial"), "trialstore"),
    ],
)
def test_a_module_of_the_working_directory_ends_a_command(
    tmp_path: Path, command, name: str
) -> None:
    place = hide(tmp_path, name)
    done = ended(tmp_path, *command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [line for line in done.stderr.splitlines() if line]
    assert str(place) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.processes
@pytest.mark.parametrize("name", NAMES)
def test_a_module_on_pythonpath_ends_the_installed_command(tmp_path: Path, name: str) -> None:
    place = hide(tmp_path, name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "widthlab").write_text(SCRIPT)
    done = ended(tmp_path, tmp_path / "bin" / "widthlab", "plan", TINY, path=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(place) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.processes
def test_the_installed_command_does_not_look_in_the_working_directory(tmp_path: Path) -> None:
    for name in (*NAMES, "widthlab"):
        hide(tmp_path, name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "widthlab").write_text(SCRIPT)
    done = ended(tmp_path, tmp_path / "bin" / "widthlab", "status", "--help")
    assert done.returncode == 0, done.stderr
    assert "imported in place" not in done.stdout


@pytest.mark.slow
@pytest.mark.processes
def test_ranks_under_torchrun_name_what_hides_a_package(tmp_path: Path) -> None:
    place = hide(tmp_path, "analysis")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 1)
    done = ended(tmp_path, *launcher, "-m", "trainers", "spec.json", "--out", "trial")
    assert done.returncode != 0
    assert f"error: {place}" in done.stderr


@pytest.mark.processes
def test_importing_widthlab_in_a_notebook_names_what_hides_a_package(tmp_path: Path) -> None:
    place = hide(tmp_path, "analysis")
    done = ended(tmp_path, "-c", "import widthlab")
    assert done.returncode == 1
    assert str(place) in done.stderr.splitlines()[-1]
