"""Cost model of a plan: default rates, and the work of evaluations and snapshots."""

from trainers.accounting import inference_flops_per_token
from trainers.spec import TrialSpec

#: FLOP/s in training, until a rate is measured: of one CPU core (float32; 4e10 to 5e10 measured on
#: models of 0.1M parameters) and of one GPU (bf16; a third of an A100's peak).
DEFAULT_RATES = {"cpu": 4e10, "cuda": 1e14}
#: The eigenvalues of a D x D matrix cost about this times D^3 FLOPs, at the rate of training
#: (0.2 s at D = 2048 on two cores). Lanczos costs a tenth of it or less.
EIGENVALUE_FLOPS = 2.0
#: Seconds to start and end a trial.
START_SECONDS = 4.0


def measuring_flops(spec: TrialSpec, begin: int) -> float:
    """Estimate the FLOPs of all evaluations and snapshots after update `begin`.

    Counts forward passes, covariances (N D^2: a symmetric matrix needs only one triangle) and
    eigenvalues. A GPU computes eigenvalues beside training, so they are left out there.
    """
    steps, forward = spec.training.steps, inference_flops_per_token(spec.model)
    evaluation, spectra = spec.evaluation, spec.spectra
    beside = EIGENVALUE_FLOPS if spec.layout.device == "cpu" else 0.0
    snapshot = sum(
        spectra.tokens * D**2 + spectra.parts * beside * D**3 for D in spec.model.ffn_widths
    ) * len(spectra.sites)
    evaluations = measurements(steps, evaluation.every, begin)
    snapshots = measurements(steps, spectra.every, begin)
    return evaluations * evaluation.tokens * forward + snapshots * (
        spectra.tokens * forward + snapshot
    )


def measurements(steps: int, every: int, begin: int = 0) -> int:
    """Return the number of measurements made at step 0, every `every` updates and at the end.

    An end on a multiple of `every` counts once.

    Args:
        steps: Updates of the whole trial.
        every: Updates between two measurements, at least 1.
        begin: Step of the checkpoint that the trial starts from; its measurements up to and
            including this step were made before and do not count. 0 for a new trial.
    """
    return -(-steps // every) - begin // every + (begin == 0)
