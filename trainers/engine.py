"""A DeepSpeed engine for one trial: every quirk of the library is dealt with here.

Nothing else of widthlab knows DeepSpeed's configuration. Only the collectives of torch and the
engine's forward, backward, step, save and load are used elsewhere.
"""

import contextlib
import gc
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.spec import TrainingSpec, TrialSpec


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of a trial."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Rank 0 alone writes records."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """One small picklable value of each rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def _import_deepspeed(device: str) -> Any:
    """DeepSpeed, quickly and quietly.

    Its autotuner pulls in mlflow where that is installed: a second of start-up, and a library a
    training process has no business with, so it is hidden for the time of the import.
    """
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        # On a CPU the compiler costs 24 s at the first step and gains nothing.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # Checkpoints are data: refuse pickled code wherever DeepSpeed calls torch.load.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        import deepspeed
    finally:
        if hidden:
            del sys.modules["mlflow"]
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals(
        [LossScaler, DynamicLossScaler, fragment_address, ZeroStageEnum]
    )
    # Its shared-memory collectives would be compiled at every start; gloo serves on a CPU.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def start_ranks(device: str) -> Ranks:
    """Join the process group that torchrun or Ray Train describes, or be alone.

    Raises RuntimeError if CUDA is asked for and absent.
    """
    deepspeed = _import_deepspeed(device)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it, alone too
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError("layout.device is cuda but torch sees no CUDA device")
        torch.cuda.set_device(local_rank)
        where = torch.device("cuda", local_rank)
    else:
        where = torch.device("cpu")
    if not dist.is_initialized():
        if world_size == 1:
            # A store in memory needs no port, so any number of trials start side by side.
            dist.init_process_group(
                "nccl" if device == "cuda" else "gloo",
                store=dist.HashStore(),  # type: ignore[attr-defined]
                rank=0,
                world_size=1,
            )
        deepspeed.init_distributed(
            dist_backend="nccl" if device == "cuda" else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
        )
    return Ranks(rank, world_size, local_rank, where)


def learning_rate(training: TrainingSpec, update: int) -> float:
    """The rate of the update of that number, counted from 0: linear warm-up, then cosine.

    Warm-up ends at the peak on its last update; the last update of all has
    `final_fraction` of the peak.
    """
    warmup = round(training.warmup_fraction * training.steps)
    if update < warmup:
        return training.learning_rate * (update + 1) / warmup
    progress = (update - warmup + 1) / max(1, training.steps - warmup)
    floor = training.final_fraction
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return training.learning_rate * (floor + (1.0 - floor) * cosine)


class Engine:
    """One model under DeepSpeed, in the five verbs that the training loop needs."""

    def __init__(self, model: nn.Module, spec: TrialSpec, ranks: Ranks) -> None:
        deepspeed = _import_deepspeed(ranks.device.type)
        self._ranks = ranks
        self._zero_stage = spec.layout.zero_stage
        self._clipping = spec.training.gradient_clipping
        # Stage 0 keeps no gradient norm of its own: measure and clip in one place here.
        self._clips_here = self._zero_stage == 0
        optimizer = _optimizer(model, spec.training)
        peak = spec.training.learning_rate
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: learning_rate(spec.training, update) / peak
        )
        with _quiet():
            self._engine, *_ = deepspeed.initialize(
                model=model.to(ranks.device),
                optimizer=optimizer,
                lr_scheduler=schedule,
                config=_configuration(spec),
                dist_init_required=False,
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of token ids (B, T)."""
        logits: Tensor = self._engine(tokens).logits
        return logits

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a micro-batch's mean loss."""
        self._engine.backward(loss)

    def step(self) -> float | None:
        """End a micro-batch; at the last of an update apply it and return the gradient norm.

        A norm that is not finite means that the update was not, or must not be, used.
        """
        last = self._engine.is_gradient_accumulation_boundary()
        norm: float | None = None
        if last and self._clips_here:
            limit = self._clipping if self._clipping > 0 else math.inf
            norm = float(nn.utils.clip_grad_norm_(self._engine.module.parameters(), limit))
            if not math.isfinite(norm):
                return norm
        self._engine.step()
        if last and norm is None:
            norm = float(self._engine.get_global_grad_norm())
        return norm

    @property
    def module(self) -> nn.Module:
        """The model, for hooks."""
        module: nn.Module = self._engine.module
        return module

    def eval(self) -> None:
        """Evaluation mode."""
        self._engine.eval()

    def train(self) -> None:
        """Training mode."""
        self._engine.train()

    def save(self, folder: Path, tag: str, state: dict[str, Any]) -> None:
        """Write a checkpoint below `folder`/`tag`. Collective: every rank calls it."""
        with _quiet():
            self._engine.save_checkpoint(
                str(folder), tag=tag, client_state=state, save_latest=False
            )

    def load(self, folder: Path, tag: str) -> dict[str, Any]:
        """Read it back and return the state. Collective. Raises RuntimeError if it cannot."""
        with _quiet():
            path, state = self._engine.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint {tag} in {folder}")
        return dict(state)

    def close(self) -> None:
        """Release what DeepSpeed holds in this process: the next trial may run in it."""
        self._engine.destroy()
        # The engine is part of cycles, and its device memory is wanted at once.
        del self._engine
        gc.collect()


def _optimizer(model: nn.Module, training: TrainingSpec) -> torch.optim.Optimizer:
    """AdamW that decays matrices and embeddings, not biases and gains."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": training.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
    )


def _configuration(spec: TrialSpec) -> dict[str, Any]:
    layout, stage = spec.layout, spec.layout.zero_stage
    per_worker = spec.sequences // layout.workers
    micro = layout.micro_batch or per_worker
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": per_worker // micro,
        "gradient_clipping": 0.0 if stage == 0 else spec.training.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage},
        "steps_per_print": sys.maxsize,
    }
    if spec.training.precision == "bf16":
        if stage == 0:
            # DeepSpeed's bf16 takes a step on zero gradients at stage 0; autocast does not.
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        else:
            config["bf16"] = {"enabled": True}
            config["data_types"] = {"grad_accum_dtype": "fp32"}
            config["communication_data_type"] = "fp32"
    return config


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed prints to stdout, which belongs to the command that was asked for."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def versions() -> dict[str, str]:
    """Versions of what the numbers of a trial may depend on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    # torch says which build it is, for a CPU or for which CUDA; its package's metadata may not.
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("widthlab", "deepspeed", "transformers", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
