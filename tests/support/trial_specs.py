"""spec.json of made-up trials, and changes of their results."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from trialstore.records import encode_json
from trialstore.storage import LocalStorage

#: The axes of a trial -> settings that differ, by dotted name.
Change = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def nothing(axes: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def write_specs(sweep: LocalStorage, change: Change = nothing) -> None:
    """Write the spec of every trial; `change` gives the values that are its own."""
    for cell in yaml.safe_load(sweep.get("sweep.yaml"))["resolved"]["trials"]:
        spec = spec_of(cell["id"], cell["axes"])
        for name, value in change(cell["axes"]).items():
            section, _, key = name.rpartition(".")
            (spec[section] if section else spec)[key] = value
        sweep.put(f"trials/{cell['id']}/spec.json", json.dumps(spec).encode())


def spec_of(trial_id: str, axes: Mapping[str, Any]) -> dict[str, Any]:
    """A spec with one setting of each kind."""
    return {
        "id": trial_id,
        "model": {
            "norm": axes["norm"],
            "d_model": axes["d_model"],
            "head_dim": axes["d_model"] // 4,
            "ffn_widths": [axes["D"]] * axes["depth"],
            "context": 64,
            "initialisation": "plain",
            "block": None,
        },
        "training": {
            "steps": 250,
            "batch_tokens": 2048,
            "learning_rate": axes.get("learning_rate", 6e-3),
            "weight_decay": 0.1,
            "warmup_fraction": 0.1,
            "precision": "fp32",
            "stop_on_collapse": False,
        },
        "data": {"corpus_fingerprint": "0123456789abcdef", "tokenizer_hash": "fedcba9876543210"},
        "replicate": axes["seed"],
        "evaluation": {"every": 50, "tokens": 16384},
        "spectra": {"every": 50, "tokens": 8192},
        "kind": "train",
        "parent": None,
        "semantics_version": 2,
        "layout": {"workers": 1},
        "axes": dict(axes),
    }


def change_results(sweep: LocalStorage, change: Change) -> None:
    """Put the fields that `change` gives into the result of every trial."""
    for cell in yaml.safe_load(sweep.get("sweep.yaml"))["resolved"]["trials"]:
        key = f"trials/{cell['id']}/result.json"
        sweep.put(key, encode_json({**json.loads(sweep.get(key)), **change(cell["axes"])}))
