"""Accelerate as the commands use it, and its trackers."""

import datetime
import logging
import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    LoggerType,
)

from lma_hf.errors import ConfigError, MissingDependencyError

logger = logging.getLogger(__name__)
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16")  # x86, the last one ARM


def make_accelerator(config, **kwargs):
    """An Accelerator for a config with mixed_precision. Raises: ConfigError if this machine cannot do it."""
    # LMA's statistics are those of the global batch on every process, so DDP has no buffers to broadcast
    warn_of_single_process()
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    # accelerate joins several CPU processes only when told that it is the CPU
    cpu = not torch.accelerator.is_available()
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if cpu and precision == "bf16" and not computes_in_bf16():
        logger.warning(
            "mixed_precision bf16: this CPU has no bf16 instructions, so it may be many times slower than "
            "--mixed_precision no"
        )
    handlers = [ddp]
    if (timeout_s := getattr(config, "ddp_timeout", None)) is not None:
        handlers.append(InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=timeout_s)))
    # otherwise the precision of an earlier run in this process would stay; there is no public way
    AcceleratorState._reset_state()
    try:
        loading = DataLoaderConfiguration(non_blocking=not cpu)
        return Accelerator(
            cpu=cpu, mixed_precision=precision, kwargs_handlers=handlers, dataloader_config=loading, **kwargs
        )
    except ValueError as error:
        raise ConfigError(f"mixed_precision {precision!r}: {error}") from error


def computes_in_bf16():
    """Whether this machine's GPU, or without one its CPU, has instructions for bfloat16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in BF16_INSTRUCTIONS)


def check_trackers(names):
    """Raises: ConfigError or MissingDependencyError if a tracker is unknown or not installed."""
    known = sorted({"all", *(str(tracker.value) for tracker in LoggerType)})
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in known:
            raise ConfigError(f"report_to names {name!r}, allowed are {', '.join(known)}")
        if name != "all" and name not in available:
            raise MissingDependencyError(
                f"report_to names {name!r}, which is not installed; run pip install {name} (tensorboard: "
                "pip install 'lma_hf[trackers]')"
            )


def warn_of_single_process():
    """Say so when `accelerate launch --cpu --num_processes N` has started one process (it needs MPI for more)."""
    launched_for_several = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_PORT" in os.environ
    if launched_for_several and "RANK" not in os.environ:
        logger.warning(
            "accelerate launch --cpu has started one process, as it does without an MPI host file; for N processes "
            "use: torchrun --nproc_per_node N -m lma_hf.cli ..."
        )
