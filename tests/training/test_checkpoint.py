import json

import pytest
import torch
from helpers import HEADS, NoTokenizer, logits_of, padded_batch, tiny_model

from lma_hf import swap_activations_
from lma_hf.errors import OutputDirError
from lma_hf.training.checkpoint import append_json_line, check_output_dir, claim_output_dir, save_model, write_json


def fill(folder):
    (folder / "sub").mkdir(parents=True)
    (folder / "results.json").write_text("{}")


def test_folder_of_another_run_is_guarded(tmp_path):
    fill(tmp_path / "run")
    with pytest.raises(OutputDirError, match=r"run holds another run \(results\.json .*--overwrite_output_dir"):
        check_output_dir(tmp_path / "run", overwrite=False)
    assert (tmp_path / "run" / "results.json").is_file()
    check_output_dir(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.mark.parametrize(
    ("ways", "advice"),
    [
        ({}, "choose another folder or pass --overwrite_output_dir true"),
        ({"overwritable": False}, "choose another folder"),
        (
            {"resumable": True},
            "choose another folder, pass --resume true to go on with it or pass --overwrite_output_dir true",
        ),
        ({"resumable": True, "overwritable": False}, "choose another folder or pass --resume true to go on with it"),
    ],
)
def test_only_ways_out_that_a_command_has_are_named(tmp_path, ways, advice):
    (tmp_path / "run_config.yaml").touch()
    with pytest.raises(OutputDirError) as refused:
        check_output_dir(tmp_path, overwrite=False, **ways)
    assert str(refused.value).endswith(f"...); {advice}")


@pytest.mark.parametrize("overwrite", [False, True])
def test_file_is_no_output_dir(tmp_path, overwrite):
    (tmp_path / "file").touch()
    with pytest.raises(OutputDirError, match="is a file"):
        check_output_dir(tmp_path / "file", overwrite)


def test_claimed_folder_is_empty(tmp_path):
    fill(tmp_path / "full")
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "full", tmp_path / "empty", tmp_path / "new" / "deep"):
        check_output_dir(folder, overwrite=folder.name == "full")
        claim_output_dir(folder)
        assert list(folder.iterdir()) == []


def test_saved_model_is_whole_and_replaces_the_old_one(tmp_path, tiny_tokenizer):
    model = tiny_model()
    swap_activations_(model)
    batch = padded_batch(model, [7, 4])
    for seed in (0, 1):
        model.classifier.weight.data.normal_(generator=torch.Generator().manual_seed(seed))
        save_model(model, tiny_tokenizer, tmp_path)
        loaded = HEADS["classification"].from_pretrained(tmp_path).eval()
        assert torch.equal(logits_of(loaded, batch), logits_of(model, batch))
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]
    assert type(tiny_tokenizer).from_pretrained(tmp_path).get_vocab() == tiny_tokenizer.get_vocab()


@pytest.mark.parametrize("victim", ["model", "tokenizer"])
def test_failure_while_saving_leaves_the_old_model(tmp_path, monkeypatch, victim):
    model, tokenizer = tiny_model(), NoTokenizer()
    batch = padded_batch(model, [7, 4])
    save_model(model, tokenizer, tmp_path)
    expected, files = logits_of(model, batch), sorted(tmp_path.iterdir())
    save_pretrained = type(model).save_pretrained

    def fail(folder):
        if victim == "model":
            save_pretrained(model, folder)
        raise OSError("disk full")

    model.classifier.weight.data += 1
    monkeypatch.setattr({"model": model, "tokenizer": tokenizer}[victim], "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, tokenizer, tmp_path)
    assert sorted(tmp_path.iterdir()) == files
    loaded = HEADS["classification"].from_pretrained(tmp_path).eval()
    assert torch.equal(logits_of(loaded, batch), expected)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    write_json({"score": 0.5, "name": "é"}, path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json({"score": 0.7, "name": object()}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"score": 0.5, "name": "é"}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_json_lines_are_appended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "text": "a\nb"} for step in range(3)]
    for line in lines:
        append_json_line(line, path)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == lines
