"""A trial written out, and the same with fields replaced."""

import copy
from collections.abc import Mapping
from typing import Any

from trainers.spec import TrialSpec

GPT2: dict[str, Any] = {
    "model": {
        "architecture": "gpt2",
        "norm": "pre",
        "d_model": 64,
        "head_dim": 16,
        "ffn_widths": [256, 256],
        "context": 64,
        "vocab_size": 512,
    },
    "training": {"steps": 250, "batch_tokens": 2048, "learning_rate": 6e-3},
    "data": {"corpus_fingerprint": "0123456789abcdef", "tokenizer_hash": "fedcba9876543210"},
    "replicate": 0,
}


def with_fields(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with fields replaced, each named by its place: `{"training__steps": 3}`."""
    changed: dict[str, Any] = copy.deepcopy(dict(content))
    for path, value in changes.items():
        *sections, key = path.split("__")
        target = changed
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = value
    return changed


def spec(**changes: Any) -> TrialSpec:
    """The trial with fields replaced: `training__steps=3` or `replicate=1`."""
    return TrialSpec.model_validate(with_fields(GPT2, changes))
