import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizerFast, MPNetTokenizerFast, PreTrainedTokenizerFast

from lma_hf.compression.wordpiece import count_pieces, keep_tokens, lasting_tokens, wordpiece
from lma_hf.errors import ConfigError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# 각 is written with three jamo in a vocabulary without accents
LETTERS = "abc\u1100\u1161\u11a8"
PIECES = st.lists(st.text(LETTERS, min_size=1, max_size=4), unique=True, max_size=12)
TEXTS = st.lists(st.text("aaabbbcccABÁ각가. ", max_size=14), min_size=1, max_size=4)


def bert_tokenizer(starts, continuations, added=()):
    tokens = [*starts, *(f"##{piece}" for piece in continuations), *SPECIAL]
    tokenizer = BertTokenizerFast(vocab={token: row for row, token in enumerate(tokens)})
    tokenizer.add_tokens(list(added))
    return tokenizer


def trim(tokenizer, texts):
    """The tokenizer with what the texts need, renumbered in the old order."""
    needed = lasting_tokens(tokenizer) | set(count_pieces(tokenizer, texts))
    kept = sorted((row, token) for token, row in tokenizer.get_vocab().items() if row in needed)
    return keep_tokens(tokenizer, {token: new for new, (_, token) in enumerate(kept)})


def tokens_of(tokenizer, texts):
    return [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(texts)["input_ids"]]


@settings(deadline=None, max_examples=150)
@given(starts=PIECES, continuations=PIECES, texts=TEXTS, added=st.sampled_from([(), ("ca",), ("abca", "c.")]))
# unknown because of ##c after ab; with the unused ab gone, it would be a ##bc
@example(starts=["a", "ab", "d"], continuations=["b", "bc"], texts=["abc", "dbc"], added=())
# the piece before the gap ends inside of a syllable
@example(
    starts=["\u1100\u1161\u11a8\u1100", "\u1100\u1161\u11a8", "a"],
    continuations=["\u1100\u1161"],
    texts=["각가", "각", "a가"],
    added=(),
)
def test_texts_are_split_as_before(starts, continuations, texts, added):
    tokenizer = bert_tokenizer(starts, continuations, added)
    trimmed = trim(tokenizer, texts)
    assert tokens_of(trimmed, texts) == tokens_of(tokenizer, texts)
    vocabulary, old = trimmed.get_vocab(), tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(trimmed)))
    assert sorted(vocabulary, key=vocabulary.get) == sorted(vocabulary, key=old.get)


@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
@settings(deadline=None, max_examples=30)
def test_other_texts_are_spelled(trimmed_tiny, text):
    assert trimmed_tiny.unk_token_id not in trimmed_tiny(text)["input_ids"]


@pytest.fixture(scope="module")
def trimmed_tiny(tiny_tokenizer):
    return trim(tiny_tokenizer, ["the film"])


def test_kept_are_the_needed_the_special_the_added_and_single_characters():
    starts, continuations = ["ab", "abc", "a", "#", "##"], ["b", "bc", "c"]
    tokenizer = bert_tokenizer(starts, continuations, ["foo bar"])
    kept = {*SPECIAL, "foo bar", "a", "#", "##b", "##c"}
    assert set(trim(tokenizer, ["."]).get_vocab()) == kept
    assert set(trim(tokenizer, ["abc", ("x", "AB")]).get_vocab()) == kept | {"abc", "ab"}


def test_settings_survive_saving(tmp_path):
    tokens = {token: row for row, token in enumerate(["Film", "film", *"film", *(f"##{c}" for c in "film"), *SPECIAL])}
    tokenizer = BertTokenizerFast(
        vocab=tokens, do_lower_case=False, model_max_length=77, padding_side="left", truncation_side="left"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<speaker>"]})
    texts = ["a Film", "<speaker> film [MASK]", "Mill"]
    tokenizer(texts, padding=True, truncation=True, max_length=4)
    trim(tokenizer, texts).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is BertTokenizerFast
    assert (loaded.model_max_length, loaded.padding_side, loaded.truncation_side) == (77, "left", "left")
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert tokens_of(loaded, texts) == tokens_of(tokenizer, texts)
    assert loaded.backend_tokenizer.padding is loaded.backend_tokenizer.truncation is None
    pairs = loaded([texts[:2]], padding="max_length", max_length=16)
    expected = tokenizer([texts[:2]], padding="max_length", max_length=16)
    assert pairs["token_type_ids"] == expected["token_type_ids"]
    assert pairs["attention_mask"] == expected["attention_mask"]


def generic(processor):
    """A tokenizer of no class of its own, whose special tokens have the ids 3 and 4 and are not declared."""
    tokens = {token: row for row, token in enumerate(["aa", "bb", "[UNK]", "[CLS]", "[SEP]", "a", "%%a"])}
    backend = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]", continuing_subword_prefix="%%"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processor
    return PreTrainedTokenizerFast(tokenizer_object=backend)


TEMPLATE = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
)
BERT = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
SEQUENCE = processors.Sequence([processors.ByteLevel(), TEMPLATE])


@pytest.mark.parametrize("processor", [TEMPLATE, BERT, SEQUENCE], ids=["template", "bert", "sequence"])
def test_tokens_around_texts_are_renumbered(processor, tmp_path):
    tokenizer = generic(processor)
    trim(tokenizer, ["AA A"]).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert list(loaded.get_vocab()) != list(tokenizer.get_vocab())
    assert "bb" not in loaded.get_vocab()
    tokens = loaded.convert_ids_to_tokens(loaded("aa a", "aaa")["input_ids"])
    assert " ".join(tokens) == "[CLS] aa a [SEP] aa %%a [SEP]"


def test_tokenizer_class_with_other_special_tokens(tmp_path):
    tokens = ["good", "film", "bad", *"film", *(f"##{c}" for c in "film"), "<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = MPNetTokenizerFast(vocab={token: row for row, token in enumerate([*tokens, "[UNK]"])})
    trim(tokenizer, ["a Film"]).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is MPNetTokenizerFast
    # its unknown token is [UNK], whatever else the vocabulary has
    assert set(tokenizer.get_vocab()) - set(loaded.get_vocab()) == {"good", "bad", "<unk>"}
    assert tokens_of(loaded, ["Film <mask>", "mil"]) == tokens_of(tokenizer, ["Film <mask>", "mil"])


def test_tokenizer_that_never_adds_or_normalizes_anything():
    tokens = {token: row for row, token in enumerate(["b", "[UNK]", "Aa", "##b", "Aabb"])}
    backend = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert trim(tokenizer, ["Aab Aabc"]).get_vocab() == {"b": 0, "[UNK]": 1, "Aa": 2, "##b": 3}


def test_words_beyond_the_limit_need_nothing():
    tokenizer = bert_tokenizer(["a", "aaaa"], ["a", "aaaa"])
    assert set(trim(tokenizer, ["a" * 101]).get_vocab()) == {*SPECIAL, "a", "##a"}


@pytest.mark.parametrize("model", [models.BPE({"a": 0}, []), models.Unigram([("a", 0.0)]), models.WordLevel({"a": 0})])
def test_other_models_are_refused(model):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    name = type(model).__name__
    with pytest.raises(ConfigError, match=f"is a tokenizer with a {name} model, allowed are fast .* WordPiece model"):
        wordpiece(tokenizer)
