"""One rank of a few small trials, for test_zero.

    python zero_rank.py JOBS.json RESULTS.json RANK WORLD_SIZE STORE

JOBS is a list of {"spec", "resume"}. RESULTS, which rank 0 writes, has for each its losses and
gradient norms, what a loop in plain PyTorch has, how far nGPT's vectors are from norm 1 at the
end, and, where asked for, the losses after a resume halfway.
"""

import gc
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import trainers.engine.engine
from trainers.engine.engine import Engine, Ranks, start_ranks
from trainers.engine.schedule import learning_rate
from trainers.models.build import build, token_loss
from trainers.spec import TrialSpec, parse_spec

#: Parameters of fewer elements stay whole at stage 3: all but the matrices, as in models whose
#: matrices have more elements than DeepSpeed's own threshold of 100,000.
PERSISTENT = 100


def batch(spec: TrialSpec, update: int) -> Tensor:
    """Token ids [sequences, context + 1], skewed, so that there is a lot to learn."""
    generator = torch.Generator().manual_seed(update)
    weights = torch.arange(1, spec.model.vocab_size + 1, dtype=torch.float64) ** -1.0
    shape = (spec.sequences, spec.model.context + 1)
    drawn = torch.multinomial(weights, math.prod(shape), True, generator=generator)
    return drawn.view(shape)


# --- plain PyTorch -------------------------------------------------------------------------


def plain_losses(spec: TrialSpec) -> list[float]:
    """The losses of one process in float32 that knows nothing of DeepSpeed."""
    training = spec.training
    model = build(spec.model, spec.replicate)
    matrices = {}
    if training.optimizer == "muon":
        named = model.named_parameters()
        matrices = {p: torch.zeros_like(p) for n, p in named if "layers." in n and p.ndim == 2}
    others = [p for p in model.parameters() if p not in matrices]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(training.beta1, training.beta2))
    losses = []
    for update in range(training.steps):
        rate = learning_rate(training, update)
        for group in adamw.param_groups:
            group["lr"] = rate
        tokens = batch(spec, update)
        model.begin_update()
        loss = token_loss(model(tokens[:, :-1]).logits, tokens[:, 1:]).mean()
        model.zero_grad()
        loss.backward()
        limit = training.gradient_clipping or math.inf
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        adamw.step()
        with torch.no_grad():
            for matrix, momentum in matrices.items():
                muon_step(matrix, momentum, rate, training.momentum, training.weight_decay)
            for name, dim in model.unit_norm_dims.items():
                matrix = model.get_parameter(name)
                matrix.copy_(F.normalize(matrix, dim=dim))
        losses.append(loss.item())
    return losses


def muon_step(matrix: Tensor, momentum: Tensor, rate: float, beta: float, decay: float) -> None:
    """Nesterov momentum, made orthogonal, with the root mean square of AdamW's updates."""
    momentum.lerp_(matrix.grad, 1 - beta)
    update = newton_schulz(torch.lerp(matrix.grad, momentum, beta))
    matrix.mul_(1 - rate * decay)
    matrix.sub_(rate * 0.2 * max(matrix.shape) ** 0.5 * update)


def newton_schulz(x: Tensor) -> Tensor:
    """Five steps of the quintic iteration: singular values between 0.7 and 1.2."""
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


# --- the engine ----------------------------------------------------------------------------


def update(
    engine: Engine, spec: TrialSpec, ranks: Ranks, number: int
) -> tuple[float, float | None]:
    """One update, shared out as a trial shares it: the mean loss and the gradient norm."""
    tokens = batch(spec, number)
    share = len(tokens) // ranks.world_size
    mine = tokens[ranks.rank * share :][:share]
    losses, norm = [], None
    for micro in torch.split(mine, spec.layout.micro_batch or share):
        loss = token_loss(engine.forward(micro[:, :-1]), micro[:, 1:]).mean()
        losses.append(float(ranks.sum(loss.detach().clone()) / ranks.world_size))
        engine.backward(loss)
        norm = engine.step()
    return sum(losses) / len(losses), norm


def unit_errors(engine: Engine, spec: TrialSpec) -> tuple[float, float]:
    """The largest distance of a vector's norm from 1: in the master weights, and in the model."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    stage = spec.layout.zero_stage
    masters, weights = [0.0], [0.0]
    for name, dim in build(spec.model, 0).unit_norm_dims.items():
        parameter = engine.module.get_parameter(name)
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            weight = parameter.detach().float().clone()
        master = safe_get_full_fp32_param(parameter) if stage > 0 else weight
        for matrix, errors in ((master, masters), (weight, weights)):
            errors.append(float((matrix.double().norm(dim=dim) - 1).abs().max()))
    return max(masters), max(weights)


def run(spec: TrialSpec, resume: bool, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Train a spec; then once more from a checkpoint halfway, in an engine of other weights."""
    steps, half = spec.training.steps, spec.training.steps // 2
    engine = Engine(build(spec.model, spec.replicate), spec, ranks)
    done = []
    for number in range(steps):
        if resume and number == half:
            engine.save(folder, "halfway", {})
        done.append(update(engine, spec, ranks, number))
    masters, weights = unit_errors(engine, spec)
    engine.close()
    losses, norms = zip(*done, strict=True)
    result = {"losses": losses, "norms": norms, "masters": masters, "weights": weights}
    if not resume:
        return result
    ranks.barrier()
    resumed = Engine(build(spec.model, spec.replicate + 1), spec, ranks)
    resumed.load(folder, "halfway")
    again = [update(resumed, spec, ranks, number) for number in range(half, steps)]
    resumed.close()
    return {**result, "resumed": [loss for loss, _ in again]}


def keep_matrices_parted() -> None:
    """At stage 3, however small they are."""
    configuration = trainers.engine.engine._configuration

    def parted(spec: TrialSpec) -> dict[str, Any]:
        config = configuration(spec)
        if spec.layout.zero_stage == 3:
            config["zero_optimization"]["stage3_param_persistence_threshold"] = PERSISTENT
        return config

    trainers.engine.engine._configuration = parted


def main(jobs: str, results: str, rank: str, world_size: str, store: str) -> None:
    """Every rank trains every spec; rank 0 writes the results."""
    os.environ.update(RANK=rank, WORLD_SIZE=world_size, LOCAL_RANK=rank)
    torch.set_num_threads(1)
    if int(world_size) > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world_size)
        )
    ranks = start_ranks("cpu")
    keep_matrices_parted()
    gc.freeze()  # closing an engine collects, and need not search what was imported
    references: dict[str, list[float]] = {}
    found = []
    for job in json.loads(Path(jobs).read_text()):
        spec = parse_spec(json.dumps(job["spec"]), jobs)
        folder = tempfile.mkdtemp(dir=Path(results).parent) if ranks.is_first else None
        result = run(spec, job["resume"], ranks, Path(ranks.broadcast(folder)))
        if ranks.is_first:
            training = spec.training.model_copy(update={"precision": "fp32"})
            same = spec.model_copy(update={"training": training}).id
            if same not in references:
                references[same] = plain_losses(spec)
            found.append({**result, "plain": references[same]})
    if ranks.is_first:
        Path(results).write_text(json.dumps(found))
    ranks.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo ranks may abort while the interpreter tears down


if __name__ == "__main__":
    main(*sys.argv[1:])
