"""Files and images of runs, which may fail: the numbers go on without them."""

import logging
import time
from collections.abc import Callable

from orchestrator.mlflow.tracking import Image, Tracking, first_line

log = logging.getLogger(__name__)

#: A store that has failed is left alone for so long: every try may cost a timeout.
PAUSE_S = 600.0


class Artifacts:
    """What the runs of one experiment have beside their numbers; a failure is told once."""

    def __init__(self, tracking: Tracking, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracking = tracking
        self._clock = clock
        self._failed_at: dict[str, float] = {}  # "artifacts", "images"

    @property
    def takes_images(self) -> bool:
        """Whether an image is worth drawing."""
        return not (self._resting("images") or self._resting("artifacts"))

    def send(self, run_id: str, path: str, data: bytes) -> bool:
        """Whether the file is stored."""
        return self._done("artifacts", lambda: self._tracking.send_artifact(run_id, path, data))

    def send_image(self, run_id: str, image: Image) -> bool:
        """Whether the image is stored."""
        return self._done("images", lambda: self._tracking.send_image(run_id, image))

    def image_steps(self, run_id: str) -> dict[str, int] | None:
        """The last step of every key; None where the store does not tell."""
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
        except Exception as error:  # every store has its own client, with its own errors
            if what not in self._failed_at:
                log.warning(
                    "%s are not sent: %s: %s", what, type(error).__name__, first_line(error)
                )
            self._failed_at[what] = self._clock()
            return False
        return True
