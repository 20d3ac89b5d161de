"""What is known of costs before anything was measured: rates, and the work beside training."""

from trainers.accounting import inference_flops_per_token
from trainers.spec import TrialSpec

#: FLOP/s that one CPU core (float32, models of 0.1M parameters: measured 4e10 to 5e10) and one GPU
#: (bf16, a third of an A100's peak) reach in training, where nothing better is known.
DEFAULT_RATES = {"cpu": 4e10, "cuda": 1e14}
#: A snapshot's eigenvalues cost about this times D^3 FLOPs, at the rate of training (0.2 s at
#: D = 2048 on two cores). Where Lanczos takes their place it is a tenth or less.
EIGENVALUE_FLOPS = 2.0
#: Starting a trial and ending it, seconds.
START_SECONDS = 4.0


def measuring_flops(spec: TrialSpec, begin: int) -> float:
    """FLOPs of evaluations and snapshots after update `begin`: forward passes, covariances N D^2
    (one half of a symmetric matrix), eigenvalues. What a GPU does beside training is left out."""
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
    """How often something at step 0, every `every` updates and at the end happens, on the way
    from a start, or from a checkpoint of step `begin`."""
    return -(-steps // every) - begin // every + (begin == 0)
