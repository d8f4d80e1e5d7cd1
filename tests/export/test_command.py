"""`lma-hf export` and `lma-hf profile --parts export`."""

import csv
import sys

import pytest
from export.students import make_student

from lma_hf.cli.__main__ import main
from lma_hf.compare import export_benchmark
from lma_hf.export.folder import PROGRAM


@pytest.fixture(scope="module")
def model_dir(student, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    student.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def fails(model_dir, tmp_path, capsys):
    """Run `export`, check the exit code, and return the one line it prints."""

    def run(*flags, code=2, verb="export", base=("--output_dir", str(tmp_path / "out"))):
        assert main([verb, *base, *flags]) == code
        printed = capsys.readouterr()
        errors = printed.err.splitlines()
        assert len(errors) == 1
        assert errors[0].startswith("lma-hf: error: ")
        assert printed.out == ""
        return errors[0]

    return run


def test_program_is_written_and_reported(model_dir, tmp_path, capsys):
    folder = tmp_path / "new" / "out"
    assert main(["export", "--model_dir", str(model_dir), "--output_dir", str(folder), "--format", "torch"]) == 0
    assert (folder / PROGRAM).is_file()
    printed = capsys.readouterr()
    assert "model.pt2" in printed.out
    assert "0.0001" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ("", "--model_dir is missing"),
        ("--model_dir MODEL --format tflite", "got 'tflite', expected one of onnx, torch"),
        ("--model_dir MODEL --quantize int4", "got 'int4', expected one of int8"),
        ("--model_dir MODEL --quantize int8 --format torch", "quantize is 'int8', but format is 'torch'"),
        ("--model_dir ./nowhere", "folder 'nowhere' does not exist"),
        ("--model_dir MODEL --opset 17", "unknown flag --opset"),
    ],
)
def test_bad_input(fails, model_dir, tmp_path, flags, culprit):
    assert culprit in fails(*(flag.replace("MODEL", str(model_dir)) for flag in flags.split()))
    assert list(tmp_path.iterdir()) == []


def test_folder_with_anything_in_it_stays_as_it_is(fails, model_dir, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("keep me")
    assert "exists and is no empty folder" in fails("--model_dir", str(model_dir))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["notes"]


def test_the_current_folder_is_not_replaced(fails, model_dir, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for flags in (["--output_dir", "."], ["--output_dir", str(tmp_path / "here")]):
        assert "is the current folder, which cannot be replaced" in fails("--model_dir", str(model_dir), *flags)


def test_model_without_a_head_is_refused(fails, student, tiny_tokenizer, tmp_path):
    student.bert.save_pretrained(tmp_path / "headless")
    tiny_tokenizer.save_pretrained(tmp_path / "headless")
    assert "lacks" in fails("--model_dir", str(tmp_path / "headless"))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_package_names_the_extra(fails, model_dir, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert f"needs {package}" in fails("--model_dir", str(model_dir))
    message = fails("--parts", "export", "--model_dir", str(model_dir), verb="profile", base=())
    assert "pip install 'lma_hf[onnx]'" in message


def test_profile_needs_a_model_for_part_export_alone(fails, model_dir):
    assert "model_dir is None and parts are export" in fails("--parts", "export", verb="profile", base=())
    flags = ["--model_dir", str(model_dir)]
    assert "parts are activation; part export" in fails(*flags, verb="profile", base=())
    flags += ["--parts", "export", "--candidates", "gelu"]
    assert "part export has: pytorch, onnx, onnx int8" in fails(*flags, verb="profile", base=())


@pytest.mark.extended
def test_profile_times_and_weighs_every_export(tiny_tokenizer, tmp_path, monkeypatch, capsys):
    make_student(num_layers=1, vocab_size=len(tiny_tokenizer)).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(export_benchmark, "BATCHES", ((1, 4), (2, 60)))
    flags = ["--model_dir", str(tmp_path / "model"), "--threads", "1", "--repeats", "1"]
    capsys.readouterr()
    assert main(["profile", "--parts", "export", *flags, "--output_dir", str(tmp_path / "results")]) == 0
    with open(tmp_path / "results" / "benchmark.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = list(export_benchmark.EXPORT_CANDIDATES)
    # the model has 40 positions
    assert [(row["shape"], row["candidate"]) for row in rows] == [
        (shape, name) for shape in ("1x4", "2x40") for name in names
    ]
    assert {(row["kind"], row["threads"], row["mode"]) for row in rows} == {("export", "1", "inference")}
    assert [row["kernel"] for row in rows[1:3]] == ["onnxruntime"] * 2
    assert all(float(row["size_mb"]) > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "export 2x40, float32, 1 thread" in printed
    assert "size MB" in printed
