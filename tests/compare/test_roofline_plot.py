"""The plot of memory bandwidth: what counts as traffic, which files are written."""

import sys

import pytest

from lma_hf.compare.roofline_plot import bandwidth, plot_name, plot_rooflines
from lma_hf.compare.timing import MODES
from lma_hf.errors import MissingDependencyError


def row_of(**values):
    return {"kind": "activation", "shape": "1000x1000", "dtype": "float32", "threads": 1, "median_ms": "2", **values}


@pytest.mark.parametrize(
    ("mode", "candidate", "tensors"),
    [("inference", "lma", 2), ("inference", "copy", 2), ("training", "lma", 5), ("training", "copy", 4)],
)
def test_bandwidth_counts_what_must_move(mode, candidate, tensors):
    row = row_of(mode=mode, candidate=candidate)
    assert bandwidth(row) == pytest.approx(tensors * 4e6 / 2e-3 / 1e9)
    assert bandwidth({**row, "dtype": "bfloat16"}) == pytest.approx(bandwidth(row) / 2)


def rows_to_plot(*names):
    return [
        row_of(dtype=dtype, shape=shape, mode=mode, candidate=name, median_ms=1.0 + number)
        for dtype in ("float32", "bfloat16")
        for shape in ("8x16", "64x16")
        for mode in MODES
        for number, name in enumerate(names)
    ]


def test_plots_of_every_dtype(tmp_path):
    rows = [*rows_to_plot("copy", "gelu", "lma"), row_of(kind="ffn", shape="4x2x8", mode="training", candidate="lma")]
    names = plot_rooflines(rows, tmp_path)
    assert names == [plot_name("float32", 1), plot_name("bfloat16", 1)]
    assert sorted(names) == sorted(file.name for file in tmp_path.iterdir())
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_no_plot_without_a_copy_and_something_to_compare(tmp_path):
    assert (
        plot_rooflines(rows_to_plot("lma", "gelu"), tmp_path) == plot_rooflines(rows_to_plot("copy"), tmp_path) == []
    )
    assert list(tmp_path.iterdir()) == []


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lma_hf\[plots\]'"):
        plot_rooflines(rows_to_plot("copy", "lma"), tmp_path)
