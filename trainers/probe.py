"""The spectral probe: covariances of every FFN's activations, and their eigenspectra.

Taps sit on modules, so any FFN can be watched that names the projection feeding its
non-linearity ("pre") and the one after it ("post", whose input is tapped). Activations
[batch, tokens, D] are samples [N, D]; the covariance is centred and unbiased
(arXiv 2510.00537; see `analysis.spectrum` for what is made of it).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from analysis.records import ALL_TOKENS, SPECTRUM_COLUMNS, Row
from analysis.spectrum import js_divergence, measure, sampling_status
from trainers.engine import Ranks
from trainers.models.build import feed_forwards
from trainers.models.own_block import FeedForward
from trainers.spec import Site


class NonFiniteActivationsError(ValueError):
    """A layer put out NaN or infinity; its spectrum does not exist."""


class Covariance:
    """Count, mean and scatter of samples, merged batch by batch (Chan et al., 1983).

    Kept in float32 on the device of the activations.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None  # [D]
        self.scatter: Tensor | None = None  # [D, D], sum of outer products about the mean

    def add(self, activations: Float[Tensor, "*samples D"]) -> None:
        """Take a batch of samples."""
        x = activations.detach().flatten(0, -2).float()
        count = x.shape[0]
        mean = x.mean(0)
        centred = x - mean
        with torch.autocast(x.device.type, enabled=False):  # it would round products to bf16
            scatter = centred.T @ centred
        if self.mean is None or self.scatter is None:
            self.count, self.mean, self.scatter = count, mean, scatter
            return
        total = self.count + count
        between = mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(between, between, alpha=self.count * count / total)
        self.mean += between * (count / total)
        self.count = total

    def merge_ranks(self, ranks: Ranks) -> None:
        """Become the covariance of all ranks' samples."""
        if ranks.world_size == 1:
            return
        assert self.mean is not None
        assert self.scatter is not None
        # float64: float32 counts exactly only up to 2^24 samples
        counts = ranks.sum(torch.tensor(self.count, dtype=torch.float64, device=self.mean.device))
        mean = ranks.sum(self.mean * self.count) / counts
        between = self.mean - mean
        self.scatter.addr_(between, between, alpha=self.count)
        self.scatter = ranks.sum(self.scatter)
        self.mean, self.count = mean, int(counts)

    def eigenvalues(self) -> Float[Tensor, " D"]:
        """Of the unbiased covariance, descending, in float64 on the CPU.

        Rounding may leave the smallest a little below 0.
        """
        assert self.scatter is not None
        covariance = self.scatter.double().cpu() / (self.count - 1)
        eigenvalues: Tensor = torch.linalg.eigvalsh(covariance)
        return eigenvalues.flip(0)


@dataclass(frozen=True)
class Tap:
    """One place to watch: activations of width D at a site of a layer."""

    site: Site
    layer: int
    width: int
    ffn: FeedForward


def taps(model: nn.Module, sites: Iterable[Site]) -> list[Tap]:
    """Every layer's taps, in order of layer; sites in the order given."""
    layers = enumerate(feed_forwards(model))
    return [Tap(site, layer, ffn.width, ffn) for layer, ffn in layers for site in sites]


@torch.no_grad()
def covariances(
    model: nn.Module,
    forward: Callable[[Tensor], object],
    batches: Iterable[Tensor],
    sites: Iterable[Site],
    ranks: Ranks,
) -> list[tuple[Tap, Covariance]]:
    """Run `forward` over `batches` of token ids and collect the covariance at every tap.

    Leaves no hook behind. Raises NonFiniteActivationsError naming layer and site.
    """
    collected = [(tap, Covariance()) for tap in taps(model, sites)]
    hooks = [_hook(tap, covariance) for tap, covariance in collected]
    try:
        for batch in batches:
            forward(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for tap, covariance in collected:
        covariance.merge_ranks(ranks)
        assert covariance.scatter is not None
        if not bool(torch.isfinite(covariance.scatter.diagonal()).all()):
            raise NonFiniteActivationsError(
                f"layer {tap.layer}, site {tap.site}: the activations are not finite"
            )
    return collected


def _hook(tap: Tap, covariance: Covariance) -> torch.utils.hooks.RemovableHandle:
    if tap.site == "post":

        def post(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            covariance.add(inputs[0])

        return tap.ffn.down.register_forward_pre_hook(post)

    def pre(_: nn.Module, __: Any, output: Tensor) -> None:
        covariance.add(output)

    return tap.ffn.nonlinearity_input.register_forward_hook(pre)


def spectra_rows(
    collected: list[tuple[Tap, Covariance]], step: int, tokens: int, time_ms: int
) -> list[Row]:
    """One record per tap, in the schema of `analysis.records`, with exact eigenvalues.

    `step` is the number of optimiser updates that the weights have had.
    """
    spectra = {(tap.layer, tap.site): cov.eigenvalues().numpy() for tap, cov in collected}
    rows: list[Row] = []
    for tap, covariance in collected:
        eigenvalues = spectra[tap.layer, tap.site]
        metrics = measure(eigenvalues)
        rows.append(
            {
                "step": step,
                "tokens": tokens,
                "time_ms": time_ms,
                "site": tap.site,
                "layer": tap.layer,
                "bucket": ALL_TOKENS,
                "D": tap.width,
                "N": covariance.count,
                "n_over_d": covariance.count / tap.width,
                "method": "exact",
                "status": sampling_status(covariance.count, tap.width),
                "eigenvalues": eigenvalues.clip(min=0).astype(np.float32),
                **{name: float(getattr(metrics, name)) for name in SPECTRUM_COLUMNS},
                "js_divergence": _divergence(spectra, tap.layer),
                "error_estimate": 0.0,
            }
        )
    return rows


def _divergence(spectra: dict[tuple[int, Site], np.ndarray], layer: int) -> float | None:
    if (layer, "pre") not in spectra or (layer, "post") not in spectra:
        return None
    return float(js_divergence(spectra[layer, "pre"], spectra[layer, "post"]))
