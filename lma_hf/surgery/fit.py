"""Least-squares fit of an LMA to the activation it replaces, weighted by the normal density of its inputs."""

import torch

from lma_hf.errors import SurgeryError

POINTS = 64  # quadrature points a segment; more change the fit by less than 6e-4 deviations (weighted rms)
TAIL_SIGMAS = 3.0  # how far beyond the range the outermost segments are fitted


@torch.no_grad()
def fit_to_replaced_(lma_module, fqn):
    """Fit the pieces of one LMA module, at its running statistics, to the activation it replaced.

    Each segment gets the line (or, when continuous, all knots together get the heights) that minimises the squared
    error under a normal density with the running mean and deviation, in float64.

    Raises: SurgeryError if there is nothing to fit to or it is no elementwise function.
    """
    replaced = check_fit(lma_module, fqn)
    mean, std = lma_module.running_mean.double(), lma_module.running_std.double()
    lower, step = lma_module.bounds(mean, std)
    x, weight = _quadrature(lma_module.settings, mean, std, lower, step)
    target = _evaluate(replaced, x, fqn)
    if lma_module.settings.continuous:
        lma_module.height.copy_(_fit_heights(x, weight, target, lower, step))
        return
    slope, intercept = _fit_lines(x, weight, target)
    lma_module.slope.copy_(slope)
    lma_module.intercept.copy_(intercept)


def check_fit(lma_module, fqn):
    """The activation that the module replaced. Raises: SurgeryError if there is none or it cannot be fitted."""
    replaced = lma_module.__dict__.get("replaced")
    if replaced is None:
        raise SurgeryError(f'{fqn} replaced no activation, so init="fit" has nothing to fit to; use init="relu"')
    _evaluate(replaced, torch.linspace(-4, 4, 64, dtype=torch.float64).view(8, 8), fqn)
    return replaced


def _quadrature(settings, mean, std, lower, step):
    """Midpoints of a fine grid in every segment and their normal weights, each of shape (..., k, POINTS).

    The outermost segments are stretched by TAIL_SIGMAS, since they extend to infinity.
    """
    k = settings.num_segments
    edges = lower[..., None] + step[..., None] * torch.arange(k + 1, device=lower.device)
    edges[..., 0] -= TAIL_SIGMAS * std
    edges[..., -1] += TAIL_SIGMAS * std
    width = edges.diff(dim=-1)[..., None]
    midpoints = (torch.arange(POINTS, device=lower.device, dtype=lower.dtype) + 0.5) / POINTS
    x = edges[..., :-1, None] + width * midpoints
    z = (x - mean[..., None, None]) / std.clamp_min(1e-6)[..., None, None]
    # the floor keeps segments far out in the tails from having no weight at all
    return x, torch.exp(-0.5 * z * z).clamp_min(1e-12) * width


def _evaluate(activation, x, fqn):
    """The activation on the grid, checked to be finite and elementwise."""
    name = type(activation).__name__
    flat = x.flatten()
    try:
        y, every_second_y = activation(x), activation(flat[::2].contiguous())
    except Exception as error:
        raise SurgeryError(f"{fqn} replaced {name}, which cannot be evaluated for the fit: {error}") from error
    elementwise = y.shape == x.shape and torch.allclose(y.flatten()[::2], every_second_y, rtol=1e-9, atol=1e-12)
    if not elementwise or not y.isfinite().all():
        raise SurgeryError(
            f'{fqn} replaced {name}, which is no finite elementwise function, so there is no fit; use init="relu"'
        )
    return y


def _fit_lines(x, weight, target):
    """Weighted regression line of every segment: slope and intercept of shape x.shape[:-1]."""
    weight = weight / weight.sum(-1, keepdim=True)
    mean_x, mean_y = (weight * x).sum(-1, keepdim=True), (weight * target).sum(-1, keepdim=True)
    covariance = (weight * (x - mean_x) * (target - mean_y)).sum(-1)
    slope = covariance / (weight * (x - mean_x).square()).sum(-1)
    return slope, mean_y[..., 0] - slope * mean_x[..., 0]


def _fit_heights(x, weight, target, lower, step):
    """Weighted least squares for the k + 1 knot heights of a continuous piecewise linear function."""
    k = x.shape[-2]
    position = (x - lower[..., None, None]) / step[..., None, None]
    left = torch.arange(k, device=x.device)[:, None]
    # beyond the range the share is below 0 or above 1: the end pieces go on straight
    share = position - left
    basis = x.new_zeros(*x.shape, k + 1)
    basis.scatter_(-1, left.expand(x.shape)[..., None], (1 - share)[..., None])
    basis.scatter_(-1, left.expand(x.shape)[..., None] + 1, share[..., None])
    root = weight.sqrt().flatten(-2)
    design = basis.flatten(-3, -2) * root[..., None]
    return torch.linalg.lstsq(design, (target.flatten(-2) * root)[..., None]).solution[..., 0]
