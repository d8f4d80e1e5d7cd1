"""The C++ kernel: compiled on first need, once for each machine, version of torch and of the sources."""

import contextlib
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from filelock import FileLock

from lma_hf.errors import KernelError

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ["-O3", "-fopenmp"]
NAME = "lma_hf_cpu"


def load():
    """Compile the library if need be and load it.

    Raises: KernelError if there is no compiler, the cache cannot be used, or the compilation fails.
    """
    library = cache_folder() / f"{NAME}.so"
    try:
        if not library.exists():
            _build_once(library)
    except OSError as error:
        raise KernelError(
            f"the cache {library.parent.parent} cannot be used ({error}); set TORCH_EXTENSIONS_DIR to another folder"
        ) from error
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise KernelError(f"{library} cannot be loaded ({error}); delete its folder to compile it anew") from error


def cache_folder():
    """Where the compiled library belongs; another torch, source, flag or processor type has another folder."""
    from torch.utils.cpp_extension import get_default_build_root

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()
    described = [torch.__version__, platform.system(), platform.machine(), *FLAGS]
    contents = [path.read_bytes() for path in sorted(SOURCES.iterdir())]
    key = hashlib.sha256(b"\0".join([*(text.encode() for text in described), *contents]))
    return Path(root) / f"{NAME}_{key.hexdigest()[:16]}"


def _build_once(library):
    """Compile under a lock that dies with its process, in a folder of its own that is renamed when complete."""
    folder = library.parent
    compiler = next(iter(shlex.split(os.environ.get("CXX", "c++"))), "")
    if shutil.which(compiler) is None:
        raise KernelError(f"there is no C++ compiler {compiler!r}; install g++ or clang, or name one in CXX")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if library.exists():
            return
        logger.warning("compiling LMA's CPU kernel into %s (once, under a minute)", folder)
        unfinished = folder.with_name(f"{folder.name}.build")
        # what a build that was killed has left
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            _compile(unfinished)
            # a folder without its library is of no use to anyone
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _compile(folder):
    from torch.utils.cpp_extension import load as compile_and_load

    sources = [str(path) for path in sorted(SOURCES.glob("*.cpp"))]
    try:
        with _ninja_on_path():
            compile_and_load(NAME, sources, extra_cflags=FLAGS, build_directory=folder, is_python_module=False)
    except (RuntimeError, ImportError, subprocess.CalledProcessError) as error:
        lines = [line for line in str(error).splitlines() if "error" in line.lower()] or [str(error)]
        raise KernelError(f"compiling the CPU kernel failed: {lines[-1].strip()}") from error


@contextlib.contextmanager
def _ninja_on_path():
    """torch calls `ninja` by name, and a virtual environment that was not activated is not on the PATH."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before
