"""The kernels' vector code, built with sanitizers: no races, no access outside of an array, nothing undefined."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from lma_hf.kernels.cpu import SOURCES

HARNESS = Path(__file__).with_name("threads_harness.cpp")
KERNELS = [SOURCES / f"{name}.cpp" for name in ("avx512", "avx2", "neon", "plain")]
COMPILER = shlex.split(os.environ.get("CXX") or "c++")
# leaks are looked for by tracing the process, which containers forbid; the kernels allocate nothing
OPTIONS = {
    "TSAN_OPTIONS": "halt_on_error=1",
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}


def build(sources, sanitizer, program):
    flags = ["-std=c++17", "-O0", "-g1", "-pthread", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    command = [*COMPILER, *flags, f"-I{SOURCES}", "-o", program, *sources]
    return subprocess.run(command, capture_output=True, text=True)


def execute(program):
    # the thread sanitizer cannot place its memory where addresses are too random
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    for command in ([*fixed, program], [program]):
        result = subprocess.run(command, env=os.environ | OPTIONS, capture_output=True, text=True)
        if "setarch" not in result.stderr:
            break
    return result


def require(sanitizer, folder):
    """Skip where the compiler or the kernel has no such sanitizer."""
    if shutil.which(COMPILER[0]) is None:
        pytest.skip("there is no C++ compiler")
    (folder / "empty.cpp").write_text("int main() { return 0; }\n")
    built = build([folder / "empty.cpp"], sanitizer, folder / "empty")
    if built.returncode or execute(folder / "empty").returncode:
        pytest.skip(f"programs with -fsanitize={sanitizer} do not work here")


@pytest.mark.parametrize("sanitizer", ["thread", pytest.param("address,undefined", marks=pytest.mark.slow)])
def test_threads_on_blocks_of_their_own(sanitizer, cpu, tmp_path):
    require(sanitizer, tmp_path)
    built = build([HARNESS, *KERNELS], sanitizer, tmp_path / "harness")
    assert built.returncode == 0, built.stderr
    result = execute(tmp_path / "harness")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert result.stdout.split() == torch.ops.lma_hf.instruction_sets()


def test_the_thread_sanitizer_would_see_a_race(tmp_path):
    require("thread", tmp_path)
    (tmp_path / "race.cpp").write_text(
        "#include <thread>\n"
        "float sum;\n"
        "void add() { for (int i = 0; i < 1000; ++i) sum += 1; }\n"
        "int main() { std::thread a(add), b(add); a.join(); b.join(); return 0; }\n"
    )
    assert build([tmp_path / "race.cpp"], "thread", tmp_path / "race").returncode == 0
    assert "data race" in execute(tmp_path / "race").stderr
