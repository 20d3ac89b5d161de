"""Claims about the links from a report to MLflow."""

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.mlflow.from_mlflow import run_links
from orchestrator.mlflow.identity import IDENTITY_FILE
from trialstore.records import encode_json
from trialstore.storage import LocalStorage


@pytest.fixture
def sweep(tmp_path: Any) -> LocalStorage:
    storage = LocalStorage(tmp_path / "sweep")
    storage.put(IDENTITY_FILE, encode_json({"identity": "sweep-0123"}))
    return storage


def test_an_sqlite_file_has_no_pages(sweep: LocalStorage) -> None:
    assert run_links(sweep, f"sqlite:///{sweep.url}/mlflow.db") == {}


def test_a_server_that_is_away_costs_the_links_and_not_the_report(
    sweep: LocalStorage, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}"
        assert run_links(sweep, uri) == {}
    assert "MLflow" in caplog.text
    assert "secret" not in caplog.text


def test_every_trial_with_a_run_has_its_page(
    sweep: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {"widthlab.sweep": "sweep-0123", "widthlab.sweep_file": "digest", "sweep": "made-up"}
    parent = _run("p", tags)
    trial = _run("r1", {"widthlab.sweep": "sweep-0123", "trial_id": "abc"})

    class Client:
        def get_experiment_by_name(self, name: str) -> Any:
            return SimpleNamespace(experiment_id="7", lifecycle_stage="active")

        def search_runs(self, ids: list[str], condition: str, **how: Any) -> Any:
            page = _Page([parent] if "widthlab.sweep_file" in condition else [parent, trial])
            page.token = None
            return page

    monkeypatch.setattr("orchestrator.mlflow.reader.client_of", lambda uri: Client())
    links = run_links(sweep, "https://me:secret@mlflow.example:5000/")
    assert links == {"abc": "https://mlflow.example:5000/#/experiments/7/runs/r1"}


class _Page(list[Any]):
    token: str | None


def _run(run_id: str, tags: dict[str, str]) -> Any:
    info = SimpleNamespace(
        run_id=run_id, experiment_id="7", run_name=run_id, status="FINISHED", start_time=1
    )
    return SimpleNamespace(info=info, data=SimpleNamespace(tags=tags, metrics={}, params={}))
