"""Rounding that makes up for its own errors, on what the layers see of some texts (GPTQ)."""

import torch

from lma_hf.compression.quantization.targets import by_layer
from lma_hf.errors import SurgeryError
from lma_hf.modeling.packed_lma import NOT_FINITE
from lma_hf.modeling.schemes_lma import ScalarScheme, dequantize, levels_of, nearest_codes, quantize
from lma_hf.surgery.eval_mode import eval_mode

DAMPING = 0.01  # of the mean square of the inputs, as in the paper; so that rare inputs do not decide alone


@torch.no_grad()
def calibrated_codes(model, modules, schemes, batches):
    """Quantized weights of linear layers whose outputs on the batches stay close to what they were.

    Layer after layer of the model, so that a later one makes up for the earlier ones' errors as well. A module that no
    batch reaches, or that gets zeros only, has each weight at the nearest level.

    Args:
        model: a transformers model; in the end its weights are what they were.
        modules: fqn -> `nn.Linear`, in the order in which they compute.
        schemes: fqn -> `ScalarScheme`. batches: list of dicts of the model's inputs with an attention_mask; labels are
            ignored, and padding does not count.
    Returns: fqn -> what `lma_hf.modeling.schemes_lma.quantize` returns.
    Raises: SurgeryError for another scheme, or weights that are not finite.
    """
    for fqn, module in modules.items():
        if not isinstance(schemes[fqn], ScalarScheme):
            raise SurgeryError(f"{fqn} has {schemes[fqn]!r}, but a ScalarScheme alone is calibrated; drop the batches")
        if not torch.isfinite(quantize(module.weight, schemes[fqn])[1]).all():
            raise SurgeryError(f"{fqn} has {NOT_FINITE}")
    batches = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    found, originals = {}, {fqn: module.weight.clone() for fqn, module in modules.items()}
    try:
        with eval_mode(model):
            for fqns in by_layer(modules):
                grams = input_grams(model, {fqn: modules[fqn] for fqn in fqns}, batches)
                for fqn in fqns:
                    weight = modules[fqn].weight
                    found[fqn] = compensated_codes(weight.float(), grams[fqn], schemes[fqn])
                    weight.copy_(dequantize(*found[fqn], schemes[fqn]))
    finally:
        for fqn, weight in originals.items():
            modules[fqn].weight.copy_(weight)
    return found


@torch.no_grad()
def input_grams(model, modules, batches):
    """Fqn -> mean outer product of a module's inputs over all real tokens: float64, (in_features, in_features).

    Zeros for a module that no pass calls. Raises: SurgeryError if inputs are not finite.
    """
    sizes = {fqn: (module.in_features, module.in_features) for fqn, module in modules.items()}
    sums = {fqn: modules[fqn].weight.new_zeros(size, dtype=torch.float64) for fqn, size in sizes.items()}
    counts, mask = dict.fromkeys(modules, 0), None

    def see(fqn, inputs):
        vectors = inputs[mask.bool()] if inputs.shape[:-1] == mask.shape else inputs.flatten(0, -2)
        sums[fqn] = sums[fqn] + (vectors.T @ vectors).double()
        counts[fqn] += len(vectors)

    hooks = [
        module.register_forward_pre_hook(lambda module, inputs, fqn=fqn: see(fqn, inputs[0]))
        for fqn, module in modules.items()
    ]
    try:
        for batch in batches:
            mask = batch["attention_mask"]
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    for fqn, total in sums.items():
        if not torch.isfinite(total).all():
            raise SurgeryError(
                f"{fqn} has inputs that are not finite; look at the layers before it, or drop the batches"
            )
    return {fqn: sums[fqn] / max(counts[fqn], 1) for fqn in modules}


def compensated_codes(weight, gram, scheme):
    """Round column after column; what a column's error does to the outputs, those not yet rounded make up for.

    Algorithm 1 of Frantar et al. 2023 (arXiv 2210.17323), in the order of the columns. A group's levels are set when
    its first column is reached.

    Args: weight: float32 of shape (rows, row length). gram: of shape (row length, row length), positive semidefinite;
        of zeros, every weight goes to its nearest level.
    Returns: codes, scale, zero_point as `quantize` returns them.
    """
    if not gram.any():
        return quantize(weight, scheme)
    weight, codes = weight.clone(), torch.zeros_like(weight)
    size, scales, zero_points = scheme.group_size or weight.shape[1], [], []
    # row i of the upper Cholesky factor of the inverse: how the columns after i make up for an error in i
    factor = _inverse_factor(gram).to(weight)
    for start in range(0, weight.shape[1], size):
        scale, zero_point = levels_of(weight[:, start : start + size], scheme)
        for column in range(start, min(start + size, weight.shape[1])):
            current = weight[:, column : column + 1]
            chosen = nearest_codes(current, scale, zero_point, scheme)
            codes[:, column : column + 1] = chosen
            error = (current - (chosen - zero_point) * scale) / factor[column, column]
            weight[:, column:] -= error * factor[column, column:]
        scales.append(scale)
        zero_points.append(zero_point)
    return codes.to(torch.uint8), torch.cat(scales, 1), torch.cat(zero_points, 1).to(torch.uint8)


def _inverse_factor(gram):
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
