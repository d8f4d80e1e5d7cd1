"""`distill --quantize`: what is trained, what lies in the folder, and what it scores."""

import json

import pytest
import torch
from cli.students import DISTILL, load, losses, scores

from lma_hf.cli.__main__ import main
from lma_hf.compare.profiling import count_parameters
from lma_hf.compression.quantization.pack import quantize_
from lma_hf.modeling.quantizer_lma import packed_modules
from lma_hf.modeling.schemes_lma import ScalarScheme


@pytest.mark.parametrize(
    "flags", [["--quantize", "int4"], ["--quantize", "int2", "--quantize_group_size", "8"], ["--quantize", "pq"]]
)
def test_the_folder_holds_what_was_trained_and_scored(distilled, data_flags, flags):
    folder = distilled(*flags)
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]["validation"]["accuracy"] >= 0.9
    assert scores(folder, data_flags) == results["metrics"]
    assert sorted(packed_modules(load(folder))) == sorted(results["quantization"]["modules"])
    plain = json.loads((distilled() / "results.json").read_text())
    assert results["size_mb"] < 0.4 * plain["size_mb"]
    assert results["num_parameters"] == count_parameters(load(folder)) == plain["num_parameters"]


def test_without_noise_it_is_plain_distillation_packed_at_the_end(distilled):
    plain, without_noise = distilled(), distilled("--quantize", "int4", "--noise_rate", "0")
    assert losses(plain) == losses(without_noise)
    expected = load(plain)
    quantize_(expected, ScalarScheme(4))
    found = load(without_noise).state_dict()
    assert expected.state_dict().keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.state_dict().items())


def test_noise_changes_the_training(distilled):
    different = [
        losses(distilled(*flags))
        for flags in ([], ["--quantize", "int4"], ["--quantize", "int4", "--noise_rate", "0.5"])
    ]
    assert different[0] != different[1] != different[2] != different[0]


def test_noise_of_product_quantization_leaves_an_ordinary_student(distilled, data_flags):
    folder = distilled("--quantize", "pq", "--noise_rate", "0.1")
    results = json.loads((folder / "results.json").read_text())
    assert packed_modules(load(folder)) == {}
    assert scores(folder, data_flags) == results["metrics"]
    assert losses(folder) != losses(distilled())
    assert losses(distilled("--quantize", "pq", "--noise_rate", "0")) == losses(distilled())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--noise_rate", "0.5"], "noise_rate is about quantized weights, but quantize is unset"),
        (["--modules_to_not_convert", "pooler"], "modules_to_not_convert is about quantized weights"),
        (["--quantize", "int4", "--noise_rate", "2"], "noise_rate is 2.0, allowed are 0 to 1"),
        (
            ["--quantize", "int4", "--quantize_group_size", "0"],
            "quantize_group_size is 0, allowed are numbers above 0",
        ),
        (["--quantize", "int4", "--train", "activations"], "quantize is 'int4' and train 'activations'"),
        (["--quantize", "int4", "--modules_to_not_convert", "poler"], "names 'poler', but there are"),
        (["--quantize", "int3"], "int3"),
        (
            ["--quantize", "pq", "--quantize_group_size", "8"],
            "quantize is 'pq', which has no quantize_group_size; drop it",
        ),
    ],
)
def test_misuse_of_distill_is_one_line(tmp_path, data_flags, teacher_dir, capsys, flags, message):
    base = ["distill", *data_flags, "--teacher", str(teacher_dir), "--output_dir", str(tmp_path / "student"), *DISTILL]
    assert main([*base, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "student").exists()
