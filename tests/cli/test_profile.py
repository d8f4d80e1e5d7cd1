"""`lma-hf profile` in process: which kernel and why, tables, files, and misuse in one line."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lma_hf.cli import profile as profile_verb
from lma_hf.cli.__main__ import main
from lma_hf.compare import activation_benchmark, model_benchmark
from lma_hf.compare.saved_models import peak_memory_mb
from lma_hf.kernels import registry
from lma_hf.training.config import ProfileConfig

REPO = Path(__file__).resolve().parents[2]
TINY = ["--shapes", "4x8", "--threads", "1", "--repeats", "1"]
FEW = [*TINY, "--candidates", "copy", "gelu", "lma"]


@pytest.fixture
def fails(capsys, monkeypatch):
    """Run `profile` where nothing may be measured, check the exit code, and return the one line it prints."""

    def run(*flags, code=2):
        monkeypatch.setattr(activation_benchmark, "measure", None)
        assert main(["profile", *flags]) == code
        printed = capsys.readouterr()
        errors = printed.err.splitlines()
        assert len(errors) == 1
        assert errors[0].startswith("lma-hf: error: ")
        assert printed.out == ""
        return errors[0]

    return run


def test_default_run_prints_kernel_and_tables(capsys):
    assert main(["profile", *TINY]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"LMA on cpu: kernel {activation_benchmark.kernel_of(activation_benchmark.LMA())}\n")
    for dtype in ("float32", "bfloat16"):
        assert f"activation 4x8, {dtype}, 1 thread: medians and their ratios" in printed
        assert f"activation 4x8 {dtype} training, threads 1: {len(activation_benchmark.CANDIDATES)} cand" in printed
    for words in (*activation_benchmark.CANDIDATES, "inference us", "training / gelu", "kept MB"):
        assert all(word in printed for word in words.split())


def test_files(tmp_path, capsys):
    folder = tmp_path / "docs" / "benchmarks"
    assert main(["profile", *FEW, "--output_dir", str(folder)]) == 0
    plots = {"bandwidth-float32-threads1.png", "bandwidth-bfloat16-threads1.png"}
    assert {file.name for file in folder.iterdir()} == {"benchmark.csv", "environment.json", *plots}
    with open(folder / "benchmark.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3
    described = json.loads((folder / "environment.json").read_text())
    assert described["versions"]["torch"] == torch.__version__
    assert {row["date"] for row in rows} == {described["date"]}
    assert "wrote benchmark.csv, environment.json, bandwidth-" in capsys.readouterr().out


def test_chosen_reference_is_shown_with_its_reason(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LMA_HF_KERNEL", "reference")
    assert main(["profile", *FEW, "--output_dir", str(tmp_path)]) == 0
    assert "LMA on cpu: kernel reference, since LMA_HF_KERNEL is reference\n" in capsys.readouterr().out
    with open(tmp_path / "benchmark.csv", newline="", encoding="utf-8") as file:
        assert {row["kernel"] for row in csv.DictReader(file) if row["candidate"] == "lma"} == {"reference"}


def test_fallback_is_shown_with_its_reason(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("LMA_HF_KERNEL", "auto")
    assert main(["profile", *FEW, "--dtypes", "float32"]) == 0
    assert "kernel reference, since there is no C++ compiler 'no-such-compiler'" in capsys.readouterr().out
    monkeypatch.setenv("LMA_HF_KERNEL", "cpu")
    assert main(["profile", *FEW]) == 1


def test_ffn_and_model(monkeypatch, capsys):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1}
    monkeypatch.setattr(model_benchmark, "MODEL_SIZES", sizes)
    monkeypatch.setattr(model_benchmark, "BATCHES", {(1, 4): ("inference",)})
    monkeypatch.setattr(model_benchmark, "FFN_SIZES", ((8, 32),))
    monkeypatch.setattr(model_benchmark, "TOKENS", 16)
    config = ProfileConfig(parts=["ffn", "model"], dtypes=["float32"], threads=[1], repeats=1)
    rows = profile_verb.profile(config)
    assert [(row["kind"], row["mode"]) for row in rows[::4]] == [
        ("ffn", "inference"),
        ("ffn", "training"),
        ("model", "inference"),
    ]
    printed = capsys.readouterr().out
    assert "model 1x4, float32, 1 thread" in printed
    *_, table = profile_verb.tables(rows)
    # no copy, no training: no such columns
    columns = [key.replace(" us", " ms") for key in table[0][0]]
    assert columns == ["candidate", "inference ms", "inference / gelu"]
    assert profile_verb.output_names(config, [1]) == ["benchmark.csv", "environment.json"]


def test_slow_candidates_are_left_out_with_a_word(monkeypatch, capsys):
    monkeypatch.setattr(activation_benchmark, "LARGE", 32)
    flags = ["--dtypes", "float32"]
    assert main(["profile", *TINY, *flags]) == 0
    assert "left out in training at 4x8: authors, reference; name them in --candidates" in capsys.readouterr().out
    assert main(["profile", *TINY, *flags, "--candidates", "authors"]) == 0
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ("--shapes 4096", "shapes names '4096', allowed are tokens x channels such as 4096x1536"),
        ("--shapes 0x4", "'0x4'"),
        ("--shapes 65536x65536", "up to 268,435,456 elements"),
        ("--dtypes float64", "dtypes names 'float64', allowed are float32, bfloat16, float16"),
        ("--dtypes float32 float32", "names 'float32' twice"),
        ("--threads 0", "threads names 0, allowed are 1"),
        ("--threads many", "expected int"),
        ("--repeats 0", "repeats is 0"),
        ("--parts attention", "parts names 'attention', allowed are activation, ffn, model"),
        ("--candidates mish", "candidates names 'mish', allowed are copy, relu, gelu"),
        ("--parts model --candidates relu", "candidates names none that part model has: gelu, lma, lma per channel"),
        ("--shape 4x8", "the nearest known one is --shapes"),
    ],
)
def test_bad_input(fails, flags, culprit):
    assert culprit in fails(*flags.split())


@pytest.mark.parametrize("key", ["parts", "shapes", "dtypes", "threads", "candidates"])
def test_empty_lists(fails, tmp_path, key):
    (tmp_path / "profile.yaml").write_text(f"{key}: []\n")
    assert f"{key} is empty" in fails(str(tmp_path / "profile.yaml"))


def test_unknown_kernel(fails, monkeypatch):
    monkeypatch.setenv("LMA_HF_KERNEL", "fast")
    assert "LMA_HF_KERNEL is 'fast'" in fails(*FEW)


@pytest.mark.parametrize("name", ["benchmark.csv", "environment.json", "bandwidth-bfloat16-threads1.png"])
def test_files_that_exist_are_not_overwritten(fails, tmp_path, name):
    (tmp_path / name).write_text("keep me")
    assert f"holds {name} of another run" in fails(*FEW, "--output_dir", str(tmp_path))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "keep me")]


def test_other_files_in_the_folder_are_in_nobodys_way(tmp_path):
    (tmp_path / "notes.md").write_text("keep me")
    assert main(["profile", *FEW, "--dtypes", "float32", "--output_dir", str(tmp_path)]) == 0
    assert (tmp_path / "notes.md").read_text() == "keep me"


def test_folder_that_cannot_be_made(fails, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be used" in fails(*FEW, "--output_dir", str(tmp_path / "file"))


def test_missing_matplotlib_stops_the_run_only_if_it_is_needed(fails, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = tmp_path / "results"
    assert "pip install 'lma_hf[plots]'" in fails(*FEW, "--output_dir", str(folder))
    assert not folder.exists()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    flags = [*TINY, "--candidates", "lma", "--dtypes", "float32", "--output_dir", str(folder)]
    assert main(["profile", *flags]) == 0
    assert sorted(file.name for file in folder.iterdir()) == ["benchmark.csv", "environment.json"]


@pytest.mark.extended
def test_script_runs_the_verb(tmp_path):
    script = str(REPO / "scripts" / "bench_activation.py")
    flags = [*FEW, "--parts", "activation", "--dtypes", "float32", "--output_dir", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, *flags], check=True, capture_output=True, env=environment)
    assert (tmp_path / "benchmark.csv").is_file()


@pytest.fixture(scope="module")
def saved_models(teacher_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "int8"
    assert main(["compress", "--model_dir", str(teacher_dir), "--output_dir", str(folder)]) == 0
    return ["--models", f"teacher={teacher_dir}", f"int8={folder}", "--threads", "1", "--repeats", "1"]


def test_saved_models_beside_each_other(saved_models, teacher_dir, tmp_path, capsys):
    assert main(["profile", *saved_models, "--output_dir", str(tmp_path / "results")]) == 0
    printed = capsys.readouterr().out
    assert "accuracy x 100 on 60 texts" in printed
    with open(tmp_path / "results" / "models.csv", newline="", encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["teacher", "int8"]
    results = json.loads((teacher_dir / "results.json").read_text())
    # the texts of the run, so its score
    assert float(rows["teacher"]["score"]) == 100 * results["metrics"]["validation"]["accuracy"]
    assert float(rows["int8"]["folder MB"]) < 0.8 * float(rows["teacher"]["folder MB"])
    for row in rows.values():
        assert all(
            float(row[key]) > 0 for key in ("1x16 ms", "1x128 ms", "32x16 ms", "32x128 ms", "texts/s", "peak MB")
        )
    assert (tmp_path / "results" / "models.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "results" / "environment.json").read_text())["torch_threads"] == 1


@pytest.mark.extended
def test_peak_memory_is_that_of_the_model_alone(teacher_dir):
    ours = torch.ones(200_000_000)  # 800 MB
    form = SimpleNamespace(name="tiny", source=teacher_dir, max_length=64, inputs=["input_ids", "attention_mask"])
    assert 0 < peak_memory_mb(form, threads=1) < 300
    assert ours.nbytes == 800_000_000


@pytest.mark.extended
def test_saved_models_in_onnx_runtime(teacher_dir):
    config = ProfileConfig(models=[f"teacher={teacher_dir}"], runtimes=["onnx-int8"], threads=[1], repeats=1)
    (row,) = profile_verb.profile(config)
    assert row["model"] == "teacher, onnx-int8"
    assert row["score"] >= 90
    assert min(value for key, value in row.items() if key != "model") > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torchao and of Inductor's own use of what is deprecated
def test_saved_models_with_torchao(saved_models, teacher_dir):
    pytest.importorskip("torchao", reason="torchao is not installed")
    models = saved_models[1:3]
    config = ProfileConfig(models=models, runtimes=["pytorch", "torchao-int8"], threads=[1], repeats=1)
    rows = {row["model"]: row for row in profile_verb.profile(config)}
    assert list(rows) == ["teacher", "teacher, torchao-int8", "int8", "int8, torchao-int8"]
    for name in ("teacher", "int8"):
        row = rows[f"{name}, torchao-int8"]
        assert row["score"] == pytest.approx(rows[name]["score"], abs=5)
        assert row["peak MB"] is None
        assert row["folder MB"] == rows[name]["folder MB"]


def test_torchao_is_an_extra(monkeypatch, fails, teacher_dir):
    monkeypatch.setitem(sys.modules, "torchao", None)
    text = fails("--models", f"teacher={teacher_dir}", "--runtimes", "torchao-int8")
    assert "int8 in PyTorch needs torchao, which is not installed; run pip install 'lma_hf[torchao]'" in text


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ("--models teacher", "models names 'teacher', allowed is NAME=FOLDER"),
        ("--models a=b a=c", "models names 'a=b', allowed is NAME=FOLDER with another NAME for each"),
        ("--models a=nowhere", "nowhere/results.json cannot be read"),
        ("--runtimes onnx", "runtimes and dataset are about models; name some as --models NAME=FOLDER"),
        ("--runtimes tensorrt", "runtimes names 'tensorrt', allowed are pytorch, torchao-int8, onnx, onnx-int8"),
    ],
)
def test_misuse_of_models(fails, flags, culprit):
    assert culprit in fails(*flags.split())


def test_results_of_other_models_are_not_overwritten(fails, saved_models, tmp_path):
    (tmp_path / "models.csv").write_text("keep me")
    assert "holds models.csv of another run" in fails(*saved_models, "--output_dir", str(tmp_path))
    assert (tmp_path / "models.csv").read_text() == "keep me"
