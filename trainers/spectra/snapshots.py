"""Snapshots of a model in training: what is measured when, in which order, within how much memory.

On the training's path are the forward passes and the scatter matrices; eigenvalues and metrics
are found beside it (`background`). The step on a record is the number of optimiser updates that
its weights have had.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.spectrum import expand, js_divergence, measure, sampling_status
from trainers.engine.engine import Ranks
from trainers.models.build import feed_forwards
from trainers.models.own_block import FeedForward
from trainers.spec import Site, SpectraSpec
from trainers.spectra.background import Background
from trainers.spectra.covariance import Covariance
from trainers.spectra.lanczos import quadrature
from trainers.spectra.probe import Probe, Tap
from trialstore.errors import InputError
from trialstore.records import ALL_TOKENS, BUCKETS, SPECTRUM_COLUMNS, Row

Floats = NDArray[np.float64]

#: Under `auto`, widths up to this are measured by all eigenvalues: on a CPU Lanczos is then no
#: cheaper, on a GPU eigenvalues cost more than the step itself from about here on.
EXACT_UP_TO = {"cpu": 2048, "cuda": 512}


#: Seconds after which ranks that wait for the first one's eigenwork meet again: far below what a
#: collective is given to end.
IN_STEP_S = 30.0


class NonFiniteActivationsError(ValueError):
    """A layer put out NaN or infinity; its spectrum does not exist."""


class SpectrumError(ArithmeticError):
    """What was measured is not the spectrum of a covariance."""


class LayerSite(NamedTuple):
    """Where a spectrum is of."""

    layer: int
    site: Site


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues with multiplicities: all of them and one each, or nodes of a quadrature."""

    method: Literal["exact", "lanczos"]
    values: Floats  # of the unbiased covariance, descending if exact
    weights: Floats | None
    error_estimate: float


def tap(ffn: FeedForward, site: Site) -> Tap:
    """The module that a site is read from: what feeds the non-linearity, what takes its output."""
    return Tap(ffn.nonlinearity_input, "output") if site == "pre" else Tap(ffn.down, "input")


class Snapshots:
    """Takes spectra of every layer and site. Collective: every rank calls it alike, the first has
    the records."""

    def __init__(self, spec: SpectraSpec, trial_id: str, ranks: Ranks) -> None:
        self._spec, self._trial_id, self._ranks = spec, trial_id, ranks
        self._beside = Background[list[Row]](spec.memory_mb * 2**20, ranks.device)

    @torch.no_grad()
    def take(
        self,
        model: nn.Module,
        forward: Callable[[Tensor], object],
        batches: Callable[[], Iterable[tuple[Tensor, Tensor | None]]],
        when: dict[str, int],
        final: bool,
    ) -> None:
        """Run `forward` over batches of token ids, each with its tokens' buckets or None.

        `when` stamps the records: step, tokens, time_ms. The `final` snapshot of a trial is
        exact. Raises NonFiniteActivationsError naming layer, site and step.
        """
        ffns = list(feed_forwards(model))
        places = [LayerSite(layer, site) for layer in range(len(ffns)) for site in self._spec.sites]
        snapshot = _Snapshot(self._spec, self._trial_id, when, final, len(places))
        for group in self._groups(places, [ffn.width for ffn in ffns]):
            nbytes = sum(self._spec.matrix_bytes(ffns[place.layer].width) for place in group)
            self._together(partial(self._beside.reserve, nbytes, IN_STEP_S))
            taps = {place: tap(ffns[place.layer], place.site) for place in group}
            probe = Probe(taps, self._spec.parts)
            with probe:
                for tokens, buckets in batches():
                    probe.label(buckets)
                    forward(tokens)
            collected = {
                place: self._merged(probe, place, ffns[place.layer].width, when["step"])
                for place in group
            }
            if self._ranks.is_first:
                self._beside.submit(nbytes, snapshot.work(collected, self._beside.closing))
            del probe, collected  # what is left of them is the job's

    def _merged(
        self, probe: Probe[LayerSite], place: LayerSite, width: int, step: int
    ) -> list[Covariance]:
        """What all ranks have seen at one place, by bucket."""
        where = f"layer {place.layer}, site {place.site}"
        try:
            covariances = probe.groups(place)
        except KeyError:
            raise InputError(
                f"{where}: nothing passes the module that it is read from; a block of one's own "
                "has to call its `nonlinearity_input` and `down` (docs/own-block.md)"
            ) from None
        for covariance in covariances:
            if covariance.width != width:
                raise InputError(
                    f"{where}: activations of width {covariance.width} pass, and the block says "
                    f"that its width is {width}"
                )
            covariance.merge_ranks(self._ranks)
            if not covariance.is_finite():
                raise NonFiniteActivationsError(
                    f"{where}: the activations, or their squares, are not finite at step {step}"
                )
        return covariances

    def ready(self) -> list[Row]:
        """Records of the snapshots that are done, in order. Raises SpectrumError."""
        return [row for rows in self._beside.ready() for row in rows]

    def drain(self) -> list[Row]:
        """Records of every snapshot taken so far, when all are done. Raises SpectrumError.

        Collective.
        """
        self._together(partial(self._beside.finish, IN_STEP_S))
        return [row for rows in self._beside.drain() for row in rows]

    @property
    def eigenwork_seconds(self) -> float:
        """What has been spent beside training so far."""
        return self._beside.seconds

    def close(self) -> None:
        """Give up what has not begun."""
        self._beside.close()

    def _together(self, wait: Callable[[], bool]) -> None:
        """Wait on the first rank, whose work it is, until it is done; others must not wait in one
        collective for longer than it is allowed to take."""
        while not self._ranks.broadcast(wait() if self._ranks.is_first else None):
            pass

    def _groups(
        self, places: Sequence[LayerSite], widths: Sequence[int]
    ) -> Iterator[list[LayerSite]]:
        """Places in order, as many at a time as the memory holds."""
        limit = self._spec.memory_mb * 2**20
        group: list[LayerSite] = []
        taken = 0
        for place in places:
            nbytes = self._spec.matrix_bytes(widths[place.layer])
            if group and taken + nbytes > limit:
                yield group
                group, taken = [], 0
            group.append(place)
            taken += nbytes
        yield group


class _Snapshot:
    """One snapshot's eigenwork, group by group; the last one brings all the records."""

    def __init__(
        self, spec: SpectraSpec, trial_id: str, when: dict[str, int], final: bool, places: int
    ) -> None:
        self._spec, self._trial_id, self._when = spec, trial_id, when
        self._method: str = "exact" if final else spec.method
        self._missing = places
        self._found: dict[tuple[LayerSite, str], tuple[Spectrum, dict[str, Any]]] = {}

    def work(
        self, collected: dict[LayerSite, list[Covariance]], closing: threading.Event
    ) -> Callable[[], list[Row]]:
        """What is left to do with the covariances of some places, unless nobody waits for it."""

        def run() -> list[Row]:
            while collected and not closing.is_set():
                place = next(iter(collected))
                self._measure(place, collected.pop(place))  # its memory is free from here on
            return self._rows() if self._missing == 0 else []

        return run

    def _measure(self, place: LayerSite, covariances: list[Covariance]) -> None:
        whole, *others = covariances
        if self._spec.buckets:
            for name, covariance in zip(BUCKETS, covariances, strict=True):
                self._keep(place, name, covariance)
            for other in others:
                whole.merge(other)
        self._keep(place, ALL_TOKENS, whole)
        self._missing -= 1

    def _keep(self, place: LayerSite, bucket: str, covariance: Covariance) -> None:
        if bucket != ALL_TOKENS and covariance.count < 2:
            return  # a bucket of one token or none has no covariance
        step = self._when["step"]
        where = f"layer {place.layer}, site {place.site}, {bucket} tokens at step {step}"
        name = f"{self._trial_id}/{step}/{place.layer}/{place.site}/{bucket}"
        try:
            spectrum = spectrum_of(covariance, self._method, seed_of(name))
            row = described(spectrum, covariance.count)
        except ValueError as error:
            raise SpectrumError(f"{where}: {error}") from error
        except Exception as error:
            error.add_note(f"in the spectrum of {where}")
            raise
        self._found[place, bucket] = spectrum, row

    def _rows(self) -> list[Row]:
        return [
            {
                **self._when,
                "site": place.site,
                "layer": place.layer,
                "bucket": bucket,
                **row,
                "js_divergence": self._divergence(place.layer, bucket),
            }
            for (place, bucket), (_, row) in self._found.items()
        ]

    def _divergence(self, layer: int, bucket: str) -> float | None:
        pre, post = (self._found.get((LayerSite(layer, site), bucket)) for site in get_args(Site))
        if pre is None or post is None:
            return None
        return float(js_divergence(_sorted(pre[0]), _sorted(post[0])))


def spectrum_of(covariance: Covariance, method: str, seed: int) -> Spectrum:
    """By the method asked for: "exact", "lanczos", or with "auto" the cheaper at this width.

    Raises ValueError for fewer than two samples or materially negative eigenvalues.
    """
    if covariance.is_constant():
        return Spectrum("exact", np.zeros(covariance.width), None, 0.0)
    cheap = covariance.width <= EXACT_UP_TO[covariance.mean.device.type]
    if method == "exact" or (method == "auto" and cheap):
        return Spectrum("exact", covariance.eigenvalues().numpy(), None, 0.0)
    degrees = covariance.degrees_of_freedom
    found = quadrature(covariance.scatter, seed)
    return Spectrum("lanczos", found.nodes / degrees, found.weights, found.error_estimate)


def described(spectrum: Spectrum, count: int) -> dict[str, Any]:
    """What a record says of a spectrum of `count` samples."""
    metrics = measure(spectrum.values, spectrum.weights)
    columns = {name: float(getattr(metrics, name)) for name in SPECTRUM_COLUMNS}
    weights = spectrum.weights
    width = len(spectrum.values) if weights is None else round(float(weights.sum()))
    values: dict[str, Any] = (
        {"eigenvalues": spectrum.values.clip(min=0).astype(np.float32)}
        if weights is None
        else {"nodes": spectrum.values, "weights": weights}
    )
    return {
        "D": width,
        "N": count,
        "n_over_d": count / width,
        "method": spectrum.method,
        "status": sampling_status(count, width),
        **values,
        **columns,
        "error_estimate": spectrum.error_estimate,
    }


def _sorted(spectrum: Spectrum) -> Floats:
    if spectrum.weights is None:
        return spectrum.values
    return expand(spectrum.values, spectrum.weights)


def seed_of(name: str) -> int:
    """Of random probes: a function of what is measured alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
