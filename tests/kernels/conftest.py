import platform

import pytest
import torch

from lma_hf.errors import KernelError
from lma_hf.kernels.registry import kernels_for, use_kernel

X86 = ("avx512", "avx2", "plain")
INSTRUCTION_SETS = {"x86_64": X86, "AMD64": X86, "aarch64": ("neon", "plain"), "arm64": ("neon", "plain")}


@pytest.fixture(scope="session")
def cpu():
    """The C++ kernel's `Kernels`."""
    with use_kernel("cpu"):
        try:
            return kernels_for(torch.zeros(1), 8)
        except KernelError as error:
            if "no C++ compiler" in str(error):
                pytest.skip(str(error))
            raise


@pytest.fixture
def cpu_chosen(cpu):
    with use_kernel("cpu"):
        yield cpu


@pytest.fixture(params=INSTRUCTION_SETS.get(platform.machine(), ("plain",)))
def instruction_set(request, cpu):
    """Every instruction set in turn, if this processor has it."""
    if request.param not in torch.ops.lma_hf.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    before = torch.ops.lma_hf.instruction_set()
    torch.ops.lma_hf.use_instruction_set(request.param)
    yield request.param
    torch.ops.lma_hf.use_instruction_set(before)


@pytest.fixture
def threads():
    """torch.set_num_threads; the number from before is put back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
