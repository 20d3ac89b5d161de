"""Restore the unit norms of nGPT's weight vectors after every update, at every ZeRO stage.

nGPT's matrices consist of unit vectors (arXiv 2410.01131, section 2.6, step 2), and an optimiser
step changes their norms. A hook normalises the float32 master weights after each step, before
DeepSpeed copies them to the model. Under ZeRO a rank holds only a fragment of a matrix, which can
begin and end inside a vector, so one collective per step sums the squared norms over ranks.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Lower bound of a norm in a division: a zero vector stays zero.
LEAST_NORM = 1e-12


@dataclass(frozen=True)
class Fragment:
    """This rank's part of a matrix [rows, columns].

    Attributes:
        values: [n], n >= 0, a view of the optimiser's float32 master weights.
        start: Index of the first value in the flattened, row-major matrix.
        shape: (rows, columns) of the whole matrix.
        dim: The dimension along which the unit vectors run: 1 for rows, 0 for columns.
    """

    values: Tensor
    start: int
    shape: tuple[int, int]
    dim: int

    @property
    def vectors(self) -> int:
        """Number of vectors of the whole matrix."""
        return self.shape[1 - self.dim]

    def rectangles(self) -> Iterator[tuple[Tensor, slice]]:
        """Yield the values as rectangular views [r, c] with the indices of their vectors.

        A fragment has at most three: the end of a row, whole rows, and the beginning of a row.
        """
        columns = self.shape[1]
        position, end = self.start, self.start + len(self.values)
        while position < end:
            row, column = divmod(position, columns)
            width = min(columns - column, end - position)
            height = max(1, (end - position) // columns) if column == 0 else 1
            begin = position - self.start
            rectangle = self.values[begin : begin + height * width].view(height, width)
            first, number = (row, height) if self.dim == 1 else (column, width)
            yield rectangle, slice(first, first + number)
            position += height * width


@torch.no_grad()
def normalise(fragments: list[Fragment], sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
    """Scale every vector of some matrices to norm 1, in place.

    Args:
        fragments: This rank's parts. All ranks pass the same matrices in the same order.
        sum_over_ranks: Sums a tensor over the ranks in place, such as `Ranks.sum`. It is called
            once, unless there are no fragments.
    """
    if not fragments:
        return
    squares = fragments[0].values.new_zeros(sum(fragment.vectors for fragment in fragments))
    parts = torch.split(squares, [fragment.vectors for fragment in fragments])
    for fragment, part in zip(fragments, parts, strict=True):
        for rectangle, vectors in fragment.rectangles():
            part[vectors] += rectangle.square().sum(fragment.dim)
    sum_over_ranks(squares)
    squares.sqrt_().clamp_(min=LEAST_NORM).reciprocal_()  # 1 / norm of every vector
    for fragment, part in zip(fragments, parts, strict=True):
        for rectangle, vectors in fragment.rectangles():
            rectangle.mul_(part[vectors].unsqueeze(fragment.dim))


def keep_unit_norms(
    engine: Any, dims: Mapping[str, int], sum_over_ranks: Callable[[Tensor], Tensor]
) -> None:
    """Make a DeepSpeed engine's optimiser normalise matrices after each of its steps.

    Args:
        engine: What `deepspeed.initialize` returns.
        dims: The dimension along which vectors have norm 1, by parameter name, such as
            `Decoder.unit_norm_dims`.
        sum_over_ranks: See `normalise`.
    """
    by_master = _fragments(engine, dims)
    found = sum(map(len, by_master.values()))
    assert found == len(dims), f"ZeRO holds {found} of the {len(dims)} matrices"

    def after_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
        # ZeRO steps one parameter group at a time, with only that group's master weights.
        stepped = (master for group in optimizer.param_groups for master in group["params"])
        fragments = [one for master in stepped for one in by_master.get(master, [])]
        normalise(fragments, sum_over_ranks)

    # ZeRO wraps the optimiser; stage 0 does not.
    getattr(engine.optimizer, "optimizer", engine.optimizer).register_step_post_hook(after_step)


def _fragments(engine: Any, dims: Mapping[str, int]) -> dict[Tensor, list[Fragment]]:
    """Return the fragments in each tensor of master weights, in the same order on every rank."""
    stage = engine.zero_optimization_stage()
    matrices = {p: dims[name] for name, p in engine.module.named_parameters() if name in dims}
    if stage == 0:
        return {p: [_fragment(p, p.view(-1), 0, dim)] for p, dim in matrices.items()}
    found: dict[Tensor, list[Fragment]] = {}
    zero = engine.optimizer
    if stage == 3:
        for parameter, dim in matrices.items():
            group, offset, numel = zero.grad_position[zero.get_param_id(parameter)]
            master = zero.fp32_partitioned_groups_flat[group]
            start = numel * torch.distributed.get_rank()
            real = max(0, min(numel, parameter.ds_numel - start))  # the rest is padding
            values = master.narrow(0, offset, real)
            found.setdefault(master, []).append(_fragment(parameter, values, start, dim))
        return found
    if hasattr(zero, "bf16_groups"):  # stage 1 in bf16 is a class of its own
        groups, masters = zero.bf16_groups, zero.fp32_groups_flat_partition
    else:
        groups, masters = zero.bit16_groups, zero.single_partition_of_fp32_groups
    for group, master in zip(groups, masters, strict=True):
        for parameter in group:
            if parameter in matrices:
                held = parameter._hp_mapping  # None if this rank holds none of it
                values = held.hp_fragment if held else master.narrow(0, 0, 0)
                start = held.lp_fragment_address.start if held else 0
                fragment = _fragment(parameter, values, start, matrices[parameter])
                found.setdefault(master, []).append(fragment)
    return found


def _fragment(parameter: nn.Parameter, values: Tensor, start: int, dim: int) -> Fragment:
    rows, columns = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO 3 empties the tensor
    return Fragment(values.detach(), start, (rows, columns), dim)
