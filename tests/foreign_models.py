"""Tiny random classifiers of many architectures, saved as others save them, and a loop that scores them by hand."""

import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

WORDS = ["the", "a", "film", "is", "was", "good", "great", "best", "bad", "worst", "boring"]
VOCABULARY = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[END]", *WORDS])}
SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "eos_token_id": 4,
}
_BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
_BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
# model type -> the config's own values; those with positions fit 24 tokens
ENCODERS = {
    "bert": {"max_position_embeddings": 24},
    "roberta": {"max_position_embeddings": 25, "type_vocab_size": 1},
    "distilbert": {"max_position_embeddings": 24, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
    "electra": {"max_position_embeddings": 24, "embedding_size": 16},
    "albert": {"max_position_embeddings": 24, "embedding_size": 16},
    "mpnet": {"max_position_embeddings": 26, "pad_token_id": 1},
    "deberta-v2": {"max_position_embeddings": 24, **_RELATIVE},
    "modernbert": {"max_position_embeddings": 24},
}
DECODERS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24, "pad_token_id": None},
    "llama": {"num_key_value_heads": 1, "max_position_embeddings": 24, "pad_token_id": None},
}
OTHERS = {
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    # BART's config counts 3 labels where none are named
    "bart": {"max_position_embeddings": 24, "id2label": {0: "no", 1: "yes"}, **_BART},
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
}
TWO_TOKEN_TYPES = ("bert", "electra", "albert", "xlnet")
CONFIGS = ENCODERS | DECODERS | OTHERS
# what stands around one text and around two; :1 is the second text's token type
TEMPLATES = {
    **dict.fromkeys(ENCODERS, ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")),
    **dict.fromkeys(("t5", "bart"), ("$A [END]", "$A [END] $B [END]")),
    "xlnet": ("$A [SEP] [CLS]:2", "$A [SEP] $B:1 [SEP]:1 [CLS]:2"),
}


def tokenizer_for(model_type):
    """A whitespace tokenizer with the model type's special tokens; decoders have no padding and add nothing."""
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "[UNK]", "eos_token": "[END]"}
    if model_type in TEMPLATES:
        single, pair = TEMPLATES[model_type]
        tokens = [(token, VOCABULARY[token]) for token in ("[CLS]", "[SEP]", "[END]")]
        words.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)
        special |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if "[SEP]" in str(TEMPLATES.get(model_type)) else [])
    side = "left" if model_type == "xlnet" else "right"
    return PreTrainedTokenizerFast(tokenizer_object=words, model_input_names=names, padding_side=side, **special)


def save_foreign_model(model_type, folder, *, seed=2, **overrides):
    """Save a random model and its tokenizer; the weights are enlarged, so that its answers differ between rows."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **SIZES | CONFIGS[model_type] | overrides)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.data.normal_(std=0.5)
    model.save_pretrained(folder)
    tokenizer_for(model_type).save_pretrained(folder)


def make_pairs(count, seed=0):
    """Rows of two texts of 1 to 9 words each."""
    draw = random.Random(seed)

    def text():
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))

    return [{"one": text(), "two": text()} for _ in range(count)]


@torch.no_grad()
def logits_by_hand(folder, rows):
    """Logits of every row with transformers alone: one row at a time, so without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    logits = []
    for row in rows:
        inputs = tokenizer(row["one"], row["two"], return_tensors="pt")
        if model.config.model_type not in TWO_TOKEN_TYPES:
            inputs.pop("token_type_ids", None)
        logits.append(model(**inputs).logits[0])
    return torch.stack(logits)
