"""`import widthlab`: the same plans, verdicts and fits as the commands, for a notebook."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import widthlab
from orchestrator.cli import __main__ as cli
from widthlab.arguments import settings_of

OLD_SWEEPS = Path(__file__).parents[1] / "data" / "old-sweeps"
DOCUMENTED = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]):
    """A command of widthlab's in this process: its stdout."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        cli.app([str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().out

    return call


@pytest.fixture
def table() -> pd.DataFrame:
    widths = np.array([64, 128, 256, 512])
    rows = [
        {"D": width, "rank": scale * width**0.5, "net": net, "n": 7}
        for net, scale in (("gpt2", 1.0), ("llama", 2.0))
        for width in widths
    ]
    return pd.DataFrame(rows, index=[f"row {number}" for number in range(len(rows))])


# --- the package ---------------------------------------------------------------------------


@pytest.mark.processes
def test_importing_it_loads_neither_torch_nor_ray_nor_pandas() -> None:
    script = "import sys, widthlab; print(sorted({'torch', 'ray', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_can_be_imported_and_is_listed() -> None:
    for name in widthlab.__all__:
        assert getattr(widthlab, name) is not None
    assert set(widthlab.__all__) <= set(dir(widthlab))
    assert widthlab.__version__ == metadata.version("widthlab")
    with pytest.raises(AttributeError, match="no_such_name"):
        widthlab.no_such_name  # noqa: B018


def test_public_functions_and_types_say_what_they_are_for() -> None:
    for name in widthlab.__all__:
        found = getattr(widthlab, name)
        if callable(found):
            assert found.__doc__, name


def test_the_rooms_own_names_are_not_other_copies() -> None:
    from analysis.spectrum import measure
    from trainers.spectra.probe import Probe

    assert widthlab.measure is measure
    assert widthlab.Probe is Probe


# --- sweeps --------------------------------------------------------------------------------


def test_a_plan_is_that_of_the_command(tmp_path: Path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    printed = command("plan", "tiny.yaml", "--json", "--set", "training.steps=30")
    planned = widthlab.plan("tiny.yaml", {"training.steps": 30})
    assert json.loads(json.dumps(planned.to_json())) == json.loads(printed)
    assert list(planned.trials["id"]) == [trial["id"] for trial in json.loads(printed)["trials"]]
    assert set(planned.trials["D"]) == {32, 64, 128}
    assert not any(tmp_path.iterdir())


def test_a_plan_prints_as_the_command_does(tmp_path: Path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    planned = widthlab.plan("tiny.yaml")
    words = command("plan", "tiny.yaml").split()
    assert str(planned).split() == words
    html = planned._repr_html_()
    assert all(trial in html for trial in planned.trials["id"])
    assert all(warning[:40] in html for warning in planned.warnings)


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        (None, []),
        ({"training.steps": 30, "width_multiplier": [1, 2.67]},
         ["training.steps=30", "width_multiplier=[1, 2.67]"]),
        ({"name": "mine: 1", "resources.concurrent": None, "spectra.buckets": True},
         ['name="mine: 1"', "resources.concurrent=null", "spectra.buckets=true"]),
        ({"seed": np.arange(2), "learning_rate": np.float64(0.5)},
         ["seed=[0, 1]", "learning_rate=0.5"]),
        (["training.steps=30"], ["training.steps=30"]),
        ("training.steps=30", ["training.steps=30"]),
    ],
)  # fmt: skip
def test_overrides_become_settings(overrides, settings) -> None:
    assert settings_of(overrides) == settings


def test_a_value_that_no_sweep_file_can_have_is_refused() -> None:
    with pytest.raises(widthlab.InputError, match="seed"):
        settings_of({"seed": object()})


def test_a_file_of_the_user_is_never_hidden_by_a_shipped_one(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = widthlab.plan("tiny.yaml")
    assert "sweeps/tiny.yaml" in caplog.text
    caplog.clear()
    text = (Path(cli.__file__).parents[1] / "sweeps" / "tiny.yaml").read_text()
    Path("tiny.yaml").write_text(text.replace("name: tiny", "name: mine"))
    assert (shipped.plan.sweep, widthlab.plan("tiny.yaml").plan.sweep) == ("tiny", "mine")
    assert caplog.text == ""
    with pytest.raises(widthlab.InputError, match=r"sweeps/tiny\.yaml"):
        widthlab.plan("sweeps/tiny.yaml")  # names a folder: that file and no other
    with pytest.raises(widthlab.InputError, match=r"huge\.yaml.*small\.yaml"):
        widthlab.plan("huge.yaml")


def test_the_command_says_so_when_a_shipped_sweep_is_meant(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.app(["plan", "tiny.yaml", "--json"], standalone_mode=False)
    said = capsys.readouterr()
    assert json.loads(said.out)["sweep"] == "tiny"
    assert "sweeps/tiny.yaml" in said.err


def test_the_storage_is_the_argument_or_that_of_the_environment(
    tmp_path: Path, monkeypatch
) -> None:
    from widthlab.arguments import storage_of

    monkeypatch.delenv("WIDTHLAB_STORAGE", raising=False)
    assert storage_of(None) == "widthlab-runs"
    monkeypatch.setenv("WIDTHLAB_STORAGE", "/data")
    assert storage_of(None) == "/data"
    assert storage_of(tmp_path) == str(tmp_path)


def test_a_run_is_refused_in_a_process_that_has_joined_ray(tmp_path: Path, monkeypatch) -> None:
    class Joined:
        @staticmethod
        def is_initialized() -> bool:
            return True

    monkeypatch.setitem(sys.modules, "ray", Joined)
    with pytest.raises(widthlab.InputError, match=r"ray\.shutdown\(\)"):
        widthlab.run("tiny.yaml", storage=tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.long
def test_a_verdict_is_that_of_the_command(
    tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = {"svg": b"<svg></svg>", "png": b"\x89PNG"}  # drawing takes most of an analysis
    monkeypatch.setattr("analysis.pipeline.render", lambda figure: dict(blank))
    sweep = tmp_path / "sweep"
    shutil.copytree(OLD_SWEEPS / "semantics-1", sweep)
    verdict = widthlab.analyse(sweep)
    assert str(verdict).split() == command("analyze", sweep).split()
    assert verdict.recommendation["groups"][0]["label"] == verdict.groups["group"][0]
    assert verdict.groups["verdict"].isin(["recommended", "plateau", "refused"]).all()
    assert Path(verdict.report_url).is_file()
    html = verdict._repr_html_()
    assert all(label in html for label in verdict.groups["group"])
    trials = widthlab.load_sweep(str(sweep)).trials
    assert {"D", "val_loss", "soft_rank"} <= set(trials.columns)


def test_a_folder_that_is_no_sweep_is_named(tmp_path: Path) -> None:
    for call in (widthlab.load_sweep, widthlab.analyse):
        with pytest.raises(widthlab.InputError, match=str(tmp_path)):
            call(tmp_path)


# --- fits ----------------------------------------------------------------------------------


def test_a_frame_is_fitted_as_the_command_fits_its_file(table, tmp_path: Path, command) -> None:
    path = tmp_path / "ranks.csv"
    table.to_csv(path, index=False)
    asked = ("fit", path, "--law", "power", "--x", "D", "--y", "rank", "--group", "net")
    fitted = widthlab.fit(table, "power", x="D", y="rank", group="net", figure=tmp_path / "law.svg")
    assert fitted.to_json() == json.loads(command(*asked, "--json"))
    assert str(fitted) == command(*asked).rstrip("\n")
    assert str(widthlab.fit(str(path), "power", x="D", y="rank", group=["net"])) == str(fitted)
    assert (tmp_path / "law.svg").is_file()
    assert repr(fitted) == str(fitted)


@pytest.mark.parametrize(("law", "where"), [("powr", None), ("power", ["g=a"])])
def test_an_unknown_law_or_selection_is_bad_input(table, law, where) -> None:
    with pytest.raises(widthlab.InputError, match=r"powr|g=a"):
        widthlab.fit(table, law, x="D", y="rank", where=where)


def test_parameters_have_a_row_per_group_and_name(table) -> None:
    found = widthlab.fit(table, "power", x="D", y="rank", group="net")
    assert list(found.parameters.columns) == ["net", "parameter", "value", "low", "high"]
    exponents = found.parameters.query("parameter == 'beta'")
    assert list(exponents["net"]) == ["gpt2", "llama"]
    np.testing.assert_allclose(exponents["value"], 0.5, rtol=1e-9)
    assert "Law: power" in found._repr_html_()
    assert any("llama" in text for text in found.warnings)


def test_rows_are_chosen_by_value(table) -> None:
    chosen = widthlab.fit(table, "power", x="D", y="rank", where={"net": "llama", "n": 7})
    assert chosen.fitted.groups[0].n == 4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"law": "power", "x": "D"}, "y"),
        ({"law": "power", "x": "D", "y": "rank", "params": "n"}, "params"),
        ({"law": "power", "x": "D", "y": "ranks"}, "'ranks'"),
        ({"law": "chinchilla", "params": "D", "tokens": "n", "loss": "rank", "bootstrap": 5},
         "bootstrap 5"),
    ],
)  # fmt: skip
def test_errors_name_arguments_and_not_options(table, arguments, named: str) -> None:
    with pytest.raises(widthlab.InputError, match=named) as caught:
        widthlab.fit(table, **arguments)
    assert "--" not in str(caught.value)


def test_a_frame_with_a_column_twice_is_refused(table) -> None:
    twice = pd.concat([table, table[["rank"]]], axis="columns")
    with pytest.raises(widthlab.InputError, match="'rank'"):
        widthlab.fit(twice, "power", x="D", y="rank")


# --- spectra -------------------------------------------------------------------------------


def test_a_probe_and_the_metrics_of_what_it_saw() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    with widthlab.Probe({"post": widthlab.Tap(model[2], "input")}) as probe, torch.no_grad():
        model(torch.randn(500, 4))
    metrics = widthlab.measure(probe["post"].eigenvalues())
    assert isinstance(metrics, widthlab.SpectrumMetrics)
    assert 1 <= metrics.hard_rank <= metrics.soft_rank <= 8


def test_the_documented_names_exist() -> None:
    import re

    named = set(re.findall(r"widthlab\.([A-Za-z]\w*)", DOCUMENTED.read_text())) - {"yaml"}
    assert named <= set(widthlab.__all__), named - set(widthlab.__all__)
