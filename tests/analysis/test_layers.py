"""Claims about layer advice: layers that stand out are named, parameters are kept, luck is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.laws.layers import LARGEST_SHIFT, LayerAdvice, advise_layers
from analysis.refusal import Refusal
from orchestrator.sweep.load import parse_sweep

WIDTHS = (128, 192, 256, 384, 512, 768)


def study(
    elasticities: list[float], replicates: int = 3, noise: float = 0.01, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of `SweepTables.spectra` and of `SweepTables.trials`."""
    rng = np.random.default_rng(seed)
    trials: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for replicate in range(replicates):
        for width in WIDTHS:
            name = f"{replicate}-{width}"
            trials.append({"id": name, "D": float(width), "replicate": replicate})
            for layer, elasticity in enumerate(elasticities):
                luck = np.exp(noise * rng.standard_normal())
                for step in (0, 50, 100, 150, 200, 300):
                    edim = 2.0 * width**elasticity * luck if step > 150 else 1.0
                    row = {"id": name, "step": step, "site": "post", "layer": layer, "edim": edim}
                    rows += [row, {**row, "site": "pre", "edim": 5.0}]
    return pd.DataFrame(rows), pd.DataFrame(trials)


def advised(elasticities: list[float], last: int = 2, **how: Any) -> LayerAdvice:
    found = advise_layers(*study(elasticities, **how), last)
    assert isinstance(found, LayerAdvice)
    return found


def test_layers_that_grow_faster_or_slower_than_the_others_are_named() -> None:
    found = advised([0.6, 0.9, 0.6, 0.3, 0.6])
    assert found.widen == (1,)
    assert found.narrow == (3,)
    assert [grown.elasticity.beta for grown in found.layers] == pytest.approx(
        [0.6, 0.9, 0.6, 0.3, 0.6], abs=0.03
    )
    low, high = found.layers[1].relative_interval
    assert low < 0.3 < high
    wide, narrow = found.sentence.split("; ", 1)[1].split(", ")
    assert "layer 1" in wide
    assert "faster" in wide
    assert "more width" in wide
    assert "layer 3" in narrow
    assert "slower" in narrow
    assert "less width" in narrow


def test_widths_are_in_proportion_to_the_elasticities_and_keep_the_parameters() -> None:
    listed = advised([0.6, 0.8, 0.6, 0.4, 0.6], noise=1e-4).ffn_width(384, 8)
    assert listed is not None
    assert sum(listed) == 5 * 384
    assert listed == pytest.approx([384, 512, 384, 256, 384], abs=8)


def test_the_list_is_the_best_of_its_sum_for_the_product_of_the_effective_dimensions() -> None:
    elasticities = np.array([0.5, 0.6, 0.7, 0.6])
    listed = advised([*elasticities], noise=1e-5).ffn_width(384, 1)
    assert listed is not None
    best = elasticities @ np.log(listed)
    for give in range(4):
        for take in range(4):
            other = np.array(listed, float)
            other[give] -= 4 * (give != take)
            other[take] += 4 * (give != take)
            assert elasticities @ np.log(other) <= best + 1e-9


def test_without_a_difference_nothing_is_advised() -> None:
    found = advised([0.6] * 6, noise=0.05)
    assert found.widen == found.narrow == ()
    assert found.ffn_width(384, 8) is None
    assert f"D^{found.mean.beta:.2f}" in found.sentence


def test_one_replicate_is_never_enough() -> None:
    found = advised([0.6, 0.9, 0.6, 0.3, 0.6], replicates=1)
    assert found.widen == found.narrow == ()
    assert found.ffn_width(384, 8) is None
    assert "replicates" in found.sentence
    assert found.layers[1].elasticity.beta == pytest.approx(0.9, abs=0.05)


def test_alike_layers_are_told_apart_in_no_more_than_one_study_of_ten() -> None:
    false = [
        bool(found.widen or found.narrow)
        for found in (advised([0.6] * 5, replicates=2, noise=0.05, seed=n) for n in range(30))
    ]
    assert np.mean(false) < 0.1 + 2 * np.sqrt(0.09 / 30)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(-0.4, 1.2), min_size=2, max_size=5),
    st.integers(1, 90),
    st.sampled_from([1, 8, 16]),
)
def test_parameters_are_kept_and_no_layer_moves_too_far(
    elasticities: list[float], units: int, multiple: int
) -> None:
    width = units * multiple
    found = advise_layers(*study(elasticities, replicates=2, noise=1e-3))
    listed = found.ffn_width(width, multiple) if isinstance(found, LayerAdvice) else None
    if listed is None:
        return
    assert sum(listed) == len(elasticities) * width
    assert all(each % multiple == 0 and each > 0 for each in listed)
    assert max(listed) <= width * LARGEST_SHIFT + multiple
    assert min(listed) >= width / LARGEST_SHIFT - multiple
    assert len(set(listed)) > 1


def test_no_layer_leaves_the_widths_that_were_measured() -> None:
    found = advised([0.6, 0.9, 0.6, 0.3, 0.6])
    assert found.ffn_width(max(WIDTHS), 8) is None
    assert found.ffn_width(min(WIDTHS), 8) is None
    listed = found.ffn_width(640, 8)
    assert listed is not None
    assert max(listed) <= max(WIDTHS)


def test_a_sweep_file_takes_the_list() -> None:
    found = advised([0.6, 0.9, 0.6, 0.3])
    listed = found.ffn_width(384, 8)
    file = {
        "name": "layers",
        "corpus": {"kind": "python-source"},
        "model": {
            "architecture": "gpt2",
            "norm": "pre",
            "depth": 4,
            "d_model": 96,
            "head_dim": 16,
            "context": 64,
        },
        "grid": {"ffn_width": [384, listed], "seed": [0, 1, 2]},
        "training": {"steps": 10, "batch_tokens": 512, "learning_rate": 1e-3},
    }
    sweep = parse_sweep(yaml.safe_dump(file), str(Path("layers.yaml")))
    assert list(sweep.grid["ffn_width"]) == [384, listed]


def test_only_the_last_snapshots_at_the_site_of_the_laws_enter() -> None:
    assert advised([0.6, 0.9, 0.6], last=2).mean.beta == pytest.approx(0.7, abs=0.02)
    # Of the last five, three are of a time before anything grew.
    early = advise_layers(*study([0.6, 0.9, 0.6]), last=5)
    assert isinstance(early, Refusal)
    assert "eDim is not known to grow" in early.reason


def test_a_layer_without_a_number_leaves_its_trial_out_and_is_counted() -> None:
    spectra, trials = study([0.6, 0.9, 0.6, 0.3])
    at = (spectra["id"] == "0-128") & (spectra["layer"] == 2) & (spectra["site"] == "post")
    spectra.loc[at, "edim"] = [1.0, 1.0, 1.0, np.nan, 0.0, -1.0]
    found = advise_layers(spectra[spectra["id"] != "1-256"], trials, last=3)
    assert isinstance(found, LayerAdvice)
    assert found.left_out == {
        "trials without spectra": 1,
        "trials without an eDim of every layer": 1,
        "snapshots whose eDim is no number from 1 on": 3,
    }
    assert found.trials == 16


@pytest.mark.parametrize(
    ("elasticities", "widths", "reason"),
    [
        ([0.6], 6, "there is one layer"),
        ([0.6, 0.7], 2, "there are 2"),
        ([0.0, 0.0], 6, "its exponent is"),
        ([0.6, 0.7], 0, "there is none"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_words(
    elasticities: list[float], widths: int, reason: str
) -> None:
    spectra, trials = study(elasticities, noise=0.05)
    found = advise_layers(spectra, trials[trials["D"].isin(WIDTHS[:widths])])
    assert isinstance(found, Refusal)
    assert reason in found.reason
