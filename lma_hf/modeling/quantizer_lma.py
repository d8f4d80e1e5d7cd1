"""How packed weights stand in a model's config, so that `from_pretrained` can place their layers again.

transformers' own way for quantized models: `config.quantization_config`, and a quantizer that is registered for its
`quant_method`. Such a model cannot be trained; `model.dequantize()` makes an ordinary one of it.
"""

import re

import torch
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .packed_lma import PackedWeight, packed_like
from .saving_lma import connect_saving
from .schemes_lma import scheme_from_dict, scheme_to_dict
from .swap_record_lma import QUANT_METHOD, mark_activation, names_our_activation, unmark_activation


class PackedConfig(QuantizationConfigMixin):
    """Which modules of a model are packed, and how.

    Args: groups: list of {"modules": fqns, "method": "scalar" or "product", **fields of the scheme}.
    """

    def __init__(self, groups, quant_method=QUANT_METHOD):
        self.groups, self.quant_method = groups, quant_method

    @classmethod
    def of(cls, schemes):
        """From fqn -> scheme."""
        modules = {}
        for fqn, scheme in schemes.items():
            modules.setdefault(scheme, []).append(fqn)
        return cls([{**scheme_to_dict(scheme), "modules": fqns} for scheme, fqns in modules.items()])

    @property
    def schemes(self):
        """Fqn -> scheme. Raises: TypeError or ValueError for what this version does not know."""
        found = {}
        for group in self.groups:
            settings = dict(group)
            found |= dict.fromkeys(settings.pop("modules"), scheme_from_dict(settings))
        return found


class PackedQuantizer(HfQuantizer):
    """Places empty packed layers in a model that is being loaded, and turns them back into ordinary ones.

    Where the config names no activation that keeps transformers alone from loading the model, its file has an empty
    weight for one packed module: of no shape that transformers would take.
    """

    requires_calibration = True  # that is: only what is packed already can be loaded

    def _process_model_before_weight_loading(self, model, **kwargs):
        prefix = f"{model.base_model_prefix}."
        there = dict(model.named_modules())
        for fqn, scheme in self.quantization_config.schemes.items():
            # the saved model may have had a head that this one lacks, or the other way round
            names = [fqn, fqn.removeprefix(prefix), prefix + fqn]
            fqn = next((name for name in names if name in there), None)
            if fqn is not None:
                model.set_submodule(fqn, packed_like(there[fqn], scheme))
        empty = {rf"(^|\.){re.escape(fqn)}\.weight$" for fqn in packed_modules(model)}
        model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), *empty}

    def _process_model_after_weight_loading(self, model, **kwargs):
        for module in packed_modules(model).values():
            # transformers casts parameters alone
            module.cast_(model.dtype)
        _connect(model, self)

    def _dequantize(self, model, dtype=None):
        # a config that comes from a file has a name there
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        for fqn, module in packed_modules(model).items():
            model.set_submodule(fqn, module.to_float().to(dtype).train(module.training))
        unmark_activation(model.config)
        # transformers takes it from the model itself alone
        model.base_model.__dict__.pop("hf_quantizer", None)
        return model

    def get_state_dict_and_metadata(self, model):
        """What `save_pretrained` writes."""
        state = model.state_dict()
        packed = packed_modules(model)
        if packed and not names_our_activation(model.config):
            state[f"{next(iter(packed))}.weight"] = torch.empty(0)
        return state, {}

    def is_serializable(self):
        return True

    @property
    def is_trainable(self):
        return False


def packed_modules(model):
    """Fqn -> module of every layer with packed weights."""
    return {fqn: module for fqn, module in model.named_modules() if isinstance(module, PackedWeight)}


def mark_packed(model, schemes):
    """Say in a model and its config that its modules are packed. Args: schemes: fqn -> scheme."""
    config = PackedConfig.of(schemes)
    model.is_quantized, model.quantization_method = True, QUANT_METHOD
    model.config.quantization_config = config
    model.config._is_quantized = True
    mark_activation(model)
    _connect(model, PackedQuantizer(config))


def _connect(model, quantizer):
    """Let a model, and its base model alone, be saved as a packed one."""
    model.hf_quantizer = model.base_model.hf_quantizer = quantizer
    connect_saving(model)


def register_quantizer():
    """Tell transformers of packed weights."""
    AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = PackedConfig
    AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = PackedQuantizer
