"""The torch operators lma_hf::*: schemas, shapes for tracing, derivatives; the reference where no kernel computes.

`lma_hf.kernels.cpu` and `lma_hf.kernels.triton` register implementations for their devices when they are loaded.
"""

import torch
from torch.library import Library, register_autograd, register_fake

from lma_hf.modeling import reference_lma, statistics_lma
from lma_hf.modeling.reference_lma import check_shapes

library = Library("lma_hf", "DEF")
library.define("lma(Tensor x, Tensor slope, Tensor intercept, Tensor lower, Tensor step) -> Tensor")
library.define(
    "lma_backward(Tensor grad, Tensor x, Tensor slope, Tensor lower, Tensor step, bool parameters) "
    "-> (Tensor, Tensor, Tensor)"
)
library.define("token_statistics(Tensor x, Tensor? mask, bool per_channel) -> (Tensor, Tensor, Tensor)")
library.define(
    "lma_with_statistics(Tensor x, Tensor slope, Tensor intercept, Tensor lower, Tensor step, Tensor? mask) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def _reference_with_statistics(x, slope, intercept, lower, step, mask):
    y = reference_lma.lma_forward(x, slope, intercept, lower, step)
    return y, *_reference_statistics(x, mask, slope.dim() == 2)


def _reference_statistics(x, mask, per_channel):
    return tuple(tensor.clone() for tensor in statistics_lma.token_statistics(x, mask, per_channel))


for _name, _function in {
    "lma": reference_lma.lma_forward,
    "lma_backward": reference_lma.lma_backward,
    "token_statistics": _reference_statistics,
    "lma_with_statistics": _reference_with_statistics,
}.items():
    library.impl(_name, _function, "CompositeExplicitAutograd")


@register_fake("lma_hf::lma", lib=library)
def _(x, slope, intercept, lower, step):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@register_fake("lma_hf::lma_backward", lib=library)
def _(grad, x, slope, lower, step, parameters):
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return grad_x, slope.new_empty(slope.shape), slope.new_empty(slope.shape)


@register_fake("lma_hf::token_statistics", lib=library)
def _(x, mask, per_channel):
    shape = x.shape[-1:] if per_channel else ()
    dtype = torch.promote_types(x.dtype, torch.float32)
    return tuple(x.new_empty(shape, dtype=dtype) for _ in range(3))


@register_fake("lma_hf::lma_with_statistics", lib=library)
def _(x, slope, intercept, lower, step, mask):
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, *torch.ops.lma_hf.token_statistics(x, mask, slope.dim() == 2)


def _keep_input(ctx, inputs, output):
    x, slope, _, lower, step, *_ = inputs
    ctx.save_for_backward(x, slope, lower, step)
    if isinstance(output, tuple):
        ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, grad, *_):
    needs_x, *needs_tables = ctx.needs_input_grad[:3]
    grad_x, *grads = torch.ops.lma_hf.lma_backward(grad, *ctx.saved_tensors, any(needs_tables))
    grads = (each if needed else None for each, needed in zip(grads, needs_tables, strict=True))
    return grad_x if needs_x else None, *grads, *(None for _ in ctx.needs_input_grad[3:])


register_autograd("lma_hf::lma", _backward, setup_context=_keep_input, lib=library)
register_autograd("lma_hf::lma_with_statistics", _backward, setup_context=_keep_input, lib=library)


def _no_derivative(ctx, inputs, output):
    ctx.mark_non_differentiable(*output)


def _refuse(ctx, *grads):
    raise RuntimeError("LMA is not differentiable twice: its kernels stop at the first derivative")


# statistics are not differentiated through (paper, section 3)
register_autograd("lma_hf::token_statistics", _refuse, setup_context=_no_derivative, lib=library)
register_autograd("lma_hf::lma_backward", _refuse, lib=library)


def lma(x, slope, intercept, lower, step):
    """`lma_hf.lma`, by the kernel that is registered for the device of x."""
    if x.dim() == 0:
        return lma(x[None], slope, intercept, lower, step)[0]
    return torch.ops.lma_hf.lma(x, *_aligned(x, slope, intercept, lower, step))


def lma_with_statistics(x, slope, intercept, lower, step, mask=None):
    """`lma` and the token statistics of x; see `lma_hf.modeling.reference_lma.lma_with_statistics`."""
    if slope.dim() != lower.dim() + 1:  # pieces are shared and bounds are not, or the reverse
        return lma(x, slope, intercept, lower, step), *token_statistics(x, mask, slope.dim() == 2)
    return torch.ops.lma_hf.lma_with_statistics(x, *_aligned(x, slope, intercept, lower, step), _checked(x, mask))


def token_statistics(x, mask=None, per_channel=False):
    """`lma_hf.modeling.statistics_lma.token_statistics`, in one pass over the memory."""
    return torch.ops.lma_hf.token_statistics(x.detach(), _checked(x, mask), per_channel)


def _aligned(x, slope, intercept, lower, step):
    """Tables in float32, and bounds per channel exactly where the pieces are."""
    check_shapes(x, slope, intercept)
    if slope.dim() != lower.dim() + 1:
        if slope.dim() == 1:
            slope, intercept = slope.expand(x.shape[-1], -1), intercept.expand(x.shape[-1], -1)
        else:
            lower, step = lower.expand(x.shape[-1]), step.expand(x.shape[-1])
    return slope.float(), intercept.float(), lower.float(), step.float()


def _checked(x, mask):
    return None if mask is None else statistics_lma.real_rows(x, mask)
