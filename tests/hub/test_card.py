"""The model card: true to the records, silent about this machine, and one that the hub takes."""

import ast
import dataclasses
import re

import pytest
import yaml
from card_records import CONFIG, KNOWN, RESULTS, SCORES, compared, write_records
from helpers import tiny_model
from hub_card_rules import problems
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

import lma_hf
from lma_hf.errors import PushRefusedError
from lma_hf.hub.card import build_card
from lma_hf.hub.comparison import ComparedModel
from lma_hf.hub.curves import CURVES


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "my-student"
    model = tiny_model("bert", num_layers=2)
    lma_hf.swap_activations_(model, lma_hf.LMAConfig(per_channel=True))
    model.save_pretrained(folder)
    write_records(folder)
    return folder


@pytest.fixture(scope="module")
def model(model_dir):
    return AutoModelForSequenceClassification.from_pretrained(model_dir)


@pytest.fixture
def folder(model_dir):
    """The folder as it was made, whatever a test does with its records."""
    yield model_dir
    write_records(model_dir)
    for name in (CURVES, "model.onnx"):
        (model_dir / name).unlink(missing_ok=True)


@pytest.fixture
def card(folder, model):
    teacher = ComparedModel("teacher", None, {None: SCORES}, 4, 2_345_678, 9.5, {1: 2.5, 32: 33.0})
    return build_card(folder, model=model, comparison=compared(teacher=teacher), provenance=KNOWN)


def test_losses_are_told_with_their_stages_and_schedules(folder, model):
    losses = {"attention_loss_weight": 0.5, "feature_stage": 0.6, "schedules": ["temperature=linear:4:1"]}
    write_records(folder, CONFIG | losses)
    text = build_card(folder, model=model, comparison=compared(), provenance=KNOWN).content
    assert "0.5 x difference of attention, in two stages (60% of the run on" in text
    assert "with temperature=linear:4:1 over the run." in text


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"group_size": None, "noise_rate": 1.0}, "with a scale for each row; in training all of them were rounded"),
        (
            {"group_size": 64, "noise_rate": 0.5},
            "a scale for 64 of them; in training a random 50% of them (Quant-Noise)",
        ),
    ],
)
def test_quantization_is_told(folder, model, record, words):
    write_records(
        folder, results=RESULTS | {"quantization": {"method": "scalar", "bits": 4, "modules": ["a", "b"], **record}}
    )
    text = build_card(folder, model=model, comparison=compared(), provenance=KNOWN).content
    assert "The weights of 2 modules have 4 bits, " in text
    assert words in text


@pytest.mark.parametrize(
    ("noise_rate", "words"), [(0.1, "a random 10% of the weights of 2 modules"), (1, "codebooks were trained")]
)
def test_product_quantization_is_told(folder, model, noise_rate, words):
    record = {"method": "product", "modules": ["a", "b"], "noise_rate": noise_rate}
    write_records(folder, results=RESULTS | {"quantization": record})
    assert words in build_card(folder, model=model, comparison=compared(), provenance=KNOWN).content


def test_compression_is_told(folder, model):
    weights = {"method": "scalar", "bits": 4, "modules": ["a", "b", "c"], "calibration_samples": 256}
    record = {"vocabulary": {"tokens_before": 30522, "tokens_after": 1234}, "weights": weights}
    write_records(folder, results=RESULTS | {"compression": record})
    text = build_card(folder, model=model, comparison=compared(), provenance=KNOWN).content
    assert (
        "Afterwards, with `lma-hf compress`, its vocabulary was cut from 30,522 to 1,234 tokens and the weights of 3 "
        "modules were rounded to 4 bits, for 256 training rows (GPTQ)." in text
    )


def test_compression_before_a_training_is_told(folder, model):
    weights = {"method": "scalar", "bits": 4, "modules": ["a", "b"], "group_size": None, "noise_rate": 1.0}
    cut = {"vocabulary": {"tokens_before": 30522, "tokens_after": 1234}}
    for before, words in [
        ({}, ""),
        (cut, " Before that, with `lma-hf compress`, its vocabulary was cut from 30,522 to 1,234 tokens."),
    ]:
        compression = {"recipe": "qat4", "weights": weights, **before}
        write_records(folder, results=RESULTS | {"quantization": weights, "compression": compression})
        text = build_card(folder, model=model, comparison=compared(), provenance=KNOWN).content
        assert f"in training all of them were rounded at each step.{words} AdamW took" in text


def test_metadata_holds_what_is_known(card):
    data = card.data
    assert (data.license, data.base_model, data.language) == ("apache-2.0", "owner/base", "en")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert (data.datasets, data.tags) == (["nyu-mll/glue"], ["lma_hf", "distillation", "lma"])
    for result, (metric, value) in zip(data.eval_results, SCORES["validation"].items(), strict=True):
        assert (result.dataset_type, result.dataset_config, result.dataset_split) == (
            "nyu-mll/glue",
            "mrpc",
            "validation",
        )
        assert (result.metric_type, result.metric_value) == (metric, value)


def test_card_survives_a_round_trip(card, tmp_path):
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert str(again) == str(card)
    assert again.data.eval_results == card.data.eval_results
    index = eval_results_to_model_index(card.data.model_name, card.data.eval_results)
    assert model_index_to_eval_results(index) == (card.data.model_name, card.data.eval_results)


def test_the_hub_takes_the_card(card, in_process):
    assert problems(str(card)) == []
    card.validate()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("license", "free beer"),
        ("base_model", "/home/someone/model"),
        ("language", "English"),
        ("pipeline_tag", None),
        ("datasets", [3]),
    ],
)
def test_rules_find_wrong_metadata(card, key, value):
    setattr(card.data, key, value)
    assert len(problems(str(card))) == 1


def test_the_client_refuses_a_result_without_a_dataset(card):
    index = card.data.to_dict()["model-index"]
    del index[0]["results"][0]["dataset"]
    metadata = yaml.safe_dump({"model-index": index})
    assert len(problems(f"---\npipeline_tag: text-classification\n{metadata}\n---\n")) == 2
    with pytest.raises(ValueError, match="Invalid `model_index`"):
        ModelCard(f"---\n{metadata}\n---\n")


def test_validation_fails_where_the_hub_finds_no_mapping(card, in_process, monkeypatch):
    monkeypatch.setattr(card.data, "to_yaml", lambda **kwargs: "- a list")
    with pytest.raises(ValueError, match="mapping"):
        card.validate()


def test_no_word_about_this_machine(card, folder):
    for text in ("/home", "someone", str(folder), "/data", "/runs"):
        assert text not in str(card)
    assert "the-teacher" in str(card)


unit = st.floats(0, 1)


@given(accuracy=unit, f1=unit, correlation=st.floats(-1, 1))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_score_is_that_of_the_records(folder, model, accuracy, f1, correlation):
    scores = {
        "validation_matched": {"accuracy": accuracy, "f1": f1},
        "validation_mismatched": {"matthews_correlation": correlation},
    }
    write_records(folder, results=RESULTS | {"metrics": scores})
    comparison = compared({"validation_matched": scores["validation_matched"]})
    with pytest.raises(PushRefusedError, match="other scores"):
        build_card(folder, model=model, comparison=comparison)
    scores["validation_mismatched"]["accuracy"] = accuracy
    write_records(folder, results=RESULTS | {"metrics": scores})
    card = build_card(folder, model=model, comparison=compared(scores))
    assert problems(str(card)) == []
    found = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert found == {(split, name): value for split, each in scores.items() for name, value in each.items()}
    row = next(line for line in card.text.splitlines() if line.startswith("| **student"))
    cells = [cell.strip().partition(" ±")[0] for cell in row.strip("|").split("|")]
    shown = [f"{100 * value:.2f}" for each in scores.values() for value in each.values()]
    assert cells[1:] == ["2", "1,234,567", "4.94", *shown, "1.5", "20.2"]


def test_code_in_the_card_runs(tmp_path, model_dir, tiny_tokenizer, capsys):
    model = AutoModelForSequenceClassification.from_pretrained(model_dir)
    model.resize_token_embeddings(len(tiny_tokenizer))
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    write_records(tmp_path)
    text = build_card(tmp_path, model=model, comparison=compared(), repo_id=str(tmp_path)).text
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    assert ["import lma_hf" in block for block in blocks] == [True, False, False]
    assert ["trust_remote_code=True" in block for block in blocks] == [False, True, True]
    for block in blocks:
        exec(compile(ast.parse(block), "card", "exec"), {})
    assert "score" in capsys.readouterr().out


def test_only_what_is_there_is_mentioned(card, folder, model):
    for word in (CURVES, "ONNX", "folded", "several seeds", "Besides the activation"):
        assert word not in card.text
    (folder / CURVES).write_bytes(b"png")
    (folder / "model.onnx").write_bytes(b"onnx")
    text = build_card(folder, model=model, comparison=compared()).text
    assert f"({CURVES})" in text
    assert "`model.onnx`" in text
    assert "No student with another activation was trained for comparison" in text


def test_unknown_licence_is_said_and_not_invented(folder, model):
    card = build_card(folder, model=model, comparison=compared())
    assert "license" not in card.data.to_dict()
    assert "base_model" not in card.data.to_dict()
    assert "Not known: no model that this one was made from names a licence" in card.text


def test_local_data_of_ones_own_is_no_dataset_of_the_hub(folder, model):
    write_records(
        folder, CONFIG | {"task_name": None, "dataset": "/home/someone/reviews"}, RESULTS | {"task": "reviews"}
    )
    card = build_card(folder, model=model, comparison=compared())
    assert card.data.datasets is None
    assert card.data.language is None
    assert card.data.eval_results[0].dataset_type == "reviews"
    assert problems(str(card)) == []


def test_seeds_and_baseline(folder, model):
    seeds = {
        seed: {"validation": {"accuracy": value, "f1": 0.5}} for seed, value in ((42, 0.80), (7, 0.90), (8, 0.85))
    }
    student = dataclasses.replace(compared().student, runs=seeds)
    others = {seed: {"validation": {"accuracy": value, "f1": 0.5}} for seed, value in ((42, 0.81), (7, 0.87))}
    baseline = ComparedModel("student with GELU", "gelu", others, 2, 1000, 1.0, {1: 1.0, 32: 2.0})
    write_records(folder, results=RESULTS | {"metrics": seeds[42]})
    comparison = compared(student=student, baseline=baseline, baseline_differences={"learning_rate": (1, 2)})
    card = build_card(folder, model=model, comparison=comparison)
    assert "| mean | 85.00 | 84.00 |" in card.text
    assert "| standard deviation | 5.00 | 4.24 |" in card.text
    assert "| 8 | 85.00 | - |" in card.text
    assert "LMA is 1.0 points above GELU" in card.text
    assert "There is no evidence here that LMA and GELU differ" in card.text
    assert "the baseline differs in `learning_rate` (1 here, 2 there)" in card.text
    names = [result.metric_name for result in card.data.eval_results if result.metric_type == "accuracy"]
    assert names == ["Accuracy (seed 42)", "Accuracy (seed 7, other weights)", "Accuracy (seed 8, other weights)"]
    assert problems(str(card)) == []


def test_a_clear_difference_is_called_one(folder, model):
    baseline = ComparedModel(
        "student with GELU", "gelu", {42: {"validation": {"accuracy": 0.5, "f1": 0.5}}}, 2, 1, 1.0
    )
    text = build_card(folder, model=model, comparison=compared(baseline=baseline)).text
    assert "more than twice the standard error" in text
    assert "no evidence" not in text


def test_fine_tuned_teacher(folder):
    plain = tiny_model("roberta", num_layers=2)
    plain.save_pretrained(folder / "teacher")
    results = {key: value for key, value in RESULTS.items() if key not in ("teacher", "layer_map")}
    write_records(folder / "teacher", results=results | {"model": "/home/someone/pretrained"})
    student = dataclasses.replace(compared().student, activation=None, name="this model")
    text = build_card(folder / "teacher", model=plain, comparison=compared(student=student)).text
    assert "Fine-tuned from `pretrained`" in text
    assert "It is a plain `transformers` model" in text
    assert "LMA" not in text
    assert "trust_remote_code" not in text


@pytest.mark.parametrize("name", ["results.json", "run_config.yaml", "environment.json"])
@pytest.mark.parametrize("content", [None, "{", "", "3"])
def test_missing_or_broken_records_are_refused(folder, model, name, content):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(PushRefusedError, match=f"{name} of the run cannot be read") as error:
        build_card(folder, model=model, comparison=compared())
    assert "\n" not in str(error.value)


def test_results_of_something_else_are_refused(folder, model):
    write_records(folder, results={"task": "mrpc", "metrics": SCORES})
    with pytest.raises(PushRefusedError, match=r"results.json of the run has no training; push the output_dir"):
        build_card(folder, model=model, comparison=compared())


def test_correlation_in_prose_and_table(folder, model):
    scores = {"validation": {"pearson": 0.6342, "spearmanr": 0.5}}
    write_records(folder, CONFIG | {"task_name": "stsb"}, RESULTS | {"task": "stsb", "metrics": scores})
    comparison = dataclasses.replace(compared(scores), best_metric="pearson")
    card = build_card(folder, model=model, comparison=comparison)
    assert "Its Pearson correlation is 0.634 on the 408 rows" in card.text
    assert "| Pearson correlation x 100 | Spearman correlation x 100 |" in card.text
    assert "±" not in card.text.partition("## What")[0].partition("## How")[0]
    assert [result.metric_type for result in card.data.eval_results] == ["pearsonr", "spearmanr"]
