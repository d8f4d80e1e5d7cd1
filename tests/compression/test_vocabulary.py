import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import logits_of, tiny_model
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    GenerationConfig,
    MobileBertConfig,
    MobileBertForMaskedLM,
    MPNetTokenizerFast,
    PythonBackend,
)

import lma_hf
from lma_hf.compression.vocabulary import trim_vocabulary_, unknown_report
from lma_hf.data.glue import get_task
from lma_hf.data.quickstart import fetch_pretrained
from lma_hf.data.sources import load_splits
from lma_hf.errors import ConfigError, DataError

TEXTS = ["The best film was not boring!", "a story says more than a book", "Children's music, and 10 more things"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
UNSEEN = "worst plot"
WORKER = Path(__file__).with_name("vocabulary_worker.py")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    """Special tokens last, so that a trimming moves them, and two words that were added."""
    words = sorted(tiny_tokenizer.get_vocab(), key=tiny_tokenizer.get_vocab().get, reverse=True)
    tokenizer = BertTokenizerFast(vocab={word: place for place, word in enumerate(words)}, model_max_length=40)
    tokenizer.add_tokens(["jazz-rock"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<speaker>"]})
    return tokenizer


def model_for(tokenizer, architecture="bert", head="classification", **overrides):
    """A tiny model with a few embeddings more than the tokenizer has tokens, as padded tables have."""
    sizes = {"vocab_size": len(tokenizer) + 3, "pad_token_id": tokenizer.pad_token_id}
    return tiny_model(architecture, head, **sizes | overrides)


def encode(tokenizer, texts=TEXTS):
    return tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)


def snapshot(model, tokenizer):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return state, model.config.to_dict(), tokenizer.get_vocab()


def assert_untouched(model, tokenizer, before):
    state, config, vocabulary = before
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert model.config.to_dict() == config
    assert tokenizer.get_vocab() == vocabulary


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "electra"])
def test_answers_to_the_texts_stay_bit_by_bit(tokenizer, architecture):
    named = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": [tokenizer.sep_token_id]}
    model = model_for(tokenizer, architecture, **named)
    before, vocabulary = logits_of(model, encode(tokenizer)), tokenizer.get_vocab()
    trimmed, report = trim_vocabulary_(model, tokenizer, TEXTS)
    assert len(trimmed) < len(tokenizer)
    assert torch.equal(logits_of(model, encode(trimmed)), before)
    table = model.get_input_embeddings()
    assert table.num_embeddings == len(table.weight) == model.config.vocab_size == len(trimmed)
    assert table.padding_idx == model.config.pad_token_id == trimmed.pad_token_id != tokenizer.pad_token_id
    assert (model.config.bos_token_id, model.config.eos_token_id) == (trimmed.cls_token_id, [trimmed.sep_token_id])
    assert tokenizer.get_vocab() == vocabulary
    rows = len(tokenizer) + 3 - len(trimmed)
    assert report.saved_mb == pytest.approx(rows * table.embedding_dim * 4 / 1e6)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "electra"])
@pytest.mark.parametrize("tied", [True, False])
def test_output_layer_over_the_tokens_is_cut_alike(tokenizer, architecture, tied, tmp_path):
    model = model_for(tokenizer, architecture, "masked_lm", tie_word_embeddings=tied)
    before, size = logits_of(model, encode(tokenizer)), model.num_parameters()
    trimmed, report = trim_vocabulary_(model, tokenizer, TEXTS)
    kept = [tokenizer.get_vocab()[token] for token in trimmed.convert_ids_to_tokens(range(len(trimmed)))]
    after = logits_of(model, encode(trimmed))
    torch.testing.assert_close(after, before[..., kept])
    output, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert (output.weight is table.weight) == tied
    assert output.out_features == len(trimmed)
    assert report.saved_mb == pytest.approx((size - model.num_parameters()) * 4 / 1e6)
    assert all(len(tokenizer) + 3 not in parameter.shape for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    assert torch.equal(logits_of(type(model).from_pretrained(tmp_path).eval(), encode(trimmed)), after)


@pytest.mark.parametrize("head", ["classification", "masked_lm"])
def test_positions_that_count_from_the_padding(head):
    tokens = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", "good", "bad", "film"]
    tokenizer = MPNetTokenizerFast(vocab={token: row for row, token in enumerate(tokens)})
    model = model_for(tokenizer, "mpnet", head)
    texts = ["bad", "a bad film"]
    before = model.base_model(**encode(tokenizer, texts))
    trimmed, _ = trim_vocabulary_(model, tokenizer, texts)
    assert list(trimmed.get_vocab()) != tokens
    assert torch.equal(model.base_model(**encode(trimmed, texts))[0], before[0])


def test_positions_that_count_from_a_padding_that_moves(tokenizer):
    model = model_for(tokenizer, "mpnet")
    before = snapshot(model, tokenizer)
    with pytest.raises(ConfigError, match="MPNetEmbeddings builds on the padding's id 1, which trimming would change"):
        trim_vocabulary_(model, tokenizer, TEXTS)
    assert_untouched(model, tokenizer, before)


@pytest.mark.parametrize("kind", [pytest.param("teacher", marks=pytest.mark.extended), "student"])
def test_saved_model_and_tokenizer_answer_alike_in_a_fresh_process(tokenizer, tmp_path, kind):
    model = model_for(tokenizer)
    if kind == "student":
        calibration = {"num_layers": 2, "calibration_batches": [encode(tokenizer)]}
        model = lma_hf.build_student(model, activation=lma_hf.LMAConfig(init="fit", per_channel=True), **calibration)
    before = logits_of(model, encode(tokenizer))
    trimmed, _ = trim_vocabulary_(model, tokenizer, TEXTS)
    model.save_pretrained(tmp_path)
    trimmed.save_pretrained(tmp_path)
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    subprocess.run([sys.executable, WORKER, tmp_path], check=True, capture_output=True)
    results = torch.load(tmp_path / "results.pt")
    assert torch.equal(results["logits"], before)
    assert results["tokenizer"] == type(tokenizer).__name__


def test_config_that_others_hold_too_stays(tokenizer):
    model = model_for(tokenizer)
    config, other = model.config, BertForSequenceClassification(model.config)
    before = config.to_dict()
    trim_vocabulary_(model, tokenizer, TEXTS)
    assert config.to_dict() == other.config.to_dict() == before
    assert model.bert.config is model.config


def test_config_for_generating_is_renumbered(tokenizer):
    model = model_for(tokenizer)
    model.generation_config = GenerationConfig(decoder_start_token_id=tokenizer.cls_token_id)
    trimmed, _ = trim_vocabulary_(model, tokenizer, TEXTS)
    assert model.generation_config.decoder_start_token_id == trimmed.cls_token_id


def test_trimmed_model_trains_on(tokenizer):
    model = model_for(tokenizer, head="masked_lm")
    model.get_input_embeddings().weight.grad = torch.ones_like(model.get_input_embeddings().weight)
    trimmed, _ = trim_vocabulary_(model, tokenizer, TEXTS)
    weight = model.get_input_embeddings().weight
    assert weight.grad is None
    assert weight.requires_grad
    optimizer = torch.optim.AdamW(model.parameters())
    before = weight.detach().clone()
    model.train()(**encode(trimmed)).logits.square().mean().backward()
    optimizer.step()
    assert not torch.equal(weight, before)


def test_rare_tokens_go_and_the_reports_say_what_that_does(tokenizer):
    model = model_for(tokenizer)
    trimmed, report = trim_vocabulary_(copy.deepcopy(model), tokenizer, [*TEXTS, *TEXTS])
    rarer, _ = trim_vocabulary_(model, tokenizer, [*TEXTS, *TEXTS, UNSEEN], min_count=2)
    assert rarer.get_vocab() == trimmed.get_vocab()
    vocabulary = trimmed.get_vocab()
    assert {"best", "film", "story", "##s", "q", "##q", "?", "jazz-rock", "<speaker>", *SPECIAL} <= set(vocabulary)
    assert not {"worst", "plot", "##ness", "dog"} & set(vocabulary)
    assert str(report).startswith(f"kept {len(trimmed)} of {len(tokenizer)} tokens ({report.kept_always} of them")
    same = unknown_report(tokenizer, trimmed, TEXTS)
    assert (same.unknown_share, same.changed_share, same.most_frequent) == (0, 0, {})
    spelled = unknown_report(tokenizer, trimmed, [UNSEEN, *TEXTS])
    assert (spelled.unknown_share, spelled.changed_share, spelled.texts) == (0, 0.25, 4)
    assert spelled.tokens_after - spelled.tokens_before == (len("worstplot") - 2) / 4


def test_words_that_become_unknown_are_named():
    vocabulary = {token: row for row, token in enumerate([*SPECIAL, "yes", "no", "äh"])}
    tokenizer = BertTokenizerFast(vocab=vocabulary, strip_accents=False)
    trimmed, report = trim_vocabulary_(model_for(tokenizer), tokenizer, ["yes"])
    assert (report.tokens_before, report.tokens_after, report.kept_always) == (8, 6, 5)
    unknown = unknown_report(tokenizer, trimmed, [("yes no", "No well"), "äh äh NO"])
    assert (unknown.texts, unknown.words, unknown.tokens_before, unknown.tokens_after) == (3, 7, 7 / 3, 7 / 3)
    assert unknown.unknown_share == 5 / 7
    assert unknown.changed_share == 1
    assert unknown.most_frequent == {"no": 3, "äh": 2}
    first, *rest = str(unknown).splitlines()
    assert first == "71.429% of 7 words became unknown, 100.00% of 3 texts changed, 2.33 -> 2.33 tokens per text"
    assert rest == ["  unknown  no (3)", "  unknown  äh (2)"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "texts is empty, allowed is one text or more"),
        ("a film", "texts is the string 'a film', allowed are several strings or pairs"),
    ],
)
def test_texts_that_are_none(tokenizer, texts, message):
    model = model_for(tokenizer)
    before = snapshot(model, tokenizer)
    with pytest.raises(DataError, match=message):
        trim_vocabulary_(model, tokenizer, texts)
    assert_untouched(model, tokenizer, before)
    with pytest.raises(DataError, match=message):
        unknown_report(tokenizer, tokenizer, texts)


@pytest.mark.parametrize("min_count", [0, -1, 1.5, True, "2"])
def test_min_count_that_is_no_count(tokenizer, min_count):
    with pytest.raises(ConfigError, match=f"min_count is {min_count!r}, allowed are whole numbers from 1"):
        trim_vocabulary_(model_for(tokenizer), tokenizer, TEXTS, min_count=min_count)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 150, "pad_token_id": 0}, "ids go up to .* but the model has 150 word embeddings"),
        ({"eos_token_id": 5000}, "eos_token_id is 5000 in the BertConfig, allowed are the tokenizer's ids, up to"),
    ],
)
def test_tokenizer_of_another_model(tokenizer, change, message):
    model = model_for(tokenizer, **change)
    before = snapshot(model, tokenizer)
    with pytest.raises(ConfigError, match=message):
        trim_vocabulary_(model, tokenizer, TEXTS)
    assert_untouched(model, tokenizer, before)


def test_model_with_more_weights_over_the_tokens(tokenizer):
    sizes = {"hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    sizes |= {"intermediate_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}
    model = MobileBertForMaskedLM(MobileBertConfig(vocab_size=len(tokenizer), **sizes))
    with pytest.raises(ConfigError, match="MobileBertForMaskedLM resizes its embeddings in a way of its own"):
        trim_vocabulary_(model, tokenizer, TEXTS)


def test_slow_tokenizer(tokenizer):
    class Slow(PythonBackend):
        vocab_size = 0

        def get_vocab(self):
            return {}

    message = "Slow is a slow tokenizer, allowed are fast tokenizers with a WordPiece model"
    with pytest.raises(ConfigError, match=message):
        trim_vocabulary_(model_for(tokenizer), Slow(), TEXTS)
    with pytest.raises(ConfigError, match=message):
        unknown_report(Slow(), tokenizer, TEXTS)


def test_real_pairs(tiny_tokenizer, glue_dir):
    splits, task = load_splits(str(glue_dir), get_task("mrpc"), ["train", "validation"])
    train, held_out = ([tuple(row[key] for key in task.text_columns) for row in splits[name]] for name in splits)
    model = model_for(tiny_tokenizer)
    trimmed, _ = trim_vocabulary_(model, tiny_tokenizer, train[:100])
    assert unknown_report(tiny_tokenizer, trimmed, train[:100]).changed_share == 0
    seen_less = unknown_report(tiny_tokenizer, trimmed, held_out)
    assert 0 < seen_less.changed_share < 1
    assert seen_less.unknown_share == 0


@pytest.mark.slow
def test_minilm_on_sst2(tmp_path, glue_dir):
    folder = fetch_pretrained(tmp_path)
    model, tokenizer = BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    splits, _ = load_splits(str(glue_dir), get_task("sst2"), ["train", "validation"])
    texts = splits["train"]["sentence"][:]
    with torch.no_grad():
        before = model(**encode(tokenizer, texts[:64])).last_hidden_state
        trimmed, report = trim_vocabulary_(model, tokenizer, texts)
        assert torch.equal(model(**encode(trimmed, texts[:64])).last_hidden_state, before)
    assert unknown_report(tokenizer, trimmed, texts).changed_share == 0
    assert unknown_report(tokenizer, trimmed, splits["validation"]["sentence"][:]).unknown_share == 0
    assert (report.tokens_before, report.tokens_after) == (30522, 13486)
