"""What watching the spectra costs a training run, beside the plain way of doing it.

    python benchmarks/spectra_overhead.py [--device cuda] [--widths 256 1024 4096] [--rounds 5]

GPT-2 of 12 layers, D = 4 d_model, both sites of every layer; N = 10 D tokens a snapshot, D * 5
tokens an update. In every round, in turn: an update, the forward passes of a snapshot alone, the
snapshot, its eigenwork, and the plain hook, which keeps the activations and calls torch.cov and
torch.linalg.eigvalsh on the spot. Medians over the rounds; in the end, an update beside eigenwork.

overhead = seconds of a snapshot on the training's path / (200 * seconds of an update), for the
papers snapshot every 200 updates. "inline" adds the eigenwork as if it were not beside training;
"beside" is the time of an update that runs beside it against one that does not.

The plain hook is measured on as many layers as fit --plain-gb of activations, and scaled to all.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.data.sources import DataSpec
from trainers.engine.engine import Engine, Ranks, start_ranks
from trainers.models.build import build, feed_forwards
from trainers.models.model_spec import ModelSpec
from trainers.spec import Layout, SpectraSpec, TrainingSpec, TrialSpec
from trainers.spectra.snapshots import Snapshots, tap
from trainers.train import update
from trialstore.records import Row

VOCABULARY = 512
DEPTH = 12
CONTEXT = 128
CADENCE = 200
SITES = ("pre", "post")


def spec_of(width: int, device: str, precision: str, micro_tokens: int) -> TrialSpec:
    """A trial whose update has half the tokens of a snapshot."""
    d_model = width // 4
    sequences = 5 * width // CONTEXT
    fitting = [m for m in range(1, sequences + 1) if sequences % m == 0]
    return TrialSpec(
        model=ModelSpec(
            architecture="gpt2", norm="pre", d_model=d_model, head_dim=min(64, d_model // 2),
            ffn_widths=(width,) * DEPTH, context=CONTEXT, vocab_size=VOCABULARY,
        ),
        training=TrainingSpec(
            steps=10_000, batch_tokens=sequences * CONTEXT, learning_rate=1e-3, precision=precision
        ),
        data=DataSpec(corpus_fingerprint="benchmark", tokenizer_hash="benchmark"),
        replicate=0,
        spectra=SpectraSpec(every=CADENCE, tokens=10 * width, sites=SITES, memory_mb=8192),
        layout=Layout(
            device=device,
            cpus_per_worker=torch.get_num_threads(),
            micro_batch=max(m for m in fitting if m * CONTEXT <= micro_tokens or m == 1),
        ),
    )  # fmt: skip


class Bench:
    """One model in training, and everything that is timed on it."""

    def __init__(self, spec: TrialSpec, ranks: Ranks, plain_bytes: float) -> None:
        self.spec, self.ranks = spec, ranks
        self.engine = Engine(build(spec.model, 0), spec, ranks)
        self.snapshots = Snapshots(spec.spectra, "benchmark", ranks)
        stream = np.random.default_rng(0).integers(0, VOCABULARY, 500_000).astype(np.uint16)
        self.store: Any = SimpleNamespace(train=stream)
        heldout = torch.from_numpy(stream[: spec.spectra.tokens].astype(np.int64))
        self.windows = heldout.view(-1, CONTEXT)
        self.steps = 0
        width = spec.model.ffn_widths[0]
        kept = 4 * spec.spectra.tokens * width * len(SITES)  # bytes of a layer's activations
        self.plain_layers = max(1, min(DEPTH, int(plain_bytes // kept)))
        self.rows: list[Row] = []

    def batches(self) -> Iterator[Tensor]:
        """The held-out tokens of a snapshot, in micro-batches."""
        micro = torch.split(self.windows, self.spec.layout.micro_batch or len(self.windows))
        return (batch.to(self.ranks.device) for batch in micro)

    def step(self) -> None:
        """One update as a trial takes it."""
        update(self.engine, self.spec, self.store, self.ranks, self.steps)
        self.steps += 1

    @torch.no_grad()
    def forward(self) -> None:
        """The forward passes of a snapshot, unwatched."""
        self.engine.eval()
        for batch in self.batches():
            self.engine.forward(batch)

    def take(self) -> None:
        """A snapshot, as far as training waits for it."""
        self.engine.eval()
        when = {"step": self.steps, "tokens": 0, "time_ms": 0}

        def batches() -> Iterable[tuple[Tensor, None]]:
            return ((batch, None) for batch in self.batches())

        self.snapshots.take(self.engine.module, self.engine.forward, batches, when, final=False)

    def drain(self) -> None:
        """Its eigenwork, or what is left of it."""
        self.rows = self.snapshots.drain()

    @torch.no_grad()
    def plain(self) -> float:
        """Seconds of a plain hook for all layers."""
        self.engine.eval()
        kept: dict[tuple[int, str], list[Tensor]] = {}
        hooks = []
        for layer, ffn in list(enumerate(feed_forwards(self.engine.module)))[: self.plain_layers]:
            for site in SITES:
                into = kept.setdefault((layer, site), [])
                where = tap(ffn, site)
                if where.of == "input":
                    hooks.append(where.module.register_forward_pre_hook(keep_input(into)))
                else:
                    hooks.append(where.module.register_forward_hook(keep_output(into)))
        forward = timed(self.forward, self.ranks)
        for hook in hooks:
            hook.remove()

        def eigenwork() -> None:
            for parts in kept.values():
                covariance = torch.cov(torch.cat(parts).float().T)
                torch.linalg.eigvalsh(covariance).cpu()
                parts.clear()

        return forward + timed(eigenwork, self.ranks) * DEPTH / self.plain_layers

    def eigvalsh(self) -> float:
        """Seconds of all eigenvalues of all matrices, from one of them."""
        width = self.spec.model.ffn_widths[0]
        matrix = torch.randn(width, 2 * width, device=self.ranks.device)
        matrix = matrix @ matrix.T
        took = timed(lambda: void(torch.linalg.eigvalsh(matrix).cpu()), self.ranks)
        return took * DEPTH * len(SITES)


def keep_input(into: list[Tensor]) -> Callable[..., None]:
    """A hook that keeps what enters."""
    return lambda _, inputs: into.append(inputs[0].detach().flatten(0, -2).clone())


def keep_output(into: list[Tensor]) -> Callable[..., None]:
    """A hook that keeps what leaves."""
    return lambda _, __, output: into.append(output.detach().flatten(0, -2).clone())


def void(_: object) -> None:
    """Nothing is made of it."""


def timed(work: Callable[[], None], ranks: Ranks) -> float:
    """Seconds of wall time, with what it leaves on the device."""
    cuda = ranks.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if cuda:
        torch.cuda.current_stream().synchronize()  # not the stream beside it
    return time.perf_counter() - began


class Peak:
    """Peak memory since it was made, in GiB: of the device, or of this process."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def gib(self) -> float:
        """So far."""
        if self._cuda:
            return torch.cuda.max_memory_allocated() / 2**30
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(bench: Bench, rounds: int) -> dict[str, float]:
    """Medians over rounds."""
    cuda = bench.ranks.device.type == "cuda"
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for batch in bench.batches():  # what is loaded and allocated once
        bench.engine.forward(batch)
        break
    for _ in range(rounds):
        peak = Peak(cuda)
        note("step", timed(bench.step, bench.ranks))
        note("peak step", peak.gib())
        note("forward", timed(bench.forward, bench.ranks))
        spent = bench.snapshots.eigenwork_seconds
        peak = Peak(cuda)
        note("path", timed(bench.take, bench.ranks))
        bench.drain()
        note("eigenwork", bench.snapshots.eigenwork_seconds - spent)
        note("peak watched", peak.gib())
        note("scatter", found["path"][-1] - found["forward"][-1])
        peak = Peak(cuda)
        note("plain", bench.plain())
        note("peak plain", peak.gib())
    bench.take()
    beside = timed(bench.step, bench.ranks)
    bench.drain()
    note("beside", beside / statistics.median(found["step"]))
    found["eigvalsh"] = [bench.eigvalsh() for _ in range(2)][1:]
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--widths", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16"])
    parser.add_argument("--micro-tokens", type=int, default=4096)
    parser.add_argument("--plain-gb", type=float, default=4.0)
    options = parser.parse_args()
    cuda = options.device == "cuda"
    precision = options.precision or ("bf16" if cuda else "fp32")
    widths = options.widths or ([768, 3072, 6144] if cuda else [256, 1024, 4096])
    ranks = start_ranks(options.device)
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name() if cuda else f"CPU, {threads} threads"
    print(f"{name}; torch {torch.__version__}; {precision}; {DEPTH} layers, pre and post\n")
    print(
        f"{'D':>6}{'N':>7}{'batch':>7}{'step':>9}{'forward':>9}{'scatter':>9}{'eigen':>9}"
        f"{'method':>9}{'overhead':>10}{'inline':>8}{'beside':>8}{'plain hook':>12}"
        f"{'eigvalsh/eigen':>15}{'GiB step/ours/plain':>21}"
    )
    for width in widths:
        spec = spec_of(width, options.device, precision, options.micro_tokens)
        bench = Bench(spec, ranks, options.plain_gb * 2**30)
        took = measure(bench, options.rounds)
        print(row(bench, took), flush=True)
        bench.snapshots.close()
        bench.engine.close()


def row(bench: Bench, took: dict[str, float]) -> str:
    """One line of the table; seconds, and shares of 200 updates."""
    spec, cadence = bench.spec, CADENCE * took["step"]
    methods = {record["method"] for record in bench.rows}
    scaled = "" if bench.plain_layers == DEPTH else "*"
    plain = f"{took['plain'] / cadence:.2%}{scaled}"
    memory = f"{took['peak step']:.1f}/{took['peak watched']:.1f}/{took['peak plain']:.1f}"
    return (
        f"{spec.model.ffn_widths[0]:>6}{spec.spectra.tokens:>7}{spec.training.batch_tokens:>7}"
        f"{took['step']:>9.3f}{took['forward']:>9.3f}{took['scatter']:>9.3f}"
        f"{took['eigenwork']:>9.3f}{'/'.join(sorted(methods)):>9}"
        f"{took['path'] / cadence:>10.2%}{(took['path'] + took['eigenwork']) / cadence:>8.2%}"
        f"{took['beside']:>8.2f}{plain:>12}"
        f"{took['eigvalsh'] / took['eigenwork']:>15.1f}{memory + scaled:>21}"
    )


if __name__ == "__main__":
    main()
