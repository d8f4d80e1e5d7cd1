"""A process that has the operators and no kernel: `LMA_HF_KERNEL=reference ops_worker.py FOLDER` prints a JSON object,
name of the check -> "ok" or what went wrong."""

import importlib
import json
import sys
from pathlib import Path

import torch
from kernel_problems import problem
from torch.autograd import gradcheck
from torch.library import opcheck

import lma_hf  # noqa: F401


def exported_program():
    x, expected = torch.load(folder / "example.pt")
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(folder / "model.pt2").module()(x), expected)


def gradients(own):
    importlib.import_module("lma_hf.kernels.ops")
    x, slope, intercept, lower, step, _ = (tensor.double() for tensor in problem((30, 3), 5, own))
    # in the middle of a segment, where small steps stay in it
    x = lower + step * (torch.arange(-1, 7)[:, None] + torch.tensor([0.3, 0.5, 0.7], dtype=x.dtype))
    leaves = [tensor.requires_grad_() for tensor in (x, slope, intercept)]
    assert gradcheck(lambda *inputs: torch.ops.lma_hf.lma(*inputs, lower, step), leaves)
    statistics = torch.ops.lma_hf.lma_with_statistics
    assert gradcheck(lambda *inputs: statistics(*inputs, lower, step, None)[0], leaves)


def operators():
    importlib.import_module("lma_hf.kernels.ops")
    for own in (False, True):
        x, *tables, grad = (tensor.double() for tensor in problem((5, 6), 8, own))
        mask = torch.arange(5) % 2 == 0
        opcheck(torch.ops.lma_hf.lma.default, (x, *tables))
        opcheck(torch.ops.lma_hf.lma_with_statistics.default, (x, *tables, mask))
        opcheck(torch.ops.lma_hf.token_statistics.default, (x, mask, own))
        opcheck(torch.ops.lma_hf.lma_backward.default, (grad, x, tables[0], *tables[2:], True))


def outcome(check, *arguments):
    try:
        check(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


folder = Path(sys.argv[1])
found = {"exported program": outcome(exported_program)}
found |= {f"gradcheck {name}": outcome(gradients, name == "own") for name in ("shared", "own")}
print(json.dumps(found | {"opcheck": outcome(operators)}))
