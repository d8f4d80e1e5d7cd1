"""The swap on a tiny model of every architecture in docs/architectures.md."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import lma_hf
from lma_hf.compare.architectures import output_of, try_architecture
from lma_hf.compare.tiny_architectures import FAMILIES, build
from lma_hf.modeling.activation_lma import LMA

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
FAMILY_OF = {model_type: family for family in FAMILIES for model_type in family.model_types}
# what somebody who reads the documentation would look for; DistilRoBERTa is a roberta, MiniLM a bert
EXPECTED = """
    bert roberta xlm-roberta distilbert electra albert mpnet mobilebert deberta deberta-v2 longformer big_bird funnel
    convbert roformer nomic_bert modernbert ernie camembert data2vec-text layoutlm gpt2 gpt_neo gpt_neox opt phi llama
    qwen2 gemma t5 bart pegasus vit deit beit swin convnext clip wav2vec2 whisper
"""
# in wav2vec 2 the padding also changes the features of the frames beside it
MASKED = (
    "bert",
    "modernbert",
    "longformer",
    "gpt2",
    "opt",
    "llama",
    "t5",
    "bart",
    "clip",
    "xlm-roberta",
    "deberta-v2",
)
OWN_PIECES = ("gpt2", "llama", "modernbert", "t5", "clip", "swin", "convnext", "mobilebert", "whisper", "wav2vec2")
REMOTE = ("albert", "modernbert", "gpt2", "llama", "t5", "bart", "clip", "swin", "wav2vec2", "whisper")


def rows():
    """Model type -> the cells behind it in docs/architectures.md."""
    lines = re.findall(
        r"^\| (?!family|---)[^|]+ \| ([^|]+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {model_type: [cell.strip() for cell in cells.split("|")] for model_type, cells in lines}


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("model_type", FAMILY_OF)
def test_does_what_the_page_says(model_type, tmp_path):
    outcome = try_architecture(FAMILY_OF[model_type], model_type, tmp_path)
    gated = "yes" if outcome.gated else ""
    assert rows()[model_type] == (
        [outcome.reason] if outcome.reason else [str(outcome.sites), outcome.replaced, gated]
    )


def test_page_names_what_people_look_for():
    green = {model_type for model_type, cells in rows().items() if len(cells) == 3}
    assert set(rows()) == set(FAMILY_OF)
    assert green >= set(EXPECTED.split())
    assert len(green) >= 40


@pytest.mark.parametrize("model_type", MASKED)
def test_padding_does_not_count(model_type):
    family = FAMILY_OF[model_type]
    model, inputs = build(family, model_type), family.inputs()
    lma_hf.swap_activations_(model)
    others = dict(inputs)
    for name in ("", "decoder_"):
        if f"{name}attention_mask" in inputs:
            ids, mask = inputs[f"{name}input_ids"], inputs[f"{name}attention_mask"]
            others[f"{name}input_ids"] = torch.where(mask == 0, 77, ids)
    first, second = copy.deepcopy(model).train(), model.train()
    for each, given in ((first, inputs), (second, others)):
        torch.manual_seed(0)  # some drop out by a function
        each(**given)
    for (fqn, one), two in zip(statistics(first).items(), statistics(second).values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6, msg=lambda text, fqn=fqn: f"{fqn}: {text}")


def statistics(model):
    return {key: value for key, value in model.state_dict().items() if key.endswith(("running_mean", "running_std"))}


def test_padding_of_sound_does_not_count():
    family = FAMILY_OF["wav2vec2"]
    model = build(family, "wav2vec2")
    lma_hf.swap_activations_(model)
    seen = []
    for module in model.modules():
        if isinstance(module, LMA):
            module.register_forward_hook(lambda module, args, output: seen.append((module.token_mask.value, args[0])))
    model.train()(**family.inputs())
    for mask, x in seen:
        # the second wave is half padding
        assert mask.shape == x.shape[:-1]
        assert mask[0].all()
        assert 0.4 < mask[1].float().mean() < 0.6


@pytest.mark.parametrize("model_type", OWN_PIECES)
def test_pieces_for_every_unit(model_type, tmp_path):
    family = FAMILY_OF[model_type]
    model, inputs = build(family, model_type), family.inputs()
    lma_hf.swap_activations_(model, lma_hf.LMAConfig(per_channel=True, statistics="running"))
    model.train()(**inputs)
    swapped = output_of(model.eval(), inputs)
    lma_hf.fold_(model)
    assert torch.equal(output_of(model, inputs), swapped)
    model.save_pretrained(tmp_path)
    assert torch.equal(output_of(type(model).from_pretrained(tmp_path), inputs), swapped)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_models_load_without_the_package(tmp_path):
    expected = {}
    for model_type in REMOTE:
        family = FAMILY_OF[model_type]
        model, inputs = build(family, model_type), family.inputs()
        lma_hf.swap_activations_(model)
        model.train()(**inputs)
        expected[model_type] = output_of(model.eval(), inputs)
        model.save_pretrained(tmp_path / model_type)
        torch.save(inputs, tmp_path / model_type / "inputs.pt")
    worker = Path(__file__).with_name("remote_worker.py")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "code"),
    }
    done = subprocess.run([sys.executable, worker, tmp_path, *REMOTE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for model_type, output in expected.items():
        assert torch.equal(torch.load(tmp_path / model_type / "output.pt"), output), model_type


def test_a_part_of_what_was_swapped_loads_alone(tmp_path):
    model = build(FAMILY_OF["t5"], "t5")
    lma_hf.swap_activations_(model)
    model.save_pretrained(tmp_path)
    encoder = transformers.T5EncoderModel.from_pretrained(tmp_path)
    assert sum(isinstance(module, LMA) for module in encoder.modules()) == 2
    inputs = FAMILY_OF["bert"].inputs()
    with torch.no_grad():
        expected, actual = (part(**inputs).last_hidden_state for part in (model.encoder, encoder))
    assert torch.equal(actual, expected)


def test_pickled_model_is_the_same(tmp_path):
    model, inputs = build(FAMILY_OF["gpt2"], "gpt2"), FAMILY_OF["gpt2"].inputs()
    lma_hf.swap_activations_(model)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(output_of(again, inputs), output_of(model, inputs))
    again.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "modeling_lma.py").is_file()
