"""Where a sweep's trials can be looked at on an MLflow server: the report points there."""

import logging

from orchestrator.mlflow.from_mlflow import identity_of
from orchestrator.mlflow.reader import MlflowReader
from trialstore.errors import InputError
from trialstore.storage import Storage

log = logging.getLogger(__name__)


def run_links(sweep: Storage, tracking_uri: str) -> dict[str, str]:
    """The page of every trial that has a run, by trial id.

    Empty where MLflow is an SQLite file, which has no pages, where the sweep was not exported
    yet, and, with a warning, where the server does not answer: a report does not wait for it.
    """
    if not tracking_uri.startswith("http"):
        return {}
    try:
        identity = identity_of(sweep.url)
        if identity is None:
            return {}
        reader = MlflowReader(tracking_uri)
        runs = reader.trials_of(reader.find_sweep(sweep.url, identity))
    except InputError as error:
        log.warning("the report has no links to MLflow: %s", error)
        return {}
    pages = {trial_id: reader.page(run) for trial_id, run in runs.items()}
    return {trial_id: page for trial_id, page in pages.items() if page is not None}
