"""The operators torch.ops.lma_hf.* in torch.compile, torch.export, autocast and checkpointing."""

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_problems import evaluate, problem
from torch import nn
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import lma_hf
from lma_hf.modeling import reference_lma

pytestmark = pytest.mark.usefixtures("cpu_chosen")
OWN = pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
SETTINGS = [
    {"statistics": statistics, "per_channel": own, "num_channels": 6, "momentum": 0.3}
    for statistics in ("batch", "running", "frozen")
    for own in (False, True)
]
MODULES = pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: f"{each['statistics']}-{each['per_channel']}")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


def operators():
    return torch.ops.lma_hf


@OWN
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("needs", [False, True], ids=["constants", "parameters"])
def test_opcheck_of_lma(needs, dtype, own):
    x, *tables, _ = problem((5, 6), 8, own, dtype)
    for tensor in (x, *tables[:2]):
        tensor.requires_grad_(needs)
    opcheck(operators().lma.default, (x, *tables))
    for mask in (None, torch.arange(5) % 2 == 0):
        opcheck(operators().lma_with_statistics.default, (x, *tables, mask))


@OWN
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("parameters", [False, True])
def test_opcheck_of_lma_backward(parameters, dtype, own):
    x, slope, _, lower, step, grad = problem((5, 6), 8, own, dtype)
    opcheck(operators().lma_backward.default, (grad, x, slope, lower, step, parameters))


@OWN
@pytest.mark.parametrize("needs", [False, True], ids=["constant", "gradient"])
def test_opcheck_of_token_statistics(needs, own):
    x = torch.randn(5, 6, requires_grad=needs)
    for mask in (None, torch.arange(5) % 2 == 0):
        opcheck(operators().token_statistics.default, (x, mask, own))


REFUSED = {
    "dtype": {"x": torch.zeros(5, 6, dtype=torch.float64)},
    "65 segments": {"slope": torch.zeros(65), "intercept": torch.zeros(65)},
    "7 channels": {"slope": torch.zeros(7, 8), "intercept": torch.zeros(7, 8)},
    "three dimensions": {"slope": torch.zeros(2, 6, 8), "intercept": torch.zeros(2, 6, 8)},
    "no dimension": {"slope": torch.zeros(()), "intercept": torch.zeros(())},
    "other intercepts": {"intercept": torch.zeros(9)},
    "bounds of each channel": {"lower": torch.zeros(6)},
    "no bounds": {"step": torch.zeros(0)},
}


@pytest.mark.parametrize("wrong", REFUSED.values(), ids=REFUSED)
def test_operators_refuse_what_they_cannot_compute(wrong):
    given = problem((5, 6), 8)._replace(**wrong)
    with pytest.raises((ValueError, TypeError)):
        operators().lma(*given[:5])
    with pytest.raises((ValueError, TypeError)):
        operators().lma_with_statistics(*given[:5], None)
    if "intercept" not in wrong:
        with pytest.raises((ValueError, TypeError)):
            operators().lma_backward(given.grad, given.x, given.slope, given.lower, given.step, True)


def test_operators_refuse_gradients_and_masks_of_other_shapes():
    x, *tables, grad = problem((5, 6), 8)
    with pytest.raises(ValueError, match=r"\[4, 6\].*\[5, 6\]"):
        operators().lma_backward(grad[:4], x, tables[0], *tables[2:], True)
    with pytest.raises(ValueError, match="mask"):
        operators().token_statistics(x, torch.ones(4), False)
    with pytest.raises(ValueError, match="mask"):
        operators().lma_with_statistics(x, *tables, torch.ones(4))


def test_an_instruction_set_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"abacus.*allowed are .*plain"):
        operators().use_instruction_set("abacus")


@pytest.mark.parametrize("implementation", ["reference", "kernel"])
def test_second_derivatives_are_refused(implementation, cpu):
    x, *tables, _ = problem((5, 6), 8)
    lma = cpu.lma if implementation == "kernel" else reference_lma.lma
    y = lma(x.requires_grad_(), *tables)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"twice|second derivative"):
        grad.square().sum().backward()


@OWN
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_operators_equal_eager_ones(dynamic, own, cpu):
    compiled = torch.compile(cpu.lma, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (5, 9):
        given = problem((rows, 6), 8, own)
        assert all(map(torch.equal, evaluate(compiled, given), evaluate(cpu.lma, given)))


@OWN
def test_compiled_statistics_equal_eager_ones(own, cpu):
    def function(x, *tables):
        return *cpu.token_statistics(x, mask, own), *cpu.lma_with_statistics(x, *tables, mask)

    mask = torch.arange(5) % 2
    x, *tables, _ = problem((5, 6), 8, own)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(x, *tables), function(x, *tables)))


def trained(module, forward, steps=3):
    """Outputs, gradients and running statistics over some steps of training."""
    found = []
    for seed in range(steps):
        x = problem((40, 6), 8, seed=seed).x.requires_grad_()
        y = forward(x)
        y.square().sum().backward()
        found += [y.detach(), x.grad]
    return found, {name: p.grad for name, p in module.named_parameters()}, dict(module.named_buffers())


@MODULES
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_compiled_module_equals_the_eager_one(mode, settings):
    eager = getattr(lma_hf.LMA(**settings), mode)()
    copied = copy.deepcopy(eager)
    expected = trained(eager, eager)
    actual = trained(copied, torch.compile(copied, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(actual, expected)


# torch's own, when it first imports inductor
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.extended
def test_inductor_equals_eager():
    module = lma_hf.LMA().eval()
    x = problem((40, 6), 8).x
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), module(x))


@pytest.fixture(scope="module")
def fresh_process(cpu, tmp_path_factory):
    """What a process with LMA_HF_KERNEL=reference makes of an exported model and of the operators: see ops_worker."""
    folder = tmp_path_factory.mktemp("export")
    model = nn.Sequential(nn.Linear(6, 6), lma_hf.LMA(per_channel=True, num_channels=6), nn.Linear(6, 2)).eval()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    with lma_hf.use_kernel("cpu"), torch.no_grad():
        program = torch.export.export(model, (x,))
        torch.export.save(program, folder / "model.pt2")
        torch.save([x, model(x)], folder / "example.pt")
        assert "lma_hf.lma" in program.graph_module.code
        torch.testing.assert_close(program.module()(x), model(x))
    worker = Path(__file__).parent.parent / "ops_worker.py"
    environment = os.environ | {"LMA_HF_KERNEL": "reference"}
    result = subprocess.run([sys.executable, worker, folder], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("check", ["exported program", "gradcheck shared", "gradcheck own", "opcheck"])
def test_a_process_without_a_kernel(check, fresh_process):
    assert fresh_process[check] == "ok"


@MODULES
@pytest.mark.parametrize("copying", ["deepcopy", "pickle", "torch.save"])
def test_copies_go_on_alike(copying, settings):
    module = lma_hf.LMA(**settings)
    trained(module, module)
    if copying == "deepcopy":
        copied = copy.deepcopy(module)
    elif copying == "pickle":
        copied = pickle.loads(pickle.dumps(module))
    else:
        torch.save(module, buffer := io.BytesIO())
        copied = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    module.zero_grad(), copied.zero_grad()
    torch.testing.assert_close(trained(copied, copied), trained(module, module), rtol=0, atol=0)


@MODULES
def test_autocast_runs_the_kernel_in_bfloat16(settings):
    model = nn.Sequential(nn.Linear(6, 6), lma_hf.LMA(**settings)).train()
    results = []
    for kernel in ("cpu", "reference"):
        copied, x = copy.deepcopy(model), problem((400, 6), 8).x
        with torch.autocast("cpu", torch.bfloat16), lma_hf.use_kernel(kernel):
            y = copied(x)
        y.float().square().mean().backward()
        assert y.dtype == torch.bfloat16
        assert all(buffer.dtype == torch.float32 for name, buffer in copied[1].named_buffers() if "running" in name)
        results.append([y.detach(), dict(copied.named_buffers()), [p.grad for p in copied.parameters()]])
    torch.testing.assert_close(*results, rtol=2**-8, atol=1e-5)


@MODULES
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_nothing(use_reentrant, settings):
    results = []
    for checkpointed in (False, True):
        model = nn.Sequential(nn.Linear(6, 6), lma_hf.LMA(**settings), nn.Linear(6, 1))
        with torch.no_grad():
            for index, parameter in enumerate(model.parameters()):
                parameter.copy_(problem(parameter.shape, 8, seed=index).x)
        forward = model if not checkpointed else lambda x: checkpoint(model, x, use_reentrant=use_reentrant)  # noqa: B023
        results.append(trained(model, forward))
        expected = 0 if settings["statistics"] == "frozen" else 3
        assert model[1].num_batches_tracked == expected
    torch.testing.assert_close(*results, rtol=0, atol=0)
