"""From a configuration to task, data, tokenizer and model, with their labels matched."""

import inspect
import math
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lma_hf.data.collate import PAD_TO_MULTIPLE_OF
from lma_hf.data.glue import hub_configuration, resolve_task
from lma_hf.data.labels import label_mapping
from lma_hf.data.sources import is_local, load_splits
from lma_hf.errors import ConfigError, LabelMismatchError
from lma_hf.modeling.quantizer_lma import packed_modules


def load_data(config, *, with_train):
    """(splits, task) with the caps of a `DataConfig` applied; splits[task.train_split] only if asked for."""
    task = resolve_task(config)
    caps = dict.fromkeys(task.validation_splits, config.max_eval_samples)
    if with_train:
        caps[task.train_split] = config.max_train_samples
    caps_given = {split: cap for split, cap in caps.items() if cap is not None}
    dataset_config = hub_configuration(config)
    return load_splits(
        config.dataset, task, list(caps), dataset_config=dataset_config, max_samples=caps_given, seed=config.seed
    )


def load_tokenizer_and_model(
    name_or_path, what, *, revision=None, trust_remote_code=False, complete=False, advice=None, **kwargs
):
    """A tokenizer and a sequence classification model in float32 that fit each other.

    Args:
        name_or_path: folder or hub id. what: how messages call the model.
        revision: branch, tag or commit on the hub. trust_remote_code: run code that comes with the model.
        complete: weights that the checkpoint lacks, such as the head of a pretrained model, are an error.
        advice: what that error says to do, in place of getting another model or correcting its config.json.
        kwargs: further arguments of the model's from_pretrained.
    Raises: ConfigError if they cannot be loaded.
    """
    if is_local(name_or_path):
        name_or_path = str(Path(name_or_path).expanduser())
        if not Path(name_or_path).is_dir():
            raise ConfigError(
                f"{what} folder {name_or_path!r} does not exist; give a saved model's folder or a hub id"
            )
    source = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    if complete:  # weights of another shape are found below, with a message that names them
        kwargs["ignore_mismatched_sizes"] = True
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **source)
        # half precision is autocast's business; masters stay in float32
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name_or_path, dtype=torch.float32, output_loading_info=True, **source, **kwargs
        )
    except Exception as error:  # a damaged file makes the loaders raise nearly anything
        reason = " ".join(str(error).split())
        raise ConfigError(f"{what} {name_or_path!r} cannot be loaded: {type(error).__name__}: {reason}") from error
    if complete:
        _check_complete(info, f"{what} {name_or_path!r}", advice)
    fit_inputs_(tokenizer, model)
    fit_padding_(tokenizer, model, f"{what} {name_or_path!r}")
    return tokenizer, model


def load_model_dir(config):
    """`load_tokenizer_and_model` for what the `model_dir` of a config names, with all its weights."""
    source = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    return load_tokenizer_and_model(config.model_dir, "model", complete=True, **source)


def unpacked(model):
    """A model with packed weights as an ordinary one; any other model as it is."""
    return model.dequantize() if packed_modules(model) else model


def _check_complete(info, name, advice):
    if info["mismatched_keys"]:
        key, found, expected = min(info["mismatched_keys"])
        advice = advice or "correct its config.json, for example id2label, which counts the labels"
        raise ConfigError(f"{name} has {key} of shape {list(found)}, asked for is {list(expected)}; {advice}")
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        advice = advice or "give a model that was fine-tuned for this task, or make one with `lma-hf teach`"
        raise ConfigError(f"{name} lacks {len(info['missing_keys'])} weights ({missing}); {advice}")


def fit_inputs_(tokenizer, model):
    """Let the tokenizer return only what the model takes, such as no token_type_ids for DistilBERT."""
    taken = set(inspect.signature(model.forward).parameters)
    if "input_ids" not in taken:  # a wrapper that hands everything on
        return
    # with one type of token the ids are all 0, whatever a tokenizer of two types says
    if getattr(model.config, "type_vocab_size", None) in (0, 1):
        taken.discard("token_type_ids")
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]


def fit_padding_(tokenizer, model, name):
    """Give tokenizer and model one padding token, also where neither has any (GPT-2, Llama).

    Args: name: how messages call the model.
    Raises: ConfigError if no token can stand in.
    """
    config = model.config.get_text_config()
    # a padding token that was added to the tokenizer alone has no embedding
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= getattr(config, "vocab_size", math.inf):
        tokenizer.pad_token = _padding_token(tokenizer, getattr(config, "pad_token_id", None), name)
    # decoders read their logits at the last token that is not padding, and find it by this id
    if not model.config.is_encoder_decoder:
        config.pad_token_id = tokenizer.pad_token_id


def _padding_token(tokenizer, pad_token_id, name):
    if pad_token_id in range(len(tokenizer)):
        return tokenizer.convert_ids_to_tokens(pad_token_id)
    # a token that may end a text would be taken for padding there
    ending = tokenizer("").input_ids[-1:]
    for token in (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token):
        if token is not None and tokenizer.convert_tokens_to_ids(token) not in ending:
            return token
    raise ConfigError(f"the tokenizer of {name} has no padding token; set pad_token in its tokenizer_config.json")


def label_names_of(model):
    """The model's class names in id order. Raises: LabelMismatchError if its ids are not 0 to n-1."""
    names = model.config.id2label
    if set(names) != set(range(len(names))):
        raise LabelMismatchError(
            f"model {model.name_or_path} has the label ids {sorted(names)}, allowed are 0 to {len(names) - 1}; "
            "correct id2label in its config.json"
        )
    return [names[index] for index in range(len(names))]


def labels_of_model(model, task, dataset, name):
    """Dataset label -> model label, None for regression. Raises: LabelMismatchError if they cannot be matched."""
    if task.is_regression:
        if model.config.num_labels != 1:
            raise LabelMismatchError(
                f"dataset {dataset} has numbers as labels but model {name} has the classes {label_names_of(model)}; "
                "use a model that was trained for regression"
            )
        return None
    return label_mapping(task.label_names, label_names_of(model), dataset=dataset, model=name)


def check_max_length(config, model):
    """Raises: ConfigError if the model has too few positions for `max_length`, padding included."""
    positions = max_positions(model)
    if positions is None:
        return
    allowed = positions - positions % PAD_TO_MULTIPLE_OF
    if config.max_length > allowed:
        raise ConfigError(f"max_length is {config.max_length}, the model allows at most {allowed}")


def max_positions(model):
    """How many tokens the model has positions for; None where they are relative (T5, XLNet)."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions < 1:
        return None
    offsets = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    # RoBERTa and kin: positions start behind the padding's
    return positions - max(offsets, default=0)
