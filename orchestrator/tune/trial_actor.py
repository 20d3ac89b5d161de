"""A trial's Tune actor. Its work is done in the main thread, where a SIGTERM can be heard."""

from typing import Any

from ray import tune

from orchestrator.tune.trainable import run_trial


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """One trial at a time: a single step, which is all of it. What counts is in its directory."""

    def setup(self, config: dict[str, Any]) -> None:
        self._trial = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial; starting an actor anew costs seconds."""
        self._trial = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial to its end, or as far as it goes now."""
        return {"outcome": run_trial(self._trial), "done": True}
