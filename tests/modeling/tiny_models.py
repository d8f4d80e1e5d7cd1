"""Tiny random models of the six architectures, without dropout, and inputs for them."""

import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
)

import lma_hf

WIDTH, FFN_WIDTH, VOCABULARY = 16, 24, 400
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "embedding_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": FFN_WIDTH,
    "max_position_embeddings": 160,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.0,
    "hidden_act": "gelu",
    # large enough for the activations to matter
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
_DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": WIDTH,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": FFN_WIDTH,
    "max_position_embeddings": 160,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
    "activation": "gelu",
    "initializer_range": 0.2,
}
ARCHITECTURES = {
    "bert": (BertConfig, _SIZES),
    "roberta": (RobertaConfig, _SIZES),
    "distilbert": (DistilBertConfig, _DISTILBERT),
    "electra": (ElectraConfig, _SIZES),
    "albert": (AlbertConfig, _SIZES),
    "mpnet": (MPNetConfig, _SIZES),
}


def tiny_model(name, activation=None, seed=0, num_layers=2, auto_class=AutoModelForSequenceClassification, **swap):
    """A model whose FFN activations are swapped for `activation`, with random pieces; None: left with GELU."""
    config_class, sizes = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = config_class(**sizes)
    config.num_hidden_layers = num_layers
    model = auto_class.from_config(config)
    if activation is not None:
        lma_hf.swap_activations_(model, activation, **swap)
        for module in lma_modules(model):
            for parameter in module.parameters():
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def lma_modules(model):
    return [module for module in model.modules() if isinstance(module, lma_hf.LMA)]


def statistics(model):
    """Every statistic of every LMA in the model, as clones: name -> tensor."""
    return {
        key: value.clone()
        for key, value in model.state_dict().items()
        if key.rpartition(".")[2] in ("running_mean", "running_std", "num_batches_tracked")
    }


def sentences(lengths, padded_to, seed=0):
    """Random token ids of the given lengths and their attention mask; the same tokens whatever `padded_to` is."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), padded_to, dtype=torch.long)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.randint(5, VOCABULARY, (length,), generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}
