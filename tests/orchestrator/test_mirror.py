"""A sweep's directory and its MLflow runs agree, whatever dies in between."""

import fcntl
import json
import logging
import math
import os
import shutil
import socket
import statistics
import subprocess
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis import records
from analysis.errors import InputError
from analysis.records import METRICS, SPECTRA, Manifest, encode_json, put_part
from analysis.storage import LocalStorage
from orchestrator.mirror import (
    Orders,
    forget_trial,
    mirror_until_told,
    start_mirror,
    sync,
    sync_command,
)
from orchestrator.mirror_points import LAYER_METRICS, MEDIAN_METRICS, METRIC_NAMES
from orchestrator.mirror_sweep import Mirror
from orchestrator.tracking import RefusedError, ServerAwayError, Tracking, git_state

# MLflow's database layer uses a loader that SQLAlchemy deprecates, and leaves connections open.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]

START_MS = 1_760_000_000_000
WIDTH, D_MODEL, DEPTH = 256, 64, 2

TrialId = str


# --- trial directories ---------------------------------------------------------------------


def spec(trial_id: TrialId, seed: int = 0) -> dict[str, Any]:
    return {
        "id": trial_id,
        "model": {
            "architecture": "gpt2",
            "norm": "pre",
            "d_model": D_MODEL,
            "head_dim": 16,
            "ffn_widths": [WIDTH] * DEPTH,
            "context": 64,
            "vocab_size": 512,
        },
        "training": {"steps": 40, "batch_tokens": 2048, "learning_rate": 6e-3},
        "data": {"corpus_fingerprint": "c" * 16, "tokenizer_hash": "t" * 16},
        "evaluation": {"every": 20, "tokens": 16384},
        "spectra": {"every": 20, "tokens": 8192, "sites": ["post"]},
        "layout": {"workers": 1, "device": "cpu"},
        "source": {"corpus": {"kind": "python-source"}, "tokenizer": {"kind": "bpe"}},
        "replicate": seed,
        "axes": {"architecture": "gpt2", "norm": "pre", "depth": DEPTH, "width_multiplier": 4.01},
    }


def train_row(step: int, shift_ms: int = 0, **values: Any) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": step * 2048,
        "time_ms": START_MS + step * 100 + shift_ms,
        "kind": "train",
        "train_loss": 6.0 - step / 100 + shift_ms * 1e-9,
        "learning_rate": 1e-3 * step,
        "grad_norm": 1.0 / step,
        "tokens_per_s": 1000.0 + step,
        **values,
    }


def evaluation_row(step: int, shift_ms: int = 0, **values: Any) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": step * 2048,
        "time_ms": START_MS + step * 100 + 50 + shift_ms,
        "kind": "evaluation",
        "val_loss": 6.1 - step / 100,
        "val_perplexity": math.exp(6.1 - step / 100),
        "val_bits_per_byte": 2.5 - step / 1000,
        **values,
    }


def snapshot(step: int, shift_ms: int = 0) -> list[dict[str, Any]]:
    shared = dict.fromkeys(records.SPECTRUM_COLUMNS, 0.25)
    return [
        {
            **shared,
            "step": step,
            "tokens": step * 2048,
            "time_ms": START_MS + step * 100 + 60 + shift_ms,
            "site": "post",
            "layer": layer,
            "bucket": "all",
            "D": WIDTH,
            "N": 8192,
            "n_over_d": 8192 / WIDTH,
            "method": "exact",
            "status": "well sampled",
            "eigenvalues": [1.0] * WIDTH,
            "hard_rank": 10.0 + step + layer,
            "soft_rank": 30.0 + step + layer,
        }
        for layer in range(DEPTH)
    ]


def rows_of(first: int, last: int, shift_ms: int = 0) -> dict[str, list[dict[str, Any]]]:
    """What a trainer records of updates first..last; evaluations and snapshots every 20 steps."""
    metrics = [train_row(step, shift_ms) for step in range(max(first, 1), last + 1)]
    measured = [step for step in range(first, last + 1) if step % 20 == 0]
    metrics += [evaluation_row(step, shift_ms) for step in measured]
    spectra = [row for step in measured for row in snapshot(step, shift_ms)]
    return {METRICS: sorted(metrics, key=lambda row: row["step"]), SPECTRA: spectra}


def put_rows(trial: LocalStorage, attempt: int, first: int, last: int, shift_ms: int = 0) -> None:
    for table, rows in rows_of(first, last, shift_ms).items():
        if rows:
            put_part(trial, table, attempt, rows)


def checkpoint(trial: LocalStorage, step: int, attempt: int) -> None:
    manifest = Manifest(trial.root.name, step, attempt, {}, records.live_parts(trial))
    trial.put(records.manifest_key(step), manifest.to_json())


def finish_trial(trial: LocalStorage, outcome: str = "completed", attempt: int = 1) -> None:
    parts = records.live_parts(trial)
    tables = records.compact(trial, attempt, parts)
    result = {
        "trial_id": trial.root.name,
        "outcome": outcome,
        "step": 40,
        "steps": 40,
        "final": {},
        "reason": None if outcome == "completed" else f"it {outcome}",
        "records": tables,
        "finished_ms": START_MS + 10_000,
    }
    trial.put(records.RESULT, encode_json(result))
    records.discard_parts(trial, tables.values())


def give_up(trial: LocalStorage, attempt: int = 1) -> None:
    failure = {"stage": "train", "message": "out of memory", "attempt": attempt, "gave_up": True}
    trial.put(records.FAILURE, encode_json({**failure, "time_ms": START_MS + 9_000}))


class Bench:
    """A sweep in a folder of its own, and the database that it is mirrored to."""

    def __init__(self, root: Path, template: Path, trials: int = 1) -> None:
        self.root = root
        self.database = root / "mlflow.db"
        shutil.copyfile(template, self.database)
        self.uri = f"sqlite:///{self.database}"
        self.sweep = LocalStorage(root / "small")
        self.ids = [f"{number:012x}" for number in range(1, trials + 1)]
        cells = [
            {"id": trial_id, "holds": ["none"], "axes": {}, "parameters": {"total": 131072}}
            for trial_id in self.ids
        ]
        resolved = {"corpus_fingerprint": "c" * 16, "trials": cells}
        content = {"name": "small", "training": {"steps": 40}, "resolved": resolved}
        self.sweep.put("sweep.yaml", yaml.safe_dump(content).encode())

    def begin(self, number: int = 0) -> LocalStorage:
        trial = self.sweep.child(f"trials/{self.ids[number]}")
        trial.put(records.SPEC, encode_json(spec(self.ids[number], seed=number)))
        return trial

    def mirror(self) -> Mirror:
        return Mirror(self.sweep, self.uri)

    @property
    def client(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.uri)

    def runs(self) -> list[Any]:
        experiment = self.client.get_experiment_by_name("widthlab")
        return list(self.client.search_runs([experiment.experiment_id]))

    def child(self, number: int = 0) -> Any:
        (run,) = [run for run in self.runs() if run.data.tags.get("trial_id") == self.ids[number]]
        return run

    def parent(self) -> Any:
        (run,) = [run for run in self.runs() if "trial_id" not in run.data.tags]
        return run

    def points(self, number: int = 0) -> Counter[tuple[str, int, float, int]]:
        """(metric, step, value, timestamp) of everything the trial's run has, with multiplicity."""
        run = self.child(number)
        return Counter(
            (key, point.step, point.value, point.timestamp)
            for key in run.data.metrics
            for point in self.client.get_metric_history(run.info.run_id, key)
        )


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with its schema, which takes seconds to make."""
    database = tmp_path_factory.mktemp("mlflow") / "template.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def bench(tmp_path: Path, template: Path) -> Bench:
    return Bench(tmp_path, template)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def expected(rows: dict[str, list[dict[str, Any]]]) -> Counter[tuple[str, int, float, int]]:
    """What MLflow must hold, written down independently of the mirror."""
    points = [
        (name, row["step"], row[column], row["time_ms"])
        for row in rows[METRICS]
        for column, name in METRIC_NAMES[row["kind"]].items()
        if row.get(column) is not None
    ]
    for row in rows[SPECTRA]:
        layer = f"spectra/post/L{row['layer']:02d}"
        points += [
            (f"{layer}/{name}", row["step"], row[name], row["time_ms"])
            for name in LAYER_METRICS
            if name in row
        ]
    for step in sorted({row["step"] for row in rows[SPECTRA]}):
        layers = [row for row in rows[SPECTRA] if row["step"] == step]
        for name in MEDIAN_METRICS:
            if name in layers[0]:
                median = statistics.median(row[name] for row in layers)
                place = f"spectra/post/median/{name}"
                points.append((place, step, median, layers[0]["time_ms"]))
    return Counter(points)


# --- points --------------------------------------------------------------------------------


def test_every_point_has_the_name_step_value_and_time_of_its_record(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 25)
    report = bench.mirror().sync_once()
    assert bench.points() == expected(rows_of(0, 25))
    assert report.points == bench.points().total()
    assert report.away is None


def test_a_running_trial_is_sent_part_by_part_and_once(bench: Bench) -> None:
    trial = bench.begin()
    mirror = bench.mirror()
    for first, last in ((0, 10), (11, 20), (21, 40)):
        put_rows(trial, 1, first, last)
        assert mirror.sync_once().points > 0
        assert mirror.sync_once().points == 0
    finish_trial(trial)
    assert mirror.sync_once().points == 0
    assert bench.points() == expected(rows_of(0, 40))


def test_a_second_mirror_sends_nothing(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    assert bench.mirror().sync_once().points > 0
    again = bench.mirror().sync_once()
    assert (again.points, again.runs) == (0, 0)
    assert len(bench.runs()) == 2


def test_points_come_in_calls_of_at_most_a_thousand(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [train_row(step) for step in range(1, 1201)]
    put_part(bench.begin(), METRICS, 1, rows)
    calls = []
    send = Tracking.send_points
    monkeypatch.setattr(
        Tracking,
        "send_points",
        lambda self, run, points: (calls.append(len(points)), send(self, run, points)),
    )
    assert bench.mirror().sync_once().points == sum(calls) == 4 * 1200
    assert max(calls) <= 1000
    assert bench.points().total() == 4 * 1200


def test_what_is_not_finite_is_counted_and_not_sent(bench: Bench) -> None:
    trial = bench.begin()
    rows = [
        train_row(1, train_loss=math.nan),
        train_row(2, grad_norm=math.inf),
        train_row(3, grad_norm=None),
    ]
    put_part(trial, METRICS, 1, rows)
    mirror = bench.mirror()
    assert mirror.sync_once().nonfinite == 2
    put_part(trial, METRICS, 1, [train_row(4, train_loss=math.nan)])
    assert mirror.sync_once().nonfinite == 1
    assert bench.child().data.tags["widthlab.nonfinite_points"] == "3"
    keys = Counter(key for key, *_ in bench.points().elements())
    assert keys["train/loss"] == 2
    assert keys["train/grad_norm"] == 2


# --- deaths --------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone."""


def sync_until_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at the sweep that ends when the first points are in and not yet marked."""

    def dead(self: Tracking, run_id: str, tags: dict[str, str]) -> None:
        assert "widthlab.watermark" in tags, "the outcome must wait for the points"
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Tracking, "send_tags", dead)
        with pytest.raises(Killed):
            bench.mirror().sync_once()


def test_a_mirror_killed_between_sending_and_marking_doubles_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 25)
    sync_until_killed(bench, monkeypatch)
    assert bench.points() == expected(rows_of(0, 25))  # in, but not marked
    put_rows(trial, 1, 26, 40)
    bench.mirror().sync_once()
    assert bench.points() == expected(rows_of(0, 40))


def test_rows_measured_anew_by_a_retry_are_neither_doubled_nor_missed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    bench.mirror().sync_once()
    checkpoint(trial, 10, 1)
    put_rows(trial, 1, 11, 25)
    sync_until_killed(bench, monkeypatch)
    # Cut off, and resumed from step 10; seen first when it has not got as far as before.
    put_rows(trial, 2, 11, 15, shift_ms=77_777)
    mirror = bench.mirror()
    assert mirror.sync_once().points == 0
    put_rows(trial, 2, 16, 40, shift_ms=77_777)
    mirror.sync_once()
    finish_trial(trial, attempt=2)
    bench.mirror().sync_once()

    points = bench.points()
    places = Counter((key, step) for key, step, *_ in points.elements())
    assert set(places) == {(key, step) for key, step, *_ in expected(rows_of(0, 40))}
    assert set(places.values()) == {1}
    late = {p for p in points if p[1] > 25}
    assert late == {p for p in expected(rows_of(11, 40, 77_777)) if p[1] > 25}


def test_an_answer_that_is_lost_doubles_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 25)
    mirror = bench.mirror()
    send = Tracking.send_points

    def lost(self: Tracking, run_id: str, points: Any) -> None:
        send(self, run_id, points)
        raise ServerAwayError("timed out")

    with monkeypatch.context() as patched:
        patched.setattr(Tracking, "send_points", lost)
        assert mirror.sync_once().away == "timed out"
    put_rows(trial, 1, 26, 40)
    assert mirror.sync_once().away is None
    assert bench.points() == expected(rows_of(0, 40))


def test_a_server_that_is_away_stops_nothing_and_gets_everything_later(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    put_rows(bench.begin(), 1, 0, 40)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        away = Mirror(bench.sweep, f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}")
        with caplog.at_level(logging.WARNING, logger="orchestrator"):
            reports = [away.sync_once(), away.sync_once()]
    assert all(report.away and report.points == 0 for report in reports)
    (warning,) = [r.getMessage() for r in caplog.records if r.name == "orchestrator.mirror_sweep"]
    assert "is away" in warning
    assert "secret" not in warning
    assert bench.mirror().sync_once().away is None
    assert bench.points() == expected(rows_of(0, 40))


def test_a_run_deleted_on_the_server_is_made_again(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    mirror = bench.mirror()
    mirror.sync_once()
    bench.client.delete_run(bench.child().info.run_id)
    put_rows(trial, 1, 11, 40)
    assert mirror.sync_once().refused == 1
    assert mirror.sync_once().refused == 0
    assert bench.points() == expected(rows_of(0, 40))


def test_a_trial_that_is_discarded_and_trained_anew_gets_a_new_run(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    bench.mirror().sync_once()
    old = bench.child().info.run_id
    shutil.rmtree(trial.root)
    put_rows(bench.begin(), 1, 0, 20, shift_ms=5)
    bench.mirror().sync_once()
    assert bench.child().info.run_id != old
    assert bench.points() == expected(rows_of(0, 20, shift_ms=5))


def test_a_trial_compacted_while_it_is_read_is_read_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    put_rows(trial, 1, 11, 40)
    get = LocalStorage.get

    def compacting(self: LocalStorage, key: str) -> bytes:
        if key.startswith("metrics/") and self.root == trial.root:
            monkeypatch.undo()
            finish_trial(trial)
        return get(self, key)

    bench.mirror().sync_once()
    put_rows(trial, 1, 41, 60)
    mirror = bench.mirror()
    monkeypatch.setattr(LocalStorage, "get", compacting)
    assert mirror.sync_once().refused == 0
    assert bench.points() == expected(rows_of(0, 60))
    assert not caplog.records


def test_a_trial_that_is_forgotten_starts_a_new_run(bench: Bench) -> None:
    assert forget_trial(bench.sweep, bench.uri, bench.ids[0]) == 0  # never mirrored
    trial = bench.begin()
    put_rows(trial, 1, 0, 25)
    bench.mirror().sync_once()
    assert forget_trial(bench.sweep, bench.uri, bench.ids[0]) == 1
    shutil.rmtree(trial.root)
    put_rows(bench.begin(), 1, 0, 10, shift_ms=5)
    bench.mirror().sync_once()
    assert bench.points() == expected(rows_of(0, 10, shift_ms=5))


def test_a_trial_is_not_forgotten_while_the_server_is_away(bench: Bench) -> None:
    put_rows(bench.begin(), 1, 0, 10)
    bench.mirror().sync_once()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(InputError, match="start the server") as caught:
            forget_trial(bench.sweep, uri, bench.ids[0])
    assert "secret" not in str(caught.value)


def test_a_broken_trial_does_not_keep_the_others_out(
    tmp_path: Path, template: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, template, trials=2)
    bench.begin(0).put("metrics/part-1-0-10.parquet", b"not Parquet")
    put_rows(bench.begin(1), 1, 0, 10)
    mirror = bench.mirror()
    assert [mirror.sync_once().refused for _ in range(2)] == [1, 1]
    assert len([r for r in caplog.records if "cannot be read" in r.getMessage()]) == 1
    assert bench.points(1) == expected(rows_of(0, 10))


NESTED = b"[" * 200_000


@pytest.mark.parametrize("key", [records.RESULT, records.FAILURE, records.LEASE, records.SPEC])
def test_records_that_nobody_can_read_keep_only_their_own_trial_out(
    tmp_path: Path, template: Path, key: str
) -> None:
    broken = [b"", b'{"outc', b"[]", b"{}", b'"text"', b"\xff", NESTED]
    bench = Bench(tmp_path, template, trials=len(broken) + 1)
    for number, data in enumerate(broken):
        trial = bench.begin(number)
        put_rows(trial, 1, 0, 0)
        if key == records.LEASE:  # it is read where a trial has been given up
            give_up(trial)
        trial.put(key, data)
    put_rows(bench.begin(len(broken)), 1, 0, 10)
    report = bench.mirror().sync_once()
    assert report.away is None
    # An empty object says nothing of an attempt: only what must be there is missed in it.
    missed = len(broken) - (key in (records.FAILURE, records.LEASE))
    assert report.refused == missed
    assert bench.points(len(broken)) == expected(rows_of(0, 10))


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "banana"},
        {"outcome": []},
        {"records": []},
        {"records": {"metrics": 3}},
        {"finished_ms": "noon"},
        {"finished_ms": 10**40},
    ],
    ids=str,
)
def test_a_result_that_is_not_one_keeps_only_its_own_trial_out(
    tmp_path: Path, template: Path, change: dict[str, Any]
) -> None:
    bench = Bench(tmp_path, template, trials=2)
    trial = bench.begin(0)
    put_rows(trial, 1, 0, 10)
    finish_trial(trial)
    result = json.loads(trial.get(records.RESULT))
    trial.put(records.RESULT, encode_json(result | change))
    put_rows(bench.begin(1), 1, 0, 10)
    report = bench.mirror().sync_once()
    assert (report.refused, report.away) == (1, None)
    assert bench.points(1) == expected(rows_of(0, 10))


def test_text_that_no_database_takes_is_sent_without_it(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    trial.put(records.SPEC, encode_json(spec(bench.ids[0]) | {"kind": "a\ud800\0b"}))
    failure = {"stage": "train", "message": "a\ud800\0b", "attempt": 1, "gave_up": True}
    trial.put(records.FAILURE, encode_json(failure))
    report = bench.mirror().sync_once()
    assert (report.refused, report.away) == (0, None)
    assert bench.child().data.tags["failure"] == "train: a??b"
    assert bench.child().data.params["kind"] == "a??b"


def test_a_sweep_whose_only_trial_is_broken_ends_as_failed(bench: Bench) -> None:
    bench.begin().put(records.RESULT, b"{}")
    assert sync(bench.sweep, bench.uri).refused == 1
    assert bench.parent().info.status == "FAILED"


def test_a_trial_given_up_is_counted_until_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_rows(bench.begin(), 1, 0, 10)

    def refuse(self: Tracking, run_id: str, points: Any) -> None:
        raise RefusedError("no")

    monkeypatch.setattr(Tracking, "send_points", refuse)
    mirror = bench.mirror()
    reports = [mirror.sync_once(), mirror.sync_once(), mirror.sync_once(), mirror.finish()]
    assert [report.refused for report in reports] == [1, 1, 1, 1]


def test_a_recommendation_that_is_not_one_is_left_out_of_the_note(bench: Bench) -> None:
    for data in (b'{"groups": [3]}', b'{"groups": 3}', b"[]", NESTED):
        bench.sweep.put("report/recommendation.json", data)
        assert bench.mirror().sync_once().away is None
        assert bench.parent().data.tags["mlflow.note.content"] == "1 trials: 1 waiting."


# --- the sweep's identity ------------------------------------------------------------------

NO_IDENTITY = [b"junk", b"{}", b"[]", b'{"identity": 3}', b'{"identity": null}', NESTED]
NO_IDENTITY += [b'{"identity": "it\'s"}']


@pytest.mark.parametrize("data", NO_IDENTITY, ids=range(len(NO_IDENTITY)))
def test_an_identity_that_is_broken_is_made_anew_with_a_warning(
    bench: Bench, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    bench.sweep.put("mirror.json", data)
    assert forget_trial(bench.sweep, bench.uri, bench.ids[0]) == 0
    put_rows(bench.begin(), 1, 0, 10)
    caplog.clear()
    assert sync(bench.sweep, bench.uri).away is None
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "mirror.json" in warning
    assert bench.points() == expected(rows_of(0, 10))
    assert sync(bench.sweep, bench.uri).points == 0
    assert len(caplog.records) == 1


# --- runs ----------------------------------------------------------------------------------


def test_a_run_is_found_by_its_cell(bench: Bench) -> None:
    put_rows(bench.begin(), 1, 0, 10)
    bench.mirror().sync_once()
    run, parent = bench.child(), bench.parent()
    assert run.info.run_name == "gpt2 pre 4x d64 L2 s0"
    assert run.info.start_time == START_MS + 50  # its first record
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.tags["outcome"] == "running"
    assert run.info.status == parent.info.status == "RUNNING"
    cell = {"architecture": "gpt2", "norm": "pre", "width_multiplier": "4", "D": "256", "seed": "0"}
    assert cell.items() <= run.data.params.items()
    assert cell.items() <= run.data.tags.items()
    assert run.data.params["training.learning_rate"] == "0.006"
    assert run.data.params["parameters.total"] == "131072"
    assert parent.info.run_name == "small"
    artifacts = bench.root / "mlartifacts" / run.info.run_id / "artifacts"
    assert json.loads((artifacts / "spec.json").read_bytes())["id"] == bench.ids[0]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("completed", "FINISHED"),
        ("collapsed", "FINISHED"),
        ("stopped", "FINISHED"),
        ("diverged", "FAILED"),
    ],
)
def test_an_outcome_ends_its_run(bench: Bench, outcome: str, status: str) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    finish_trial(trial, outcome)
    bench.mirror().finish()
    run = bench.child()
    assert run.info.status == status
    assert run.data.tags["outcome"] == outcome
    assert run.info.end_time == START_MS + 10_000
    assert bench.parent().info.status == "FINISHED"
    artifacts = bench.root / "mlartifacts" / run.info.run_id / "artifacts"
    assert json.loads((artifacts / "result.json").read_bytes())["outcome"] == outcome


def test_a_failed_trial_fails_its_run_until_a_retry_continues_it(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    checkpoint(trial, 10, 1)
    give_up(trial)
    assert bench.mirror().finish().away is None
    failed = bench.child()
    assert (failed.info.status, failed.info.end_time) == ("FAILED", START_MS + 9_000)
    assert failed.data.tags["failure"] == "train: out of memory"
    assert bench.parent().info.status == "FAILED"

    trial.put(records.LEASE, encode_json({"attempt": 2}))
    put_rows(trial, 2, 11, 40)
    mirror = bench.mirror()
    mirror.sync_once()
    assert bench.child().info.status == "RUNNING"
    assert bench.parent().info.status == "RUNNING"
    finish_trial(trial, attempt=2)
    mirror.finish()
    assert bench.child().info.run_id == failed.info.run_id
    assert bench.child().info.status == "FINISHED"
    assert bench.parent().info.status == "FINISHED"
    assert bench.points() == expected(rows_of(0, 40))


def test_a_sweep_keeps_its_runs_when_its_directory_moves(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    bench.mirror().sync_once()
    moved = bench.root / "elsewhere"
    shutil.copytree(bench.sweep.root, moved)
    assert Mirror(LocalStorage(moved), bench.uri).sync_once().points == 0
    assert len(bench.runs()) == 2


def test_two_sweeps_of_one_name_share_no_run(bench: Bench) -> None:
    put_rows(bench.begin(), 1, 0, 10)
    other = LocalStorage(bench.root / "colleague" / "small")
    shutil.copytree(bench.sweep.root, other.root)
    for sweep in (bench.sweep, other):
        Mirror(sweep, bench.uri).sync_once()
    assert len(bench.runs()) == 4


def test_the_report_and_the_verdict_hang_on_the_sweep_and_are_renewed(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    finish_trial(trial)
    mirror = bench.mirror()
    mirror.sync_once()
    assert "1 completed" in bench.parent().data.tags["mlflow.note.content"]

    verdict = {"label": "pre, depth 2", "sentence": "use 2.67x"}
    bench.sweep.put("report/recommendation.json", encode_json({"groups": [verdict]}))
    bench.sweep.put("report/figures/loss.svg", b"<svg/>")
    mirror.sync_once()
    parent = bench.parent()
    assert "**pre, depth 2**: use 2.67x." in parent.data.tags["mlflow.note.content"]
    artifacts = bench.root / "mlartifacts" / parent.info.run_id / "artifacts" / "report"
    assert (artifacts / "figures" / "loss.svg").read_bytes() == b"<svg/>"

    bench.sweep.put("report/figures/loss.svg", b"<svg>new</svg>")
    bench.mirror().finish()
    assert (artifacts / "figures" / "loss.svg").read_bytes() == b"<svg>new</svg>"


def test_artifacts_that_cannot_be_stored_do_not_hold_up_the_numbers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Tracking, run_id: str, path: str, data: bytes) -> None:
        raise ModuleNotFoundError("boto3")

    monkeypatch.setattr(Tracking, "send_artifact", broken)
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    bench.mirror().finish()
    assert bench.points() == expected(rows_of(0, 40))
    assert bench.child().info.status == "FINISHED"
    assert len([r for r in caplog.records if "artifacts are not sent" in r.getMessage()]) == 1


def test_a_run_says_which_commit_it_was_started_from(bench: Bench, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    assert git_state(checkout) == {}
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "m"]):
        subprocess.run(["git", "-C", str(checkout), *command], check=True)
    assert git_state(checkout)["dirty"] is False
    (checkout / "new.py").touch()
    state = git_state(checkout)
    assert state["dirty"] is True
    put_rows(bench.begin(), 1, 0, 10)
    content = yaml.safe_load(bench.sweep.get("sweep.yaml"))
    content["resolved"]["git"] = state
    bench.sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    bench.mirror().sync_once()
    tags = bench.child().data.tags
    assert tags["mlflow.source.git.commit"] == state["commit"]
    assert tags["mlflow.source.git.dirty"] == "true"


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sweep\.yaml"):
        Mirror(LocalStorage(tmp_path), "http://127.0.0.1:1")


# --- later, and beside a driver ------------------------------------------------------------


def test_sync_later_ends_a_sweep_that_is_over_and_leaves_another_open(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    sync(bench.sweep, bench.uri)
    assert bench.parent().info.status == "RUNNING"
    finish_trial(trial)
    assert sync(bench.sweep, bench.uri).away is None
    assert bench.parent().info.status == "FINISHED"
    assert sync(bench.sweep, bench.uri).points == 0


def test_sync_tells_what_both_of_its_looks_have_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    sync(bench.sweep, bench.uri)
    bench.client.delete_run(bench.child().info.run_id)
    put_rows(trial, 1, 11, 40)
    finish_trial(trial)
    report = sync(bench.sweep, bench.uri)  # refused at first, then made again
    assert report.points == bench.points().total() == expected(rows_of(0, 40)).total()
    assert (report.runs, report.refused) == (1, 0)


def test_the_way_to_send_the_rest_names_any_server_but_the_file_beside_the_sweep(
    bench: Bench,
) -> None:
    plain = f"widthlab sync {bench.sweep.url}"
    assert sync_command(bench.sweep, bench.uri) == plain
    elsewhere = "http://me:secret@host:5000"
    named = f"{plain} --tracking-uri http://host:5000"
    assert sync_command(bench.sweep, elsewhere) == named


def told(message: bytes) -> Orders:
    read, write = os.pipe()
    os.write(write, message)
    os.close(write)
    return Orders(read)


def test_a_driver_that_dies_leaves_the_sweep_open_with_what_is_durable(bench: Bench) -> None:
    put_rows(bench.begin(), 1, 0, 10)
    assert mirror_until_told(bench.sweep, bench.uri, 60.0, told(b""))
    assert bench.parent().info.status == "RUNNING"
    assert bench.points() == expected(rows_of(0, 10))


def test_two_mirrors_of_one_sweep_never_send_at_once(bench: Bench) -> None:
    put_rows(bench.begin(), 1, 0, 10)
    with bench.sweep.path(".mirror.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not mirror_until_told(bench.sweep, bench.uri, 60.0, told(b""))
    assert bench.client.get_experiment_by_name("widthlab") is None


def test_the_process_sends_while_it_lives_and_ends_the_sweep_when_told(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    process = start_mirror(bench.sweep.url, bench.uri, every=0.1)
    assert process.finish(timeout=120)
    assert bench.points() == expected(rows_of(0, 40))
    assert bench.parent().info.status == "FINISHED"
    assert bench.child().data.tags["mlflow.source.name"] == "widthlab"
    assert capfd.readouterr().out == ""


def test_the_process_tells_that_the_server_was_away_and_never_the_password(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    put_rows(bench.begin(), 1, 0, 10)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        process = start_mirror(bench.sweep.url, f"http://me:secret@{address}")
        # Every user of the machine can read a command line.
        command = subprocess.run(
            ["ps", "-o", "args=", "-p", str(process.pid)], capture_output=True, check=True
        )
        assert not process.finish(timeout=120)
    assert b"orchestrator.mirror" in command.stdout
    assert b"secret" not in command.stdout
    told = capfd.readouterr().err
    assert f"widthlab sync {bench.sweep.url} --tracking-uri http://{address}" in told
    assert "secret" not in told
