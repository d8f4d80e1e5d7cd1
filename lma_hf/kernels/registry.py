"""Which kernel computes LMA: `LMA_HF_KERNEL` = auto (default), reference, cpu or triton.

auto takes the kernel made for the device of the input and falls back to the reference where it cannot be had, keeping
the reason. Any other choice works or raises.
"""

import contextlib
import importlib
import logging
import os
from typing import NamedTuple

import torch

from lma_hf.errors import ConfigError, KernelError
from lma_hf.kernels import ops
from lma_hf.modeling.reference_lma import REFERENCE, Kernels

logger = logging.getLogger(__name__)

VARIABLE = "LMA_HF_KERNEL"
CHOICES = ("auto", "reference", "cpu", "triton")
MADE_FOR = {"cpu": "cpu", "cuda": "triton"}  # device type -> kernel
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_SEGMENTS = 64

_chosen = None  # by use_kernel; None: by the environment
_loaded = {}  # kernel -> its Kernels, or why there are none


class Choice(NamedTuple):
    """What computes on a device: "reference", "cpu" or "triton", and why it is not the kernel made for the device."""

    kernel: str
    reason: str | None


def kernels_for(x, num_segments):
    """The `Kernels` that compute LMA for this input.

    Raises: ConfigError or KernelError if the choice was explicit and cannot be met.
    """
    kernel = _kernel_for(x.device.type)
    if kernel == "reference":
        return REFERENCE
    if x.dtype in DTYPES and num_segments <= MAX_SEGMENTS:
        return _loaded[kernel]
    if chosen_kernel() == "auto":
        return REFERENCE
    raise ConfigError(
        f"{VARIABLE} is {kernel!r}, which takes float32, bfloat16 or float16 and up to {MAX_SEGMENTS} segments, not "
        f"{x.dtype} and {num_segments}; choose auto or reference"
    )


def chosen_kernel():
    """The choice that holds. Raises: ConfigError if LMA_HF_KERNEL is none of CHOICES."""
    choice = _chosen or os.environ.get(VARIABLE) or "auto"
    if choice not in CHOICES:
        raise ConfigError(f"{VARIABLE} is {choice!r}, allowed are {', '.join(CHOICES)}")
    return choice


@contextlib.contextmanager
def use_kernel(choice):
    """Within the context, `choice` holds in place of LMA_HF_KERNEL."""
    global _chosen
    before, _chosen = _chosen, choice
    try:
        yield
    finally:
        _chosen = before


def resolve(device_type):
    """The `Choice` for a type of device; compiles what has to be compiled.

    Raises: ConfigError or KernelError if the choice was explicit and cannot be met.
    """
    choice = chosen_kernel()
    if choice == "reference":
        return Choice("reference", f"{VARIABLE} is reference")
    if choice != "auto":
        _load(choice)
        if device_type not in _devices_of(choice):
            raise ConfigError(f"{VARIABLE} is {choice!r}, which does not compute on {device_type}; choose auto")
        return Choice(choice, None)
    if device_type not in MADE_FOR:
        return Choice("reference", f"there is no kernel for {device_type}")
    try:
        _load(MADE_FOR[device_type])
    except KernelError as error:
        return Choice("reference", str(error))
    return Choice(MADE_FOR[device_type], None)


# torch.compile takes the answer as it stands when it traces: loading a library is nothing for a graph
@torch.compiler.assume_constant_result
def _kernel_for(device_type):
    return resolve(device_type).kernel


def _devices_of(kernel):
    # with Triton's interpreter, for tests without a GPU
    if kernel == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return ["cpu"]
    return [device for device, made in MADE_FOR.items() if made == kernel]


def _load(kernel):
    """Load a kernel once. Raises: KernelError, for the same reason each time, if it cannot be had."""
    if kernel not in _loaded:
        try:
            importlib.import_module(f"lma_hf.kernels.{kernel}").load()
            _loaded[kernel] = Kernels(kernel, ops.lma, ops.lma_with_statistics, ops.token_statistics)
        except KernelError as error:
            # not the error itself, whose traceback would keep the model's input alive
            _loaded[kernel] = str(error)
            if chosen_kernel() == "auto":
                logger.warning("LMA runs on its reference implementation, which is slower: %s", _loaded[kernel])
    if isinstance(_loaded[kernel], str):
        raise KernelError(_loaded[kernel])
