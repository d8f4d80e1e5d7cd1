"""Parameter groups, optimizer and learning-rate schedule."""

import math

import torch
from torch import nn
from transformers import get_scheduler


def parameter_groups(modules, activation_parameters, config):
    """Three groups: weights, weights without decay (biases, norms), activation parameters.

    Activation parameters have their own learning rate and no weight decay (RAFT, arXiv 2208.14111).

    Args: modules: whose trainable parameters are grouped. config: a `TrainConfig`.
    """
    activation_ids = {id(parameter) for parameter in activation_parameters}
    norm_ids = {
        id(parameter)
        for module in modules
        for part in module.modules()
        # LlamaRMSNorm, T5LayerNorm and kin are no subclasses of torch's; one of SqueezeBERT's holds a convolution
        if isinstance(part, nn.LayerNorm) or type(part).__name__.endswith("Norm")
        for parameter in part.parameters(recurse=False)
    }
    decay, no_decay, activation = [], [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            if id(parameter) in activation_ids:
                activation.append(parameter)
            elif id(parameter) in norm_ids or name.endswith("bias"):
                no_decay.append(parameter)
            else:
                decay.append(parameter)
    groups = [
        {"params": decay, "lr": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": no_decay, "lr": config.learning_rate, "weight_decay": 0.0},
        {"params": activation, "lr": config.activation_learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(modules, activation_parameters, config, fused=True):
    """AdamW over `parameter_groups`; fused is one pass over the parameters, also on CPU."""
    return torch.optim.AdamW(parameter_groups(modules, activation_parameters, config), fused=fused)


def build_scheduler(optimizer, num_steps, config):
    """Linear or cosine decay after a linear warm-up, stepped once an optimizer step."""
    warmup = math.ceil(config.warmup_ratio * num_steps)
    return get_scheduler(config.lr_scheduler_type, optimizer, warmup, num_steps)
