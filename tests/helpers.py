"""Tiny random models of every supported architecture, and padded batches for them."""

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

ARCHITECTURES = ("bert", "roberta", "distilbert", "electra", "albert", "mpnet")
HEADS = {"classification": AutoModelForSequenceClassification, "masked_lm": AutoModelForMaskedLM}
VOCAB, WIDTH, HIDDEN, FFN_WIDTH = 50, 40, 16, 32
NO_DROPOUT = {
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
    "albert": {"classifier_dropout_prob": 0.0},
}
# fqn of layer i in the model, and of the FFN's parts in the layer
LAYERS = {
    "bert": "bert.encoder.layer.{}",
    "roberta": "roberta.encoder.layer.{}",
    "distilbert": "distilbert.transformer.layer.{}",
    "electra": "electra.encoder.layer.{}",
    "albert": "albert.encoder.albert_layer_groups.0.albert_layers.{}",
    "mpnet": "mpnet.encoder.layer.{}",
}
_BERT_FFN = {"up": "intermediate.dense", "activation": "intermediate.intermediate_act_fn", "down": "output.dense"}
FFN = dict.fromkeys(ARCHITECTURES, _BERT_FFN) | {
    "distilbert": {"up": "ffn.lin1", "activation": "ffn.activation", "down": "ffn.lin2"},
    "albert": {"up": "ffn", "activation": "activation", "down": "ffn_output"},
}


def tiny_config(architecture, num_layers=3, **overrides):
    """A config without dropout; `overrides` are config attributes."""
    if architecture == "distilbert":
        sizes = {"dim": HIDDEN, "hidden_dim": FFN_WIDTH, "n_layers": num_layers, "n_heads": 2}
    else:
        sizes = {
            "hidden_size": HIDDEN,
            "intermediate_size": FFN_WIDTH,
            "num_hidden_layers": num_layers,
            "num_attention_heads": 2,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
    if architecture in ("electra", "albert"):
        sizes["embedding_size"] = 8
    sizes |= {"vocab_size": VOCAB, "max_position_embeddings": WIDTH} | NO_DROPOUT.get(architecture, {})
    return AutoConfig.for_model(architecture, **sizes | overrides)


def tiny_model(architecture="bert", head="classification", *, seed=0, scale=8.0, config=None, **overrides):
    """A random model in eval mode; its matrices are enlarged, so that pre-activations are not all near 0."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = HEADS[head].from_config(config or tiny_config(architecture, **overrides))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2 and "embedding" not in name:
                    parameter.mul_(scale)
                if name.endswith("bias") and "norm" not in name.lower():
                    parameter.normal_(std=0.3)
    return model.eval()


def padded_batch(model, lengths, *, pad_to=None, seed=0):
    """Random sentences of the given lengths: {"input_ids", "attention_mask"}, padded to the longest or `pad_to`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), pad_to or max(lengths)), model.config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, VOCAB, (length,), generator=generator)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def ffn_fqns(architecture, part="activation", num_layers=3):
    """Fqns of one part of every FFN: up, activation or down. ALBERT has one FFN for all layers."""
    count = 1 if architecture == "albert" else num_layers
    return [f"{LAYERS[architecture].format(index)}.{FFN[architecture][part]}" for index in range(count)]


class NoTokenizer:
    """Stands in where a tokenizer is saved beside a model."""

    def save_pretrained(self, folder):
        pass


@torch.no_grad()
def logits_of(model, batch):
    """Logits of the batch in the model's present mode."""
    return model(**batch).logits
