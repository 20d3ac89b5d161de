"""The sweeps that come with widthlab: planned without a network, at the published sizes."""

from typing import Any

import pytest
from repository import SWEEPS

from orchestrator.grid.expand import expand
from orchestrator.grid.plan import make_plan
from orchestrator.grid.plan_records import plan_json
from orchestrator.grid.planned_data import NOT_FETCHED
from orchestrator.sweep.config import SweepConfig
from orchestrator.sweep.load import load_sweep
from trainers.data.store import stated_vocabulary

HUB = ["llama-71m", "llama-130m", "llama-250m", "llama-350m", "llama-1b", "gpt2-125m", "ngpt-125m"]


def config_of(name: str) -> SweepConfig:
    return load_sweep(SWEEPS / f"{name}.yaml")


def plan_of(name: str) -> dict[str, Any]:
    config = config_of(name)
    vocab_size = stated_vocabulary(config.tokenizer)
    assert vocab_size is not None
    return plan_json(make_plan(config, expand(config, NOT_FETCHED, vocab_size), ids_known=False))


@pytest.mark.parametrize(
    ("name", "D", "total", "non_embedding"),
    [
        # 70.6M and 37.8M are not published: 2 x 32,000 x 512 and 12 (4 d^2 + 3 d D), with norms.
        ("llama-71m", 1368, 70.6, 37.8),
        ("llama-130m", 2048, 134.1, 84.9),
        ("llama-250m", 2560, 247.4, 198.2),
        ("llama-350m", 2736, 368.0, 302.4),
        ("llama-1b", 5461, 1339, 1208),
    ],
)
def test_the_published_shape_is_on_the_grid_and_has_the_published_size(
    name, D, total, non_embedding
):
    digits = 0 if total > 1000 else 1
    trials = [trial for trial in plan_of(name)["trials"] if trial["axes"]["D"] == D]
    assert {trial["axes"]["norm"] for trial in trials} == {"pre", "post", "mix", "lns"}
    for trial in trials:
        counted = trial["parameters"]
        assert round(counted["total"] / 1e6, digits) == total
        # The published counts leave out the gains of the norms.
        assert round((counted["attention"] + counted["ffn"]) / 1e6, digits) == non_embedding
        assert counted["non_embedding"] / 1e6 == pytest.approx(non_embedding, rel=1e-3)


@pytest.mark.parametrize("name", HUB)
def test_every_trial_of_a_published_sweep_can_be_planned(name):
    found = plan_of(name)
    assert found["dropped"] == found["merged"] == found["adjusted"] == []
    assert [text for text in found["warnings"] if not text.startswith("no equal budgets")] == []
    assert all(trial["id"] is None for trial in found["trials"])
    assert found["notes"] == ["ids are unknown until widthlab run has fetched the corpus"]
    assert max(trial["memory_bytes"] for trial in found["trials"]) < 60e9  # of 80 GB


@pytest.mark.parametrize("name", HUB)
def test_snapshots_see_ten_tokens_per_unit_of_the_widest(name):
    config = config_of(name)
    widest = max(trial["axes"]["D"] for trial in plan_of(name)["trials"])
    assert config.spectra.tokens >= 10 * widest
    assert config.spectra.sites == ("pre", "post")
    assert config.spectra.every == 200


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("llama-71m", 1.31e9), ("llama-130m", 2.62e9), ("llama-250m", 5.24e9), ("gpt2-125m", 2.1e9)],
)
def test_a_published_trial_sees_the_published_tokens(name, tokens):
    (seen,) = {trial["tokens"] for trial in plan_of(name)["trials"]}
    assert seen == pytest.approx(tokens, rel=2e-3)


def test_ngpt_has_its_published_recipe():
    config = config_of("ngpt-125m")
    training = config.training
    assert config.model.norm == "ngpt"
    assert not config.model.tie_embeddings
    assert (training.weight_decay, training.warmup, training.final_fraction) == (0, 0, 0)


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_file_begins_with_what_it_is_and_names_its_command(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert max(map(len, lines)) <= 100
    if path.stem in HUB:
        assert f"#   widthlab run orchestrator/sweeps/{path.name}" in lines
        assert any("arXiv" in line for line in lines[:12])
