"""The NEON kernels, cross-compiled by zig and run by an emulator: pip install 'lma_hf[arm]'."""

import subprocess
import sys
from pathlib import Path

import pytest

from lma_hf.kernels.cpu import SOURCES

zig = pytest.importorskip("ziglang", reason="ziglang is not installed (pip install 'lma_hf[arm]')")
unicorn = pytest.importorskip("unicorn", reason="unicorn is not installed (pip install 'lma_hf[arm]')")

BASE, STACK, STOP = 0x100000, 0x40000000, 0x50000000


def cross_compile(sources, target, output, *flags):
    command = [sys.executable, "-m", "ziglang", "c++", "-target", target, "-std=c++20", "-Wall", "-Werror", *flags]
    subprocess.run([*command, "-o", output, *sources], check=True, capture_output=True, text=True)


@pytest.mark.parametrize("target", ["aarch64-linux-gnu", "x86_64-linux-gnu"])
def test_clang_compiles_every_instruction_set(target, tmp_path):
    for source in ("avx512", "avx2", "neon", "plain"):
        compiled = tmp_path / f"{source}.o"
        cross_compile([SOURCES / f"{source}.cpp"], target, compiled, "-c", "-O1")
        assert compiled.stat().st_size > 0


def test_neon_computes_what_plain_code_does(tmp_path):
    program = tmp_path / "arm.bin"
    sources = [Path(__file__).with_name("arm_harness.cpp"), *(SOURCES / f"{name}.cpp" for name in ("neon", "plain"))]
    flags = [f"-I{SOURCES}", "-O2", "-fno-sanitize=all", "-fno-stack-protector", "-static", "-g0"]
    flags += [f"-Wl,--image-base={BASE:#x}", "-Wl,-e,arm_check"]
    cross_compile(sources, "aarch64-linux-musl", program, *flags)
    assert run(program) == 0


def run(program):
    """The return value of the entry point of a static aarch64 ELF file."""
    from unicorn import arm64_const as arm

    data = program.read_bytes()
    number = lambda at, size: int.from_bytes(data[at : at + size], "little")  # noqa: E731
    machine = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
    machine.mem_map(0, 0x2000000)
    for header in range(number(32, 8), number(32, 8) + 56 * number(56, 2), 56):
        if number(header, 4) == 1:  # a segment to load: file offset, address, size
            offset, address, size = (number(header + field, 8) for field in (8, 16, 32))
            machine.mem_write(address, data[offset : offset + size])
    machine.mem_map(STACK, 0x1000000)
    machine.mem_map(STOP, 0x1000)
    machine.reg_write(arm.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # floating point on
    machine.reg_write(arm.UC_ARM64_REG_SP, STACK + 0x800000)
    machine.reg_write(arm.UC_ARM64_REG_LR, STOP)
    # the one system call: which thread initialises a static variable
    machine.hook_add(unicorn.UC_HOOK_INTR, lambda uc, *_: uc.reg_write(arm.UC_ARM64_REG_X0, 1))
    machine.emu_start(number(24, 8), STOP)
    return machine.reg_read(arm.UC_ARM64_REG_X0)
