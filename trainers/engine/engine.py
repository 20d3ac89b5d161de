"""A DeepSpeed engine for one trial: every quirk of the library is dealt with here.

Nothing else of widthlab knows DeepSpeed's configuration; optimizer.py takes Muon from it, and
unit_norm.py knows where ZeRO keeps the master weights. Only the collectives of torch and the
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

from trainers.engine.optimizer import make_optimizer
from trainers.engine.schedule import learning_rate
from trainers.engine.unit_norm import keep_unit_norms
from trainers.models.decoder import Decoder
from trainers.spec import TrialSpec


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


def import_deepspeed(device: str) -> Any:
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
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals(
        [LossScaler, DynamicLossScaler, fragment_address, ZeroStageEnum]
    )
    # Its optimiser of bf16 at stage 1 tells of memory, unasked, and collects garbage to do so:
    # four seconds at every start.
    bf16_optimizer.see_memory_usage = _say_nothing
    # Its shared-memory collectives would be compiled at every start; gloo serves on a CPU. It asks
    # for these answers alone, and would run a compiler to find the others.
    deepspeed.ops.__compatible_ops__ = {
        "deepspeed_shm_comm": False, "deepspeed_not_implemented": False,
    }  # fmt: skip
    return deepspeed


def _say_nothing(*_: object, **__: object) -> None:
    """In the place of a report that nobody asked for."""


def start_ranks(device: str) -> Ranks:
    """Join the process group that torchrun or the orchestrator describes, or be alone.

    Raises RuntimeError if CUDA is asked for and absent.
    """
    deepspeed = import_deepspeed(device)
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


class Engine:
    """One model under DeepSpeed, in the five verbs that the training loop needs."""

    def __init__(self, model: Decoder, spec: TrialSpec, ranks: Ranks) -> None:
        deepspeed = import_deepspeed(ranks.device.type)
        zero_stage = spec.layout.zero_stage
        self._clipping = spec.training.gradient_clipping
        # Stage 0 keeps no gradient norm of its own: measure and clip in one place here.
        self._clips_here = zero_stage == 0
        # By the time ZeRO measures, Muon has put its update in the gradient's place.
        self._loses_norm = spec.training.optimizer == "muon" and zero_stage > 0
        self._between_updates = True
        unit_norm_dims = model.unit_norm_dims  # before ZeRO 3 takes the shapes away
        model.to(ranks.device)
        self._optimizer = make_optimizer(model, spec.training)
        peak = spec.training.learning_rate
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda update: learning_rate(spec.training, update) / peak
        )
        # ZeRO 3 puts a function of its own in this one's place, for the whole process.
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
            # At stage 0 every rank has all of every matrix.
            summed = ranks.sum if zero_stage > 0 else _as_it_is
            keep_unit_norms(self._engine, unit_norm_dims, summed)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of token ids (B, T). In training mode the first call begins an update."""
        if self._between_updates and self._engine.module.training:
            self._engine.module.begin_update()
            self._between_updates = False
        logits: Tensor = self._engine(tokens).logits
        return logits

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a micro-batch's mean loss."""
        self._engine.backward(loss)

    def step(self) -> float | None:
        """End a micro-batch; at the last of an update apply it and return the gradient norm.

        A norm that is not finite means that the update was not, or must not be, used. None
        inside an update, and where the norm is not known: with Muon at the ZeRO stages 1 to 3.
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
        # The rate that lies in the checkpoint is the saver's; a trial that branches off there
        # goes on at that of its own schedule.
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
        """Release what DeepSpeed holds in this process: the next trial may run in it."""
        self._engine.destroy()
        nn.functional.linear = self._linear  # the next trial computes with its own
        # The engine is part of cycles, and its device memory is wanted at once.
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
