"""A trial's spectra as images in MLflow, with steps: seldom, in bounded time, each once.

Keys are ``spectra/<site>/heat_map`` and ``spectra/<site>/spectrum``; the step is that of the
newest snapshot shown: the first of all, now and then the newest, and the last. MLflow's pages sort
sections by name, so that the images of a site come before the charts of its layers. Which images
a run has is asked of the server, never remembered.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from orchestrator.mlflow.artifacts import Artifacts
from orchestrator.mlflow.tracking import Image
from orchestrator.mlflow.trial_view import NOTHING_SENT, TrialView
from trialstore.records import SPECTRA, Part, read_part
from trialstore.storage import Storage

if TYPE_CHECKING:
    from analysis.figures.spectrum_figures import LayerSnapshot

log = logging.getLogger(__name__)

IMAGE_INTERVAL_S = 60.0  # between two looks of a running trial
#: A long trial has no more than this many images of a key, and its last.
IMAGES_PER_TRIAL = 100
#: More columns than a heat map has pixels for.
MOST_SNAPSHOTS = 400
#: What an exporter that must keep up with points spends on drawing in one look at the sweep.
DRAWING_S = 3.0
DPI = 180

Clock = Callable[[], float]


class DrawingTime:
    """The seconds that one look at a sweep may spend on images: a little more, never less."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self._until = clock() + seconds
        self._clock = clock
        self._drawn = False

    def take(self) -> bool:
        """Whether one more trial may be drawn; the first always may."""
        allowed = not self._drawn or self._clock() < self._until
        self._drawn = True
        return allowed


@dataclass(frozen=True)
class _Snapshot:
    """What is kept of a snapshot: without its eigenvalues."""

    time_ms: int
    layers: dict[tuple[str, int], "LayerSnapshot"]  # by site and layer


class TrialImages:
    """The images of one trial's run, and the snapshots that they are drawn from."""

    def __init__(self, run_id: str, known: bool, steps: int, clock: Clock = time.monotonic) -> None:
        """`known` says that the server had the run before, `steps` how many the trial will have."""
        self._run_id = run_id
        self._unsure = known
        self._spacing = max(1, steps // IMAGES_PER_TRIAL)
        self._column = max(1, steps // MOST_SNAPSHOTS)  # steps to a snapshot that is kept
        self._clock = clock
        self._snapshots: dict[int, _Snapshot] = {}  # by step
        self._read_to = NOTHING_SENT  # the last snapshot that was read
        self._reached: dict[str, int] = {}  # by key, the last step that the server has
        self._drawn = NOTHING_SENT  # the newest snapshot of the last images
        self.drawn_at = -IMAGE_INTERVAL_S  # on the clock

    def due(self, seen: TrialView) -> bool:
        """Whether there is a snapshot to be shown now. Costs nothing."""
        newest = _newest(seen)
        if newest <= self._drawn:
            return False
        if seen.outcome != "running":
            return True  # the last ones wait for nothing
        if self._drawn == NOTHING_SENT:
            return True
        rested = self._clock() >= self.drawn_at + IMAGE_INTERVAL_S
        return rested and newest >= self._drawn + self._spacing

    def update(self, trial: Storage, seen: TrialView, artifacts: Artifacts) -> None:
        """Draw and send what the server does not have. An image that fails is only told of.

        Raises FileNotFoundError if the trial was compacted meanwhile: look again.
        """
        if artifacts.takes_images and self._asked(artifacts):
            try:
                self._read(trial, seen)
                for image in self._images():
                    if artifacts.send_image(self._run_id, image):
                        self._reached[image.key] = image.step
            except FileNotFoundError:
                raise
            except Exception as error:  # whatever a snapshot holds, the numbers go on
                log.warning("images of %s: %s: %s", trial.url, type(error).__name__, error)
        self._drawn = _newest(seen)
        self.drawn_at = self._clock()

    def _asked(self, artifacts: Artifacts) -> bool:
        """Whether it is known what the server has: asked of a run that was there before."""
        if self._unsure:
            found = artifacts.image_steps(self._run_id)
            if found is None:
                return False
            self._reached, self._unsure = found, False
        return True

    def _read(self, trial: Storage, seen: TrialView) -> None:
        """Read the snapshots beyond those that were read."""
        from analysis.figures.spectrum_figures import COLUMNS, layer_snapshots

        for part in _parts(seen):
            if part.last <= self._read_to:
                continue
            rows = read_part(trial, part.key, ["time_ms", *COLUMNS])
            rows = rows.filter(pc.greater(rows.column("step"), self._read_to))
            times = dict(
                zip(
                    rows.column("step").to_pylist(), rows.column("time_ms").to_pylist(), strict=True
                )
            )
            for layer in layer_snapshots(rows):
                at = self._snapshots.setdefault(layer.step, _Snapshot(times[layer.step], {}))
                at.layers.setdefault((layer.site, layer.layer), layer)
            if len(self._snapshots) > 2 * MOST_SNAPSHOTS:
                self._thin()
        self._thin()
        self._read_to = _newest(seen)

    def _thin(self) -> None:
        """Keep the first snapshot of every column of the picture, and the newest of all."""
        columns: dict[int, int] = {}
        for step in sorted(self._snapshots):
            columns.setdefault(step // self._column, step)
        kept = {*columns.values(), max(self._snapshots, default=NOTHING_SENT)}
        self._snapshots = {
            step: snapshot for step, snapshot in sorted(self._snapshots.items()) if step in kept
        }

    def _images(self) -> Iterator[Image]:
        from analysis.figures.spectrum_figures import rank_heat_map, spectrum_over_training
        from analysis.figures.style import pixels

        pictures = (("heat_map", rank_heat_map), ("spectrum", spectrum_over_training))
        by_site: dict[str, list[LayerSnapshot]] = {}
        for snapshot in self._snapshots.values():
            for (site, _), layer in snapshot.layers.items():
                by_site.setdefault(site, []).append(layer)
        for site, snapshots in sorted(by_site.items()):
            steps = {snapshot.step for snapshot in snapshots}
            # MLflow's slider stands at step 0 when a page opens: the first is worth an image too.
            for last in sorted({min(steps), max(steps)}):
                shown = [snapshot for snapshot in snapshots if snapshot.step <= last]
                for name, draw in pictures:
                    key = f"spectra/{site}/{name}"
                    if last <= self._reached.get(key, NOTHING_SENT):
                        continue
                    figure = draw(shown)
                    if figure is not None:
                        yield Image(key, pixels(figure, DPI), self._snapshots[last].time_ms, last)


def _parts(seen: TrialView) -> list[Part]:
    found = (Part.parse(key) for key in seen.parts)
    return [part for part in found if part is not None and part.table == SPECTRA]


def _newest(seen: TrialView) -> int:
    return max((part.last for part in _parts(seen)), default=NOTHING_SENT)
