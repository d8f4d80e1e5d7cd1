"""The card of real runs: what they are compared with, where its numbers come from, and what is not compared."""

import json

import pytest
from transformers import AutoModelForSequenceClassification

from lma_hf.cli.__main__ import main
from lma_hf.cli.card import write_card
from lma_hf.cli.card_rows import compare_run
from lma_hf.errors import ConfigError, DataError
from lma_hf.hub.stage import stage


@pytest.fixture(scope="module")
def distill(tmp_path_factory, teacher_dir, data_flags):
    """Distil into a folder with some flags that differ."""

    def run(name, *flags):
        folder = tmp_path_factory.mktemp("runs") / name
        common = ["--teacher", str(teacher_dir), "--output_dir", str(folder), "--max_steps", "4", "--num_layers", "2"]
        assert main(["distill", *data_flags, *common, *flags]) == 0
        return folder

    return run


@pytest.fixture(scope="module")
def student_dir(distill):
    return distill("student-lma")


@pytest.fixture(scope="module")
def other_seed_dir(distill):
    return distill("student-lma-7", "--seed", "7", "--save_minutes", "5")


@pytest.fixture(scope="module")
def baseline_dir(distill, tmp_path_factory):
    cache = ["--teacher_cache", str(tmp_path_factory.mktemp("secret"))]
    return distill("student-gelu", "--activation", "gelu", "--learning_rate", "1e-4", *cache)


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def comparison(student_dir, other_seed_dir, baseline_dir):
    return compare_run(student_dir, baselines=[baseline_dir], other_seeds=[other_seed_dir])


def test_rows_are_those_of_the_records(comparison, student_dir, other_seed_dir, baseline_dir, teacher_dir):
    results = results_of(student_dir)
    assert comparison.student.runs == {42: results["metrics"], 7: results_of(other_seed_dir)["metrics"]}
    assert comparison.baseline.runs == {42: results_of(baseline_dir)["metrics"]}
    assert comparison.teacher.scores == results["teacher"]["metrics"]
    for row, folder in ((comparison.student, student_dir), (comparison.baseline, baseline_dir)):
        recorded = results_of(folder)
        assert (row.num_layers, row.num_parameters, row.size_mb) == (
            2,
            recorded["num_parameters"],
            recorded["size_mb"],
        )
    teacher = results_of(teacher_dir)
    assert (comparison.teacher.num_parameters, comparison.teacher.size_mb) == (
        teacher["num_parameters"],
        teacher["size_mb"],
    )
    assert [model.name for model in comparison.models] == ["teacher", "student with GELU", "student with LMA"]
    assert comparison.baseline_differences == {"learning_rate": (0.0003, 0.0001)}


def test_latency_is_measured_for_all_and_rows_are_counted(comparison):
    assert all(set(model.latency_ms) == {1, 32} for model in comparison.models)
    assert all(value > 0 for model in comparison.models for value in model.latency_ms.values())
    assert comparison.num_examples == {"validation": 60}
    assert 2 < comparison.mean_tokens < 32
    assert comparison.environment["cuda_device"] is None


def test_without_latency_no_data_is_needed(student_dir):
    comparison = compare_run(student_dir, dataset="/nowhere", with_latency=False)
    assert comparison.student.latency_ms == comparison.num_examples == {}
    with pytest.raises(DataError, match="/nowhere"):
        compare_run(student_dir, dataset="/nowhere")


def test_teacher_that_is_gone_still_has_its_scores(student_dir, tmp_path, teacher_dir):
    results = results_of(student_dir)
    copy = tmp_path / "student"
    copy.mkdir()
    for file in student_dir.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "results.json").write_text(
        json.dumps(results | {"teacher": results["teacher"] | {"name": "/gone/teacher"}})
    )
    teacher = compare_run(copy, with_latency=False).teacher
    assert (teacher.scores, teacher.num_layers, teacher.size_mb) == (results["teacher"]["metrics"], None, None)
    assert compare_run(copy, teacher=str(teacher_dir), with_latency=False).teacher.num_layers == 4


def test_runs_that_do_not_compare(student_dir, other_seed_dir, baseline_dir, distill, tmp_path):
    shorter = distill("shorter", "--seed", "8", "--max_length", "16", "--max_eval_samples", "30")
    cases = {
        r"max_length is 16 there and 32 here": {"other_seeds": [shorter]},
        r"has the seed 42": {"other_seeds": [student_dir]},
        r"learning_rate is 0.0001 there and 0.0003 here": {"other_seeds": [baseline_dir]},
        r"is no baseline of .*activation is 'lma' there": {"baselines": [other_seed_dir]},
        r"is no baseline of .*max_eval_samples is 30 there": {"baselines": [shorter]},
        r"results.json cannot be read: No such file": {"baselines": [tmp_path]},
    }
    for message, arguments in cases.items():
        with pytest.raises(ConfigError, match=message) as error:
            compare_run(student_dir, with_latency=False, **arguments)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("verb", ["distill", "teach"])
def test_card_of_a_staged_run(verb, student_dir, teacher_dir, baseline_dir, pretrained_dir, tmp_path):
    model_dir = student_dir if verb == "distill" else teacher_dir
    model, _ = stage(model_dir, tmp_path)
    baselines = [baseline_dir] if verb == "distill" else []
    card = write_card(tmp_path, model, model_dir=model_dir, repo_id="me/tiny", license="mit", baselines=baselines)
    assert (tmp_path / "README.md").read_text() == str(card)
    assert (tmp_path / "activation_curves.png").is_file() == (verb == "distill")
    results = results_of(model_dir)
    accuracy = results["metrics"]["validation"]["accuracy"]
    assert card.data.eval_results[0].metric_value == accuracy
    for expected in (f"{100 * accuracy:.2f}", f"{results['num_parameters']:,}", f"{results['size_mb']:.2f}"):
        assert expected in card.text
    for folder in (model_dir, teacher_dir, pretrained_dir):
        assert str(folder) not in str(card)
        assert str(folder.parent) not in str(card)
    AutoModelForSequenceClassification.from_pretrained(tmp_path)
