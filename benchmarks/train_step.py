"""Tokens per second of a training step, side by side in one run.

    python benchmarks/train_step.py [--device cuda] [--d-model 64 128 256] [--rounds 30]

For each shape, one update of each of these in turn, again and again; the median of each counts:

- widthlab: the engine and the step that trials take, with all their checks
- transformers: LlamaForCausalLM or GPT2LMHeadModel of the same shape in the same engine
- plain: widthlab's model in a bare PyTorch loop with torch's AdamW as it comes

Ratios above 1 are in favour of widthlab. On CUDA also model FLOPs utilisation, in both precisions,
and of the plain loop with torch.compile. On a CPU, one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from trainers import accounting
from trainers.data.sources import DataSpec
from trainers.engine import hardware
from trainers.engine.engine import Engine, Ranks, start_ranks
from trainers.engine.schedule import learning_rate
from trainers.export.stock import as_stock
from trainers.models.build import build, token_loss
from trainers.models.model_spec import ModelSpec
from trainers.spec import Layout, TrainingSpec, TrialSpec
from trainers.train import update

VOCABULARY = 512
DEPTH = 4
HEAD_DIM = 32
CONTEXT = 128
SEQUENCES = 16

Step = Callable[[], None]


def spec_of(architecture: str, d_model: int, device: str, precision: str, stage: int) -> TrialSpec:
    """A trial of the published shape of an FFN: D = 4 d_model, or 2.67 with a gate."""
    width = 4 * d_model if architecture == "gpt2" else round(8 * d_model / 3 / 8) * 8
    return TrialSpec(
        model=ModelSpec(
            architecture=architecture,
            norm="pre",
            d_model=d_model,
            head_dim=HEAD_DIM,
            ffn_widths=(width,) * DEPTH,
            context=CONTEXT,
            vocab_size=VOCABULARY,
        ),
        training=TrainingSpec(
            steps=10_000,
            batch_tokens=SEQUENCES * CONTEXT,
            learning_rate=1e-3,
            precision=precision,
        ),
        data=DataSpec(corpus_fingerprint="benchmark", tokenizer_hash="benchmark"),
        replicate=0,
        layout=Layout(device=device, zero_stage=stage),
    )


def transformers_model(model: ModelSpec) -> torch.nn.Module:
    """The stock class of the same shape and weights, without dropout."""
    made: Any = as_stock(build(model, 0))
    made.config.use_cache = False  # it would keep keys and values of every step
    # What the engine asks of widthlab's own models.
    made.begin_update = lambda: None
    made.unit_norm_dims = {}
    return made


def tokens() -> np.ndarray:
    """A stream to draw batches from."""
    return np.random.default_rng(0).integers(0, VOCABULARY, 200_000).astype(np.uint16)


def engine_step(spec: TrialSpec, model: torch.nn.Module, ranks: Ranks) -> tuple[Step, Engine]:
    """One update as a trial takes it."""
    engine = Engine(model, spec, ranks)
    store: Any = SimpleNamespace(train=tokens())
    count = iter(range(spec.training.steps))
    return lambda: void(update(engine, spec, store, ranks, next(count))), engine


def void(_: object) -> None:
    """A step has no result."""


def plain_step(spec: TrialSpec, device: torch.device, compiled: bool) -> Step:
    """The same update in a bare loop."""
    model = build(spec.model, 0).to(device)
    forward: Any = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=spec.training.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: learning_rate(spec.training, update) / 1e-3
    )
    stream = torch.from_numpy(tokens().astype(np.int64))
    generator = torch.Generator().manual_seed(0)
    half = spec.training.precision == "bf16"

    def step() -> None:
        starts = torch.randint(len(stream) - CONTEXT - 1, (SEQUENCES, 1), generator=generator)
        batch = stream[starts + torch.arange(CONTEXT + 1)].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = forward(batch[:, :-1]).logits
        loss = token_loss(logits, batch[:, 1:]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()

    return step


def medians(steps: dict[str, Step], rounds: int, cuda: bool) -> dict[str, float]:
    """Seconds of each step: the median over rounds in which each is taken once, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 3):
        for name, step in steps.items():
            if cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
            step()
            if cuda:
                torch.cuda.synchronize()
            if number >= 3:  # the first are warm-up
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--d-model", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--zero-stage", type=int, default=0)
    options = parser.parse_args()
    cuda = options.device == "cuda"
    torch.set_num_threads(1)
    ranks = start_ranks(options.device)
    print(
        f"{torch.cuda.get_device_name() if cuda else 'CPU, one thread'}; torch {torch.__version__}"
    )
    print(f"depth {DEPTH}, {SEQUENCES} x {CONTEXT} tokens an update, ZeRO {options.zero_stage}\n")
    print(
        f"{'model':<6}{'d_model':>8}{'precision':>10}{'tokens/s':>11}{'/ transformers':>15}"
        f"{'/ plain':>9}{'/ compiled':>11}{'MFU':>7}"
    )
    for architecture in ("gpt2", "llama"):
        for d_model in options.d_model:
            for precision in ("fp32", "bf16") if cuda else ("fp32",):
                spec = spec_of(architecture, d_model, options.device, precision, options.zero_stage)
                ours, first = engine_step(spec, build(spec.model, 0), ranks)
                stock, second = engine_step(spec, transformers_model(spec.model), ranks)
                steps = {
                    "widthlab": ours,
                    "transformers": stock,
                    "plain": plain_step(spec, ranks.device, compiled=False),
                }
                if cuda:
                    steps["compiled"] = plain_step(spec, ranks.device, compiled=True)
                took = medians(steps, options.rounds, cuda)
                first.close()
                second.close()
                print(row(spec, took, ranks), flush=True)


def row(spec: TrialSpec, took: dict[str, float], ranks: Ranks) -> str:
    """One line of the table."""
    rate = spec.training.batch_tokens / took["widthlab"]
    ratios = {name: seconds / took["widthlab"] for name, seconds in took.items()}
    peak = hardware.peak_flops(ranks.device, spec.training.precision)
    mfu = accounting.training_flops_per_token(spec.model) * rate / peak if peak else None
    return (
        f"{spec.model.architecture:<6}{spec.model.d_model:>8}{spec.training.precision:>10}"
        f"{rate:>11,.0f}{ratios['transformers']:>15.2f}{ratios['plain']:>9.2f}"
        + (f"{ratios['compiled']:>11.2f}" if "compiled" in ratios else f"{'-':>11}")
        + (f"{mfu:>7.1%}" if mfu is not None else f"{'-':>7}")
    )


if __name__ == "__main__":
    main()
