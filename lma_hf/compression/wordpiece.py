"""WordPiece tokenizers: which tokens texts need, and the same tokenizer with only those.

The greedy match takes the longest piece that the vocabulary has. Where a vocabulary loses only pieces that no word of
the texts took, every choice stays as it was: the piece taken is still there, and nothing longer has come.
"""

import json
import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path

from tokenizers.models import WordPiece

from lma_hf.errors import ConfigError, DataError

BATCH = 1000


def wordpiece(tokenizer):
    """The WordPiece model of a fast tokenizer. Raises: ConfigError for any other tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind = "slow tokenizer" if backend is None else f"tokenizer with a {type(backend.model).__name__} model"
    if backend is None or not isinstance(backend.model, WordPiece):
        raise ConfigError(
            f"{type(tokenizer).__name__} is a {kind}, allowed are fast tokenizers with a WordPiece model, such as "
            "BERT's; keep the vocabulary of this one whole"
        )
    return backend.model


def split_texts(texts, *tokenizers):
    """Yield (text, its encoding by each tokenizer) for every text, and for both texts of every pair.

    The encodings are without special tokens and whole, however long the text is.

    Raises: DataError if there is no text, or one string in place of several; ConfigError as `wordpiece`.
    """
    for tokenizer in tokenizers:
        wordpiece(tokenizer)
    if isinstance(texts, str):
        raise DataError(f"texts is the string {texts[:40]!r}, allowed are several strings or pairs; put it in a list")
    single = (part for text in texts for part in (text if isinstance(text, list | tuple) else [text]))
    if not (batch := list(islice(single, BATCH))):
        raise DataError("texts is empty, allowed is one text or more; give the texts that the model is to read")
    while batch:
        # verbose: a text longer than the model takes is no reason to warn here
        split = [tokenizer(batch, add_special_tokens=False, verbose=False).encodings for tokenizer in tokenizers]
        yield from zip(batch, *split, strict=True)
        batch = list(islice(single, BATCH))


def unknown_spans(tokenizer, encoding):
    """(start, end) in the text of every word that is unknown as a whole."""
    unknown = wordpiece(tokenizer).unk_token
    return {span for token, span in zip(encoding.tokens, encoding.offsets, strict=True) if token == unknown}


def normalize(tokenizer, word):
    """A word as the vocabulary spells it: for example in lower case, without accents."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return word if normalizer is None else normalizer.normalize_str(word).strip()


def count_pieces(tokenizer, texts):
    """Counter of token id -> how often the texts need it."""
    counts, unknown = Counter(), Counter()
    for text, encoding in split_texts(texts, tokenizer):
        counts.update(encoding.ids)
        unknown.update(normalize(tokenizer, text[start:end]) for start, end in unknown_spans(tokenizer, encoding))
    for word, count in unknown.items():
        for piece in _pieces_before_gap(wordpiece(tokenizer), word):
            counts[piece] += count
    return counts


def _pieces_before_gap(model, word):
    """Ids of the pieces that an unknown word begins with, up to where nothing matches.

    Without them the greedy match could take shorter ones, and get past the gap: the word would be known.
    """
    if len(word) > model.max_input_chars_per_word:
        return []
    prefixes = (model.tokenize(word[:end]) for end in range(len(word) - 1, 0, -1))
    return next(([piece.id for piece in pieces] for pieces in prefixes if pieces[0].value != model.unk_token), [])


def lasting_tokens(tokenizer):
    """Ids to keep whatever the texts: added and special tokens, and single characters, which can spell new words."""
    model = wordpiece(tokenizer)
    vocabulary = tokenizer.get_vocab()
    single = {token for token in vocabulary if len(token.removeprefix(model.continuing_subword_prefix)) == 1}
    # what the tokenizer puts around two texts need not have been declared as special
    around = tokenizer.backend_tokenizer.encode("", "").tokens
    return {vocabulary[token] for token in {*single, *tokenizer.get_added_vocab(), *around, model.unk_token}}


def keep_tokens(tokenizer, new_ids):
    """A new tokenizer of the same class and settings. Args: new_ids: token -> id, from 0 without gaps."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder, "tokenizer.json")
        rules = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(_renumbered(rules, new_ids)), encoding="utf-8")
        kept = type(tokenizer).from_pretrained(folder)
    kept.name_or_path = tokenizer.name_or_path
    return kept


def _renumbered(rules, new_ids):
    """The content of a tokenizer.json with new ids, without the truncation and padding that a call left behind."""
    vocabulary = {token: new_ids[token] for token in rules["model"]["vocab"] if token in new_ids}
    added = [{**token, "id": new_ids[token["content"]]} for token in rules["added_tokens"]]
    around = rules["post_processor"] or {}
    for part in around.get("processors", [around]):
        for special in part.get("special_tokens", {}).values():
            special["ids"] = [new_ids[token] for token in special["tokens"]]
        for name in {"cls", "sep"} & part.keys():
            part[name][1] = new_ids[part[name][0]]
    changed = {"model": {**rules["model"], "vocab": vocabulary}, "added_tokens": added}
    return {**rules, **changed, "truncation": None, "padding": None}
