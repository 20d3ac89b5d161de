"""The probe: exact covariances however the samples arrive, tapped where the definitions say."""

import math
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from analysis.records import SPECTRA, SPECTRA_SCHEMA, put_part, read_records
from analysis.spectrum import js_divergence, measure
from analysis.storage import LocalStorage
from trainers.engine import Ranks
from trainers.model_spec import ModelSpec
from trainers.models.build import build, feed_forwards
from trainers.models.decoder import Decoder
from trainers.probe import (
    Covariance,
    NonFiniteActivationsError,
    covariances,
    spectra_rows,
    taps,
)

ALONE = Ranks(0, 1, 0, torch.device("cpu"))


def samples(count: int, width: int, seed: int = 0, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -2, width)
    return torch.randn(count, width, generator=generator) * scales + offset


def covariance_of(collected: Covariance) -> np.ndarray:
    assert collected.scatter is not None
    return (collected.scatter / (collected.count - 1)).numpy()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * scale)


# --- the covariance ------------------------------------------------------------------------


@settings(deadline=None)
@given(
    count=st.integers(2, 60),
    width=st.integers(1, 9),
    cuts=st.lists(st.integers(1, 59), max_size=5),
    offset=st.sampled_from([0.0, 1.0, -3.0]),
)
def test_the_covariance_is_numpys_however_the_samples_are_batched(
    count: int, width: int, cuts: list[int], offset: float
) -> None:
    x = samples(count, width, offset=offset)
    collected = Covariance()
    for batch in torch.tensor_split(x, sorted({cut for cut in cuts if cut < count})):
        collected.add(batch)
    assert collected.count == count
    expected = np.cov(x.double().numpy(), rowvar=False).reshape(width, width)
    close(covariance_of(collected), expected)
    found = collected.eigenvalues()
    assert found.dtype == torch.float64
    close(found.numpy(), np.linalg.eigvalsh(expected)[::-1])


def test_sequences_and_positions_are_all_samples() -> None:
    x = samples(24, 5)
    flat, shaped = Covariance(), Covariance()
    flat.add(x)
    shaped.add(x.view(2, 12, 5))
    assert shaped.count == 24
    assert torch.equal(flat.scatter, shaped.scatter)


def test_a_large_mean_does_not_drown_a_small_variance() -> None:
    """A sum of squares less the square of the sum would lose all of it in float32."""
    x = samples(4000, 4) + 300.0
    collected = Covariance()
    for batch in x.split(500):
        collected.add(batch)
    expected = np.cov(x.double().numpy(), rowvar=False)
    np.testing.assert_allclose(np.diag(covariance_of(collected)), np.diag(expected), rtol=1e-3)


def test_bf16_activations_are_accumulated_in_float32_under_autocast_too() -> None:
    x = samples(64, 6).bfloat16()
    collected = Covariance()
    with torch.autocast("cpu", torch.bfloat16):
        collected.add(x)
    assert collected.scatter.dtype == torch.float32
    close(covariance_of(collected), np.cov(x.double().numpy(), rowvar=False))


class Party:
    """Ranks that are threads of this process: a sum is over what all of them bring."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.brought: list[Tensor | None] = [None] * size
        self.barrier = threading.Barrier(size)

    def member(self, rank: int) -> Ranks:
        party = self

        class Member(Ranks):
            def sum(self, values: Tensor) -> Tensor:
                party.brought[rank] = values.clone()
                party.barrier.wait(30)
                total = torch.stack(party.brought).sum(0)
                party.barrier.wait(30)
                return values.copy_(total)

        return Member(rank, self.size, rank, torch.device("cpu"))

    def merge(self, parts: Iterable[Tensor]) -> list[Covariance]:
        """The covariance that each rank has after all have merged theirs."""

        def work(rank: int, part: Tensor) -> Covariance:
            collected = Covariance()
            collected.add(part)
            collected.merge_ranks(self.member(rank))
            return collected

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(work, range(self.size), parts))


@settings(deadline=None, max_examples=25)
@given(
    shares=st.lists(st.integers(1, 30), min_size=2, max_size=4),
    width=st.integers(2, 6),
    offset=st.sampled_from([0.0, 2.0]),
)
def test_ranks_merge_to_the_covariance_of_all_their_samples(
    shares: list[int], width: int, offset: float
) -> None:
    x = samples(sum(shares), width, offset=offset)
    merged = Party(len(shares)).merge(x.split(shares))
    expected = np.cov(x.double().numpy(), rowvar=False)
    for collected in merged:
        assert collected.count == sum(shares)
        close(covariance_of(collected), expected)


def test_counts_beyond_float32_are_merged_exactly() -> None:
    class Doubling(Ranks):
        def sum(self, values: Tensor) -> Tensor:
            return values.mul_(2)

    collected = Covariance()
    collected.add(samples(4, 2))
    collected.count = 2**24 + 1
    collected.merge_ranks(Doubling(0, 2, 0, torch.device("cpu")))
    assert collected.count == 2 * (2**24 + 1)


# --- where it taps -------------------------------------------------------------------------


def make_model(architecture: str, norm: str = "pre") -> Decoder:
    spec = ModelSpec(
        architecture=architecture, norm=norm, d_model=16, head_dim=8, ffn_widths=(24, 40),
        context=12, vocab_size=50,
    )  # fmt: skip
    model = build(spec, 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def make_batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(50, (2, 12), generator=generator) for _ in range(count)]


def ffn_inputs(model: Decoder, batches: list[Tensor]) -> list[Tensor]:
    """What enters the FFN of every layer, [N, d_model]."""
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


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_pre_enters_the_nonlinearity_and_post_enters_the_down_projection(
    architecture: str, norm: str
) -> None:
    """Gated: pre is the gate projection's output, post is act(gate) * up; from the weights."""
    model, batches = make_model(architecture, norm), make_batches()
    collected = covariances(model, model, batches, ("pre", "post"), ALONE)
    assert [(tap.layer, tap.site, tap.width) for tap, _ in collected] == [
        (0, "pre", 24), (0, "post", 24), (1, "pre", 40), (1, "post", 40),
    ]  # fmt: skip
    for x, ffn, (_, pre), (_, post) in zip(
        ffn_inputs(model, batches), feed_forwards(model), collected[::2], collected[1::2],
        strict=True,
    ):  # fmt: skip
        with torch.no_grad():
            up = F.linear(x, ffn.up.weight, ffn.up.bias)
            if architecture == "llama":
                gate = F.linear(x, ffn.gate.weight)
                expected_pre, expected_post = gate, gate * torch.sigmoid(gate) * up
            else:
                expected_pre, expected_post = up, F.gelu(up, approximate="tanh")
        assert pre.count == post.count == 3 * 2 * 12
        close(covariance_of(pre), np.cov(expected_pre.double().numpy(), rowvar=False))
        close(covariance_of(post), np.cov(expected_post.double().numpy(), rowvar=False))


def test_only_the_sites_that_are_asked_for_are_tapped() -> None:
    model = make_model("gpt2")
    assert [(tap.layer, tap.site) for tap in taps(model, ("post",))] == [(0, "post"), (1, "post")]


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def test_no_hook_is_left_behind() -> None:
    model = make_model("llama")
    before = hooks_of(model)
    during = []

    def forward(batch: Tensor) -> object:
        during.append(hooks_of(model))
        return model(batch)

    covariances(model, forward, make_batches(1), ("pre", "post"), ALONE)
    assert during == [before + 4]
    assert hooks_of(model) == before


def test_no_hook_is_left_behind_after_an_exception() -> None:
    model = make_model("llama")
    before = hooks_of(model)
    too_long = [torch.zeros(1, 13, dtype=torch.long)]
    with pytest.raises(ValueError, match="do not fit the context"):
        covariances(model, model, too_long, ("pre", "post"), ALONE)
    assert hooks_of(model) == before


def test_watching_changes_neither_the_output_nor_the_gradients() -> None:
    model, (batch,) = make_model("gpt2"), make_batches(1)
    alone = model(batch).logits
    outputs = []
    covariances(model, lambda x: outputs.append(model(x).logits), [batch], ("post",), ALONE)
    assert torch.equal(outputs[0], alone)
    assert not outputs[0].requires_grad


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("site", ["pre", "post"])
def test_what_is_not_finite_is_named_by_layer_and_site(site: str, value: float) -> None:
    model = make_model("gpt2")
    with torch.no_grad():
        model.layers[1].ffn.up.weight[0, 0] = value
    with pytest.raises(NonFiniteActivationsError, match=f"layer 1, site {site}: .* not finite"):
        covariances(model, model, make_batches(1), (site,), ALONE)


# --- the records ---------------------------------------------------------------------------


@pytest.fixture
def collected():
    model = make_model("llama")
    return covariances(model, model, make_batches(12), ("pre", "post"), ALONE)


def test_a_record_says_what_it_is_of(collected) -> None:
    rows = spectra_rows(collected, step=7, tokens=700, time_ms=123)
    assert [(row["layer"], row["site"], row["D"]) for row in rows] == [
        (0, "pre", 24), (0, "post", 24), (1, "pre", 40), (1, "post", 40),
    ]  # fmt: skip
    for row in rows:
        assert (row["step"], row["tokens"], row["time_ms"]) == (7, 700, 123)
        assert row["N"] == 12 * 2 * 12
        assert row["n_over_d"] == pytest.approx(288 / row["D"])
        assert row["status"] == ("well sampled" if row["D"] == 24 else "undersampled")
        assert row["method"] == "exact"


def test_a_record_carries_all_eigenvalues_descending_and_what_they_amount_to(collected) -> None:
    rows = spectra_rows(collected, step=0, tokens=0, time_ms=0)
    for row, (_, covariance) in zip(rows, collected, strict=True):
        eigenvalues = row["eigenvalues"]
        assert len(eigenvalues) == row["D"]
        assert (np.diff(eigenvalues) <= 0).all()
        assert eigenvalues.min() >= 0
        total = np.trace(covariance_of(covariance))
        assert eigenvalues.sum() == pytest.approx(total, rel=1e-5)
        assert row["total_variance"] == pytest.approx(total, rel=1e-5)
        exact = np.linalg.eigvalsh(covariance_of(covariance).astype(float))
        assert row["hard_rank"] == pytest.approx(exact.sum() ** 2 / (exact**2).sum(), rel=1e-4)
        assert row["soft_rank"] == pytest.approx(measure(exact[::-1]).soft_rank, rel=1e-4)


def test_both_sites_of_a_layer_carry_its_divergence_and_one_site_has_none(collected) -> None:
    rows = spectra_rows(collected, step=0, tokens=0, time_ms=0)
    for pre, post in zip(rows[::2], rows[1::2], strict=True):
        expected = js_divergence(
            pre["eigenvalues"].astype(float), post["eigenvalues"].astype(float)
        )
        assert pre["js_divergence"] == post["js_divergence"] == pytest.approx(expected, rel=1e-4)
        assert 0 < pre["js_divergence"] < math.log(2)
    alone = [item for item in collected if item[0].site == "post"]
    assert [row["js_divergence"] for row in spectra_rows(alone, 0, 0, 0)] == [None, None]


def test_records_fill_the_schema(collected, tmp_path) -> None:
    trial = LocalStorage(tmp_path)
    rows = spectra_rows(collected, step=7, tokens=700, time_ms=123)
    assert set(rows[0]) == set(SPECTRA_SCHEMA.names) - {"nodes", "weights"}
    put_part(trial, SPECTRA, 1, rows)
    for row in read_records(trial, SPECTRA).to_pylist():
        assert row["soft_rank"] >= row["hard_rank"] >= 1
        assert len(row["eigenvalues"]) == row["D"]


def test_white_noise_has_the_hard_rank_of_marchenko_and_pastur() -> None:
    """D / (1 + D/N) in the limit: the bias of too few samples, known exactly."""
    D, N = 128, 256
    collected = Covariance()
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    for batch in x.split(100):
        collected.add(batch)
    rank = measure(collected.eigenvalues().numpy()).hard_rank
    assert rank == pytest.approx(D / (1 + D / N), rel=0.02)
