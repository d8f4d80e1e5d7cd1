"""Saved models load to the same numbers in a fresh process, after `import lma_hf` or by the code they bring along."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from modeling.tiny_models import ARCHITECTURES, FFN_WIDTH, lma_modules, sentences, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import lma_hf
from lma_hf.modeling.modeling_lma import OURS
from lma_hf.modeling.saving_lma import code_files

LMA_CONFIGS = {
    "k16": lma_hf.LMAConfig(num_segments=16, range_sigmas=2.0),
    "running": lma_hf.LMAConfig(statistics="running", momentum=0.2),
    "frozen": lma_hf.LMAConfig(num_segments=3, statistics="frozen"),
    "fit": lma_hf.LMAConfig(init="fit", per_channel=True),
    "continuous": lma_hf.LMAConfig(continuous=True, init="fit"),
    "continuous-own": lma_hf.LMAConfig(continuous=True, per_channel=True),
}
BASELINES = ("relu", "gelu", "gelu_affine", "prelu", "swish", "aplu")
SECOND_LAYER = {
    "bert": r".*layer\.1\.intermediate\.intermediate_act_fn",
    "distilbert": r".*layer\.1\.ffn\.activation",
}
# name -> (architecture, activation, auto class, target_modules)
CASES = {
    **{name: (name, "lma", "AutoModelForSequenceClassification", None) for name in ARCHITECTURES},
    **{f"{name}-mlm": (name, "lma", "AutoModelForMaskedLM", None) for name in ARCHITECTURES},
    **{
        f"bert-{key}": ("bert", config, "AutoModelForSequenceClassification", None)
        for key, config in LMA_CONFIGS.items()
    },
    **{
        f"{name}-{key}": (name, key, "AutoModelForMaskedLM", None)
        for name in ("bert", "distilbert")
        for key in BASELINES
    },
    **{
        f"{name}-partial-{key}": (name, key, "AutoModelForMaskedLM", pattern)
        for name, pattern in SECOND_LAYER.items()
        for key in ("lma", "relu", "swish")
    },
    "bert-folded": ("bert", lma_hf.LMAConfig(), "AutoModelForSequenceClassification", None),
    "albert-folded": ("albert", lma_hf.LMAConfig(continuous=True, per_channel=True), "AutoModelForMaskedLM", None),
    **{f"{name}-plain": (name, None, "AutoModelForMaskedLM", None) for name in ("bert", "distilbert", "albert")},
}
INPUTS = sentences((40, 5, 17, 1), 40)


def build(case):
    """A swapped model whose parameters and statistics are all away from their start values, in evaluation mode."""
    name, activation, auto_class, target_modules = CASES[case]
    swap = {"target_modules": target_modules} if activation else {}
    model = tiny_model(name, activation, auto_class=getattr(transformers, auto_class), **swap)
    if getattr(activation, "init", None) == "fit":
        lma_hf.calibrate_(model, [INPUTS])
    if getattr(activation, "statistics", None) == "frozen":
        lma_modules(model)[0].running_std.fill_(0.7)
    model.train()(**sentences((30, 30), 30))
    if case.endswith("-folded"):
        lma_hf.fold_(model)
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_tokenizer):
    """Folder with every case saved, and the models: (folder, name -> model)."""
    folder = tmp_path_factory.mktemp("reload")
    models = {case: build(case) for case in CASES}
    for case, model in models.items():
        model.save_pretrained(folder / case)
    models["bert"].save_pretrained(folder / "with-tokenizer")
    tiny_tokenizer.save_pretrained(folder / "with-tokenizer")
    return folder, models


@pytest.fixture(scope="module", params=["package", "remote_code"])
def way(request):
    return request.param


@pytest.fixture(scope="module")
def reloaded(saved, way):
    """What the fresh process saw: name -> logits, state, activations, ..."""
    folder, _ = saved
    (folder / "plan.json").write_text(json.dumps({case: values[2] for case, values in CASES.items()}))
    torch.save(INPUTS, folder / "inputs.pt")
    worker = Path(__file__).with_name("reload_worker.py")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "code"),
    }
    process = subprocess.run(
        [sys.executable, "-W", "error", worker, folder, way],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert process.returncode == 0, process.stderr
    return torch.load(folder / f"results-{way}.pt")


def test_remote_code_runs_only_where_the_package_is_not_there(way, reloaded):
    assert bool(reloaded["from_lma_hf"]) == (way == "package")
    assert bool(reloaded["remote_code"]) == (way == "remote_code")


@pytest.mark.parametrize("case", CASES)
def test_fresh_process_gives_bit_identical_logits(case, saved, reloaded):
    model = saved[1][case]
    assert not reloaded[case]["training"]
    torch.testing.assert_close(reloaded[case]["state"], dict(model.state_dict()), rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(model(**INPUTS).logits, reloaded[case]["logits"])


@pytest.mark.parametrize("case", CASES)
def test_every_activation_stands_where_it_stood(case, saved, reloaded):
    here = {
        fqn: f"{type(module).__module__}.{type(module).__qualname__}"
        for fqn, module in saved[1][case].named_modules()
        if "act" in fqn.rpartition(".")[2]
    }
    # remote code lives in a package of its own
    there = {
        fqn: re.sub(r"^transformers_modules\..*\.(?=[^.]*\.[^.]*$)", "lma_hf.modeling.", name)
        for fqn, name in reloaded[case]["activations"].items()
    }
    assert there == here


@pytest.mark.parametrize("case", CASES)
def test_config_and_files(case, saved):
    folder, name, activation = saved[0] / case, *CASES[case][:2]
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == name
    assert config["architectures"] == [type(saved[1][case]).__name__]
    key = "activation" if name == "distilbert" else "hidden_act"
    if activation is None:
        assert (config[key], "ffn_activation" in config) == ("gelu", False)
    elif activation == "lma" or isinstance(activation, lma_hf.LMAConfig):
        assert config[key] == "lma"
        settings = lma_hf.LMAConfig() if activation == "lma" else activation
        assert config["ffn_activation"].items() >= vars(settings).items()
    else:
        assert config["ffn_activation"].items() >= {"name": activation, "replaced": "gelu"}.items()
    files = {path.name for path in folder.iterdir() if path.suffix != ".json"}
    # transformers builds the model alone where the config names an activation of its own
    needs_code = config[key] not in ("relu", "gelu")
    assert files == {"model.safetensors", *(file.name for file in code_files() if needs_code)}
    assert ("auto_map" in config) == needs_code


def test_pipeline_in_the_fresh_process(saved, reloaded, tiny_tokenizer):
    model = saved[1]["bert"]
    for sentence, labels in zip(["a good movie", "the story is bad"], reloaded["pipeline"], strict=True):
        with torch.no_grad():
            expected = model(**tiny_tokenizer(sentence, return_tensors="pt")).logits.softmax(-1)[0]
        scores = {label["label"]: label["score"] for label in labels}
        assert scores == {model.config.id2label[index]: score for index, score in enumerate(expected.tolist())}


def test_plain_models_are_left_alone(saved, reloaded):
    plain = [case for case, values in CASES.items() if values[1] is None]
    assert plain
    for case in plain:
        assert "_init_weights" not in reloaded[case]["instance_attributes"]
        assert "post_init" not in reloaded[case]["instance_attributes"]
        assert not any("_lma." in home for home in reloaded[case]["activations"].values())
    swapped = reloaded["bert"]
    assert any("_lma." in home for home in swapped["activations"].values())
    assert "post_init" not in swapped["instance_attributes"]


@pytest.mark.parametrize("case", [case for case, values in CASES.items() if values[1] not in (None, "relu", "gelu")])
def test_checkpoint_that_lacks_the_activations_gets_start_values(case, saved, tmp_path):
    folder, models = saved
    auto_class = CASES[case][2]
    ours = [fqn for fqn, module in models[case].named_modules() if isinstance(module, OURS)]
    state = load_file(folder / case / "model.safetensors")
    kept = {key: value for key, value in state.items() if key.rpartition(".")[0] not in ours}
    assert len(kept) < len(state)
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / case / "config.json").read_text())
    model = getattr(transformers, auto_class).from_pretrained(tmp_path)
    for fqn in ours:
        module = model.get_submodule(fqn)
        loaded = {key: value.clone() for key, value in module.state_dict().items()}
        assert {key: value.shape for key, value in loaded.items()} == {
            key: value.shape for key, value in models[case].get_submodule(fqn).state_dict().items()
        }
        module.reset_parameters()
        torch.testing.assert_close(loaded, dict(module.state_dict()), rtol=0, atol=0, equal_nan=True)
        # constants have no start values; a wrong answer must not look like a right one
        assert all(value.isnan().all() if "folded" in case else value.isfinite().all() for value in loaded.values())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reloaded_model_still_ignores_padding(name, saved):
    model = AutoModelForSequenceClassification.from_pretrained(saved[0] / name)
    held = []
    for module in lma_modules(model):
        module.register_forward_hook(lambda module, args, output: held.append(module.token_mask.value))
    model(**INPUTS)
    assert len(held) == 2
    assert all(mask is INPUTS["attention_mask"] for mask in held)
    assert all(module(torch.zeros(1, FFN_WIDTH)).shape == (1, FFN_WIDTH) for module in lma_modules(model))
