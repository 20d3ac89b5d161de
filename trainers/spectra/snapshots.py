"""Snapshots: the spectra of all layers and sites of a model in training, as records.

Training waits only for the forward passes and scatter matrices. A background thread computes
eigenvalues and metrics. The `step` of a record is the number of optimiser updates of the measured
weights.
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

#: Method `auto` computes all eigenvalues up to this width D. Below it Lanczos is no cheaper on a
#: CPU; above it eigenvalues cost more than a training step on a GPU.
EXACT_UP_TO = {"cpu": 2048, "cuda": 512}

#: Longest time, in seconds, that the other ranks wait in one collective for rank 0's background
#: thread: far below the collective's timeout.
IN_STEP_S = 30.0


class NonFiniteActivationsError(ValueError):
    """Activations of a layer are NaN or infinite, so they have no spectrum."""


class SpectrumError(ArithmeticError):
    """The measured eigenvalues cannot be those of a covariance, for example negative ones."""


class LayerSite(NamedTuple):
    """The layer, counted from 0, and the site that a spectrum was measured at."""

    layer: int
    site: Site


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of an unbiased covariance, or a quadrature that stands for them.

    Attributes:
        method: "exact" or "lanczos".
        values: [D] eigenvalues, descending; or [n] nodes.
        weights: None; or [n] multiplicities of the nodes, with sum D.
        error_estimate: See `trainers.spectra.lanczos.Quadrature`; 0 if exact.
    """

    method: Literal["exact", "lanczos"]
    values: Floats
    weights: Floats | None
    error_estimate: float


def tap(ffn: FeedForward, site: Site) -> Tap:
    """Return the tap of a site: the output of `nonlinearity_input`, or the input of `down`."""
    return Tap(ffn.nonlinearity_input, "output") if site == "pre" else Tap(ffn.down, "input")


class Snapshots:
    """Measures the spectra of every layer and site.

    Every rank calls `take` and `drain` in the same order. Only rank 0 gets records.

    Args:
        spec: Sites, method, buckets and the memory limit.
        trial_id: Part of the seed of random probes.
        ranks: The ranks that share the batches.
    """

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
        """Measure one snapshot: run the forward passes and queue the eigenvalue computations.

        Layers are measured in groups that fit in memory, with a pass over the batches for each.
        Collective.

        Args:
            model: The `Decoder` whose FFNs are measured.
            forward: Runs the model on token ids (B, T).
            batches: Returns this rank's token ids (B, T), each with the bucket of every token
                (B, T) or None. Called once per group.
            when: `step`, `tokens` and `time_ms` for the records.
            final: Whether it is the trial's last snapshot, which is always exact.

        Raises:
            NonFiniteActivationsError: It names layer, site and step.
            InputError: A user's block does not call the modules that it names, or activations
                do not have the width that it states.
            SpectrumError: An earlier snapshot failed in the background.
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
            del probe, collected  # so that the job can free each matrix when it is done with it

    def _merged(
        self, probe: Probe[LayerSite], place: LayerSite, width: int, step: int
    ) -> list[Covariance]:
        """Return the covariances of all ranks' samples at one site, by bucket."""
        where = f"layer {place.layer}, site {place.site}"
        try:
            covariances = probe.groups(place)
        except KeyError:
            raise InputError(
                f"{where}: the forward pass does not call the module that is measured; a block "
                "of your own must call its `nonlinearity_input` and `down` (docs/own-block.md)"
            ) from None
        for covariance in covariances:
            if covariance.width != width:
                raise InputError(
                    f"{where}: the activations have width {covariance.width}, but the block's "
                    f"`width` is {width}"
                )
            covariance.merge_ranks(self._ranks)
            if not covariance.is_finite():
                raise NonFiniteActivationsError(
                    f"{where}: the activations, or their squares, are not finite at step {step}"
                )
        return covariances

    def ready(self) -> list[Row]:
        """Return records of snapshots finished since the last call, in order, without waiting.

        Raises:
            SpectrumError: A snapshot failed in the background.
        """
        return [row for rows in self._beside.ready() for row in rows]

    def drain(self) -> list[Row]:
        """Wait for all snapshots and return the records since the last call. Collective.

        Raises:
            SpectrumError: A snapshot failed in the background.
        """
        self._together(partial(self._beside.finish, IN_STEP_S))
        return [row for rows in self._beside.drain() for row in rows]

    @property
    def eigenwork_seconds(self) -> float:
        """Seconds that the background thread has worked so far."""
        return self._beside.seconds

    def close(self) -> None:
        """End the background thread and drop computations that have not started."""
        self._beside.close()

    def _together(self, wait: Callable[[], bool]) -> None:
        """Wait on all ranks until rank 0's `wait` returns True.

        The ranks meet in a broadcast after every `wait`, because one long collective would time
        out.
        """
        while not self._ranks.broadcast(wait() if self._ranks.is_first else None):
            pass

    def _groups(
        self, places: Sequence[LayerSite], widths: Sequence[int]
    ) -> Iterator[list[LayerSite]]:
        """Yield the places in order, in groups whose matrices fit in the memory limit."""
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
    """The eigenvalue computations of one snapshot; the last group's job returns all records."""

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
        """Return the job that measures `collected` and stops early when `closing` is set."""

        def run() -> list[Row]:
            while collected and not closing.is_set():
                place = next(iter(collected))
                self._measure(place, collected.pop(place))  # pop, so that its memory is freed
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
            return  # fewer than two samples have no covariance
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
    """Return the spectrum of a covariance.

    Args:
        covariance: At least two samples.
        method: "exact", "lanczos", or "auto" for the cheaper one at this width and device.
        seed: For the random probes of Lanczos.

    Raises:
        ValueError: There are fewer than two samples, samples are not finite, or Lanczos finds
            eigenvalues that are negative beyond rounding.
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
    """Return the columns of a record that describe a spectrum of `count` samples.

    Raises:
        ValueError: Eigenvalues are negative beyond rounding.
    """
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
    """Return a 56-bit seed for random probes that depends only on the measurement's name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
