"""The commands end to end, in process, on a tiny model."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import lma_hf
from lma_hf.cli.__main__ import main
from lma_hf.cli.run import TrainingRun
from lma_hf.modeling.modeling_lma import learnable_activations
from lma_hf.training.config import DistillConfig, TeachConfig

DISTILL = ["--num_layers", "2", "--num_train_epochs", "2", "--learning_rate", "2e-3"]
DISTILL += ["--per_device_train_batch_size", "16", "--calibration_batches", "2"]


def read_results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def read_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def distill(data_flags, teacher_dir, folder, *flags):
    code = main(["distill", *data_flags, "--teacher", str(teacher_dir), "--output_dir", str(folder), *DISTILL, *flags])
    assert code == 0
    return read_results(folder)


def test_teacher_learns_and_leaves_its_records(teacher_dir):
    results = read_results(teacher_dir)
    assert results["metrics"]["validation"]["accuracy"] >= 0.95
    assert results["training"]["num_steps"] == 80
    config = yaml.safe_load((teacher_dir / "run_config.yaml").read_text())
    assert config["learning_rate"] == 2e-3
    assert (teacher_dir / "run_config.yaml").read_text().startswith("# lma-hf teach ")
    assert json.loads((teacher_dir / "environment.json").read_text())["versions"]["torch"] == torch.__version__
    evaluations = [
        line["evaluation"]["validation"]["accuracy"] for line in read_metrics(teacher_dir) if "evaluation" in line
    ]
    assert len(evaluations) == 4
    assert results["training"]["best_score"] == max(evaluations)


@pytest.mark.parametrize("activation", ["lma", "gelu", "gelu_affine", "relu", "prelu", "swish", "aplu"])
def test_every_activation_distils_down_the_same_path(tmp_path, data_flags, teacher_dir, activation):
    results = distill(data_flags, teacher_dir, tmp_path / "student", "--activation", activation)
    assert results["metrics"]["validation"]["accuracy"] >= 0.9
    assert results["layer_map"] == [1, 3]
    assert results["activation"]["name"] == activation
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert student.config.num_hidden_layers == 2
    assert set(student.config.id2label.values()) == {"fresh", "rotten"}
    assert len(learnable_activations(student)) == (0 if activation in ("gelu", "relu") else 2)


def test_saved_student_scores_what_the_run_reported(tmp_path, data_flags, teacher_dir, capsys):
    results = distill(data_flags, teacher_dir, tmp_path / "student")
    output = tmp_path / "scores.json"
    flags = ["--model_dir", str(tmp_path / "student"), "--output_file", str(output)]
    assert main(["evaluate", *data_flags, *flags]) == 0
    assert json.loads(output.read_text()) == results["metrics"]
    assert "accuracy" in capsys.readouterr().out


def test_best_model_is_kept_rather_than_the_last(tmp_path, data_flags, teacher_dir):
    # a copy of the teacher, which the warm-up's first step (rate 0) leaves alone and the later ones ruin
    flags = ["--activation", "gelu", "--num_layers", "4", "--learning_rate", "1", "--max_grad_norm", "0"]
    flags += ["--eval_steps", "1", "--max_steps", "6", "--warmup_ratio", "0.5"]
    results = distill(data_flags, teacher_dir, tmp_path / "student", *flags)
    scores = [
        line["evaluation"]["validation"]["accuracy"]
        for line in read_metrics(tmp_path / "student")
        if "evaluation" in line
    ]
    assert scores[-1] < max(scores)
    assert results["training"]["best_step"] == scores.index(max(scores)) + 1
    found = lma_hf.evaluate(tmp_path / "student", dataset=data_flags[1], text_columns=["text"], max_length=32)
    assert found["validation"]["accuracy"] == max(scores)


def test_runs_with_the_same_seed_are_bit_equal(tmp_path, data_flags, teacher_dir):
    for name in ("a", "b"):
        distill(data_flags, teacher_dir, tmp_path / name)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    distill(data_flags, teacher_dir, tmp_path / "c", "--seed", "7")
    third = load_file(tmp_path / "c" / "model.safetensors")
    assert not all(torch.equal(first[key], third[key]) for key in first)


def test_narrow_student_learns_hidden_states_through_projections_that_are_not_saved(tmp_path, data_flags, teacher_dir):
    flags = [
        "--hidden_size",
        "16",
        "--num_attention_heads",
        "2",
        "--hidden_loss_weight",
        "0.5",
        "--allow_weak_teacher",
    ]
    distill(data_flags, teacher_dir, tmp_path / "student", *flags, "true")
    losses = [line["hidden_loss"] for line in read_metrics(tmp_path / "student") if "hidden_loss" in line]
    assert losses[-1] < losses[0]
    assert not any("projection" in name for name in load_file(tmp_path / "student" / "model.safetensors"))


def test_yaml_file_first_and_flags_override(tmp_path, data_flags, data_dir, teacher_dir):
    file = tmp_path / "run.yaml"
    values = {"dataset": str(data_dir), "text_columns": ["text"], "max_length": 32, "teacher": str(teacher_dir)}
    values |= {"output_dir": str(tmp_path / "from-file"), "num_layers": 1, "max_steps": 2, "layer_map": ["3"]}
    file.write_text(yaml.safe_dump(values))
    assert main(["distill", str(file), "--max_steps", "3", "--output_dir", str(tmp_path / "student")]) == 0
    assert read_results(tmp_path / "student")["training"]["num_steps"] == 3
    assert read_results(tmp_path / "student")["layer_map"] == [3]
    assert not (tmp_path / "from-file").exists()
    assert (
        main(["distill", str(tmp_path / "student" / "run_config.yaml"), "--output_dir", str(tmp_path / "again")]) == 0
    )
    assert read_results(tmp_path / "again")["metrics"] == read_results(tmp_path / "student")["metrics"]


def test_library_call_and_mixed_precision(tmp_path, data_dir, teacher_dir):
    config = DistillConfig(
        dataset=str(data_dir),
        text_columns=["text"],
        max_length=32,
        teacher=str(teacher_dir),
        output_dir=str(tmp_path / "student"),
        num_layers=2,
        num_train_epochs=1,
        gradient_checkpointing=True,
        lr_scheduler_type="cosine",
    )
    results = lma_hf.distill(config)
    assert results == read_results(tmp_path / "student")
    assert 0 < results["calibration"]["label_agreement"] <= 1


@pytest.mark.parametrize("train", ["activations", "activations+head"])
def test_activations_alone_train_and_leave_a_delta(tmp_path, data_flags, teacher_dir, train):
    flags = ["--train", train, "--activation_learning_rate", "1e-2", "--per_channel", "false"]
    results = distill(data_flags, teacher_dir, tmp_path / "student", *flags)
    assert results["num_trained_parameters"] == 2 * 2 * 8 + (2 * 32 + 2 if train == "activations+head" else 0)
    teacher = AutoModelForSequenceClassification.from_pretrained(teacher_dir)
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").state_dict()
    base = lma_hf.build_student(teacher, 2, activation=None)
    loaded = lma_hf.load_delta_(base, tmp_path / "student" / "delta").state_dict()
    assert set(loaded) == set(student)
    assert all(torch.equal(loaded[name], student[name]) for name in student)
    assert json.loads((tmp_path / "student" / "delta" / "delta.json").read_text())["base_model"] == str(teacher_dir)
    # a swapped model can be taught the same way
    flags = ["--model_name_or_path", str(tmp_path / "student"), "--output_dir", str(tmp_path / "taught")]
    assert main(["teach", *data_flags, *flags, "--train", train, "--max_steps", "2"]) == 0
    taught = load_file(tmp_path / "taught" / "model.safetensors")
    assert {name for name in taught if not torch.equal(taught[name], student[name])} >= {
        name for name in taught if name.endswith("slope")
    }
    lma_hf.load_delta_(base, tmp_path / "taught" / "delta")


def test_activations_alone_need_some_and_weights_to_stand_on(tmp_path, data_flags, teacher_dir, capsys):
    common = ["distill", *data_flags, "--teacher", str(teacher_dir), "--output_dir", str(tmp_path / "student")]
    assert main([*common, "--num_layers", "2", "--train", "activations", "--activation", "gelu"]) == 2
    assert "holds no learnable activation" in capsys.readouterr().err
    flags = ["--train", "activations", "--hidden_size", "16", "--num_attention_heads", "2"]
    assert main([*common, *flags]) == 2
    assert "would stay random" in capsys.readouterr().err
    assert main([*common, "--freeze_embeddings", "true", "--hidden_size", "16"]) == 2
    assert "freeze_embeddings is true, but a student with its own hidden_size" in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("verb", ["teach", "distill"])
@pytest.mark.parametrize("head", ["none", "of three labels"])
def test_a_fresh_head_has_to_train(tmp_path, data_flags, teacher_dir, pretrained_dir, verb, head, capsys):
    pretrained = str(pretrained_dir)
    if head == "of three labels":
        pretrained = str(shutil.copytree(pretrained_dir, tmp_path / "pretrained"))
        AutoModelForSequenceClassification.from_pretrained(pretrained, num_labels=3).save_pretrained(pretrained)
    models = {
        "teach": ["--model_name_or_path", pretrained],
        "distill": ["--teacher", str(teacher_dir), "--student_name_or_path", pretrained],
    }[verb]
    command = [verb, *data_flags, *models, "--output_dir", str(tmp_path / "run"), "--train", "activations+bias"]
    assert main(command) == 2
    what = {
        "none": "lacks 2 weights (classifier.bias, classifier.weight)",
        "of three labels": "has classifier.bias of shape [3], asked for is [2]",
    }[head]
    advice = "train activations+bias leaves a fresh head random, take activations+head"
    assert f"{what}; {advice}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_tracker_receives_losses_and_scores(tmp_path, data_flags, teacher_dir):
    pytest.importorskip("tensorboard", reason="the trackers extra is not installed")
    distill(data_flags, teacher_dir, tmp_path / "student", "--report_to", "tensorboard")
    assert list((tmp_path / "student").rglob("events.out.tfevents.*"))


def test_records_of_trackers_go_into_the_folder_that_home_stands_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = TeachConfig(task_name="sst2", output_dir="~/run", model_name_or_path="unused")
    run = TrainingRun(config, "teach", config.model_name_or_path)
    assert run.accelerator.project_dir == str(run.output_dir) == str(tmp_path / "run")


def test_early_stopping(tmp_path, data_flags, teacher_dir):
    flags = ["--learning_rate", "0", "--activation_learning_rate", "0", "--num_train_epochs", "9"]
    results = distill(data_flags, teacher_dir, tmp_path / "student", *flags, "--early_stopping_patience", "2")
    assert results["training"]["num_steps"] == 60
    assert results["training"]["best_step"] == 20
