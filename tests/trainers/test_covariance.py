"""Covariances are exact for samples in any batches, in groups and on several ranks."""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analysis.spectrum import measure
from trainers.engine.engine import Ranks
from trainers.spectra.covariance import BLOCK, Covariance


def samples(count: int, width: int, seed: int = 0, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -2, width)
    return torch.randn(count, width, generator=generator) * scales + offset


def covariance_of(collected: Covariance) -> np.ndarray:
    return (collected.scatter / (collected.count - 1)).numpy()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * scale)


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
    collected = Covariance(width)
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
    flat, shaped = Covariance(5), Covariance(5)
    flat.add(x)
    shaped.add(x.view(2, 12, 5))
    assert shaped.count == 24
    assert torch.equal(flat.scatter, shaped.scatter)


def test_a_large_mean_does_not_drown_a_small_variance() -> None:
    """A sum of squares less the square of the sum would lose all of it in float32."""
    x = samples(4000, 4) + 300.0
    collected = Covariance(4)
    for batch in x.split(500):
        collected.add(batch)
    expected = np.cov(x.double().numpy(), rowvar=False)
    np.testing.assert_allclose(np.diag(covariance_of(collected)), np.diag(expected), rtol=1e-3)


def test_bf16_activations_are_accumulated_in_float32_under_autocast_too() -> None:
    x = samples(64, 6).bfloat16()
    collected = Covariance(6)
    with torch.autocast("cpu", torch.bfloat16):
        collected.add(x)
    assert collected.scatter.dtype == torch.float32
    close(covariance_of(collected), np.cov(x.double().numpy(), rowvar=False))


class Party:
    """Ranks that are threads of this process, with sums over all of them."""

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
            collected = Covariance(part.shape[-1])
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

    collected = Covariance(2)
    collected.add(samples(4, 2))
    collected.count = 2**24 + 1
    collected.merge_ranks(Doubling(0, 2, 0, torch.device("cpu")))
    assert collected.count == 2 * (2**24 + 1)


@pytest.mark.parametrize("width", [BLOCK - 1, BLOCK + 1, 3 * BLOCK + 7])
def test_a_matrix_of_several_blocks_is_whole_and_symmetric(width: int) -> None:
    x = samples(40, width, offset=1.0)
    collected = Covariance(width)
    for batch in x.split([1, 30, 9]):
        collected.add(batch)
    scatter = collected.scatter
    assert torch.equal(scatter, scatter.T)
    close(covariance_of(collected), np.cov(x.double().numpy(), rowvar=False))
    collected.add(x)  # samples can be added after `scatter` was read
    twice = torch.cat([x, x]).double().numpy()
    close(covariance_of(collected), np.cov(twice, rowvar=False))


@given(
    counts=st.lists(st.integers(0, 20), min_size=2, max_size=4),
    order=st.permutations(range(4)),
    offset=st.sampled_from([0.0, 5.0]),
)
@settings(deadline=None)
def test_covariances_merge_in_any_order(counts: list[int], order: list[int], offset: float) -> None:
    """Empty ones too: a rare token may not occur in a batch."""
    x = samples(sum(counts) + 2, 5, offset=offset)
    parts = list(x.split([*counts, 2]))
    merged = Covariance(5)
    for index in order:
        part = Covariance(5)
        if index < len(parts):
            part.add(parts[index])
        merged.merge(part)
    if len(parts) > 4:
        last = Covariance(5)
        last.add(parts[4])
        merged.merge(last)
    assert merged.count == len(x)
    close(covariance_of(merged), np.cov(x.double().numpy(), rowvar=False))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), exponent=st.integers(-8, 8))
def test_neither_scale_nor_rotation_nor_order_changes_a_metric(seed: int, exponent: int) -> None:
    """The whole way from activations to metrics, from 1e-8 to 1e8."""
    x = samples(300, 24, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64)).Q
    turned = (x.double() @ rotation * 10.0**exponent).float()
    turned = turned[torch.randperm(300, generator=generator)]
    found = []
    for activations in (x, turned):
        collected = Covariance(24)
        for batch in activations.split(70):
            collected.add(batch)
        found.append(measure(collected.eigenvalues().numpy()))
    for name in ("hard_rank", "soft_rank", "concentration", "edim", "top1_share", "sui"):
        before, after = (float(getattr(metrics, name)) for metrics in found)
        assert after == pytest.approx(before, rel=2e-5), name


def test_activations_of_full_rank_in_one_direction_have_rank_one() -> None:
    collected = Covariance(30)
    direction = torch.linspace(-1, 2, 30)
    collected.add(torch.randn(200, 1, generator=torch.Generator().manual_seed(0)) * direction + 3)
    found = measure(collected.eigenvalues().numpy())
    assert found.hard_rank == pytest.approx(1, abs=1e-4)
    assert found.concentration == pytest.approx(29 / 30, abs=1e-4)


def test_a_power_law_that_was_planted_is_found() -> None:
    """Eigenvalues k^-1 in 64 dimensions: the metrics of many samples approach those of the law."""
    D, N = 64, 40_000
    law = np.arange(1, D + 1) ** -1.0
    scales = torch.from_numpy(np.sqrt(law)).float()
    collected = Covariance(D)
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1)) * scales
    for batch in x.split(5000):
        collected.add(batch)
    found, expected = measure(collected.eigenvalues().numpy()), measure(law)
    assert found.soft_rank == pytest.approx(expected.soft_rank, rel=0.01)
    assert found.hard_rank == pytest.approx(expected.hard_rank, rel=0.02)
    assert found.concentration == pytest.approx(expected.concentration, rel=0.01)


def test_white_noise_has_the_hard_rank_of_marchenko_and_pastur() -> None:
    """D / (1 + D/N) in the limit: the bias of too few samples, known exactly."""
    D, N = 128, 256
    collected = Covariance(D)
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    for batch in x.split(100):
        collected.add(batch)
    rank = measure(collected.eigenvalues().numpy()).hard_rank
    assert rank == pytest.approx(D / (1 + D / N), rel=0.02)


def test_one_sample_has_no_covariance() -> None:
    collected = Covariance(3)
    collected.add(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"2 samples.* 1$"):
        collected.eigenvalues()


def test_overflow_of_float32_is_refused_and_underflow_is_constant() -> None:
    huge, tiny = Covariance(3), Covariance(3)
    huge.add(samples(9, 3) * 1e25)
    assert not huge.is_finite()
    with pytest.raises(ValueError, match="finite"):
        huge.eigenvalues()
    tiny.add(samples(9, 3) * 1e-20)
    assert tiny.is_constant()
    assert measure(tiny.eigenvalues().numpy()).hard_rank == 1
    assert not samples_covariance(1e-14).is_constant()
    assert measure(samples_covariance(1e-14).eigenvalues().numpy()).hard_rank > 1.05


def samples_covariance(scale: float) -> Covariance:
    collected = Covariance(3)
    collected.add(samples(9, 3) * scale)
    return collected


def test_adding_leaves_no_graph() -> None:
    weight = torch.ones(4, 4, requires_grad=True)
    collected = Covariance(4)
    collected.add(samples(8, 4) @ weight)
    assert not collected.scatter.requires_grad
    assert not collected.mean.requires_grad
