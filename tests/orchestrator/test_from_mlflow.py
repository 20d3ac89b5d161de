"""Claims about a sweep that comes back from MLflow: the same verdict, and what is lost is said."""

import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from exporter_bench import (
    START_MS,
    WIDTHS,
    Bench,
    evaluation_row,
    finish_trial,
    give_up,
    put_rows,
    spec,
    train_row,
)
from messages import mentions

from analysis.spectrum import measure, sampling_status
from analysis.tables.sweep_tables import SweepTables, load_sweep
from analysis.verdict.recommend import recommend
from orchestrator.cli import __main__ as cli
from orchestrator.ledger.ledger import read_ledger
from orchestrator.mlflow.export_sweep import Exporter
from orchestrator.mlflow.from_mlflow import ORIGIN_FILE, rebuild
from trialstore import records
from trialstore.errors import InputError
from trialstore.records import METRICS, SPECTRA, encode_json
from trialstore.storage import LocalStorage

MULTIPLIERS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
SAMPLES, STEPS = 4096, 40
#: What MLflow does not hold.
LOST = {"method", "error_estimate", "top10_share", "total_variance"}

MakeBench = Callable[[int], Bench]


def snapshots(widths: list[int], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Spectra of both layers at steps 0, 20 and 40, of power laws that steepen."""
    rows = []
    for step in (0, 20, 40):
        for layer, width in enumerate(widths):
            decay = 0.5 + step / 60 + 0.05 * layer + 0.01 * rng.standard_normal()
            found = measure(np.arange(1.0, width + 1) ** -decay)
            rows.append(
                {
                    "step": step,
                    "tokens": step * 2048,
                    "time_ms": START_MS + step * 100 + 60,
                    "site": "post",
                    "layer": layer,
                    "bucket": "all",
                    "D": width,
                    "N": SAMPLES,
                    "n_over_d": SAMPLES / width,
                    "method": "exact",
                    "status": sampling_status(SAMPLES, width),
                    **{name: float(getattr(found, name)) for name in records.SPECTRUM_COLUMNS},
                }
            )
    return rows


def plant(bench: Bench) -> None:
    """Fourteen completed trials with an optimum at 2.8x; the bench was made for as many."""
    rng = np.random.default_rng(3)
    cells = []
    for number, (hold, multiplier) in enumerate(
        (hold, multiplier) for hold in ("none", "params") for multiplier in MULTIPLIERS
    ):
        d_model = 64 if hold == "none" else 8 * round(64 * math.sqrt(12 / (4 + 2 * multiplier)) / 8)
        width = 8 * round(multiplier * d_model / 8)
        widths = [width, width]
        loss = 3.4 + 0.1 * math.log(width / d_model / 2.8) ** 2 + 0.001 * rng.standard_normal()
        trial_id = bench.ids[number]
        trial = bench.sweep.child(f"trials/{trial_id}")
        about = spec(trial_id)
        about["model"] |= {"ffn_widths": widths, "d_model": d_model}
        trial.put(records.SPEC, encode_json(about))
        curve = [train_row(step) for step in range(1, STEPS + 1)]
        curve += [evaluation_row(0), evaluation_row(STEPS, val_loss=loss)]
        curve.sort(key=lambda row: row["step"])
        bench.put(METRICS, trial, curve)
        bench.put(SPECTRA, trial, snapshots(widths, rng))
        finish_trial(trial)
        ffn = 4 * d_model * width
        parameters = {"non_embedding": 8 * d_model**2 + ffn, "ffn": ffn, "total": 99_999}
        flops = 6 * STEPS * 2048 * parameters["non_embedding"]
        result = json.loads(trial.get(records.RESULT))
        result |= {
            "final": {"train_loss": loss, "val_loss": loss},
            "parameters": parameters,
            "flops": flops,
            "tokens": STEPS * 2048,
            "seconds": {"training": flops / 1e9, "total": flops / 1e9},
            "layout": {"workers": 1, "device": "cpu"},
            "versions": {"torch": "2.13.0"},
        }
        trial.put(records.RESULT, encode_json(result))
        axes = {"architecture": "gpt2", "norm": "pre", "width_multiplier": multiplier, "seed": 0}
        axes |= {"d_model": d_model, "D": width}
        cells.append(
            {
                "id": trial_id,
                "holds": [hold],
                "axes": axes,
                "parameters": parameters,
                "flops": flops,
            }
        )
    edit_sweep(bench, model={"d_model": 64}, resolved={"trials": cells})


def edit_sweep(bench: Bench, **sections: Mapping[str, Any]) -> None:
    content = yaml.safe_load(bench.sweep.get("sweep.yaml"))
    content |= sections
    bench.sweep.put("sweep.yaml", yaml.safe_dump(content).encode())


@pytest.fixture
def planted(make_bench: MakeBench) -> Bench:
    """A sweep with a verdict, in its directory and in MLflow."""
    bench = make_bench(2 * len(MULTIPLIERS))
    plant(bench)
    assert bench.exporter().finish().refused == 0
    return bench


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "rebuilt")


def verdict_of(tables: SweepTables) -> dict[str, Any]:
    """The content of recommendation.json, but for what the report adds."""
    content: dict[str, Any] = json.loads(encode_json(recommend(tables).to_dict()))
    return content


@pytest.mark.long
def test_the_verdict_from_mlflow_is_that_from_the_directory(planted: Bench, out: str) -> None:
    rebuilt = rebuild("small", planted.uri, out)
    there, here = load_sweep(planted.sweep), load_sweep(rebuilt.sweep)
    expected = verdict_of(there)
    assert verdict_of(here) == expected
    assert expected["groups"][0]["verdict"] == "recommended"
    assert expected["groups"][0]["evidence"]["laws"]["soft_rank"]["fitted"]
    assert not rebuilt.unreadable
    assert rebuilt.links == {}

    lost = list(LOST & set(there.trials.columns))
    pd.testing.assert_frame_equal(here.trials.drop(columns=lost), there.trials.drop(columns=lost))
    for frame in ("spectra", "curves"):
        mine, theirs = getattr(here, frame), getattr(there, frame)
        kept = [column for column in theirs.columns if column not in LOST]
        pd.testing.assert_frame_equal(mine[kept], theirs[kept])
    assert here.spectra[sorted(LOST)].isna().all(axis=None)


@pytest.mark.parametrize("source", ["experiment", "parent", "child", "directory", "identity"])
@pytest.mark.long
def test_a_sweep_is_found_by_each_of_its_names(bench: Bench, out: str, source: str) -> None:
    put_rows(bench.begin(), 1, 0, 40)
    bench.exporter().sync_once()
    names = {
        "experiment": "widthlab",
        "parent": bench.parent().info.run_id,
        "child": bench.child().info.run_id,
        "directory": bench.sweep.url,
        "identity": bench.parent().data.tags["widthlab.sweep"],
    }
    rebuilt = rebuild(names[source], bench.uri, out)
    origin = json.loads(rebuilt.sweep.get(ORIGIN_FILE))
    assert origin["run_id"] == bench.parent().info.run_id
    assert rebuilt.sweep.get("sweep.yaml") == bench.sweep.get("sweep.yaml")


def test_what_had_not_ended_is_what_it_was(make_bench: MakeBench, out: str) -> None:
    bench = make_bench(4)
    cells = [{"id": trial, "axes": {"seed": i, **WIDTHS}} for i, trial in enumerate(bench.ids)]
    edit_sweep(bench, resolved={"trials": cells})
    put_rows(bench.begin(0), 1, 0, 20)  # running
    put_rows(bench.begin(1), 1, 0, 20)
    give_up(bench.sweep.child(f"trials/{bench.ids[1]}"))
    collapsed = bench.begin(2)
    put_rows(collapsed, 1, 0, 40)
    collapsed.put(records.COLLAPSE, encode_json({"step": 20}))
    finish_trial(collapsed, "collapsed")
    bench.exporter().sync_once()
    sweep = rebuild("small", bench.uri, out).sweep
    states = load_sweep(sweep).trials.set_index("id")
    assert states["state"].tolist() == ["waiting", "failed", "collapsed", "waiting"]
    assert states.loc[bench.ids[1], "reason"] == "out of memory"
    ledger = read_ledger(sweep)
    assert [trial.collapsed_since for trial in ledger.trials] == [None, None, 20, None]
    assert ledger.trials[0].step == 20


def test_numbers_that_were_not_finite_are_null_and_counted(bench: Bench, out: str) -> None:
    trial = bench.begin()
    rows = [train_row(step) for step in range(1, 40)]
    rows += [train_row(40, train_loss=math.nan, grad_norm=math.inf)]
    bench.put(METRICS, trial, rows)
    finish_trial(trial, "diverged")
    bench.exporter().finish()
    rebuilt = rebuild("small", bench.uri, out)
    assert rebuilt.nonfinite == 2
    last = load_sweep(rebuilt.sweep).curves.iloc[-1]
    assert last["step"] == 40
    assert math.isnan(last["train_loss"])
    assert last["learning_rate"] == 1e-3 * 40


def test_layers_of_different_width_know_their_samples(bench: Bench, out: str) -> None:
    trial = bench.begin()
    about = spec(bench.ids[0])
    about["model"]["ffn_widths"] = [64, 200]
    trial.put(records.SPEC, encode_json(about))
    bench.put(SPECTRA, trial, snapshots([64, 200], np.random.default_rng(0)))
    finish_trial(trial)
    bench.exporter().finish()
    spectra = load_sweep(rebuild("small", bench.uri, out).sweep).spectra
    assert set(spectra["N"]) == {SAMPLES}
    assert spectra["D"].tolist() == [64, 200] * 3


def test_a_run_without_its_files_counts_as_failed_and_says_so(bench: Bench, out: str) -> None:
    put_rows(bench.begin(), 1, 0, 40)
    bench.exporter().sync_once()
    shutil.rmtree(bench.root / "mlartifacts" / bench.child().info.run_id)
    rebuilt = rebuild("small", bench.uri, out)
    assert list(rebuilt.unreadable) == [bench.ids[0]]
    trial = load_sweep(rebuilt.sweep).trials.iloc[0]
    assert trial["state"] == "failed"
    assert mentions(trial["reason"], "spec.json ... `widthlab sync DIR`")


@pytest.mark.long
def test_rebuilding_again_replaces_what_was_rebuilt_and_nothing_else(
    bench: Bench, out: str
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 20)
    bench.exporter().sync_once()
    rebuild("small", bench.uri, out)
    put_rows(trial, 1, 21, 40)
    finish_trial(trial)
    bench.exporter().finish()
    sweep = rebuild("small", bench.uri, out).sweep
    assert load_sweep(sweep).trials["state"].tolist() == ["completed"]
    assert load_sweep(sweep).curves["step"].max() == 40
    before = bench.sweep.list()
    with pytest.raises(InputError, match="--out"):
        rebuild("small", bench.uri, bench.sweep.url)
    assert bench.sweep.list() == before


def test_syncing_what_was_rebuilt_doubles_nothing(bench: Bench, out: str) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    bench.exporter().finish()
    points = bench.points()
    sweep = rebuild("small", bench.uri, out).sweep
    assert Exporter(sweep, bench.uri).finish().points == 0
    assert len(bench.runs()) == 2
    assert bench.points() == points


def test_several_sweeps_of_one_experiment_are_listed_and_one_is_asked_for(
    bench: Bench, out: str, tmp_path: Path
) -> None:
    put_rows(bench.begin(), 1, 0, 20)
    bench.exporter().sync_once()
    twin = LocalStorage(tmp_path / "twin")
    for key in bench.sweep.list():
        if key != "mirror.json":
            twin.put(key, bench.sweep.get(key))
    Exporter(twin, bench.uri).sync_once()
    with pytest.raises(InputError, match=r"'widthlab' holds 2 sweeps: small \(run "):
        rebuild("widthlab", bench.uri, out)
    parents = [run.info.run_id for run in bench.runs() if "trial_id" not in run.data.tags]
    for run_id in parents:
        origin = json.loads(rebuild(run_id, bench.uri, out).sweep.get(ORIGIN_FILE))
        assert origin["run_id"] == run_id


@pytest.mark.parametrize(
    ("source", "message"),
    [("nothing", "'nothing'.* 1 sweep: small"), ("f" * 32, "fff")],
)
def test_a_sweep_that_is_not_there_is_refused_and_those_there_are_named(
    bench: Bench, out: str, source: str, message: str
) -> None:
    bench.begin()
    bench.exporter().sync_once()
    with pytest.raises(InputError, match=message):
        rebuild(source, bench.uri, out)
    assert not Path(out).exists()


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path, out: str) -> None:
    with pytest.raises(InputError, match=r"none\.db"):
        rebuild("small", f"sqlite:///{tmp_path}/none.db", out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.slow
def test_the_command_line_judges_from_mlflow_as_from_the_directory(
    planted: Bench, out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["widthlab", "analyze", "--from-mlflow", "small", "--tracking-uri", planted.uri]
    chosen = ["--aggregate-layers", "deepest", "--aggregate-last", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", out, *chosen, "--json"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    tables = load_sweep(planted.sweep, aggregate_last=1, aggregate_layers="deepest")
    (group,), (expected,) = printed["groups"], verdict_of(tables)["groups"]
    assert {name: group[name] for name in expected} == expected

    free = tables.trials[[hold == ("none",) for hold in tables.trials["holds"]]]
    at = tables.of(tables.spectra, free)
    at = at[(at["layer"] == 1) & (at["step"] == STEPS)]
    slope, _ = np.polyfit(np.log(at["D"]), np.log(at["soft_rank"]), 1)
    assert expected["evidence"]["laws"]["soft_rank"]["beta"] == pytest.approx(slope)


def test_out_without_mlflow_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["widthlab", "analyze", bench.sweep.url, "--out", "x"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "--out needs --from-mlflow" in capsys.readouterr().err
