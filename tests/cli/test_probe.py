"""`lma-hf probe` on a tiny BERT: its files, the same numbers twice, and misuse in one line."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from lma_hf.cli.__main__ import main

REPO = Path(__file__).resolve().parents[2]
FAST = ["--num_steps", "8", "--batch_size", "32", "--layers", "1", "--widths", "8", "16", "--learning_rates", "1e-2"]
FILES = ["environment.json", "probe.csv", "probe.md", "probe.png", "results.json", "run_config.yaml"]


@pytest.fixture
def flags(data_flags, pretrained_dir, tmp_path):
    return [*data_flags, "--model_name_or_path", str(pretrained_dir), "--output_dir", str(tmp_path / "probe"), *FAST]


@pytest.fixture
def fails(flags, capsys):
    """Run `probe` with changed flags, check the exit code, and return the one line it prints."""

    def run(*changed, code=2):
        capsys.readouterr()
        assert main(["probe", *flags, *changed]) == code
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lma-hf: error: ")]
        assert len(errors) == 1
        return errors[0]

    return run


def test_run_and_run_again_from_its_own_config(flags, tmp_path, capsys):
    activations = ["--activations", "gelu", "relu", "lma-4 fit running", "lma per_channel continuous"]
    assert main(["probe", *flags, *activations]) == 0
    folder = tmp_path / "probe"
    assert sorted(file.name for file in folder.iterdir()) == FILES
    assert (folder / "probe.md").read_text() in capsys.readouterr().out
    assert imread(folder / "probe.png").std() > 0
    results = json.loads((folder / "results.json").read_text())
    assert [row["activation"] for row in results["worth"][::2]] == activations[1:]
    assert (results["num_layers"], results["num_seeds"]) == (1, 2)
    again = tmp_path / "again"
    assert main(["probe", str(folder / "run_config.yaml"), "--output_dir", str(again)]) == 0
    for name in ("results.json", "probe.csv", "probe.md"):
        assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_table_says_what_the_fits_say(flags, tmp_path):
    assert main(["probe", *flags, "--activations", "gelu", "relu", "--num_seeds", "1"]) == 0
    with open(tmp_path / "probe" / "probe.csv", newline="") as file:
        errors = {(row["activation"], int(row["width"])): float(row["error"]) for row in csv.DictReader(file)}
    table = (tmp_path / "probe" / "probe.md").read_text()
    assert f"| gelu | {errors['gelu', 8]:.4f} | {errors['gelu', 16]:.4f} |" in table
    percent = 100 * (errors["relu", 8] / errors["gelu", 8] - 1)
    assert f"| relu | {errors['relu', 8]:.4f} ({percent:+.1f}) |" in table


def test_folder_with_another_run_is_kept_unless_told_otherwise(fails, flags, tmp_path):
    folder = tmp_path / "probe"
    folder.mkdir()
    (folder / "run_config.yaml").write_text("keep me")
    assert "--overwrite_output_dir true" in fails()
    assert (folder / "run_config.yaml").read_text() == "keep me"
    one = ["--activations", "gelu", "--num_seeds", "1"]
    assert main(["probe", *flags, *one, "--overwrite_output_dir", "true"]) == 0
    assert sorted(file.name for file in folder.iterdir()) == FILES


@pytest.mark.parametrize(
    ("changed", "culprit"),
    [
        ("--activations gelu swich", "did you mean 'swish'"),
        ("--reference silu", "reference is 'silu', allowed is one of activations: gelu, gelu_affine, relu"),
        ("--layers 4", "layers names 4, the model has FFNs 0 to 3"),
        ("--layers 1 0", "layers is [1, 0], allowed are numbers above -1"),
        ("--widths 65", "widths names 65, the model's FFNs have 64 units"),
        ("--widths 0", "widths is [0], allowed are numbers above 0"),
        ("--learning_rates 1e-2 1e-3", "in rising order"),
        ("--activation_learning_rates nan", "activation_learning_rates is [nan]"),
        ("--num_seeds 0", "num_seeds is 0"),
        ("--max_length 128", "max_length is 128, the model allows at most 64"),
        ("--max_eval_samples 1", "at least 2 are needed to tune and to report"),
        ("--validation_split test", "no split 'test' with texts"),
        ("--width 8", "the nearest known one is --widths"),
    ],
)
def test_bad_input(fails, tmp_path, changed, culprit):
    assert culprit in fails(*changed.split())
    assert not (tmp_path / "probe").exists()


def test_missing_matplotlib_stops_the_run_before_it_computes(fails, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'lma_hf[plots]'" in fails()
    assert not (tmp_path / "probe").exists()


@pytest.mark.slow
def test_script_runs_the_verb():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPO / "scripts" / "probe.py"), "--help"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert "lma-hf probe [FILE.yaml]" in result.stdout
