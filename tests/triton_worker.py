"""What the Triton kernel computes, by a process of its own: Triton's interpreter has to be chosen before the import.

`triton_worker.py DEVICE FILE` with LMA_HF_KERNEL=triton saves the results of all cases; test_triton.py knows the cases
from here and compares. It stands beside tests/kernels for the reason that kernel_problems.py gives.
"""

import sys
from types import SimpleNamespace

import torch
from kernel_problems import DTYPES, evaluate, problem

import lma_hf
from lma_hf.kernels.registry import kernels_for

VARIANTS = {"shared": False, "own": True}
OPERATORS = {
    f"{name} {variant}": (name, own)
    for name in ("lma", "lma_backward", "token_statistics", "lma_with_statistics")
    for variant, own in VARIANTS.items()
}
VIEWS = {
    "transpose": lambda x: x.transpose(0, 1),
    "stride": lambda x: x[:, ::2],
    "offset": lambda x: x[1:, 3:, 2:],
    "expand": lambda x: x[:, :1].expand(-1, 6, -1),
}
SHAPES = [(1,), (7,), (3, 5), (2, 3, 5), (1, 1), (130, 1), (1, 130), (67, 3), (3, 9, 200)]
EMPTY = [(0,), (0, 5), (5, 0), (2, 0, 3)]
MODULES = {
    f"{statistics} {variant} {'heights' if continuous else 'lines'}": {
        "statistics": statistics,
        "per_channel": per_channel,
        "continuous": continuous,
        "momentum": 0.3,
    }
    for statistics in ("batch", "running")
    for variant, per_channel in VARIANTS.items()
    for continuous in (False, True)
}


def grid():
    """Every number of segments and dtype, on four tiles with ragged edges."""
    return {
        f"{k} {variant} {dtype}": problem((70, 66), k, own, dtype)
        for k in (2, 3, 8, 16, 33, 64)
        for variant, own in VARIANTS.items()
        for dtype in DTYPES
    }


def shapes():
    cases = {f"{shape} {name}": problem(shape, 8, own) for shape in SHAPES for name, own in VARIANTS.items()}
    return {"() shared": problem((), 8), **cases}


def empty():
    return {f"{shape} {name}": problem(shape, 8, own) for shape in EMPTY for name, own in VARIANTS.items()}


def views():
    """Tensors that are not contiguous, as x and as dL/dy."""
    base = problem((5, 6, 17), 8)
    cases = {}
    for name, view in VIEWS.items():
        x, grad = view(base.x), view(base.grad)
        for variant, own in VARIANTS.items():
            cases[f"{name} {variant}"] = problem(x.shape, 8, own)._replace(x=x, grad=grad)
    return cases


def knots():
    """The segment itself as y, on the knots and beside them."""
    cases = {}
    for k in (2, 3, 8, 33, 64):
        for variant, own in VARIANTS.items():
            _, slope, intercept, lower, step, _ = problem((37,), k, own)
            knot = (lower + step * torch.arange(-1.0, k + 2)[:, None]).expand(-1, 37)
            x = torch.cat([knot, *(knot.nextafter(torch.tensor(towards)) for towards in (-torch.inf, torch.inf))])
            tables = torch.zeros_like(slope), torch.arange(float(k)).expand_as(intercept)
            cases[f"{k} {variant}"] = type(problem((1,), k))(x, *tables, lower, step, torch.ones_like(x))
    return cases


def special():
    """NaN, infinities and ordinary numbers meet as x and as dL/dy; one slope is 0."""
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -2.5])
    cases = {}
    for variant, own in VARIANTS.items():
        for k in (8, 33):
            for dtype in DTYPES:
                case = problem((30, 7), k, own, dtype)
                case.x[:25, 3], case.grad[:25, 3] = values.repeat_interleave(5).to(dtype), values.repeat(5).to(dtype)
                case.slope[..., 0] = 0
                cases[f"{k} {variant} {dtype}"] = case
    return cases


PROBLEMS = {group.__name__: group() for group in (grid, shapes, empty, views, knots, special)}


def samples():
    """(x, mask, per_channel) for statistics."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(2, 35, 33, generator=generator)
    some, rows = torch.rand(2, 35, generator=generator) < 0.6, torch.arange(70).view(2, 35)
    xs = {f"{dtype}": (2 * normal + 0.5).to(dtype) for dtype in DTYPES}
    xs |= {"far from 0": 1000 + 0.01 * normal, "farther": normal - 1e6, "far, bfloat16": (300 + normal).bfloat16()}
    xs |= {"drifting": 100 * rows[..., None] + normal, "constant": torch.full_like(normal, 0.1)}
    cases = {f"{name}, some rows": (x, some) for name, x in xs.items()}
    cases |= {
        f"{name}, every row": (xs[name], None) for name in ("torch.float32", "far from 0", "drifting", "constant")
    }
    cases |= {"no row": (normal, rows < 0), "the last row": (normal, rows > 68)}
    cases |= {"strided": (normal.transpose(0, 1), some.t()), "one row": (normal[0, 0], None)}
    for shape in [(1, 1), (300, 1), *EMPTY]:
        cases[f"{shape}"] = torch.randn(shape, generator=generator), None
    # more tiles than are merged at a time
    cases["long"] = 50 + torch.randn(4200, 64, generator=generator), None
    return {f"{name}, {variant}": (*case, own) for name, case in cases.items() for variant, own in VARIANTS.items()}


def statistics(x, mask, own, device):
    """By one pass for them alone: count, mean and m2; by the pass that computes y: y and the three; y alone."""
    x, mask = x.to(device), None if mask is None else mask.to(device)
    tables = [tensor.to(device) for tensor in problem(x.shape, 8, own)[1:5]]
    kernels = kernels_for(x, 8)
    alone, beside = kernels.token_statistics(x, mask, own), kernels.lma_with_statistics(x, *tables, mask)
    return [[tensor.cpu() for tensor in each] for each in (alone, beside, [kernels.lma(x, *tables)])]


def train(settings, device):
    """Everything that three steps of an LMA layer leave behind; the running kind takes its statistics on the way."""
    generator = torch.Generator().manual_seed(2)
    module = lma_hf.LMA(**settings, num_channels=33 if settings["per_channel"] else None).to(device).train()
    module.token_mask = SimpleNamespace(value=(torch.rand(4, 9, generator=generator) < 0.7).to(device))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    seen = {}
    for step in range(3):
        x, grad = (torch.randn(4, 9, 33, generator=generator).to(device) for _ in range(2))
        y = module(x.requires_grad_())
        optimizer.zero_grad()
        y.backward(grad)
        optimizer.step()
        seen |= {f"y {step}": y.detach(), f"grad {step}": x.grad}
    return {name: tensor.cpu() for name, tensor in (seen | module.state_dict()).items()}


def opcheck(name, own, device):
    """What PyTorch's own check of operators finds; {test: "SUCCESS"} if nothing."""
    x, slope, *tables, lower, step, grad = (tensor.to(device) for tensor in problem((3, 5, 9), 8, own))
    intercept, mask = *tables, torch.arange(15, device=device) % 3 > 0
    arguments = {
        "lma": (x, slope, intercept, lower, step),
        "lma_backward": (grad, x, slope, lower, step, True),
        "token_statistics": (x, mask, own),
        "lma_with_statistics": (x, slope, intercept, lower, step, mask),
    }
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    return torch.library.opcheck(getattr(torch.ops.lma_hf, name).default, arguments[name], test_utils=tests)


def compute(given, device):
    """The results for a problem."""
    given = type(given)(*(tensor.to(device) for tensor in given))
    return [tensor.cpu() for tensor in evaluate(kernels_for(given.x, given.slope.shape[-1]).lma, given)]


def main(device, file):
    grid = PROBLEMS["grid"]
    results = {
        group: {name: compute(case, device) for name, case in cases.items()} for group, cases in PROBLEMS.items()
    }
    results["again"] = {name: compute(case, device) for name, case in grid.items() if name.startswith("8 ")}
    results["statistics"] = {name: statistics(*case, device) for name, case in samples().items()}
    results["modules"] = {name: train(settings, device) for name, settings in MODULES.items()}
    results["operators"] = {name: opcheck(*each, device) for name, each in OPERATORS.items()}
    torch.save(results, file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
