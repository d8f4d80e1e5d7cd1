"""Who may import whom, which names are public, and how long files get."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lma_hf

REPO = Path(__file__).resolve().parent.parent
PACKAGE = REPO / "lma_hf"
ROOMS = {
    "errors": set(),
    "modeling": set(),
    "kernels": {"modeling", "errors"},
    "surgery": {"modeling", "errors"},
    "student": {"surgery", "modeling", "errors"},
    "data": {"errors"},
    "distillation": {"errors"},
    "training": {"distillation", "errors"},
    "hub": {"surgery", "modeling", "errors"},
    "export": {"surgery", "modeling", "errors"},
    "compression": {"surgery", "modeling", "errors"},
}
ROOMS["compare"] = {*ROOMS, "__init__"}
ROOMS["cli"] = {*ROOMS, "__init__"}
# everything else the package offers is imported on first use
ROOMS["__init__"] = {"modeling", "kernels"}
# folders that travel with a pushed model must work without lma_hf
FLAT = {"modeling": {"torch", "transformers"}}

FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400


def room_of(path):
    """Name of the folder or file directly under lma_hf."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """(module, level) of every import statement in the file, also those inside functions.

    `from lma_hf import x` and `from .. import x` count as imports of x, where that is a room.
    """
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [alias.name for alias in node.names]
            found += [(".".join(filter(None, [module, name])), node.level) for name in names]
    return found


def absolute(path, module, level):
    """Full dotted name of an imported module, also if the import is relative."""
    if level == 0:
        return module
    package = ["lma_hf", *path.relative_to(PACKAGE).parts[:-1]]
    return ".".join([*package[: len(package) - level + 1], module])


def rooms_imported(path):
    """Rooms of lma_hf, other than its own, that a file imports; "__init__" for names of the package itself."""
    rooms = set()
    for module, level in imports(path):
        parts = absolute(path, module, level).split(".")
        if parts[0] == "lma_hf":
            rooms.add(parts[1] if len(parts) > 1 and is_room(parts[1]) else "__init__")
    return rooms - {room_of(path)}


def is_room(name):
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def test_reader_sees_every_kind_of_import(tmp_path):
    path = PACKAGE / "student" / "example.py"
    lines = {
        "import lma_hf.surgery.swap": {"surgery"},
        "import lma_hf.surgery.swap as s, lma_hf.errors": {"surgery", "errors"},
        "from lma_hf import surgery, LMA": {"surgery", "__init__"},
        "from ..training.trainer import Trainer": {"training"},
        "from .. import data": {"data"},
        "from . import build": set(),
        "from .build import build_student": set(),
        "def f():\n    from lma_hf.cli.run import TrainingRun": {"cli"},
        "import torch": set(),
    }
    for line, expected in lines.items():
        tree = tmp_path / "file.py"
        tree.write_text(line)
        found = {absolute(path, *entry).split(".")[1] for entry in imports(tree) if "torch" not in entry[0]}
        found = {name if is_room(name) else "__init__" for name in found} - {"student"}
        assert found == expected, line


def test_every_room_is_in_the_table():
    assert {room_of(path) for path in FILES} <= set(ROOMS)
    assert {"errors", "modeling", "surgery", "student", "data", "distillation", "training", "compare", "cli"} <= {
        room_of(path) for path in FILES
    }


@pytest.mark.parametrize("room", sorted({room_of(path) for path in FILES}))
def test_imports_follow_the_arrows(room):
    wrong = {
        str(path.relative_to(REPO)): sorted(rooms_imported(path) - ROOMS.get(room, set()))
        for path in FILES
        if room_of(path) == room and rooms_imported(path) - ROOMS.get(room, set())
    }
    assert wrong == {}


@pytest.mark.parametrize("room", sorted(FLAT))
def test_folder_of_a_pushed_model_imports_siblings_relatively_and_little_else(room):
    allowed = FLAT[room] | sys.stdlib_module_names
    files = [path for path in FILES if room_of(path) == room]
    assert files
    for path in files:
        assert path.parent == PACKAGE / room, f"{path.name}: the folder must be flat"
        for module, level in imports(path):
            assert level <= 1, f"{path.name} imports {'.' * level}{module}"
            name = module.split(".")[0]
            assert path.with_name(f"{name}.py").is_file() if level else name in allowed, f"{path.name}: {module}"


@pytest.mark.parametrize("name", lma_hf.__all__)
def test_public_name_resolves(name):
    value = getattr(lma_hf, name)
    assert isinstance(value, str) or value.__module__.startswith("lma_hf.")
    assert name in dir(lma_hf)


def test_unknown_name_is_an_attribute_error_that_names_the_known():
    with pytest.raises(AttributeError, match=r"'distil'.*distill"):
        _ = lma_hf.distil


def test_import_is_light():
    """transformers itself brings accelerate (and scipy); we add no package and do not wake up a GPU."""
    code = (
        "import sys, transformers.modeling_utils, transformers.activations, transformers.initialization\n"
        "before = {name.split('.')[0] for name in sys.modules}\n"
        "import lma_hf\n"
        "after = {name.split('.')[0] for name in sys.modules}\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('lma_hf.')}\n"
        "import torch\n"
        "print(sorted(after - before - sys.stdlib_module_names), sorted(rooms), torch.cuda.is_initialized(),"
        " sorted(after & {'datasets', 'sklearn', 'evaluate'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "['lma_hf'] ['errors', 'kernels', 'modeling'] False []"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
