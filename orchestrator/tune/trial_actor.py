"""A trial's Tune actor: the one module that a driver imports together with `ray.tune`."""

from typing import Any

from ray import tune

from orchestrator.tune.trainable import run_trial


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """Runs one trial at a time, as a single step in the main thread, where a SIGTERM is heard."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first trial."""
        self._config = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial; a new actor would take seconds to start."""
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial to its end, or as far as it goes now."""
        return {"outcome": run_trial(self._config), "done": True}
