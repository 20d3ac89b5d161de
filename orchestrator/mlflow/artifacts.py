"""Send files and images of runs. A failure never stops the metrics."""

import logging
import time
from collections.abc import Callable

from orchestrator.mlflow.tracking import Image, Tracking, first_line

log = logging.getLogger(__name__)

#: Seconds between two tries of a store that has failed. Every try may cost a timeout.
PAUSE_S = 600.0


class Artifacts:
    """The artifact store of one experiment. It logs the first failure of files and of images.

    Args:
        tracking: The experiment.
        clock: Seconds, monotonic.
    """

    def __init__(self, tracking: Tracking, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracking = tracking
        self._clock = clock
        self._failed_at: dict[str, float] = {}  # "artifacts", "images"

    @property
    def takes_images(self) -> bool:
        """Whether the store is likely to take an image, so that drawing it is worthwhile."""
        return not (self._resting("images") or self._resting("artifacts"))

    def send(self, run_id: str, path: str, data: bytes) -> bool:
        """Send a file; return whether the store took it."""
        return self._done("artifacts", lambda: self._tracking.send_artifact(run_id, path, data))

    def send_image(self, run_id: str, image: Image) -> bool:
        """Send an image; return whether the store took it."""
        return self._done("images", lambda: self._tracking.send_image(run_id, image))

    def image_steps(self, run_id: str) -> dict[str, int] | None:
        """Return the last step of every image key; None if the store does not answer."""
        found: dict[str, int] = {}
        told = self._done("images", lambda: found.update(self._tracking.image_steps(run_id)))
        return found if told else None

    def _resting(self, what: str) -> bool:
        failed_at = self._failed_at.get(what)
        return failed_at is not None and self._clock() < failed_at + PAUSE_S

    def _done(self, what: str, call: Callable[[], None]) -> bool:
        if self._resting(what):
            return False
        try:
            call()
        except Exception as error:  # every artifact store has its own client and errors
            if what not in self._failed_at:
                log.warning(
                    "%s are not sent: %s: %s", what, type(error).__name__, first_line(error)
                )
            self._failed_at[what] = self._clock()
            return False
        return True
