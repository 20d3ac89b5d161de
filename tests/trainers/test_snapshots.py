"""Snapshots of a model: sites, groups, methods and records."""

import math
import threading
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.spectrum import expand, js_divergence, measure
from trainers.engine.engine import Ranks
from trainers.heldout import token_buckets
from trainers.models.build import build, feed_forwards
from trainers.models.decoder import Decoder
from trainers.models.model_spec import ModelSpec
from trainers.spec import SpectraSpec
from trainers.spectra import snapshots
from trainers.spectra.snapshots import NonFiniteActivationsError, Snapshots, SpectrumError
from trialstore.errors import InputError
from trialstore.records import (
    SPECTRA,
    SPECTRA_SCHEMA,
    SPECTRUM_COLUMNS,
    Row,
    put_part,
    read_records,
)
from trialstore.storage import LocalStorage

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
WHEN = {"step": 7, "tokens": 700, "time_ms": 123}
WIDTHS = (24, 40)


def make_model(architecture: str, norm: str = "pre", widths: tuple[int, ...] = WIDTHS) -> Decoder:
    spec = ModelSpec(
        architecture=architecture, norm=norm, d_model=16, head_dim=8, ffn_widths=widths,
        context=12, vocab_size=50,
    )  # fmt: skip
    model = build(spec, 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def make_batches(count: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(50, (2, 12), generator=generator) for _ in range(count)]


def rows_of(
    model: Decoder,
    batches: Iterable[Tensor],
    *,
    final: bool = False,
    bucket_of: Tensor | None = None,
    forward: Callable[[Tensor], object] | None = None,
    **spec: object,
) -> list[Row]:
    """The records of one snapshot."""
    chosen = SpectraSpec.model_validate({"sites": ["pre", "post"], **spec})
    taken = Snapshots(chosen, "trial", ALONE)
    kept = list(batches)

    def labelled() -> Iterable[tuple[Tensor, Tensor | None]]:
        return ((batch, None if bucket_of is None else bucket_of[batch]) for batch in kept)

    try:
        taken.take(model, forward or model, labelled, WHEN, final)
        return taken.drain()
    finally:
        taken.close()


def ffn_inputs(model: Decoder, batches: list[Tensor]) -> list[Tensor]:
    """The inputs of every layer's FFN, [N, d_model]."""
    seen: dict[int, list[Tensor]] = {}
    hooks = [
        ffn.register_forward_pre_hook(lambda _, x, i=i: seen.setdefault(i, []).append(x[0]))
        for i, ffn in enumerate(feed_forwards(model))
    ]
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for hook in hooks:
        hook.remove()
    return [torch.cat(seen[i]).flatten(0, 1) for i in sorted(seen)]


def eigenvalues(activations: Tensor) -> np.ndarray:
    return np.linalg.eigvalsh(np.cov(activations.double().numpy(), rowvar=False))[::-1]


# --- where ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_pre_enters_the_nonlinearity_and_post_enters_the_down_projection(
    architecture: str, norm: str
) -> None:
    """Gated: pre is the gate projection's output, post is act(gate) * up; from the weights."""
    model, batches = make_model(architecture, norm), make_batches()
    rows = {(row["layer"], row["site"]): row for row in rows_of(model, batches)}
    assert list(rows) == [(0, "pre"), (0, "post"), (1, "pre"), (1, "post")]
    layers = zip(ffn_inputs(model, batches), feed_forwards(model), strict=True)
    for layer, (x, ffn) in enumerate(layers):
        with torch.no_grad():
            up = F.linear(x, ffn.up.weight, ffn.up.bias)
            if architecture == "llama":
                gate = F.linear(x, ffn.gate.weight)
                pre, post = gate, gate * torch.sigmoid(gate) * up
            else:
                pre, post = up, F.gelu(up, approximate="tanh")
        for site, activations in (("pre", pre), ("post", post)):
            values = eigenvalues(activations)
            row = rows[layer, site]
            assert row["N"] == 12 * 2 * 12
            assert (row["D"], row["N"] / row["D"]) == (WIDTHS[layer], row["n_over_d"])
            np.testing.assert_allclose(row["eigenvalues"], values, atol=2e-5 * values[0])


def test_only_requested_sites_are_measured() -> None:
    rows = rows_of(make_model("gpt2"), make_batches(), sites=["post"])
    assert [(row["layer"], row["site"]) for row in rows] == [(0, "post"), (1, "post")]
    assert [row["js_divergence"] for row in rows] == [None, None]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("site", ["pre", "post"])
def test_nonfinite_activations_name_layer_site_and_step(site: str, value: float) -> None:
    model = make_model("gpt2")
    with torch.no_grad():
        model.layers[1].ffn.up.weight[0, 0] = value
    with pytest.raises(NonFiniteActivationsError, match=f"layer 1, site {site}: .* step 7"):
        rows_of(model, make_batches(), sites=[site])


def test_negative_eigenvalues_name_layer_site_and_step(monkeypatch) -> None:
    """The background thread computes them; the training thread still gets the error."""
    indefinite = torch.tensor([1.0, -0.5], dtype=torch.float64)
    monkeypatch.setattr(snapshots.Covariance, "eigenvalues", lambda _: indefinite)
    with pytest.raises(SpectrumError, match=r"layer 0, site pre, all .* step 7: .*-0\.5"):
        rows_of(make_model("gpt2"), make_batches())


class Linked(torch.nn.Module):
    """A user's FFN that does not use its modules as its attributes state."""

    def __init__(self, ffn, bypass: bool, narrow: int) -> None:
        super().__init__()
        self.up, self.down, self.bypass = ffn.up, ffn.down, bypass
        self.nonlinearity_input, self.width = self.up, ffn.width - narrow

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.up(x))
        return F.linear(hidden, self.down.weight) if self.bypass else self.down(hidden)


@pytest.mark.parametrize(
    ("bypass", "narrow", "message"),
    [
        (True, 0, "layer 1, site post: .*`down`"),
        (False, 3, "layer 1, site pre: .* width 40.* 37"),
    ],
)
def test_a_block_with_wrong_attributes_names_layer_and_site(bypass, narrow, message) -> None:
    model = make_model("gpt2")
    model.layers[1].ffn = Linked(model.layers[1].ffn, bypass, narrow)
    with pytest.raises(InputError, match=message):
        rows_of(model, make_batches())


@pytest.mark.parametrize("error", [RuntimeError("cuSOLVER"), MemoryError("no room")])
def test_background_errors_name_the_spectrum(monkeypatch, error) -> None:
    def fail(_):
        raise error

    monkeypatch.setattr(snapshots.Covariance, "eigenvalues", fail)
    with pytest.raises(type(error)) as caught:
        rows_of(make_model("gpt2"), make_batches())
    assert caught.value.__notes__ == ["in the spectrum of layer 0, site pre, all tokens at step 7"]


def test_closing_stops_the_eigenwork_at_the_next_matrix(monkeypatch) -> None:
    begun, gate = [], threading.Event()

    def slow(covariance):
        begun.append(covariance)
        assert gate.wait(30)
        return torch.ones(covariance.width, dtype=torch.float64)

    monkeypatch.setattr(snapshots.Covariance, "eigenvalues", slow)
    model, batches = make_model("gpt2"), make_batches()
    taken = Snapshots(SpectraSpec(sites=("pre", "post")), "trial", ALONE)
    taken.take(model, model, lambda: ((batch, None) for batch in batches), WHEN, final=False)
    taken._beside.closing.set()
    gate.set()
    taken.close()
    assert len(begun) <= 1


def test_ranks_meet_while_they_wait_for_rank_0(monkeypatch) -> None:
    """No collective lasts longer than the patience, however long the eigenwork takes."""
    met, gate = [], threading.Event()

    class Meeting(Ranks):
        def broadcast(self, value):
            met.append(value)
            if len(met) == 3:
                gate.set()
            return value

    monkeypatch.setattr(snapshots, "IN_STEP_S", 0.01)
    exact = snapshots.Covariance.eigenvalues
    monkeypatch.setattr(
        snapshots.Covariance, "eigenvalues", lambda self: gate.wait(30) and exact(self)
    )
    model, batches = make_model("gpt2"), make_batches()
    taken = Snapshots(SpectraSpec(), "trial", Meeting(0, 1, 0, torch.device("cpu")))
    taken.take(model, model, lambda: ((batch, None) for batch in batches), WHEN, final=False)
    assert len(taken.drain()) == 2
    taken.close()
    assert met[-1] is True
    assert met.count(False) >= 1


# --- how -----------------------------------------------------------------------------------


def forwards(model: Decoder) -> tuple[list[int], Callable[[Tensor], object]]:
    """A counter of forward passes, and the forward pass that it counts."""
    passes: list[int] = []

    def forward(batch: Tensor) -> object:
        passes.append(len(batch))
        return model(batch)

    return passes, forward


def test_groups_within_the_memory_give_the_same_bits(monkeypatch) -> None:
    """Four matrices of 512 x 512 take 1 MiB each: all at once, or one after the other."""
    model, batches = make_model("gpt2", widths=(512, 512)), make_batches(4)
    passes, forward = forwards(model)
    together = rows_of(model, batches, forward=forward, memory_mb=4)
    assert len(passes) == 4
    passes.clear()
    apart = rows_of(model, batches, forward=forward, memory_mb=1)
    assert len(passes) == 4 * 4
    passes.clear()
    rows_of(model, batches, forward=forward, memory_mb=3)
    assert len(passes) == 2 * 4
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_array_equal(one.pop("eigenvalues"), other.pop("eigenvalues"))
        assert one == other


def test_only_wide_layers_are_sampled_and_the_last_snapshot_never_is(monkeypatch) -> None:
    model, batches = make_model("gpt2", widths=(320, 200)), make_batches(40)
    monkeypatch.setitem(snapshots.EXACT_UP_TO, "cpu", 256)
    assert {row["D"]: row["method"] for row in rows_of(model, batches)} == {
        320: "lanczos", 200: "exact",
    }  # fmt: skip
    for asked in ("auto", "lanczos"):
        rows = rows_of(model, batches, method=asked, final=True)
        assert {row["method"] for row in rows} == {"exact"}
    assert {row["method"] for row in rows_of(model, batches, method="exact")} == {"exact"}
    assert {row["method"] for row in rows_of(model, batches, method="lanczos")} == {"lanczos"}


def test_lanczos_agrees_with_all_eigenvalues_within_its_estimate(monkeypatch) -> None:
    model, batches = make_model("llama", widths=(400,)), make_batches(200)
    exact = rows_of(model, batches, method="exact")
    sampled = rows_of(model, batches, method="lanczos")
    for row, other in zip(exact, sampled, strict=True):
        assert other["hard_rank"] == pytest.approx(row["hard_rank"], rel=1e-4)
        assert other["total_variance"] == pytest.approx(row["total_variance"], rel=1e-5)
        for name in ("soft_rank", "concentration", "edim"):
            assert other[name] == pytest.approx(row[name], rel=0.01), name
        assert other["js_divergence"] == pytest.approx(row["js_divergence"], abs=2e-3)
        assert other["error_estimate"] < 0.05
        # What enters the non-linearity has the rank of d_model: deflation leaves nothing to guess.
        assert (other["error_estimate"] > 1e-4) == (other["site"] == "post")
        assert row["error_estimate"] == 0
        assert sum(other["weights"]) == pytest.approx(400)
        assert "eigenvalues" not in other


def test_probes_are_a_function_of_trial_step_layer_and_site() -> None:
    model, batches = make_model("gpt2", widths=(300,)), make_batches(40)
    first, again = (rows_of(model, batches, method="lanczos") for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one["nodes"], other["nodes"])
    names = ["a/0/0/pre/all", "a/0/0/post/all", "a/0/1/pre/all", "a/1/0/pre/all", "b/0/0/pre/all"]
    assert len({snapshots.seed_of(name) for name in names}) == len(names)


# --- what ----------------------------------------------------------------------------------


def test_a_record_identifies_its_spectrum() -> None:
    for row in rows_of(make_model("llama"), make_batches()):
        assert {name: row[name] for name in WHEN} == WHEN
        assert row["status"] == ("well sampled" if row["D"] == 24 else "undersampled")
        assert (row["method"], row["bucket"]) == ("exact", "all")


def test_a_record_carries_all_eigenvalues_descending_and_what_they_amount_to() -> None:
    for row in rows_of(make_model("llama"), make_batches()):
        values = row["eigenvalues"]
        assert len(values) == row["D"]
        assert (np.diff(values) <= 0).all()
        assert values.min() >= 0
        metrics = measure(values)
        for name in SPECTRUM_COLUMNS:
            assert row[name] == pytest.approx(float(getattr(metrics, name)), rel=1e-4), name


def test_both_sites_of_a_layer_carry_its_divergence() -> None:
    rows = rows_of(make_model("llama"), make_batches())
    for pre, post in zip(rows[::2], rows[1::2], strict=True):
        expected = js_divergence(pre["eigenvalues"], post["eigenvalues"])
        assert pre["js_divergence"] == post["js_divergence"] == pytest.approx(expected, rel=1e-4)
        assert 0 < pre["js_divergence"] < math.log(2)


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_records_fill_the_schema(tmp_path, method: str) -> None:
    trial = LocalStorage(tmp_path)
    rows = rows_of(make_model("llama", widths=(250, 300)), make_batches(), method=method)
    unused = {"nodes", "weights"} if method == "exact" else {"eigenvalues"}
    assert set(rows[0]) == set(SPECTRA_SCHEMA.names) - unused
    put_part(trial, SPECTRA, 1, rows)
    for row in read_records(trial, SPECTRA).to_pylist():
        assert row["soft_rank"] >= row["hard_rank"] >= 1
        if method == "exact":
            assert len(row["eigenvalues"]) == row["D"]
        else:
            assert len(expand(row["nodes"], row["weights"])) == row["D"]


# --- of which tokens -----------------------------------------------------------------------


def test_buckets_are_measured_on_their_own_tokens_and_make_up_all() -> None:
    model, batches = make_model("gpt2"), make_batches()
    counts = np.bincount(torch.cat(batches).flatten().numpy(), minlength=50)
    bucket_of = torch.from_numpy(token_buckets(counts))
    rows = rows_of(model, batches, buckets=True, bucket_of=bucket_of, sites=["pre"])
    assert [row["bucket"] for row in rows] == ["head", "mid", "tail", "all"] * 2
    labels = bucket_of[torch.cat(batches)].flatten()
    x = F.linear(ffn_inputs(model, batches)[0], model.layers[0].ffn.up.weight).detach()
    x += model.layers[0].ffn.up.bias.detach()
    for number, row in enumerate(rows[:3]):
        values = eigenvalues(x[labels == number])
        assert row["N"] == (labels == number).sum()
        np.testing.assert_allclose(row["eigenvalues"], values, atol=2e-5 * values[0])
    plain = rows_of(model, batches, sites=["pre"])
    for whole, row in zip([rows[3], rows[7]], plain, strict=True):
        assert whole["N"] == row["N"]
        atol = 1e-5 * row["eigenvalues"][0]
        np.testing.assert_allclose(whole["eigenvalues"], row["eigenvalues"], atol=atol)


def test_a_bucket_without_tokens_has_no_record() -> None:
    bucket_of = torch.zeros(50, dtype=torch.long)
    rows = rows_of(make_model("gpt2"), make_batches(), buckets=True, bucket_of=bucket_of)
    assert {row["bucket"] for row in rows} == {"head", "all"}
