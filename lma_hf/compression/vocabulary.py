"""Trimming a model's vocabulary to what a corpus needs, and what that does to other texts."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from lma_hf.compression.wordpiece import (
    count_pieces,
    keep_tokens,
    lasting_tokens,
    normalize,
    split_texts,
    unknown_spans,
)
from lma_hf.errors import ConfigError
from lma_hf.surgery.swap import own_config

MOST_FREQUENT = 10


@dataclass(frozen=True)
class VocabularyReport:
    """What a trimming has cut.

    Attributes:
        tokens_before, tokens_after: of the tokenizer.
        kept_always: tokens among them that stay whatever the texts are.
        saved_mb: size of the embeddings (and of an output layer over the tokens) that went, in MB (1e6 bytes).
    """

    tokens_before: int
    tokens_after: int
    kept_always: int
    saved_mb: float

    def __str__(self):
        return (
            f"kept {self.tokens_after} of {self.tokens_before} tokens ({self.kept_always} of them always), "
            f"{self.saved_mb:.1f} MB smaller"
        )


@dataclass(frozen=True)
class UnknownReport:
    """What texts lose by a trimmed tokenizer.

    Attributes:
        texts, words: how many there are; both texts of a pair count.
        unknown_share: of the words, those that are unknown now and were not before.
        changed_share: of the texts, those split into other tokens than before.
        tokens_before, tokens_after: mean per text, without special tokens.
        most_frequent: the ten most frequent words that became unknown -> how often each occurs.
    """

    texts: int
    words: int
    unknown_share: float
    changed_share: float
    tokens_before: float
    tokens_after: float
    most_frequent: dict[str, int]

    def __str__(self):
        lines = [
            f"{self.unknown_share:.3%} of {self.words} words became unknown, {self.changed_share:.2%} of {self.texts} "
            f"texts changed, {self.tokens_before:.2f} -> {self.tokens_after:.2f} tokens per text"
        ]
        lines += [f"  unknown  {word} ({count})" for word, count in self.most_frequent.items()]
        return "\n".join(lines)


def trim_vocabulary_(model, tokenizer, texts, *, min_count=1):
    """Cut the word embeddings of `model` in place to the tokens that `texts` need, and make the tokenizer for it.

    Kept always are special and added tokens, those that the config names, and single characters, with which words that
    the texts do not have can still be spelled. Tokens keep their order. With `min_count` 1 the new tokenizer splits
    each of the texts as before, and the model's hidden states and class logits for them are the same bit by bit.

    Args:
        model: a transformers model, before an optimizer is made for it.
        tokenizer: its tokenizer, a fast one with a WordPiece model; stays as it is.
        texts: strings or pairs of strings, as many as may be; read once.
        min_count: how often a token has to occur to be kept.
    Returns: (the new tokenizer, VocabularyReport).
    Raises: ConfigError if model, tokenizer and `min_count` do not suit, DataError if there are no texts; the model is
        then as it was.
    """
    if isinstance(min_count, bool) or not isinstance(min_count, int) or min_count < 1:
        raise ConfigError(f"min_count is {min_count!r}, allowed are whole numbers from 1")
    vocabulary = tokenizer.get_vocab()
    _check_fit(model, max(vocabulary.values(), default=0))
    always = lasting_tokens(tokenizer) | _named_ids(model, vocabulary)
    counts = count_pieces(tokenizer, texts)
    kept = sorted(row for row in vocabulary.values() if row in always or counts[row] >= min_count)
    places = {old: new for new, old in enumerate(kept)}
    _check_padding(model, places)
    trimmed = keep_tokens(tokenizer, {token: places[row] for token, row in vocabulary.items() if row in places})
    saved = _cut_rows(model, places)
    _renumber_config(model, places)
    return trimmed, VocabularyReport(len(vocabulary), len(kept), len(always), saved / 1e6)


def unknown_report(old_tokenizer, new_tokenizer, texts):
    """What trimming does to texts, best to some that it was not made for.

    Args: texts: strings or pairs of strings.
    Returns: UnknownReport.
    Raises: ConfigError for tokenizers without a WordPiece model, DataError if there are no texts.
    """
    unknown, totals = Counter(), Counter()
    for text, before, after in split_texts(texts, old_tokenizer, new_tokenizer):
        spans = unknown_spans(new_tokenizer, after) - unknown_spans(old_tokenizer, before)
        unknown.update(normalize(new_tokenizer, text[start:end]) for start, end in spans)
        totals["texts"] += 1
        totals["words"] += len(set(before.word_ids))
        totals["changed"] += before.tokens != after.tokens
        totals["before"] += len(before)
        totals["after"] += len(after)
    count = totals["texts"]
    return UnknownReport(
        texts=count,
        words=totals["words"],
        unknown_share=unknown.total() / max(totals["words"], 1),
        changed_share=totals["changed"] / count,
        tokens_before=totals["before"] / count,
        tokens_after=totals["after"] / count,
        most_frequent=dict(unknown.most_common(MOST_FREQUENT)),
    )


def _check_fit(model, last_id):
    name, table = type(model).__name__, model.get_input_embeddings()
    if type(model).resize_token_embeddings is not PreTrainedModel.resize_token_embeddings:
        raise ConfigError(
            f"{name} resizes its embeddings in a way of its own, since it has more weights over the tokens; allowed "
            "are models that transformers resizes in the common way, trim its base model"
        )
    if type(table) is not nn.Embedding or getattr(model.config, "vocab_size", None) != table.num_embeddings:
        raise ConfigError(
            f"{name} has the word embeddings {table} and a config with vocab_size "
            f"{getattr(model.config, 'vocab_size', None)}, allowed is an nn.Embedding of that size; trim another model"
        )
    if last_id >= table.num_embeddings:
        raise ConfigError(
            f"the tokenizer's ids go up to {last_id}, but the model has {table.num_embeddings} word embeddings; give "
            "the tokenizer that belongs to the model"
        )


def _check_padding(model, places):
    table = model.get_input_embeddings()
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        # RoBERTa's and MPNet's embeddings count positions from the padding's id on
        if module is not table and padding is not None and places.get(padding) != padding:
            raise ConfigError(
                f"{type(module).__name__} builds on the padding's id {padding}, which trimming would change; allowed "
                "for this model are vocabularies of which nothing goes up to the padding, keep this one whole"
            )


def _configs(model):
    """The model's config, and that for generating text where it has one."""
    return [config for config in (model.config, getattr(model, "generation_config", None)) if config is not None]


def _token_ids(config):
    """Key -> value of a config's attributes that name a token, or several in a list, by its id."""
    return {key: value for key, value in vars(config).items() if key.endswith("_token_id") and value is not None}


def _named_ids(model, vocabulary):
    """Ids of the tokens that the config names. Raises: ConfigError if there is no such token."""
    known, named = set(vocabulary.values()), set()
    for config in _configs(model):
        for key, value in _token_ids(config).items():
            ids = set(value if isinstance(value, list) else [value])
            if not ids <= known:
                raise ConfigError(
                    f"{key} is {value} in the {type(config).__name__}, allowed are the tokenizer's ids, up to "
                    f"{max(known)}, and None; correct it"
                )
            named |= ids
    return named


def _renumber_config(model, places):
    # the object that the model was built from may serve other models too
    own_config(model)
    model.config.vocab_size = len(places)
    for config in _configs(model):
        for key, value in _token_ids(config).items():
            setattr(config, key, [places[one] for one in value] if isinstance(value, list) else places[value])


def _weights_over_tokens(model):
    """Parameters with a row for every token, each once: the table and an output layer with its head."""
    found, output = [model.get_input_embeddings().weight], model.get_output_embeddings()
    if output is not None:
        name = next(name for name, module in model.named_modules() if module is output)
        head = model.get_submodule(name.rpartition(".")[0])
        # BERT's head holds a bias beside the output layer's, shared or not
        found += [*output.parameters(), *head.parameters(recurse=False)]
    return {id(parameter): parameter for parameter in found}.values()


@torch.no_grad()
def _cut_rows(model, places):
    """Keep the rows that `places` (old -> new) has. Returns: bytes that went."""
    saved, kept = 0, list(places)
    for parameter in _weights_over_tokens(model):
        saved += parameter[0].nbytes * (len(parameter) - len(kept))
        parameter.data, parameter.grad = parameter[kept], None
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    table.num_embeddings, table.padding_idx = len(kept), places.get(table.padding_idx)
    if output is not None:
        output.out_features = len(kept)
    return saved
