"""LMA (Light Multi-segment Activation) for transformers: activation surgery and distillation of shallow students.

Importing the package adds "lma" (and the learnable baselines) to transformers' ACT2FN, so that saved students load
with `from_pretrained`. Everything else is imported on first use.
"""

import importlib

from .kernels.registry import kernels_for as _kernels_for
from .modeling.modeling_lma import register as _register
from .modeling.reference_lma import use_kernels as _use_kernels

__version__ = "0.1.0"

_HOMES = {
    "LMAConfig": "modeling.configuration_lma",
    "BaselineConfig": "modeling.configuration_lma",
    "LMA": "modeling.activation_lma",
    "lma": "modeling.reference_lma",
    "swap_activations_": "surgery.swap",
    "restore_activations_": "surgery.swap",
    "calibrate_": "surgery.calibrate",
    "fold_": "surgery.fold",
    "train_only_": "surgery.trainable",
    "save_delta": "surgery.delta",
    "load_delta_": "surgery.delta",
    "build_student": "student.build",
    "ScalarScheme": "modeling.schemes_lma",
    "ProductScheme": "modeling.schemes_lma",
    "prepare_quantization_": "compression.quantization.fake_quantize",
    "trim_vocabulary_": "compression.vocabulary",
    "quantize_": "compression.quantization.pack",
    "teach": "cli.teach",
    "distill": "cli.distill",
    "evaluate": "cli.evaluate",
    "push_student": "cli.push",
    "TeachConfig": "training.config",
    "DistillConfig": "training.config",
    "EvaluateConfig": "training.config",
    "PushConfig": "training.config",
    "use_kernel": "kernels.registry",
    "LmaHfError": "errors",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__():
    return __all__


_register()
_use_kernels(_kernels_for)
