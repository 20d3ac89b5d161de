"""The sweep.yaml that a run has written."""

from typing import Any

import yaml

from trialstore.storage import LocalStorage


def resolved(sweep: LocalStorage) -> dict[str, Any]:
    """Its content, to change and to put back."""
    content: dict[str, Any] = yaml.safe_load(sweep.get("sweep.yaml"))
    return content
