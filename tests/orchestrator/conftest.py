"""What the tests of the exporter share; its builders are importable as `exporter_bench`."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from exporter_bench import Bench


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
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server but the one that a test names, and no patience with it."""
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second a trial, which only the tests of the images need."""
    monkeypatch.setattr("orchestrator.mlflow.trial_run.TrialImages.due", lambda self, seen: False)


@pytest.fixture
def make_bench(
    tmp_path: Path, template: Path, plain_environment: None, no_images: None
) -> Callable[[int], Bench]:
    """A sweep of so many trials and its database, without images."""
    return lambda trials: Bench(tmp_path, template, trials)


@pytest.fixture
def bench(make_bench: Callable[[int], Bench]) -> Bench:
    """A sweep of one trial and its database, without images."""
    return make_bench(1)
