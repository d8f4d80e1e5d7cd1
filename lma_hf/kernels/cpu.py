"""The C++ kernel: compiled on first need, once for each machine, version of torch and of the sources."""

import contextlib
import hashlib
import logging
import os
import platform
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

from lma_hf.errors import KernelError
from lma_hf.kernels import ops  # noqa: F401  the library implements these operators

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ["-O3", "-fopenmp"]
NAME = "lma_hf_cpu"


def load():
    """Compile the library if need be and load it.

    Raises: KernelError if there is no compiler, the cache cannot be written, or the compilation fails.
    """
    library = cache_folder() / f"{NAME}.so"
    if not library.exists():
        _build_once(library)
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise KernelError(
            f"{library} cannot be loaded ({error}); delete its folder to have it compiled anew"
        ) from error


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
    compiler = shlex.split(os.environ.get("CXX", "c++"))[0]
    if shutil.which(compiler) is None:
        raise KernelError(f"there is no C++ compiler {compiler!r}; install g++ or clang, or name one in CXX")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if library.exists():
                return
            logger.warning("compiling LMA's CPU kernel into %s (once, under a minute)", folder)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as temporary:
                _compile(Path(temporary))
                Path(temporary).rename(folder)
                # for the TemporaryDirectory to remove
                Path(temporary).mkdir()
    except OSError as error:
        raise KernelError(
            f"the cache {folder.parent} cannot be written ({error}); set TORCH_EXTENSIONS_DIR to a folder that can"
        ) from error


def _compile(folder):
    from torch.utils.cpp_extension import load as compile_and_load

    sources = [str(path) for path in sorted(SOURCES.glob("*.cpp"))]
    try:
        with _ninja_on_path():
            compile_and_load(NAME, sources, extra_cflags=FLAGS, build_directory=folder, is_python_module=False)
    except (RuntimeError, ImportError) as error:
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
