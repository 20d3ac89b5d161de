"""What a driver asks Ray to do: train one trial of a sweep, with the workers placed in one way."""

from dataclasses import dataclass
from typing import Any

from orchestrator.grid.branches import Branch
from orchestrator.tune.node_room import Need, need_of
from trainers.spec import TrialSpec
from trialstore.retries import Budget

#: Keys of the `config` that Tune gives an actor. Tune's grid is over ids, because it hides every
#: value that is not a plain one from its search algorithm; the queue adds the request.
TRIAL_ID, REQUEST = "trial", "request"


@dataclass(frozen=True)
class TrialRequest:
    """One trial, as the driver hands it to Ray and Ray to every process that works on it.

    Attributes:
        sweep: URL of the sweep's directory.
        driver: Owner of the driver lease that the trial is handed over under, if there is one.
        probe: Key of the object by which a node shows that it sees the sweep's storage.
        spec: The trial, in the layout that it runs in.
        budget: How often the trial may fail and be preempted.
        branch: The checkpoint of another trial that this one begins from, if any.
        strategy: Ray's placement strategy for the workers; None until the queue has chosen one.
    """

    sweep: str
    driver: str | None
    probe: str
    spec: TrialSpec
    budget: Budget
    branch: Branch | None = None
    strategy: str | None = None

    @property
    def need(self) -> Need:
        """The workers and their resources that Ray reserves for the trial."""
        return need_of(self.spec.layout)


def request_of(config: dict[str, Any]) -> TrialRequest:
    """Return the request in the `config` of a trial that the queue has handed over."""
    request: TrialRequest = config[REQUEST]
    return request
