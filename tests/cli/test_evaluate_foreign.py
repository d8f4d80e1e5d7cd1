"""`evaluate` on models that are not ours scores what a loop by hand scores."""

import json

import pytest
import torch
from foreign_models import CONFIGS, SIZES, logits_by_hand, make_pairs, save_foreign_model, tokenizer_for
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, BertModel

import lma_hf
from lma_hf.cli.loading import fit_padding_, max_positions
from lma_hf.errors import ConfigError, LabelMismatchError


def evaluate(model_dir, data_dir, **options):
    options = {"max_length": 24, "per_device_eval_batch_size": 8, "text_columns": ["one", "two"]} | options
    return lma_hf.evaluate(model_dir, dataset=str(data_dir), **options)["validation"]


def label_by_hand(model_dir, data_dir, rename=None):
    """Write rows that carry the model's own answers as labels, so that its accuracy is 1."""
    rows = make_pairs(45)
    names = rename or AutoConfig.from_pretrained(model_dir).id2label
    labels = [names[index] for index in logits_by_hand(model_dir, rows).argmax(-1).tolist()]
    assert len(set(labels)) == 2
    assert min(map(labels.count, labels)) >= 4
    data_dir.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row | {"label": label}) + "\n" for row, label in zip(rows, labels, strict=True)]
    (data_dir / "validation.jsonl").write_text("".join(lines))


@pytest.mark.parametrize("model_type", CONFIGS)
def test_score_is_that_of_a_loop_by_hand(tmp_path, model_type):
    save_foreign_model(model_type, tmp_path / "model")
    label_by_hand(tmp_path / "model", tmp_path / "data")
    assert evaluate(tmp_path / "model", tmp_path / "data")["accuracy"] == 1.0


@pytest.fixture
def bert_dir(tmp_path):
    save_foreign_model("bert", tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def data_dir(tmp_path, bert_dir):
    label_by_hand(bert_dir, tmp_path / "data")
    return tmp_path / "data"


def test_half_precision_and_bin_files(tmp_path, bert_dir):
    weights = {key: value.half() for key, value in load_file(bert_dir / "model.safetensors").items()}
    (bert_dir / "model.safetensors").unlink()
    torch.save(weights, bert_dir / "pytorch_model.bin")
    change_config(bert_dir, dtype="float16")
    label_by_hand(bert_dir, tmp_path / "data")
    assert evaluate(bert_dir, tmp_path / "data")["accuracy"] == 1.0


def test_placeholder_labels_of_a_glue_task_are_matched_by_position(tmp_path, bert_dir, caplog):
    label_by_hand(bert_dir, tmp_path / "data", rename=["negative", "positive"])
    file = tmp_path / "data" / "validation.jsonl"
    file.write_text(file.read_text().replace('"one"', '"sentence"'))
    found = evaluate(bert_dir, tmp_path / "data", task="sst2", text_columns=None)
    assert "assuming that their positions agree" in caplog.text
    # the model was asked about both texts, and sees one here
    assert 0 < found["accuracy"] <= 1


def test_labels_that_cannot_be_matched(tmp_path, bert_dir, data_dir):
    change_config(bert_dir, id2label={"1": "LABEL_0", "2": "LABEL_1"})
    with pytest.raises(LabelMismatchError, match=r"label ids \[1, 2\], allowed are 0 to 1"):
        evaluate(bert_dir, data_dir)
    change_config(bert_dir, id2label={"0": "cat", "1": "dog"})
    label_by_hand(bert_dir, data_dir, rename=["no", "yes"])
    with pytest.raises(LabelMismatchError, match=r"'no', 'yes'.*'cat', 'dog'"):
        evaluate(bert_dir, data_dir)


def test_model_with_another_number_of_labels(tmp_path, bert_dir, data_dir):
    change_config(bert_dir, id2label={"0": "a", "1": "b", "2": "c"})
    with pytest.raises(ConfigError, match=r"classifier.bias of shape \[2\].*\[3\].*id2label"):
        evaluate(bert_dir, data_dir)
    save_foreign_model("bert", tmp_path / "three", num_labels=3)
    with pytest.raises(LabelMismatchError, match="LABEL_2"):
        evaluate(tmp_path / "three", data_dir)


def test_model_without_a_head_is_refused(tmp_path, bert_dir, data_dir):
    BertModel.from_pretrained(bert_dir).save_pretrained(bert_dir)
    with pytest.raises(ConfigError, match=r"lacks 2 weights \(classifier.bias, classifier.weight\).*teach"):
        evaluate(bert_dir, data_dir)


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize("model_type", CONFIGS)
def test_positions_are_those_that_a_model_has(model_type):
    sizes = {"pad_token_id": 0} | CONFIGS[model_type]
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, vocab_size=9, **sizes))
    assert max_positions(model) == (None if model_type in ("t5", "xlnet") else 24)


def test_max_length_leaves_room_for_padding(bert_dir, data_dir):
    with pytest.raises(ConfigError, match="max_length is 25, the model allows at most 24"):
        evaluate(bert_dir, data_dir, max_length=25)
    save_foreign_model("bert", bert_dir, max_position_embeddings=23)
    with pytest.raises(ConfigError, match="max_length is 23, the model allows at most 16"):
        evaluate(bert_dir, data_dir, max_length=23)
    assert evaluate(bert_dir, data_dir, max_length=16)


class TestPadding:
    """`fit_padding_` on a decoder, whose logits stand at the last token that is not padding."""

    def fit(self, tokenizer, pad_token_id=None):
        config = AutoConfig.for_model("llama", **SIZES | CONFIGS["llama"] | {"pad_token_id": pad_token_id})
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
        fit_padding_(tokenizer, model, "model 'm'")
        assert model.config.pad_token_id == tokenizer.pad_token_id
        return tokenizer.pad_token

    def test_end_of_text_stands_in(self):
        assert self.fit(tokenizer_for("llama")) == "[END]"

    def test_config_knows_it(self):
        assert self.fit(tokenizer_for("llama"), pad_token_id=0) == "[PAD]"
        assert self.fit(tokenizer_for("llama"), pad_token_id=-1) == "[END]"

    def test_tokenizer_is_right_where_both_have_one(self):
        tokenizer = tokenizer_for("llama")
        tokenizer.pad_token = "[SEP]"
        assert self.fit(tokenizer, pad_token_id=0) == "[SEP]"

    def test_token_without_an_embedding_is_none(self):
        tokenizer = tokenizer_for("llama")
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        assert self.fit(tokenizer) == "[END]"

    def test_no_token_stands_in_that_ends_every_text(self):
        tokenizer = tokenizer_for("t5")
        tokenizer.pad_token = None
        assert self.fit(tokenizer) == "[UNK]"
        tokenizer.pad_token = tokenizer.unk_token = None
        with pytest.raises(ConfigError, match="'m' has no padding token"):
            self.fit(tokenizer)


CODE = """
from transformers import BertConfig, BertForSequenceClassification
{poison}
class OddConfig(BertConfig):
    model_type = "odd"
class OddModel(BertForSequenceClassification):
    config_class = OddConfig
    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        return super().forward(input_ids, attention_mask, token_type_ids)
"""
AUTO_MAP = {"AutoConfig": "odd.OddConfig", "AutoModelForSequenceClassification": "odd.OddModel"}


def test_code_of_a_model_runs_only_if_it_is_trusted(tmp_path, bert_dir, data_dir, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (bert_dir / "odd.py").write_text(CODE.format(poison=""))
    change_config(bert_dir, model_type="odd", auto_map=AUTO_MAP)
    with pytest.raises(ConfigError, match="trust_remote_code"):
        evaluate(bert_dir, data_dir)
    assert evaluate(bert_dir, data_dir, trust_remote_code=True)["accuracy"] == 1.0


def test_code_of_a_model_that_transformers_knows_is_left_alone(bert_dir, data_dir):
    (bert_dir / "odd.py").write_text(CODE.format(poison="raise RuntimeError"))
    change_config(bert_dir, auto_map=AUTO_MAP)
    assert evaluate(bert_dir, data_dir)["accuracy"] == 1.0
