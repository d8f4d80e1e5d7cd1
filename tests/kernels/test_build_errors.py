"""What stands in the way of compiling the C++ kernel, or of loading it."""

import shutil

import pytest
import torch

from lma_hf.errors import KernelError
from lma_hf.kernels import cpu, registry
from lma_hf.kernels.registry import resolve, use_kernel


@pytest.fixture
def nothing_loaded(monkeypatch, tmp_path):
    """A process that has not loaded a kernel, with an empty cache."""
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.delenv("LMA_HF_KERNEL", raising=False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_not_to_be_had(*named):
    """An explicit choice is an error of one line, and auto falls back with it."""
    with use_kernel("cpu"), pytest.raises(KernelError) as error:
        resolve("cpu")
    message = str(error.value)
    assert "\n" not in message
    assert all(name in message for name in named), message
    assert resolve("cpu") == ("reference", message)


def test_a_path_without_compilers(nothing_loaded, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    assert_not_to_be_had("'c++'", "install g++")


def test_an_empty_name_of_a_compiler(nothing_loaded, monkeypatch):
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert_not_to_be_had("compiler")


# torch asks a compiler that it does not know for its version, and says no more than that this failed
@pytest.mark.parametrize(("name", "quoted"), [("g++", "out of luck"), ("my-compiler", "my-compiler")])
def test_a_compiler_that_fails_is_quoted(name, quoted, nothing_loaded, monkeypatch, tmp_path):
    compiler = tmp_path / name
    compiler.write_text("#!/bin/sh\necho 'lma.cpp:1:1: fatal error: out of luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert_not_to_be_had(quoted)
    assert [path.suffix for path in nothing_loaded.iterdir()] == [".lock"]


def test_a_cache_below_a_file(nothing_loaded, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file" / "cache"))
    assert_not_to_be_had(str(tmp_path / "file" / "cache"), "TORCH_EXTENSIONS_DIR")


@pytest.mark.parametrize("content", [b"", b"no library at all"])
def test_a_corrupt_library_is_named(content, nothing_loaded):
    library = cpu.cache_folder() / "lma_hf_cpu.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(content)
    assert_not_to_be_had(str(library), "delete")


def test_a_folder_that_lost_its_library_is_built_anew(nothing_loaded, monkeypatch):
    monkeypatch.setattr(cpu, "_compile", lambda folder: (folder / "lma_hf_cpu.so").write_bytes(b""))
    cpu.cache_folder().mkdir(parents=True)
    (cpu.cache_folder() / "build.ninja").touch()
    assert_not_to_be_had("cannot be loaded")
    assert (cpu.cache_folder() / "lma_hf_cpu.so").exists()


def test_another_torch_another_source_and_other_flags_have_other_folders(nothing_loaded, monkeypatch, tmp_path):
    folders = [cpu.cache_folder()]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9.0")
        folders.append(cpu.cache_folder())
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "SOURCES", shutil.copytree(cpu.SOURCES, tmp_path / "csrc"))
        assert cpu.cache_folder() == folders[0]
        with (tmp_path / "csrc" / "kernels.h").open("a") as file:
            file.write("\n")
        folders.append(cpu.cache_folder())
    monkeypatch.setattr(cpu, "FLAGS", [*cpu.FLAGS, "-g"])
    assert len({*folders, cpu.cache_folder()}) == 4
