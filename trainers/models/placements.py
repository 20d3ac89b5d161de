"""Norm placement: where the norm sits around a sub-layer and its residual, one function each.

A placement takes `x`, the residual stream (B, T, d_model); `f`, the attention or the FFN; its
norms (LN in the formulas: LayerNorm or RMSNorm over d_model); and the layer's `Place`. It returns
the new residual stream. A new placement is a function, a row of `PLACEMENTS` and a test.

Nothing here imports torch: planning trials reads the table and must start fast.
An exported model carries a copy of this file, so it imports nothing of widthlab.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Any, TypeAlias

#: A torch.Tensor (B, T, d_model).
Stream: TypeAlias = Any
SubLayer: TypeAlias = Callable[[Stream], Stream]


@dataclass(frozen=True)
class Place:
    """The position of a layer in the model.

    `layer` counts from 1 to `depth`. Under Mix-LN the first `post_layers` layers are Post-LN.
    """

    layer: int
    depth: int
    post_layers: int = 0


@dataclass(frozen=True)
class Placement:
    """One norm placement and its consequences for the model.

    Attributes:
        apply: `apply(x, f, norms, place)` runs the sub-layer `f` with its norms and residual.
        final_norm: Whether a norm follows the last layer. Placements that leave the residual
            stream unnormalised need it.
        norms: Number of norms per sub-layer.
        branch_scale: Factor, as a function of depth, on the initial weights of v, o and the FFN.
    """

    apply: Callable[[Stream, SubLayer, Iterable[SubLayer], Place], Stream]
    final_norm: bool
    norms: int = 1
    branch_scale: Callable[[int], float] = lambda depth: 1.0


def pre_ln(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """Pre-LN: x + f(LN(x)) (arXiv 2002.04745)."""
    (norm,) = norms
    return x + f(norm(x))


def post_ln(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """Post-LN: LN(x + f(x)) (arXiv 1706.03762)."""
    (norm,) = norms
    return norm(x + f(x))


def mix_ln(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """Mix-LN: Post-LN in the first `post_layers` layers, Pre-LN in the rest (arXiv 2412.13795).

    post_layers = floor(alpha * depth), alpha in the paper's notation.
    """
    place_as = post_ln if place.layer <= place.post_layers else pre_ln
    return place_as(x, f, norms, place)


def lns(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """LayerNorm scaling: x + f(LN(x) / sqrt(layer)) (arXiv 2502.05795)."""
    (norm,) = norms
    return x + f(norm(x) / sqrt(place.layer))


def sandwich(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """Sandwich-LN, or Peri-LN: x + LN(f(LN(x))) (arXiv 2105.13290 and 2502.02732)."""
    before, after = norms
    return x + after(f(before(x)))


def reordered(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """Reordered norm of OLMo 2: x + LN(f(x)) (arXiv 2501.00656)."""
    (norm,) = norms
    return x + norm(f(x))


def deepnorm(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """DeepNorm, decoder only: LN(a x + f(x)) with a = (2 depth)^(1/4) (arXiv 2203.00555)."""
    (norm,) = norms
    return norm((2 * place.depth) ** 0.25 * x + f(x))


def deepnorm_scale(depth: int) -> float:
    """Return DeepNorm's factor on the initial v, o and FFN weights: (8 depth)^(-1/4)."""
    return float((8 * depth) ** -0.25)


def ngpt(x: Stream, f: SubLayer, norms: Iterable[SubLayer], place: Place) -> Stream:
    """nGPT: N(x + a (N(f(x)) - x)), N dividing by the L2 norm (arXiv 2410.01131).

    The only "norm" is a `trainers.models.ngpt.SphereStep`, which holds a and computes the sum.
    """
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
    "ngpt": Placement(ngpt, final_norm=False),  # only with architecture ngpt
}
