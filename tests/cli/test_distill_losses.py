"""`distill` with several teachers, texts without labels, the FFN warm-up, and what these refuse."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertTokenizerFast

from lma_hf.cli import extra_data
from lma_hf.cli.__main__ import main
from lma_hf.cli.extra_data import add_unlabelled
from lma_hf.data.glue import resolve_task
from lma_hf.errors import DataError
from lma_hf.training.config import DistillConfig

FLAGS = ["--num_layers", "2", "--max_steps", "6", "--logging_steps", "3", "--calibration_batches", "2"]
FLAGS += ["--per_device_train_batch_size", "16", "--learning_rate", "2e-3"]


@pytest.fixture
def distill(tmp_path, data_flags, teacher_dir, capsys):
    """Run `distill`; returns results.json, or where another exit code is expected the error."""

    def run(*flags, code=0, name="student"):
        folder = tmp_path / name
        base = [*data_flags, "--teacher", str(teacher_dir), "--output_dir", str(folder), *FLAGS]
        assert main(["distill", *base, *flags]) == code
        return json.loads((folder / "results.json").read_text()) if code == 0 else capsys.readouterr().err

    return run


@pytest.fixture
def relabelled_dir(tmp_path, teacher_dir):
    """The teacher with its two labels in the other order."""
    folder = tmp_path / "relabelled"
    shutil.copytree(teacher_dir, folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    names = model.config.id2label
    model.config.id2label = {0: names[1], 1: names[0]}
    model.config.label2id = {names[1]: 0, names[0]: 1}
    model.save_pretrained(folder)
    return folder


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["task_loss"], line["distill_loss"]) for line in lines if "loss" in line]


def test_teacher_with_relabelled_copies_of_itself_is_the_teacher(tmp_path, distill, relabelled_dir):
    distill(name="alone")
    results = distill("--extra_teachers", str(relabelled_dir), "--teacher_weights", "1", "3", name="mean")
    assert results["extra_teachers"] == [{"name": str(relabelled_dir), "metrics": results["teacher"]["metrics"]}]
    distill("--extra_teachers", str(relabelled_dir), "--teacher_average", "median", name="median")
    for name in ("mean", "median"):
        for found, expected in zip(losses(tmp_path / name), losses(tmp_path / "alone"), strict=True):
            assert found == pytest.approx(expected, rel=1e-3)


def test_teacher_with_other_labels_or_words_is_refused(tmp_path, distill, teacher_dir, relabelled_dir):
    config = json.loads((relabelled_dir / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "fresh", "1": "stale"}, {"fresh": 0, "stale": 1}
    (relabelled_dir / "config.json").write_text(json.dumps(config))
    assert "stale" in distill("--extra_teachers", str(relabelled_dir), code=2)
    # the weights are in the other order, the names in the teacher's
    shutil.copy(teacher_dir / "config.json", relabelled_dir / "config.json")
    assert "no better than" in distill("--extra_teachers", str(relabelled_dir), code=2)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film"]
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(relabelled_dir)
    assert "another vocabulary" in distill("--extra_teachers", str(relabelled_dir), code=2)
    assert not (tmp_path / "student").exists()


def test_unlabelled_texts_are_distilled_on(tmp_path, distill, relabelled_dir):
    folder = tmp_path / "texts"
    folder.mkdir()
    texts = [{"text": f"the film was {word}"} for word in ("good", "bad", "great", "boring")] * 20
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    results = distill("--unlabelled_dataset", str(folder), name="all")
    assert results["labelled_share"] == 320 / 400
    capped = distill("--unlabelled_dataset", str(folder), "--max_unlabelled_samples", "8", name="capped")
    assert capped["labelled_share"] == 320 / 328
    assert all(0 < task < 3 and distill < 3 for task, distill in losses(tmp_path / "all"))
    # -100 is not moved where dataset and teacher order their labels differently
    distill("--unlabelled_dataset", str(folder), "--teacher", str(relabelled_dir), name="other")
    assert losses(tmp_path / "other")[-1] == pytest.approx(losses(tmp_path / "all")[-1], rel=1e-2)
    sliced = distill("--unlabelled_dataset", str(folder), "--train_split", "train[:50%]", name="sliced")
    assert sliced["labelled_share"] == 160 / 240
    assert "has no split 'train'" in distill("--unlabelled_dataset", str(tmp_path / "all"), code=2)


@pytest.mark.parametrize(("source", "configuration"), [("me/data", "mine"), ("me/texts", None)])
def test_unlabelled_texts_have_the_configuration_of_the_same_dataset_only(monkeypatch, source, configuration):
    calls = []
    monkeypatch.setattr(extra_data, "load_texts", lambda *args, dataset_config: calls.append((args, dataset_config)))
    values = {"dataset": "me/data", "dataset_config": "mine", "text_columns": ["text"], "train_split": "train[:50%]"}
    config = DistillConfig(**values, teacher="unused", output_dir="unused", unlabelled_dataset=source)
    task = resolve_task(config)
    with pytest.raises(DataError, match="has no split 'train' with texts"):
        add_unlabelled({task.train_split: None}, task, config)
    assert calls == [((source, task, "train"), configuration)]


def test_warm_up_is_recorded(distill):
    results = distill("--activation_warmup_steps", "8", "--intermediate_size", "32")
    warmup = results["activation_warmup"]
    assert warmup["num_steps"] == 8
    assert sum(warmup["error_after"]) < sum(warmup["error_before"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer_map", "0", "1", "--replacement_rate", "0.5"], "layer_map uniform"),
        (["--hidden_size", "16", "--num_attention_heads", "2", "--replacement_rate", "0.5"], "drop hidden_size"),
        (["--hidden_size", "16", "--activation_warmup_steps", "2"], "drop hidden_size"),
        (["--num_attention_heads", "2", "--attention_loss_weight", "1"], "use relation_loss_weight"),
        (["--relation_loss_weight", "1", "--relation_heads", "5"], "relation_heads is 5"),
        (["--schedules", "temperature=up:1:2"], "linear:FROM:TO"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line_before_training(tmp_path, distill, flags, message):
    error = distill(*flags, code=2)
    assert message in error
    assert sum(line.startswith("lma-hf: error: ") for line in error.splitlines()) == 1
    assert not (tmp_path / "student").exists()


@pytest.mark.slow
# torch's own, while it compiles
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_training_is_the_same(tmp_path, distill):
    distill("--activation", "lma", name="eager")
    distill("--activation", "lma", "--compile", "true", name="compiled")
    for found, expected in zip(losses(tmp_path / "compiled"), losses(tmp_path / "eager"), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    eager, compiled = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name) for name in ("eager", "compiled")
    )
    assert compiled.state_dict().keys() == eager.state_dict().keys()
