"""Norm placement: where the norm stands around a sub-layer, one function a placement.

`x` is the residual stream (B, T, d_model), `f` the attention or the FFN, `norm` LayerNorm or
RMSNorm over d_model. A new placement is a function, a row of `PLACEMENTS` and a test.

Nothing here imports torch: the table is read where trials are planned. The file travels with
exported models, so it imports nothing of widthlab.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Any, TypeAlias

#: Anything that adds, multiplies and divides: a torch.Tensor.
Stream: TypeAlias = Any
SubLayer: TypeAlias = Callable[[Stream], Stream]


@dataclass(frozen=True)
class Place:
    """Where a sub-layer stands: in layer 1 to depth, of which the first `post_layers` are
    Post-LN under Mix-LN."""

    layer: int
    depth: int
    post_layers: int = 0


@dataclass(frozen=True)
class Placement:
    """A row of the table.

    `apply(x, f, norms, place)` is the sub-layer in its place; `norms` of them stand around each
    sub-layer. With `final_norm` one more follows the last layer: the placement leaves the residual
    stream unnormalised. `branch_scale(depth)` multiplies the initial weights of v, o and the FFN.
    """

    apply: Callable[[Stream, SubLayer, Iterable[SubLayer], Place], Stream]
    final_norm: bool
    norms: int = 1
    branch_scale: Callable[[int], float] = lambda depth: 1.0


def pre_ln(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """x + f(LN(x)) (arXiv 2002.04745)."""
    (norm,) = norms
    return x + f(norm(x))


def post_ln(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """LN(x + f(x)) (arXiv 1706.03762)."""
    (norm,) = norms
    return norm(x + f(x))


def mix_ln(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """Post-LN in the first floor(alpha * depth) layers, Pre-LN in the rest (arXiv 2412.13795)."""
    place_as = post_ln if place.layer <= place.post_layers else pre_ln
    return place_as(x, f, norms, place)


def lns(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """x + f(LN(x) / sqrt(layer)), LayerNorm scaling (arXiv 2502.05795)."""
    (norm,) = norms
    return x + f(norm(x) / sqrt(place.layer))


def sandwich(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """x + LN(f(LN(x))) (arXiv 2105.13290; Peri-LN, arXiv 2502.02732)."""
    before, after = norms
    return x + after(f(before(x)))


def reordered(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """x + LN(f(x)) (OLMo 2, arXiv 2501.00656)."""
    (norm,) = norms
    return x + norm(f(x))


def deepnorm(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """LN(a x + f(x)) with a = (2 depth)^(1/4) (arXiv 2203.00555, decoder only)."""
    (norm,) = norms
    return norm((2 * place.depth) ** 0.25 * x + f(x))


def deepnorm_scale(depth: int) -> float:
    """1 / (8 depth)^(1/4): what DeepNorm multiplies v, o and the FFN with at the start."""
    return float((8 * depth) ** -0.25)


def ngpt(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """N(x + a (N(f(x)) - x)), N division by the L2 norm (arXiv 2410.01131); the "norm" is the
    learned step a, which knows N."""
    (step,) = norms
    return step(x, f(x))  # type: ignore[call-arg]


PLACEMENTS: dict[str, Placement] = {
    "pre": Placement(pre_ln, final_norm=True),
    "post": Placement(post_ln, final_norm=False),
    "mix": Placement(mix_ln, final_norm=True),
    "lns": Placement(lns, final_norm=True),
    "sandwich": Placement(sandwich, final_norm=True, norms=2),
    "reordered": Placement(reordered, final_norm=True),
    "deepnorm": Placement(deepnorm, final_norm=False, branch_scale=deepnorm_scale),
    "ngpt": Placement(ngpt, final_norm=False),  # of the architecture ngpt alone
}
