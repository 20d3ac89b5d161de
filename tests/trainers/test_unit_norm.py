"""A matrix in arbitrary fragments is normalised like the whole matrix."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainers.engine.unit_norm import Fragment, normalise

shapes = st.tuples(st.integers(1, 6), st.integers(1, 6))


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def alone(values: Tensor) -> Tensor:
    return values


def fragment(whole: Tensor, start: int, end: int, dim: int) -> Fragment:
    rows, columns = whole.shape
    return Fragment(whole.flatten()[start:end].clone(), start, (rows, columns), dim)


@given(shapes, st.sampled_from([0, 1]), st.data())
def test_rectangles_cover_a_fragment_once_and_know_their_vectors(
    shape: tuple[int, int], dim: int, data: st.DataObject
) -> None:
    rows, columns = shape
    places = torch.arange(rows * columns)
    start = data.draw(st.integers(0, rows * columns))
    end = data.draw(st.integers(start, rows * columns))
    covered: list[int] = []
    pieces = list(fragment(places.view(shape), start, end, dim).rectangles())
    for rectangle, vectors in pieces:
        vector = rectangle // columns if dim == 1 else rectangle % columns
        numbers = torch.arange(rows if dim == 1 else columns)[vectors]
        expected = numbers[:, None] if dim == 1 else numbers[None, :]
        assert torch.equal(vector, expected.expand_as(vector))
        covered += rectangle.flatten().tolist()
    assert covered == list(range(start, end))
    assert len(pieces) <= 3


@given(st.lists(shapes, min_size=1, max_size=3), st.sampled_from([0, 1]), st.data())
def test_fragments_of_several_ranks_come_out_as_the_whole_matrices(
    sizes: list[tuple[int, int]], dim: int, data: st.DataObject
) -> None:
    """Each rank has one piece of the matrices laid end to end; some may have nothing."""
    wholes = [matrix(*shape, seed) for seed, shape in enumerate(sizes)]
    total = sum(whole.numel() for whole in wholes)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, total), max_size=2))), total]
    ranks: list[list[Fragment]] = []
    for first, last in itertools.pairwise(cuts):
        begin, held = 0, []
        for whole in wholes:
            start = min(max(first - begin, 0), whole.numel())
            end = min(max(last - begin, 0), whole.numel())
            held.append(fragment(whole, start, max(start, end), dim))
            begin += whole.numel()
        ranks.append(held)

    # What every rank brings to the collective, then the rank's own call with the sum.
    brought: list[Tensor] = []

    def bring(values: Tensor) -> Tensor:
        brought.append(values.clone())
        return values

    copies = [[Fragment(f.values.clone(), f.start, f.shape, f.dim) for f in held] for held in ranks]
    for held in copies:
        normalise(held, bring)
    total_squares = torch.stack(brought).sum(0)
    for held in ranks:
        normalise(held, lambda values: values.copy_(total_squares))
    for number, whole in enumerate(wholes):
        put_together = torch.cat([held[number].values for held in ranks]).view_as(whole)
        torch.testing.assert_close(put_together, F.normalize(whole, dim=dim))


@pytest.mark.parametrize("dim", [0, 1])
def test_all_matrices_take_one_collective(dim: int) -> None:
    calls = []

    def count(values: Tensor) -> Tensor:
        calls.append(len(values))
        return values

    wholes = [matrix(3, 4), matrix(5, 2)]
    normalise([fragment(whole, 0, whole.numel(), dim) for whole in wholes], count)
    assert calls == [8 if dim == 1 else 6]


def test_nothing_to_normalise_takes_no_collective() -> None:
    def forbidden(values: Tensor) -> Tensor:
        raise AssertionError("there was a collective")

    never: Callable[[Tensor], Tensor] = forbidden
    normalise([], never)


def test_a_zero_vector_stays_zero() -> None:
    held = fragment(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), 0, 4, 1)
    normalise([held], alone)
    assert held.values.tolist() == pytest.approx([0.0, 0.0, 0.6, 0.8])
