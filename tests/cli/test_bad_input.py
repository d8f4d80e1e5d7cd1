"""Bad input: one line that names culprit and remedy, the right exit code, nothing overwritten."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CanineConfig,
    CanineModel,
    CanineTokenizer,
)

from lma_hf.cli.__main__ import main
from lma_hf.cli.teachers import check_scores, majority_scores
from lma_hf.data.glue import get_task
from lma_hf.data.metrics import compute_metrics
from lma_hf.errors import DataError

CANINE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_hash_buckets": 64,
    "local_transformer_stride": 16,
}


@pytest.fixture
def fails(tmp_path, capsys, data_flags, teacher_dir):
    """Run `distill` with changed flags, check the exit code, and return the one line it prints."""

    def run(*flags, code=2, verb="distill", base=None):
        base = base or [*data_flags, "--teacher", str(teacher_dir), "--output_dir", str(tmp_path / "student")]
        capsys.readouterr()
        assert main([verb, *base, *flags]) == code
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lma-hf: error: ")]
        assert len(errors) == 1
        return errors[0]

    return run


def rows(folder, train, validation=None):
    folder.mkdir()
    good = [{"text": "good", "label": "fresh"}, {"text": "bad", "label": "rotten"}]
    for split, content in (("train", train), ("validation", good if validation is None else validation)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(folder)


def test_missing_folder(fails, tmp_path):
    assert "nowhere" in fails("--dataset", str(tmp_path / "nowhere"))
    assert "--teacher" not in fails("--teacher", str(tmp_path / "no-teacher"))
    assert "no-teacher" in fails("--teacher", str(tmp_path / "no-teacher"))
    assert not (tmp_path / "student").exists()


def test_wrong_column(fails):
    message = fails("--text_columns", "txt")
    assert "txt" in message
    assert "text" in message


def test_split_that_is_trained_on_and_scored(fails):
    message = fails("--validation_split", "train")
    assert "train_split 'train' is the validation split too" in message
    assert "no better than" not in message


def test_label_outside_the_range(fails, tmp_path):
    data = rows(
        tmp_path / "data", [{"text": "good", "label": 7}, {"text": "bad", "label": 0}], [{"text": "a", "label": 1}]
    )
    message = fails("--dataset", data, "--label_names", "rotten", "fresh")
    assert "7" in message


def test_empty_split(fails, tmp_path):
    data = rows(tmp_path / "data", [{"text": "good", "label": "fresh"}, {"text": "bad", "label": "rotten"}], [])
    assert "validation" in fails("--dataset", data)


def test_unknown_task_activation_key_and_verb(fails, tmp_path, capsys):
    output = ["--teacher", "t", "--output_dir", str(tmp_path / "student")]
    assert "sst2" in fails("--task_name", "sst-2", base=output)
    assert "gelu" in fails("--activation", "gleu")
    assert "--learning_rate" in fails("--learning_rte", "1")
    (tmp_path / "run.yaml").write_text("num_layer: 3\n")
    assert "num_layers" in fails(base=[str(tmp_path / "run.yaml")])
    assert "distill" in fails(verb="distil")
    assert main([]) == 2
    assert "usage" in capsys.readouterr().out


def test_teacher_with_other_labels(fails, tmp_path, teacher_dir):
    teacher = AutoModelForSequenceClassification.from_pretrained(teacher_dir)
    teacher.config.id2label, teacher.config.label2id = {0: "cat", 1: "dog"}, {"cat": 0, "dog": 1}
    teacher.save_pretrained(tmp_path / "pets")
    AutoTokenizer.from_pretrained(teacher_dir).save_pretrained(tmp_path / "pets")
    message = fails("--teacher", str(tmp_path / "pets"))
    assert message.count("'cat', 'dog'") == 2
    assert "'fresh', 'rotten'" in message


def test_teacher_with_labels_in_another_order_is_aligned_by_name(tmp_path, data_flags, teacher_dir):
    teacher = AutoModelForSequenceClassification.from_pretrained(teacher_dir)
    names = [teacher.config.id2label[1], teacher.config.id2label[0]]
    teacher.config.id2label = dict(enumerate(names))
    teacher.config.label2id = {name: index for index, name in enumerate(names)}
    teacher.classifier.weight.data = teacher.classifier.weight.data.flip(0)
    teacher.classifier.bias.data = teacher.classifier.bias.data.flip(0)
    teacher.save_pretrained(tmp_path / "flipped")
    AutoTokenizer.from_pretrained(teacher_dir).save_pretrained(tmp_path / "flipped")
    flags = ["--num_layers", "2", "--max_steps", "12", "--learning_rate", "1e-3"]
    for name, folder in (("plain", teacher_dir), ("flipped-student", tmp_path / "flipped")):
        output = ["--teacher", str(folder), "--output_dir", str(tmp_path / name)]
        assert main(["distill", *data_flags, *output, *flags]) == 0
    scores = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("plain", "flipped-student")]
    assert scores[0]["teacher"]["metrics"] == scores[1]["teacher"]["metrics"]
    assert scores[0]["metrics"]["validation"] == pytest.approx(scores[1]["metrics"]["validation"], abs=0.02)


def test_teacher_with_swapped_labels_stops_the_run(fails, tmp_path, data_flags, teacher_dir):
    teacher = AutoModelForSequenceClassification.from_pretrained(teacher_dir)
    teacher.classifier.weight.data = -teacher.classifier.weight.data
    teacher.classifier.bias.data = -teacher.classifier.bias.data
    teacher.save_pretrained(tmp_path / "swapped")
    AutoTokenizer.from_pretrained(teacher_dir).save_pretrained(tmp_path / "swapped")
    message = fails("--teacher", str(tmp_path / "swapped"))
    assert "most common class" in message
    assert "--allow_weak_teacher" in message
    flags = ["--teacher", str(tmp_path / "swapped"), "--output_dir", str(tmp_path / "student"), "--max_steps", "1"]
    assert main(["distill", *data_flags, *flags, "--allow_weak_teacher", "true"]) == 0


def test_nan_loss_fails_the_run_with_exit_code_1(fails):
    message = fails("--learning_rate", "1e30", "--max_grad_norm", "0", "--max_steps", "30", code=1)
    assert re.search(r"loss is (nan|inf) at step \d+", message)
    assert "--learning_rate" in message


def test_output_dir_with_another_run_is_not_touched(fails, tmp_path, data_flags, teacher_dir):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "precious.txt").write_text("keep me")
    assert "--overwrite_output_dir" in fails()
    assert [file.name for file in folder.iterdir()] == ["precious.txt"]
    (folder / "results.json").write_text("{}")
    # other misuse is found before the folder is claimed, also when it may be overwritten
    assert "1 to 4" in fails("--num_layers", "9", "--overwrite_output_dir", "true")
    assert (folder / "precious.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        (["--num_layers", "9"], "1 to 4"),
        (["--layer_map", "0", "9", "--num_layers", "2"], "0 to 3"),
        (["--intermediate_size", "65"], "64"),
        (["--hidden_size", "30", "--num_attention_heads", "4"], "allowed for it are 1, 2, 3, 5, 6"),
        (["--num_segments", "1"], "2 to 64"),
        (["--temperature", "0"], "temperature"),
        (["--distill_loss_weight", "-1"], "distill_loss_weight"),
        (["--max_length", "4"], "max_length"),
        (["--mixed_precision", "fp8"], "bf16"),
        (["--report_to", "nothing"], "nothing"),
    ],
)
def test_values_that_are_not_allowed(fails, tmp_path, flags, culprit):
    assert culprit in fails(*flags)
    assert not (tmp_path / "student").exists()


def test_more_values_that_are_not_allowed(fails, tmp_path, teacher_dir):
    assert "2147483647" in fails("--seed", "-1")
    assert "at most 64" in fails("--max_length", "100")
    broken = tmp_path / "broken"
    shutil.copytree(teacher_dir, broken)
    (broken / "model.safetensors").write_bytes(b"not a model")
    assert "broken" in fails("--teacher", str(broken))


def test_overwriting_never_takes_the_inputs_or_a_folder_without_a_run(fails, tmp_path, teacher_dir, data_flags):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "letter.txt").write_text("not a run")
    assert "no run" in fails("--overwrite_output_dir", "true")
    overwrite = ["--output_dir", str(teacher_dir), "--overwrite_output_dir", "true"]
    assert "which this run needs" in fails(*overwrite)
    assert (teacher_dir / "model.safetensors").is_file()


@pytest.mark.parametrize("option", ["student_name_or_path", "extra_teachers", "unlabelled_dataset"])
def test_overwriting_never_takes_what_else_is_read(fails, tmp_path, monkeypatch, option):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "student" / "input").mkdir(parents=True)
    (tmp_path / "student" / "results.json").write_text("{}")
    message = fails(f"--{option}", "~/student/input", "--overwrite_output_dir", "true")
    assert f"holds {tmp_path / 'student' / 'input'}, which this run needs" in message
    assert (tmp_path / "student" / "input").is_dir()


def test_teacher_without_a_trained_head_is_refused(fails, pretrained_dir):
    assert f"teacher {str(pretrained_dir)!r} lacks 2 weights (classifier.bias" in fails(
        "--teacher", str(pretrained_dir)
    )
    message = fails("--extra_teachers", str(pretrained_dir))
    assert f"extra teacher 1 {str(pretrained_dir)!r} lacks 2 weights" in message


def test_evaluation_file_is_not_replaced(fails, data_flags, teacher_dir):
    base = [*data_flags, "--model_dir", str(teacher_dir), "--output_file"]
    assert "exists" in fails(str(teacher_dir / "config.json"), verb="evaluate", base=base)
    assert "create" in fails(str(teacher_dir / "no" / "scores.json"), verb="evaluate", base=base)


def test_model_without_one_table_of_embeddings_to_freeze(fails, tmp_path, data_flags):
    CanineModel(CanineConfig(**CANINE)).save_pretrained(tmp_path / "canine")
    CanineTokenizer().save_pretrained(tmp_path / "canine")
    base = [*data_flags, "--model_name_or_path", str(tmp_path / "canine"), "--output_dir", str(tmp_path / "teacher")]
    message = fails("--freeze_embeddings", "true", verb="teach", base=base)
    assert "CanineForSequenceClassification has no one table of word embeddings" in message
    assert not (tmp_path / "teacher").exists()


def test_nan_that_shows_at_an_evaluation_fails_the_run(fails):
    flags = ["--learning_rate", "1e38", "--eval_steps", "1", "--warmup_ratio", "0", "--max_grad_norm", "0"]
    assert "--learning_rate" in fails(*flags, "--max_steps", "9", code=1)


def test_swapped_labels_are_noticed_where_f1_selects():
    # on QQP always answering "not_duplicate" has an F1 of 0, which any teacher beats
    task = get_task("qqp")
    labels = np.array([0] * 60 + [1] * 40)
    swapped = np.eye(2)[1 - labels]
    assert majority_scores(task, labels) == {"accuracy": 0.6, "f1": 0.0}
    scores = compute_metrics(task, np.concatenate([swapped[:80], np.eye(2)[labels[80:]]]), labels)
    assert scores["f1"] > 0.3

    config = SimpleNamespace(allow_weak_teacher=False)
    with pytest.raises(DataError, match=r"accuracy 0\.2000"):
        check_scores(
            {"validation": scores}, SimpleNamespace(task=task), {"validation": {"labels": labels}}, config, "x"
        )
