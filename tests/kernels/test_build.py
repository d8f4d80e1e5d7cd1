"""Compiling the C++ kernel, in processes of their own: once, whatever else happens."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lma_hf.kernels import cpu

WORKER = """
import json, torch, lma_hf
from lma_hf.kernels.registry import resolve, use_kernel
y = lma_hf.LMA().eval()(torch.arange(-2.0, 3.0))
try:
    with use_kernel("cpu"):
        explicit = resolve("cpu").kernel
except Exception as error:
    explicit = f"{type(error).__name__}: {error}"
print(json.dumps({"auto": resolve("cpu"), "explicit": explicit, "y": y.tolist()}))
"""
LOADER = """
import json, os, sys
from lma_hf.kernels import cpu
def outcome(cache):
    os.environ["TORCH_EXTENSIONS_DIR"] = cache
    try:
        return cpu.load() or "loaded"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
print(json.dumps([outcome(cache) for cache in sys.argv[1:]]))
"""
RELU = [0.0, 0.0, 0.0, 1.0, 2.0]
# keeps a record of its calls, and does not optimise, which takes half the time
COMPILER = """#!/bin/sh
echo "$@" >> {record}
exec c++ "$@" -O0
"""


def start(cache, log, code=WORKER, arguments=(), prefix=(), **environment):
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(cache), "MAX_JOBS": "2"} | environment
    environment.pop("LMA_HF_KERNEL", None)
    command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
    with log.open("w") as errors:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)


def finish(process, log):
    """What the process printed as JSON, and its standard error."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, log.read_text()
    return json.loads(output), log.read_text()


def kill_while_compiling(process, log, cache):
    """Kill the process and all that it started, once its compilers run."""
    while not list(cache.glob("*/build.ninja")) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(1)
    assert process.poll() is None, log.read_text()
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        each.kill()
    process.communicate()


def path_without_ninja(folder):
    """PATH; the folders with a ninja are replaced by ones of links to all their other programs."""
    found = []
    for index, entry in enumerate(map(Path, os.environ["PATH"].split(os.pathsep))):
        if (entry / "ninja").exists():
            linked = folder / f"bin{index}"
            linked.mkdir()
            for program in entry.iterdir():
                if not program.name.startswith("ninja"):
                    (linked / program.name).symlink_to(program)
            entry = linked
        found.append(str(entry))
    return os.pathsep.join(found)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A cache in which a build was killed, and then two processes started at once."""
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("build")
    cache, logs, compiler = folder / "cache", [folder / f"{i}.log" for i in range(3)], folder / "g++"
    compiler.write_text(COMPILER.format(record=folder / "record"))
    compiler.chmod(0o755)
    environment = {"CXX": str(compiler), "PATH": path_without_ninja(folder)}
    kill_while_compiling(start(cache, logs[0], **environment), logs[0], cache)
    libraries = list(cache.rglob("*.so"))
    (folder / "record").unlink()
    processes = [start(cache, log, **environment) for log in logs[1:]]
    results = [finish(process, log) for process, log in zip(processes, logs[1:], strict=True)]
    return SimpleNamespace(cache=cache, killed=libraries, results=results, record=folder / "record")


@pytest.mark.extended
def test_a_killed_build_leaves_no_library(built):
    assert built.killed == []


@pytest.mark.extended
def test_two_processes_at_once_compile_once(built):
    progress = [line for _, errors in built.results for line in errors.splitlines()]
    assert len(progress) == 1
    assert progress[0].startswith(f"compiling LMA's CPU kernel into {built.cache}")
    compiled = [line for line in built.record.read_text().splitlines() if " -c " in f" {line} "]
    assert len(compiled) == len(list(cpu.SOURCES.glob("*.cpp")))


@pytest.mark.extended
def test_both_processes_compute_with_the_kernel(built):
    for found, _ in built.results:
        assert found == {"auto": ["cpu", None], "explicit": "cpu", "y": RELU}


@pytest.mark.extended
def test_the_library_is_as_readable_as_any_new_file(built):
    mask = os.umask(0)
    os.umask(mask)
    (library,) = built.cache.rglob("*.so")
    assert library.parent.stat().st_mode & 0o777 == 0o777 & ~mask


def unprivileged():
    """What makes file permissions count for root as well."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("permissions do not bind root, and there is no setpriv")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.fixture(scope="module")
def outcomes(built, tmp_path_factory):
    """What loading gives for caches of several permissions, and what the process printed and compiled."""
    prefix, folder = unprivileged(), tmp_path_factory.mktemp("permissions")
    (library,) = built.cache.rglob("*.so")
    caches = {name: folder / name for name in ("unreadable", "unwritable", "built")}
    caches["unwritable"].mkdir()
    (caches["unreadable"] / library.parent.name).mkdir(parents=True)
    shutil.copytree(library.parent, caches["built"] / library.parent.name)
    closed = caches["unreadable"] / library.parent.name
    closed.chmod(0)
    for path in (caches["unwritable"], caches["built"], caches["built"] / library.parent.name):
        path.chmod(0o555)
    before, log = built.record.read_text(), folder / "log"
    found, errors = finish(start(folder, log, LOADER, caches.values(), prefix), log)
    for path in (closed, *caches.values(), caches["built"] / library.parent.name):
        path.chmod(0o755)
    compiled = built.record.read_text() != before
    return dict(zip(caches, found, strict=True)) | {"errors": errors, "compiled": compiled}


@pytest.mark.extended
def test_a_built_library_in_a_cache_that_cannot_be_written_is_used(outcomes):
    assert (outcomes["built"], outcomes["errors"], outcomes["compiled"]) == ("loaded", "", False)


@pytest.mark.extended
def test_a_cache_that_cannot_be_written_is_named(outcomes):
    assert outcomes["unwritable"].startswith("KernelError")
    assert "TORCH_EXTENSIONS_DIR" in outcomes["unwritable"]


@pytest.mark.extended
def test_a_cache_that_cannot_be_read_is_a_kernel_error(outcomes):
    assert outcomes["unreadable"].startswith("KernelError")


def test_without_a_compiler_a_process_computes_by_the_reference(tmp_path):
    found, errors = finish(start(tmp_path, log := tmp_path / "log", CXX="/nonexistent/c++"), log)
    kernel, reason = found["auto"]
    assert (kernel, found["y"], found["explicit"]) == ("reference", RELU, f"KernelError: {reason}")
    assert "'/nonexistent/c++'" in reason
    assert "install g++" in reason
    assert len(errors.splitlines()) == errors.count(reason) == 1
