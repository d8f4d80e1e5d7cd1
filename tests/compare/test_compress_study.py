"""scripts/compress_study.py: the table of what students keep when they are made small, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from lma_hf.compare.cells import Cell

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    import compress_study

    return compress_study


def row(task, seed, way, score, student="3layers", activation="lma8", folder_kb=1000):
    key = {"task": task, "student": student, "activation": activation, "seed": seed, "way": way}
    return {**key, "folder_kb": folder_kb, "metric": "accuracy", "score": score}


def rows_of(activation, int8):
    return [
        row(task, seed, way, score, activation=activation)
        for task in ("cola", "rte")
        for seed in (1, 2)
        for way, score in (("float32", 0.8), ("int8", int8 + 0.01 * seed))
    ]


def test_means_and_shares_of_one_student(script):
    rows = [*rows_of("lma8", 0.7), row("rte", 3, "float32", 0.1), row("rte", 3, "int8", 0.1)]
    assert script.summary(pd.DataFrame(rows)) == (
        "| way | folder MB | cola | rte | share % |\n|---|---|---|---|---|\n"
        "| float32 | 1.0 | 80.00 | 56.67 | 100.0 [100.0, 100.0] |\n"
        "| int8 | 1.0 | 71.50 | 51.00 | 89.4 [81.4, 97.3] |\n"
        "\n2 seeds\n"
    )


def test_students_and_activations_have_lines_of_their_own(script):
    rows = [*rows_of("lma8", 0.7), *(each for each in rows_of("relu", 0.5) if each["task"] == "cola")]
    text = script.summary(pd.DataFrame(rows))
    assert "| student | activation | way | folder MB | cola | rte | share % |" in text
    assert "| 3layers | lma8 | int8 | 1.0 | 71.50 | 71.50 | 89.4 [81.4, 97.3] |" in text
    assert "| 3layers | relu | int8 | 1.0 | 51.50 | - | 64.4 [56.4, 72.3] |" in text
    assert text.endswith("\n3layers lma8: 2 seeds\n3layers relu: 2 seeds\n")


def test_further_axes_are_part_of_the_activation(script):
    cell = Cell(task="cola", student="3layers", activation="lma8", seed=1)
    assert script.student_and_activation(cell) == ["3layers", "lma8"]
    cell = replace(cell, axes=(("lr", "low"), ("rows", "100")))
    assert script.student_and_activation(cell) == ["3layers", "lma8/lr-low/rows-100"]


def test_no_seed_of_all_tasks_is_said(script):
    rows = [row(task, seed, way, 0.5) for task, seed in (("cola", 1), ("rte", 2)) for way in ("float32", "int8")]
    text = script.summary(pd.DataFrame(rows))
    assert "| int8 | 1.0 | 50.00 | 50.00 | - |" in text
    assert text.endswith("\nno seed is there for every task and way, so there is no share\n")
    assert "nan" not in text


def test_without_float32_there_is_no_share(script):
    with pytest.raises(SystemExit, match=r"3layers lma8 has no row of float32, .* add float32 to --ways"):
        script.summary(pd.DataFrame([row("cola", 1, "int8", 0.5)]))


def test_without_rows_there_is_one_line(script, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    flags = ["--study_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--dataset", "d"]
    monkeypatch.setattr("sys.argv", ["compress_study.py", *flags])
    # a text, so the exit code is 1
    with pytest.raises(SystemExit, match=r"^.* has no rows, and no finished cell .* correct it$"):
        script.main()


def test_what_starts_from_trimmed_needs_it(script, tmp_path):
    cells = [SimpleNamespace(name="cola/3layers-lma8/seed-1")]
    folder = tmp_path / cells[0].name
    with pytest.raises(SystemExit, match=r"--ways names trimmed-pq, .* add trimmed to --ways"):
        script.check_sources(cells, ["float32", "trimmed-pq"], tmp_path)
    script.check_sources(cells, ["trimmed", "trimmed-pq"], tmp_path)
    (folder / "trimmed").mkdir(parents=True)
    (folder / "trimmed" / "compression.json").write_text(json.dumps({}))
    script.check_sources(cells, ["float32", "trimmed-pq"], tmp_path)
