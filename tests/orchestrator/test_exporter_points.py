"""How a trial reads in MLflow, as plain values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.mlflow import tracking
from orchestrator.mlflow.parent_run import parent_params
from orchestrator.mlflow.points import (
    MEDIAN_METRICS,
    StepPoints,
    axis_texts,
    batches,
    flat,
    note,
    run_name,
    spec_params,
    step_points,
    table_of,
)
from orchestrator.mlflow.tracking import METRICS_PER_CALL, Point, redacted, tracking_uri
from orchestrator.mlflow.trial_run import status_of
from trialstore.errors import InputError
from trialstore.records import SPECTRA
from trialstore.storage import LocalStorage, open_storage


def spec(**changes: Any) -> dict[str, Any]:
    model = {"architecture": "llama", "norm": "post", "d_model": 64, "ffn_widths": [171, 171]}
    return {"model": model, "training": {"steps": 5}, "replicate": 2, "axes": {}, **changes}


def steps(sizes: list[int]) -> list[StepPoints]:
    return [
        StepPoints("metrics", step, tuple(Point(f"m/{i}", 1.0, 0, step) for i in range(size)), 0)
        for step, size in enumerate(sizes)
    ]


@given(st.lists(st.integers(0, 2500), max_size=8))
@pytest.mark.long
def test_batches_lose_nothing_and_end_a_step_only_when_it_is_in(sizes: list[int]) -> None:
    sent: list[Point] = []
    ended: list[int] = []
    for points, done in batches(steps(sizes)):
        assert len(points) <= METRICS_PER_CALL
        sent += points
        ended += [step.step for step in done]
        assert len(sent) >= sum(sizes[: len(ended)])
    assert ended == list(range(len(sizes)))
    assert sent == [point for step in steps(sizes) for point in step.points]


def snapshot_row(layer: int, bucket: str, hard_rank: float, **changes: Any) -> dict[str, Any]:
    measured = dict.fromkeys(MEDIAN_METRICS)
    place = {"step": 20, "time_ms": 7, "site": "post", "layer": layer, "bucket": bucket}
    return {**measured, **place, "hard_rank": hard_rank, **changes}


def test_a_bucket_of_tokens_has_its_own_metrics_and_its_own_median() -> None:
    rows = [
        snapshot_row(layer, bucket, scale * (layer + 1))
        for layer in (0, 1, 3)
        for bucket, scale in (("all", 1.0), ("head", 10.0), ("tail", 100.0))
    ]
    (step,) = step_points(SPECTRA, rows)
    ranks = {point.key: point.value for point in step.points}
    assert ranks == {
        "spectra/post/L00/hard_rank": 1.0,
        "spectra/post/L01/hard_rank": 2.0,
        "spectra/post/L03/hard_rank": 4.0,
        "spectra/post/median/hard_rank": 2.0,
        "spectra/post/L00/head/hard_rank": 10.0,
        "spectra/post/L01/head/hard_rank": 20.0,
        "spectra/post/L03/head/hard_rank": 40.0,
        "spectra/post/median/head/hard_rank": 20.0,
        "spectra/post/L00/tail/hard_rank": 100.0,
        "spectra/post/L01/tail/hard_rank": 200.0,
        "spectra/post/L03/tail/hard_rank": 400.0,
        "spectra/post/median/tail/hard_rank": 200.0,
    }
    assert {table_of(key) for key in ranks} == {SPECTRA}
    assert {(point.step, point.time_ms) for point in step.points} == {(20, 7)}


def test_the_median_of_the_debiased_hard_rank_is_sent_beside_the_raw_one() -> None:
    rows = [snapshot_row(layer, "all", 20.0 + layer, N=101, D=64) for layer in range(3)]
    (step,) = step_points(SPECTRA, rows)
    ranks = {point.key: point.value for point in step.points}
    assert ranks["spectra/post/median/hard_rank"] == 21.0
    # n = 100: 21 / (100^2 / (99 * 102) * (1 - 0.21)) - 0.02
    assert ranks["spectra/post/median/hard_rank_debiased"] == pytest.approx(26.823, abs=1e-3)
    assert not any("L01/hard_rank_debiased" in key for key in ranks)


def test_a_bucket_that_is_not_finite_is_counted_in_its_own_place() -> None:
    rows = [snapshot_row(0, "all", 3.0), snapshot_row(0, "tail", float("nan"))]
    (step,) = step_points(SPECTRA, rows)
    assert [point.key for point in step.points] == [
        "spectra/post/L00/hard_rank",
        "spectra/post/median/hard_rank",
    ]
    assert step.nonfinite == 1


def test_a_name_tells_the_cell_and_every_further_axis() -> None:
    assert run_name(spec()) == "llama post 2.67x d64 L2 s2"
    axes = {"width_multiplier": 2.67, "learning_rate": 0.003, "optimizer": "muon"}
    assert run_name(spec(axes=axes)).endswith("s2 learning_rate 0.003 optimizer muon")


def test_a_name_tells_the_range_of_unequal_widths() -> None:
    model = spec()["model"] | {"ffn_widths": [64, 256]}
    assert run_name(spec(model=model)) == "llama post 1-4x d64 L2 s2"
    assert axis_texts(spec(model=model), [])["D"] == "64, 256"


def test_axes_say_what_was_achieved_rather_than_typed() -> None:
    texts = axis_texts(spec(axes={"width_multiplier": 2.7, "learning_rate": 0.003}), ["none"])
    assert (texts["width_multiplier"], texts["D"]) == ("2.672", "171")
    assert (texts["learning_rate"], texts["hold"]) == ("0.003", "none")


@pytest.mark.parametrize("key", ["match", "hold"])
def test_the_matchings_of_a_sweep_are_the_parameter_hold(key: str) -> None:
    assert parent_params({key: ["none", "params"], "resolved": {}}) == {"hold": "none, params"}


def test_params_are_flat_and_leave_out_what_is_not_set() -> None:
    params = spec_params(spec(parent=None, source={"corpus": {"kind": "text", "paths": ["/a"]}}))
    assert params["training.steps"] == "5"
    assert params["model.ffn_widths"] == "171, 171"
    assert params["source.corpus"] == "text"
    assert "parent" not in params
    assert flat({"a": {"b": {"c": True}}}) == {"a.b.c": "true"}


def test_a_note_gives_every_verdict_and_how_far_the_sweep_is() -> None:
    judged = {"groups": [{"label": "pre, depth 4", "sentence": "no recommendation: too few"}]}
    assert note({"completed": 3, "waiting": 0}, judged) == (
        "**pre, depth 4**: no recommendation: too few.\n\n3 trials: 3 completed."
    )
    assert note({"running": 1}, None) == "1 trials: 1 running."


@pytest.mark.parametrize("outcome", ["completed", "collapsed", "stopped"])
def test_an_outcome_that_is_a_result_is_finished(outcome: str) -> None:
    assert status_of(outcome) == "FINISHED"


# --- where the server is -------------------------------------------------------------------


def test_a_flag_goes_before_the_environment_and_that_before_the_embedded_file(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment:5000")
    assert tracking_uri(storage, "https://flag:5000") == "https://flag:5000"
    assert tracking_uri(storage) == "http://from-environment:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(storage) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("options", ["", "?region=eu-central-1&endpoint_override=minio:9000/s3"])
def test_the_storage_of_a_sweep_is_reached_as_the_sweep_is(
    options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened without its options may be another server's, or nobody's."""
    monkeypatch.setattr(tracking, "open_storage", Elsewhere)
    sweep: Any = Elsewhere(f"s3://bucket/runs/tiny{options}")
    assert tracking.storage_of(sweep).url == f"s3://bucket/runs{options}"


@dataclass(frozen=True)
class Elsewhere:
    """A storage of which only the place is asked."""

    url: str


def test_the_storage_of_a_local_sweep_is_the_folder_around_it(tmp_path: Path) -> None:
    for name in ("tiny", "what?", "a b"):
        sweep = LocalStorage(tmp_path / name / "tiny")
        assert tracking.storage_of(sweep).url == str(tmp_path / name)


def test_a_remote_storage_needs_a_server(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    class Remote(LocalStorage):
        pass

    storage: Any = open_storage(tmp_path)
    monkeypatch.setattr(
        "orchestrator.mlflow.tracking.LocalStorage", Remote
    )  # now this one is not local
    with pytest.raises(InputError, match="--tracking-uri"):
        tracking_uri(storage)


def test_a_relative_database_becomes_absolute(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(LocalStorage(tmp_path), "sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "./mlruns",
        "file:///tmp/mlruns",
        "postgresql://u:p@host/db",
        "http://",
        "http:///",
        "http:///path",
        "http://:5000",
        "http:/u:p@host",
        "http://u:p/p@host",
        "http://u:p@[host",
        "http://u:p@host:port",
        "http://host:70000",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:////tmp",
        "sqlite:////tmp/new/",
    ],
)
def test_what_is_no_server_is_refused_without_its_password(tmp_path: Any, uri: str) -> None:
    with pytest.raises(InputError, match="--tracking-uri") as caught:
        tracking_uri(LocalStorage(tmp_path), uri)
    assert "u:p" not in str(caught.value)


def test_a_password_is_not_shown() -> None:
    assert redacted("http://me:secret@host:5000/x") == "http://host:5000/x"
    assert redacted("sqlite:////a@b/c.db") == "sqlite:////a@b/c.db"


def test_an_empty_environment_variable_is_none_at_all(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri(LocalStorage(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
