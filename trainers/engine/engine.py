"""The DeepSpeed engine of one trial, and the workarounds for DeepSpeed's defaults.

Only this folder depends on DeepSpeed: optimizer.py takes Muon from it, unit_norm.py reads where
ZeRO keeps the master weights, and the rest is here. Other modules use `Engine` and `Ranks`.
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

from trainers.engine.optimizer import make_optimizer
from trainers.engine.schedule import learning_rate
from trainers.engine.unit_norm import keep_unit_norms
from trainers.models.decoder import Decoder
from trainers.spec import TrialSpec


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of a trial, and their collectives.

    Every rank must call the same collectives in the same order. With one process they do nothing.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the only one that writes records."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place, and return it."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in rank order. `value` is small and picklable."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank. It is small and picklable."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def import_deepspeed(device: str) -> Any:
    """Import DeepSpeed with a fast and silent start, and return the module.

    Sets process-wide environment variables, so call it before anything else imports DeepSpeed.
    Afterwards `torch.load` refuses pickled code everywhere in the process.

    DeepSpeed's autotuner imports mlflow if it is installed, which costs a second. The import is
    blocked, because training processes do not use mlflow.

    Args:
        device: "cpu" or "cuda".
    """
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        # On a CPU torch's compiler takes 24 s at the first step and speeds up nothing.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # Checkpoints are data: make every torch.load of DeepSpeed refuse pickled code.
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
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals(
        [LossScaler, DynamicLossScaler, fragment_address, ZeroStageEnum]
    )
    # The bf16 optimiser of stage 1 reports memory use and collects garbage for the report, which
    # takes four seconds at every start.
    bf16_optimizer.see_memory_usage = _say_nothing
    # DeepSpeed would compile its shared-memory collectives at every start, but gloo suffices on a
    # CPU. It looks up only these two entries; filling in the others would run a compiler.
    deepspeed.ops.__compatible_ops__ = {
        "deepspeed_shm_comm": False, "deepspeed_not_implemented": False,
    }  # fmt: skip
    return deepspeed


def _say_nothing(*_: object, **__: object) -> None:
    """Replace DeepSpeed's memory report."""


def start_ranks(device: str) -> Ranks:
    """Join the trial's process group and return this process's place in it.

    torchrun or the orchestrator describes the group in RANK, WORLD_SIZE and LOCAL_RANK; without
    them the process is the only one. On CUDA it takes the device LOCAL_RANK.

    Args:
        device: "cpu" (gloo) or "cuda" (NCCL).

    Raises:
        RuntimeError: `device` is "cuda" and torch finds no CUDA device.
    """
    deepspeed = import_deepspeed(device)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed needs it for one process too
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError("layout.device is cuda, but torch finds no CUDA device")
        torch.cuda.set_device(local_rank)
        where = torch.device("cuda", local_rank)
    else:
        where = torch.device("cpu")
    if not dist.is_initialized():
        if world_size == 1:
            # An in-memory store needs no port, so trials that start together cannot collide.
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


class Engine:
    """A model under DeepSpeed: forward, backward, step, save and load.

    The training loop calls `forward`, `backward` and `step` once per micro-batch. DeepSpeed
    patches process-wide state: call `close` before the process makes another engine.

    Args:
        model: An initialised model on any device. The engine moves it and, at ZeRO stage 3,
            takes its parameters apart.
        spec: The trial: its optimiser, schedule, precision, ZeRO stage and batch.
        ranks: From `start_ranks`.
    """

    def __init__(self, model: Decoder, spec: TrialSpec, ranks: Ranks) -> None:
        deepspeed = import_deepspeed(ranks.device.type)
        zero_stage = spec.layout.zero_stage
        self._clipping = spec.training.gradient_clipping
        # Stage 0 does not report a gradient norm, so `step` measures and clips here.
        self._clips_here = zero_stage == 0
        # With Muon, ZeRO measures the norm after Muon has overwritten the gradient.
        self._loses_norm = spec.training.optimizer == "muon" and zero_stage > 0
        self._between_updates = True
        unit_norm_dims = model.unit_norm_dims  # before ZeRO 3 takes the shapes away
        model.to(ranks.device)
        self._optimizer = make_optimizer(model, spec.training)
        peak = spec.training.learning_rate
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda update: learning_rate(spec.training, update) / peak
        )
        # ZeRO 3 replaces this function for the whole process; `close` restores it.
        self._linear = nn.functional.linear
        with _quiet():
            self._engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=self._optimizer,
                lr_scheduler=self._schedule,
                config=_configuration(spec),
                dist_init_required=False,
            )
        if unit_norm_dims:
            # At stage 0 every rank has whole matrices, so there is nothing to sum.
            summed = ranks.sum if zero_stage > 0 else _as_it_is
            keep_unit_norms(self._engine, unit_norm_dims, summed)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, T, V) of token ids (B, T).

        In training mode, the first call after a finished update begins the next one.
        """
        if self._between_updates and self._engine.module.training:
            self._engine.module.begin_update()
            self._between_updates = False
        logits: Tensor = self._engine(tokens).logits
        return logits

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a micro-batch's mean loss, a scalar in nats per token."""
        self._engine.backward(loss)

    def step(self) -> float | None:
        """End a micro-batch; after an update's last one, apply the update.

        Returns:
            The gradient norm before clipping. NaN or infinity: the update was skipped or has
            spoiled the weights, so stop the trial. None: the update has more micro-batches to
            come, or the norm is unknown (Muon at ZeRO stages 1 to 3).
        """
        last = self._engine.is_gradient_accumulation_boundary()
        norm: float | None = None
        if last and self._clips_here:
            limit = self._clipping if self._clipping > 0 else math.inf
            norm = float(nn.utils.clip_grad_norm_(self._engine.module.parameters(), limit))
            if not math.isfinite(norm):
                return norm
        self._engine.step()
        self._between_updates = bool(last)
        if last and norm is None:
            norm = float(self._engine.get_global_grad_norm())
            if self._loses_norm and math.isfinite(norm):
                return None
        return norm

    @property
    def module(self) -> nn.Module:
        """The wrapped model, for hooks."""
        module: nn.Module = self._engine.module
        return module

    def eval(self) -> None:
        """Switch to evaluation mode."""
        self._engine.eval()

    def train(self) -> None:
        """Switch to training mode."""
        self._engine.train()

    def save(self, folder: Path, tag: str, state: dict[str, Any]) -> None:
        """Write a checkpoint of model, optimiser and schedule below `folder`/`tag`.

        Collective: every rank calls it. `state` is stored with the checkpoint, and `load` returns
        it.
        """
        with _quiet():
            self._engine.save_checkpoint(
                str(folder), tag=tag, client_state=state, save_latest=False
            )

    def load(self, folder: Path, tag: str) -> dict[str, Any]:
        """Restore a checkpoint that `save` wrote and return its `state`. Collective.

        The learning rate follows this trial's schedule, not the rate in the checkpoint: a trial
        that branches off another's checkpoint has a schedule of its own.

        Raises:
            RuntimeError: DeepSpeed finds no checkpoint `tag` in `folder`.
        """
        with _quiet():
            path, state = self._engine.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint {tag} in {folder}")
        # The checkpoint restored the saving trial's rate: overwrite it with this schedule's.
        updates = self._schedule.last_epoch
        for group, peak, factor in zip(
            self._optimizer.param_groups,
            self._schedule.base_lrs,
            self._schedule.lr_lambdas,
            strict=True,
        ):
            group["lr"] = peak * factor(updates)
        return dict(state)

    def close(self) -> None:
        """Release DeepSpeed's memory and patches, so that another trial can run in the process."""
        self._engine.destroy()
        nn.functional.linear = self._linear
        # Reference cycles hold the engine: without a collection its device memory stays in use.
        del self._engine, self._optimizer, self._schedule
        gc.collect()


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
    if spec.training.optimizer == "muon" and stage == 3:
        config["zero_optimization"]["reduce_scatter"] = False  # Muon needs whole gradients
    if spec.autocast:
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif spec.training.precision == "bf16":
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    return config


def _as_it_is(values: Tensor) -> Tensor:
    return values


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send DeepSpeed's prints to stderr: stdout is for the command's own output."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that can change a trial's numbers."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    # torch.__version__ names the build (CPU or CUDA version); the package metadata may not.
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("widthlab", "deepspeed", "transformers", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
