"""A trial's spectra as images in MLflow: few, within a time limit, each sent once.

Keys are ``spectra/<site>/heat_map`` and ``spectra/<site>/spectrum``. The step of an image is that
of its newest snapshot. A run gets an image of the first snapshot, a few while it trains, and one
of the last. MLflow sorts sections by name, so the images of a site come before the charts of its
layers. The server tells which images a run has; the exporter does not remember it.
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

IMAGE_INTERVAL_S = 60.0  # seconds between two images of a running trial
#: The most images of one key in a trial, not counting the last.
IMAGES_PER_TRIAL = 100
#: The most snapshots kept: a heat map has fewer columns of pixels.
MOST_SNAPSHOTS = 400
#: Seconds for drawing in one pass over the sweep, so that points are not delayed.
DRAWING_S = 3.0
DPI = 180

Clock = Callable[[], float]


class DrawingTime:
    """The seconds that one pass over a sweep may spend on images. The last image may overrun it."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self._until = clock() + seconds
        self._clock = clock
        self._drawn = False

    def take(self) -> bool:
        """Return whether there is time for one more trial. The first one always gets its images."""
        allowed = not self._drawn or self._clock() < self._until
        self._drawn = True
        return allowed


@dataclass(frozen=True)
class _Snapshot:
    """A snapshot as kept in memory: without its eigenvalues."""

    time_ms: int
    layers: dict[tuple[str, int], "LayerSnapshot"]  # by site and layer


class TrialImages:
    """The images of one trial's run, and the snapshots to draw them from.

    Args:
        run_id: The run in MLflow.
        known: Whether the run existed before and may have images.
        steps: Optimiser updates of the whole trial.
        clock: Seconds, monotonic.
    """

    def __init__(self, run_id: str, known: bool, steps: int, clock: Clock = time.monotonic) -> None:
        self._run_id = run_id
        self._unsure = known
        self._spacing = max(1, steps // IMAGES_PER_TRIAL)
        self._column = max(1, steps // MOST_SNAPSHOTS)  # steps between two kept snapshots
        self._clock = clock
        self._snapshots: dict[int, _Snapshot] = {}  # by step
        self._read_to = NOTHING_SENT  # step of the last snapshot read
        self._reached: dict[str, int] = {}  # by key: the last step on the server
        self._drawn = NOTHING_SENT  # step of the newest snapshot drawn
        self.drawn_at = -IMAGE_INTERVAL_S  # on the clock

    def due(self, seen: TrialView) -> bool:
        """Return whether images should be drawn now. Reads no records."""
        newest = _newest(seen)
        if newest <= self._drawn:
            return False
        if seen.outcome != "running":
            return True  # the trial is over: draw the last images
        if self._drawn == NOTHING_SENT:
            return True
        rested = self._clock() >= self.drawn_at + IMAGE_INTERVAL_S
        return rested and newest >= self._drawn + self._spacing

    def update(self, trial: Storage, seen: TrialView, artifacts: Artifacts) -> None:
        """Draw and send the images that the server lacks. Log an image that fails.

        Raises FileNotFoundError if the trial was compacted meanwhile; then view it again.
        """
        if artifacts.takes_images and self._asked(artifacts):
            try:
                self._read(trial, seen)
                for image in self._images():
                    if artifacts.send_image(self._run_id, image):
                        self._reached[image.key] = image.step
            except FileNotFoundError:
                raise
            except Exception as error:  # a broken snapshot must not stop the metrics
                log.warning("images of %s: %s: %s", trial.url, type(error).__name__, error)
        self._drawn = _newest(seen)
        self.drawn_at = self._clock()

    def _asked(self, artifacts: Artifacts) -> bool:
        """Ask once which images the server has. Return whether that is known."""
        if self._unsure:
            found = artifacts.image_steps(self._run_id)
            if found is None:
                return False
            self._reached, self._unsure = found, False
        return True

    def _read(self, trial: Storage, seen: TrialView) -> None:
        """Read the new snapshots."""
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
        """Keep the first snapshot of every column of the heat map, and the newest."""
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
            # MLflow opens a page with its slider at step 0, so draw the first snapshot too.
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
