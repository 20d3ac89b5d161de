"""Claims about the spread over layers: two kinds are named, one kind is not split."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.laws.layer_kinds import LayerSpread, spread_over_layers, two_bunches
from analysis.pipeline import analyse
from analysis.refusal import Refusal
from analysis.wording import named_layers
from trialstore.storage import LocalStorage

WIDTHS = (128, 192, 256, 384, 512, 768)


def study(
    exponents: list[float], replicates: int = 3, noise: float = 0.03, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of `SweepTables.spectra`, with the column `rank`, and of `SweepTables.trials`."""
    rng = np.random.default_rng(seed)
    trials, rows = [], []
    for replicate in range(replicates):
        for width in WIDTHS:
            name = f"{replicate}-{width}"
            trials.append({"id": name, "D": float(width), "replicate": replicate})
            shared = noise * rng.standard_normal()
            for layer, exponent in enumerate(exponents):
                rank = 20 * (width / 128) ** exponent * np.exp(shared + noise * rng.normal())
                rows.append({"id": name, "step": 9, "site": "post", "layer": layer, "rank": rank})
    return pd.DataFrame(rows), pd.DataFrame(trials)


def spread(exponents: list[float], **how: Any) -> LayerSpread:
    found = spread_over_layers(*study(exponents, **how), "rank", "rank")
    assert isinstance(found, LayerSpread)
    return found


@pytest.mark.parametrize("replicates", [1, 3])
def test_an_even_number_of_layers_of_two_kinds_is_named_by_kind(replicates: int) -> None:
    found = spread([0.0] * 3 + [1.02] * 3, replicates=replicates)
    assert found.kinds is not None
    slow, fast = found.kinds
    assert (slow.layers, fast.layers) == ((0, 1, 2), (3, 4, 5))
    assert (slow.beta, fast.beta) == pytest.approx((0.0, 1.02), abs=0.05)
    assert "in layers 0-2 and as D^" in found.text
    assert found.range == pytest.approx((0.0, 1.02), abs=0.08)
    assert found.to_dict()["kinds"][1]["layers"] == [3, 4, 5]


def test_kinds_that_take_turns_are_named() -> None:
    found = spread([0.2, 0.8] * 3)
    assert found.kinds is not None
    assert found.kinds[0].layers == (0, 2, 4)


def test_alike_layers_are_one_kind_in_nearly_every_study() -> None:
    accused = [spread([0.6] * 4, replicates=2, seed=n).kinds is not None for n in range(25)]
    assert sum(accused) <= 1


def test_layers_that_differ_evenly_are_not_two_kinds() -> None:
    found = spread([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert found.kinds is None
    assert found.difference_p < 1e-6
    assert found.quartiles == pytest.approx((0.25, 0.5, 0.75), abs=0.05)


@pytest.mark.parametrize(
    ("betas", "slower"),
    [
        ([0.0, 1.0], (0,)),
        ([0.0, 0.09], None),  # too small a difference
        ([0.5] * 7 + [1.0], None),  # one of eight: less than a quarter
        ([0.5] * 6 + [1.0] * 2, (0, 1, 2, 3, 4, 5)),
        ([0.5, 0.5, 0.5, 0.5], None),
    ],
)
def test_bunches_are_apart_and_hold_a_quarter_of_the_layers(
    betas: list[float], slower: tuple[int, ...] | None
) -> None:
    found = two_bunches([*range(len(betas))], np.array(betas))
    assert (None if found is None else found[0].layers) == slower


def test_a_layer_without_a_rank_leaves_its_trial_out_and_is_counted() -> None:
    spectra, trials = study([0.1, 0.9])
    spectra.loc[(spectra["id"] == "0-128") & (spectra["layer"] == 1), "rank"] = np.nan
    found = spread_over_layers(spectra, trials, "rank", "hard rank")
    assert isinstance(found, LayerSpread)
    assert found.left_out == {
        "trials without a hard rank of every layer": 1,
        "snapshots whose hard rank is no number from 1 on": 1,
    }
    assert found.laws[0].points == 17


@pytest.mark.parametrize(("exponents", "widths"), [([0.5], 6), ([0.5, 0.5], 2), ([], 0)])
def test_one_layer_or_two_widths_are_refused(exponents: list[float], widths: int) -> None:
    spectra, trials = study([*exponents, 0.5][: max(len(exponents), 1)])
    used = trials[trials["D"].isin(WIDTHS[:widths])]
    assert isinstance(spread_over_layers(spectra, used, "rank", "rank"), Refusal)


@pytest.mark.usefixtures("undrawn")
def test_two_kinds_stand_in_terminal_report_tables_and_json(
    build_sweep: Callable[..., LocalStorage],
) -> None:
    sweep = build_sweep({("gpt2", "pre"): {"first_layer": 9.0, "decay": 0.4}}, seeds=[0, 1, 2])
    done = analyse(sweep)
    (group,) = done.recommendation["groups"]
    for rank, beta in (("hard_rank_debiased", 0.05), ("soft_rank", 0.1)):
        found = group["layers"]["exponents"][rank]
        slow, fast = found["kinds"]
        assert (slow["layers"], fast["layers"]) == ([0], [1])
        assert slow["beta"] == pytest.approx(0, abs=beta)
        assert fast["beta"] - slow["beta"] > 0.1
        law = group["evidence"]["laws"][rank]["beta"]
        assert slow["beta"] < law < fast["beta"]
        low, high = found["range"]
        assert f"{low:.2f} to {high:.2f}" in done.summary
    (caveat,) = (text for text in group["caveats"] if "two kinds" in text)
    page = sweep.get("report/report.html").decode()
    assert "in layer 0 and as D^" in caveat
    assert caveat.split(": ")[1][:20] in page
    laws = pd.read_csv(io.BytesIO(sweep.get("report/tables/layer_laws.csv")))
    of_hard = laws[laws["quantity"] == "hard_rank_debiased"].set_index("layer")
    assert of_hard["kind"].to_dict() == {0: "slower", 1: "faster"}


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((3,), "layer 3"),
        ((0, 1), "layers 0 and 1"),
        ((0, 1, 2), "layers 0-2"),
        ((0, 1, 2, 5, 7, 8), "layers 0-2, 5, 7 and 8"),
    ],
)
def test_runs_of_layers_are_named_by_their_ends(layers: tuple[int, ...], text: str) -> None:
    assert named_layers(layers) == text
