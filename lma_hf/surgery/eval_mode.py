"""Evaluation mode for a while."""

from contextlib import contextmanager


@contextmanager
def eval_mode(*models):
    """Put models into eval mode and every module back into its own mode afterwards."""
    # module by module: a frozen part may be in eval mode while the rest trains
    modes = [(module, module.training) for model in models for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
