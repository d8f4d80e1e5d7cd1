"""The Triton kernel: registered for GPUs on first need; Triton itself compiles what is launched and keeps it."""

import os

import torch

from lma_hf.errors import KernelError
from lma_hf.kernels import ops

OPERATORS = ("lma", "lma_backward", "token_statistics", "lma_with_statistics")


def load():
    """Register the operators for CUDA, or for CPU tensors where Triton's interpreter is on (TRITON_INTERPRET=1).

    Raises: KernelError if Triton cannot be imported, or if there is neither a GPU nor the interpreter.
    """
    interpreting = os.environ.get("TRITON_INTERPRET") == "1"
    try:
        import triton  # noqa: F401  what is imported below needs it
    except ImportError as error:
        raise KernelError(
            f"Triton cannot be imported ({error}); pip install 'lma_hf[triton]', or set LMA_HF_KERNEL to auto"
        ) from error
    if not interpreting and not torch.cuda.is_available():
        raise KernelError(
            "the Triton kernel needs a GPU, and torch.cuda.is_available() is False; set LMA_HF_KERNEL to auto"
        )
    from lma_hf.kernels import triton_launch

    for name in OPERATORS:
        ops.library.impl(name, getattr(triton_launch, name), "CPU" if interpreting else "CUDA")
