"""Packed models: reports, files, and what another process makes of them."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from modeling import reload_worker
from modeling.tiny_models import ARCHITECTURES, VOCABULARY, sentences, tiny_model
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
)

import lma_hf
from lma_hf.compare import tiny_architectures
from lma_hf.compression.quantization.fake_quantize import prepare_quantization_
from lma_hf.compression.quantization.pack import quantize_
from lma_hf.errors import SurgeryError
from lma_hf.modeling.quantizer_lma import packed_modules
from lma_hf.modeling.saving_lma import code_files
from lma_hf.modeling.schemes_lma import ProductScheme, ScalarScheme, rounded

INPUTS = sentences((40, 5, 17, 1), 40)
LMA = lma_hf.LMAConfig(statistics="running")
# name -> (architecture, activation, scheme, modules_to_not_convert)
CASES = {
    **{name: (name, LMA, ScalarScheme(4), None) for name in ARCHITECTURES},
    **{f"{name}-plain": (name, None, ScalarScheme(8), None) for name in ("bert", "distilbert", "albert")},
    "bert-relu": ("bert", "relu", ScalarScheme(2, 5), None),
    "bert-swish": ("bert", "swish", ScalarScheme(8, 7), []),
    "bert-product": ("bert", LMA, ProductScheme(4, 16), None),
    "distilbert-product": ("distilbert", None, ProductScheme(7, 8), []),
    "bert-part": ("bert", LMA, ScalarScheme(4, 8), ["embeddings", "layer.1", "classifier"]),
    "t5": ("t5", None, ScalarScheme(8), ["shared", "embed_tokens"]),
    **{name: (name, None, ScalarScheme(8), None) for name in ("modernbert", "xlnet", "gpt_bigcode", "esm", "mixtral")},
}
# the config names no activation, or by no key that could be marked
WITHOUT_NAME = ("t5", "esm")


def build(case):
    name, activation, scheme, modules_to_not_convert = CASES[case]
    if name not in ARCHITECTURES:
        config = tiny_of(name)[0].config
        config.vocab_size = VOCABULARY
        return AutoModelForTokenClassification.from_config(config).eval(), scheme, modules_to_not_convert
    model = tiny_model(name, activation).train()
    model(**INPUTS)
    return model.eval(), scheme, modules_to_not_convert


def tiny_of(model_type):
    family = next(family for family in tiny_architectures.FAMILIES if model_type in family.model_types)
    return tiny_architectures.build(family, model_type), family.inputs()


@pytest.fixture(scope="module")
def packed():
    """Case -> packed model."""
    models = {}
    for case in CASES:
        models[case], scheme, names = build(case)
        quantize_(models[case], scheme, modules_to_not_convert=names)
    return models


@pytest.fixture(scope="module")
def saved(tmp_path_factory, packed, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("packed")
    for case, model in packed.items():
        model.save_pretrained(folder / case)
    packed["bert"].save_pretrained(folder / "with-tokenizer")
    tiny_tokenizer.save_pretrained(folder / "with-tokenizer")
    tasks = {case: "Sequence" if values[0] in ARCHITECTURES else "Token" for case, values in CASES.items()}
    plan = {case: f"AutoModelFor{task}Classification" for case, task in tasks.items()}
    (folder / "plan.json").write_text(json.dumps(plan))
    torch.save(INPUTS, folder / "inputs.pt")
    return folder


def run(script, *arguments, folder):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "code"),
    }
    command = [sys.executable, "-W", "error", *script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)


@pytest.fixture(scope="module", params=["package", "remote_code"])
def reloaded(saved, request):
    """Case -> what a fresh process saw, with the package and without."""
    process = run([reload_worker.__file__], saved, request.param, folder=saved)
    assert process.returncode == 0, process.stderr
    return torch.load(saved / f"results-{request.param}.pt")


@torch.no_grad()
def logits(model):
    return model(**INPUTS).logits


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_process_gives_the_same_logits_and_state(case, packed, reloaded):
    assert torch.equal(logits(packed[case]), reloaded[case]["logits"])
    torch.testing.assert_close(reloaded[case]["state"], dict(packed[case].state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_the_code_and_its_names_go_with_every_packed_model(case, saved):
    names = json.loads((saved / case / "config.json").read_text())["auto_map"]
    assert names["AutoModel"].startswith("modeling_lma.")
    assert {file.name for file in code_files()} == {file.name for file in (saved / case).glob("*.py")}


def test_without_our_code_no_packed_model_loads(saved):
    code = (
        "import sys; sys.modules['lma_hf'] = None\n"
        "from transformers import AutoModel as model\n"
        "for folder in sys.argv[1:]:\n"
        "    try:\n"
        "        model.from_pretrained(folder)\n"
        "    except (KeyError, RuntimeError) as error:\n"
        "        print(type(error).__name__, error)"
    )
    process = run(["-c", code], *(saved / case for case in CASES), folder=saved)
    assert process.returncode == 0, process.stderr
    errors = dict(zip(CASES, process.stdout.splitlines(), strict=True))
    # a weight of another shape is refused where there is no activation's name
    assert all(errors[case].startswith("RuntimeError You set `ignore_mismatched_sizes`") for case in WITHOUT_NAME)
    assert all(errors[case].startswith("KeyError") for case in CASES if case not in WITHOUT_NAME)


@pytest.mark.parametrize("case", [case for case in CASES if "product" not in case])
def test_packed_weights_are_the_rounded_ones(case, packed):
    model, scheme, _ = build(case)
    there = packed_modules(packed[case])
    assert there
    with torch.no_grad():
        for fqn, module in there.items():
            weight = model.get_submodule(fqn).weight
            assert torch.equal(module.rows(), rounded(weight, scheme))
            weight.copy_(module.rows())
    assert torch.equal(logits(model), logits(packed[case]))


def unpacked_by_hand(file, fqn, bits):
    """The weights in a file, with NumPy alone: bit after bit."""
    row_length = file[f"{fqn}.row_length"]
    packed, scale, zero_point = (file[f"{fqn}.{part}"] for part in ("packed", "scale", "zero_point"))
    bit = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), -1, bits)
    codes = (bit * 2 ** np.arange(bits)).sum(axis=2)[:, :row_length]
    group = np.arange(row_length) // -(-row_length // scale.shape[1])
    return (codes - zero_point[:, group].astype(int)).astype(np.float32) * scale.astype(np.float32)[:, group]


@pytest.mark.parametrize("case", ["bert", "distilbert-plain", "bert-part"])
def test_an_independent_unpacker_reads_the_file(case, packed, saved):
    scheme = CASES[case][2]
    file = load_file(saved / case / "model.safetensors")
    for fqn, module in packed_modules(packed[case]).items():
        found = unpacked_by_hand({**file, f"{fqn}.row_length": module.row_length}, fqn, scheme.bits)
        assert np.array_equal(found, module.rows().numpy())


@pytest.mark.parametrize("case", ["bert-product", "distilbert-product"])
def test_an_independent_decoder_reads_a_codebook(case, packed, saved):
    file = load_file(saved / case / "model.safetensors")
    for fqn, module in packed_modules(packed[case]).items():
        codebook = file[f"{fqn}.codebook"]
        assert codebook.dtype == np.float16
        blocks = codebook.astype(np.float32)[file[f"{fqn}.packed"]]
        assert np.array_equal(blocks.reshape(len(blocks), -1)[:, : module.row_length], module.rows().numpy())


def test_bits_are_packed_in_the_file(packed, saved):
    with safe_open(saved / "bert" / "model.safetensors", "pt") as file:
        words = file.get_slice("bert.embeddings.word_embeddings.packed")
        assert (words.get_dtype(), words.get_shape()) == ("U8", [400, 8])
        assert file.get_slice("bert.embeddings.word_embeddings.scale").get_dtype() == "F16"
    config = json.loads((saved / "bert" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "lma_hf"
    assert [group["bits"] for group in config["groups"]] == [4]


@pytest.mark.parametrize("case", ["bert", "bert-product", "modernbert", "esm"])
def test_saved_again_it_is_the_same_file(case, packed, saved, tmp_path):
    type(packed[case]).from_pretrained(saved / case).save_pretrained(tmp_path)
    for file in (saved / case).iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("case", ["bert-plain", "esm"])
def test_a_base_model_saved_alone_is_a_packed_one(case, packed, saved, tmp_path):
    model = type(packed[case]).from_pretrained(saved / case)
    model.base_model.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(**INPUTS)[0], model.base_model(**INPUTS)[0])
    assert {file.name for file in (saved / case).iterdir()} == {file.name for file in tmp_path.iterdir()}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert ("embeddings.word_embeddings.weight" in names) == (case == "esm")


def test_with_its_activations_restored_it_is_still_refused_without_our_code(saved, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(saved / "bert")
    lma_hf.restore_activations_(model)
    model.save_pretrained(tmp_path)
    assert "auto_map" in json.loads((tmp_path / "config.json").read_text())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.get_slice("bert.embeddings.word_embeddings.weight").get_shape() == [0]


def test_the_base_model_loads_alone(packed, saved):
    base = AutoModel.from_pretrained(saved / "bert")
    assert torch.equal(base(**INPUTS)[0], packed["bert"].bert(**INPUTS)[0])


@pytest.mark.parametrize(
    "case", ["bert", "bert-plain", "bert-relu", "bert-product", "distilbert-plain", "xlnet", "esm"]
)
def test_dequantized_it_is_an_ordinary_model(case, packed, saved, tmp_path):
    model = type(packed[case]).from_pretrained(saved / case)
    expected = logits(model)
    model = model.dequantize()
    assert packed_modules(model) == {}
    assert torch.equal(logits(model), expected)
    model(**INPUTS).logits.sum().backward()
    model.save_pretrained(tmp_path)
    again = type(packed[case]).from_pretrained(tmp_path)
    assert torch.equal(logits(again), expected)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in config
    assert ("auto_map" in config) == (CASES[case][1] is LMA)


@pytest.mark.extended
def test_a_base_model_loads_alone_by_the_code_that_it_brings(packed, saved, tmp_path):
    # transformers translates names of weights in these files, such as those of Mixtral's experts
    cases = ["bert", "mixtral"]
    code = (
        "import sys; sys.modules['lma_hf'] = None\n"
        "import torch; from transformers import AutoModel\n"
        "inputs = torch.load(sys.argv[1])\n"
        "models = [AutoModel.from_pretrained(folder, trust_remote_code=True) for folder in sys.argv[3:]]\n"
        "torch.save([model(**inputs)[0].detach() for model in models], sys.argv[2])\n"
    )
    files = [saved / "inputs.pt", tmp_path / "found.pt"]
    process = run(["-c", code], *files, *(saved / case for case in cases), folder=saved)
    assert process.returncode == 0, process.stderr
    for case, found in zip(cases, torch.load(files[1]), strict=True):
        assert torch.equal(found, packed[case].base_model(**INPUTS)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_computes_in_the_dtype_that_is_asked_for(dtype, packed, saved):
    model = AutoModelForSequenceClassification.from_pretrained(saved / "bert", dtype=dtype)
    assert logits(model).dtype == dtype
    torch.testing.assert_close(logits(model).float(), logits(packed["bert"]), rtol=0, atol=0.2)


# model type -> modules_to_not_convert, where a part of the model writes or looks into a child's weight after loading
REACH_INTO_WEIGHTS = {
    "modernbert": None,
    "funnel": None,
    "gpt_bigcode": None,
    "t5": ["shared", "embed_tokens"],
    "prophetnet": ["word_embeddings"],
}


@torch.no_grad()
@pytest.mark.parametrize("model_type", [*REACH_INTO_WEIGHTS, "ibert"])
def test_a_model_of_another_kind_loads_to_the_same_each_time(model_type, tmp_path):
    model, inputs = tiny_of(model_type)
    quantize_(model, ScalarScheme(8), modules_to_not_convert=REACH_INTO_WEIGHTS.get(model_type))
    # I-BERT takes no other name of its activation
    assert getattr(model.config, "hidden_act", None) == "gelu" or model_type != "ibert"
    expected = model(**inputs)[0]
    model.save_pretrained(tmp_path)
    for _ in range(2):
        assert torch.equal(AutoModel.from_pretrained(tmp_path)(**inputs)[0], expected)


def test_it_computes_gradients_after_inference(saved):
    model = AutoModelForSequenceClassification.from_pretrained(saved / "bert")
    with torch.inference_mode():
        expected = model(**INPUTS).logits.clone()
    found = model(**INPUTS).logits
    found.sum().backward()
    assert torch.equal(found, expected)


def test_the_trainer_of_transformers_refuses_it(packed, tmp_path):
    with pytest.raises(ValueError, match="quantiz"):
        Trainer(packed["bert"], TrainingArguments(tmp_path, report_to="none"))


def test_the_report_says_what_was_saved(saved):
    model, scheme, _ = build("bert-plain")
    before = model.state_dict()
    report = quantize_(model, scheme)
    assert report.size_mb_before == sum(tensor.nbytes for tensor in before.values()) / 1e6
    weights = (saved / "bert-plain" / "model.safetensors").stat().st_size / 1e6
    assert report.size_mb == pytest.approx(weights, abs=0.02)
    assert 35 < report.sqnr_db < 55
    assert f"quantized {len(report.quantized)} modules" in str(report)


def test_the_config_that_other_models_were_built_from_stays():
    model, scheme, _ = build("bert-plain")
    config = model.config
    quantize_(model, scheme)
    assert config.hidden_act == "gelu"
    assert not hasattr(config, "quantization_config")


def test_what_is_not_finite_is_named_and_nothing_is_changed():
    model, scheme, _ = build("bert")
    model.get_submodule("bert.pooler.dense").weight.data[0, 0] = float("nan")
    with pytest.raises(SurgeryError, match=r"bert\.pooler\.dense has weights that are not finite"):
        quantize_(model, scheme)
    assert packed_modules(model) == {}


# model type -> what computes in a way of its own there: scaled words, positions with an offset or from sines
OWN_FORWARD = {
    "gemma3_text": {"embed_tokens"},
    "opt": {"decoder.embed_positions"},
    "roformer": {"encoder.embed_positions"},
    "bart": {
        "shared",
        *(f"{part}.{name}" for part in ("encoder", "decoder") for name in ("embed_tokens", "embed_positions")),
    },
}


@torch.no_grad()
@pytest.mark.parametrize("model_type", OWN_FORWARD)
def test_subclasses_that_compute_in_a_way_of_their_own_stay(model_type):
    (model, inputs), (rounded_model, _) = tiny_of(model_type), tiny_of(model_type)
    report = quantize_(model, ScalarScheme(4))
    assert report.left_alone.keys() == OWN_FORWARD[model_type]
    assert not report.left_alone.keys() & report.quantized.keys()
    assert all(f"{fqn} ({name})" in str(report) for fqn, name in report.left_alone.items())
    assert "\n" not in str(report)
    for fqn in report.quantized:
        weight = rounded_model.get_submodule(fqn).weight
        weight.copy_(rounded(weight, ScalarScheme(4)))
    assert torch.equal(model(**inputs)[0], rounded_model(**inputs)[0])


def test_what_stays_anyway_may_be_named_and_does_not_train_with_rounding():
    model, _ = tiny_of("gemma3_text")
    modules = prepare_quantization_(model, ScalarScheme(4), modules_to_not_convert=["embed_tokens", "layers.1"])
    assert modules
    assert all("layers.0" in fqn for fqn in modules)


def test_a_subclass_with_the_forward_of_its_base_is_packed():
    model, scheme, _ = build("bert-plain")
    model.bert.pooler.dense.__class__ = type("Named", (nn.Linear,), {})
    report = quantize_(model, scheme)
    assert "bert.pooler.dense" in report.quantized
    assert report.left_alone == {}
    assert "left as they are" not in str(report)


def test_a_scheme_is_given_once():
    model, scheme, _ = build("bert")
    with pytest.raises(SurgeryError, match="was not prepared; name a scheme"):
        quantize_(model)
    quantize_(model, scheme)
    with pytest.raises(SurgeryError, match="quantized already"):
        quantize_(copy.deepcopy(model), scheme)


def test_an_unknown_setting_of_a_later_version_is_an_error(saved, tmp_path):
    for file in (saved / "bert").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = Path(tmp_path / "config.json")
    path.write_text(path.read_text().replace('"bits": 4', '"bits": 3'))
    with pytest.raises(ValueError, match="bits is 3, allowed are 2, 4, 8"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
