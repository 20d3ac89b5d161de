"""The logarithm of a sum of power laws, f = ln sum_k s_k exp(u_k), for many parameter sets at once.

Every u_k is linear in the parameters, and every parameter belongs to one term k: ln A and alpha to
u = ln A - alpha ln N, ln E to u = ln E. The sign s_k is -1 for a term that is subtracted. With
`scaled`, the last parameter multiplies the whole, f = scale * ln sum_k exp(u_k), as in Kaplan's
joint law. First and second derivatives are exact: with the weights w_k = s_k exp(u_k) / sum,
df/du_k = w_k and d2f/du_k du_l = w_k (k = l) - w_k w_l.

Shapes: B parameter sets, P parameters, K terms, n points.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.replicates import Floats


@dataclass(frozen=True)
class LogSumExp:
    """The function of P parameters at n given points."""

    factors: Floats  # [P, n]: u_k = offset_k + sum of parameter * factor; without the scale
    term: NDArray[np.intp]  # [P]: the term k that each parameter belongs to
    offset: Floats  # [K, n]
    signs: Floats  # [K], +1 or -1
    scaled: bool = False

    @property
    def parameters(self) -> int:
        """Number of parameters P, the scale included."""
        return len(self.term) + self.scaled

    def value(self, theta: Floats) -> Floats:
        """Return f [B, n] at parameters [B, P]; NaN where the sum is not positive."""
        level, _ = self._inner(theta)
        return theta[:, -1:] * level if self.scaled else level

    def derivatives(self, theta: Floats) -> "Derivatives":
        """Return f and its derivatives at parameters [B, P]."""
        level, weights = self._inner(theta)
        slopes = weights[:, self.term] * self.factors
        if not self.scaled:
            return Derivatives(self, level, slopes, None)
        scale = theta[:, -1:]
        scaled = np.concatenate([scale[..., None] * slopes, level[:, None]], axis=1)
        return Derivatives(self, scale * level, scaled, scale[:, 0])

    def shares(self, theta: Floats) -> Floats:
        """Return the share of every term in the sum, [K, n], at one parameter set [P]."""
        shares: Floats = self._inner(theta[None])[1][0]
        return shares

    def _inner(self, theta: Floats) -> tuple[Floats, Floats]:
        """ln sum_k s_k exp(u_k) as [B, n], and the signed weights as [B, K, n]."""
        u = np.broadcast_to(self.offset, (len(theta), *self.offset.shape)).copy()
        for k in range(len(self.signs)):
            own = np.flatnonzero(self.term == k)
            u[:, k] += theta[:, own] @ self.factors[own]
        top = u.max(axis=1, keepdims=True)
        u -= top
        weights = np.exp(u, out=u)
        weights *= self.signs[:, None]
        total = weights.sum(axis=1, keepdims=True)
        total[total <= 0] = np.nan
        weights /= total
        return (top + np.log(total))[:, 0], weights


@dataclass(frozen=True)
class Derivatives:
    """f and its derivatives with respect to the parameters."""

    model: LogSumExp
    value: Floats  # [B, n]
    slopes: Floats  # [B, P, n]
    scale: Floats | None  # [B]

    def curvature(self, factor: Floats) -> Floats:
        """Return sum_i factor_i d2 f_i, [B, P, P], for factors [B, n]."""
        term, scale = self.model.term, self.scale
        inner = self.slopes
        if scale is not None:
            inner = inner[:, :-1] / scale[:, None, None]
        weighted = inner * factor[:, None]
        same_term = term[:, None] == term
        curvature: Floats = (weighted @ self.model.factors.T) * same_term
        curvature -= weighted @ inner.transpose(0, 2, 1)
        if scale is None:
            return curvature
        whole = np.zeros((len(factor), self.model.parameters, self.model.parameters))
        whole[:, :-1, :-1] = scale[:, None, None] * curvature
        whole[:, :-1, -1] = whole[:, -1, :-1] = weighted.sum(axis=2)
        return whole
