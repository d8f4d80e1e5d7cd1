"""The Triton kernel: on CPU tensors by Triton's interpreter, and on a GPU where there is one."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kernel_problems import DTYPES, RESULTS, assert_exact_enough, evaluate, problem
from triton_worker import MODULES, OPERATORS, PROBLEMS, VARIANTS, samples, train

import lma_hf
from lma_hf.errors import KernelError
from lma_hf.kernels import registry
from lma_hf.kernels import triton as triton_kernel
from lma_hf.modeling import reference_lma

triton = pytest.importorskip("triton", reason="triton is not installed (pip install 'lma_hf[triton]')")

WORKER = Path(__file__).resolve().parents[1] / "triton_worker.py"
SAMPLES = samples()
UNIT = torch.finfo(torch.float32).eps / 2


@pytest.fixture(scope="module", params=[pytest.param("interpreter", marks=pytest.mark.extended), "cuda"])
def computed(request, tmp_path_factory):
    """Everything that the worker computed: group -> case -> results."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU (torch.cuda.is_available() is False)")
    file = tmp_path_factory.mktemp("triton") / "results.pt"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"LMA_HF_KERNEL": "triton", "OMP_NUM_THREADS": "1"}
    device, flags = request.param, ["-W", "error"]
    if device == "interpreter":
        environment |= {"TRITON_INTERPRET": "1"}
        # NumPy's, about NaN
        device, flags = "cpu", [*flags, "-W", "ignore::RuntimeWarning"]
    command = [sys.executable, *flags, WORKER, device, file]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return torch.load(file)


@functools.cache
def reference(group, name):
    return evaluate(reference_lma.lma, PROBLEMS[group][name])


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in ("grid", "shapes", "views") for name in PROBLEMS[group]]
)
def test_results_are_as_exact_as_the_reference(group, name, computed):
    assert_exact_enough(reference(group, name), computed[group][name], PROBLEMS[group][name])


@pytest.mark.parametrize("name", PROBLEMS["empty"])
def test_nothing_gives_nothing_and_gradients_of_zero(name, computed):
    x, slope, *_ = PROBLEMS["empty"][name]
    y, grad_x, *grads = computed["empty"][name]
    assert y.shape == grad_x.shape == x.shape
    assert all(torch.equal(grad, torch.zeros_like(slope)) for grad in grads)


@pytest.mark.parametrize("name", PROBLEMS["knots"])
def test_knots_and_their_neighbours_belong_to_the_same_segment_as_by_the_reference(name, computed):
    assert torch.equal(computed["knots"][name][0], reference("knots", name)[0])


@pytest.mark.parametrize("name", PROBLEMS["special"])
def test_nan_and_infinity_go_where_they_go_by_the_reference(name, computed):
    for what, mine, theirs in zip(RESULTS, computed["special"][name], reference("special", name), strict=True):
        finite = theirs.isfinite()
        assert torch.equal(mine.isfinite(), finite), what
        np.testing.assert_array_equal(mine[~finite].float(), theirs[~finite].float(), err_msg=what)


def test_a_second_run_gives_the_same_bits(computed):
    assert len(computed["again"]) == len(VARIANTS) * len(DTYPES)
    for name, results in computed["again"].items():
        assert all(torch.equal(*pair) for pair in zip(results, computed["grid"][name], strict=True)), name


def exact_statistics(x, mask, own):
    """Count, mean and m2 in float64, and for the latter two the size of what is added up."""
    rows = x.double().numpy().reshape(x.shape[:-1].numel(), x.shape[-1])
    rows = rows if mask is None else rows[mask.reshape(-1).numpy()]
    columns = rows if own else rows.reshape(-1, 1)
    count = np.full(columns.shape[1], len(columns))
    mean, size = (values.sum(0) / np.maximum(count, 1) for values in (columns, np.abs(columns)))
    m2 = ((columns - mean) ** 2).sum(0)
    shape = mean.shape if own else ()
    # equal numbers leave nothing but the rounding of their mean
    sizes = size, m2 + count * (2 * UNIT * mean) ** 2
    return [value.reshape(shape) for value in (count, mean, m2, *sizes)]


@pytest.mark.parametrize("name", SAMPLES)
def test_statistics_are_exact_to_some_roundings_of_float32(name, computed):
    alone, (y, *beside), (y_alone,) = computed["statistics"][name]
    count, mean, m2, *sizes = exact_statistics(*SAMPLES[name])
    assert torch.equal(y, y_alone)
    for mine in (alone, beside):
        assert {each.dtype for each in mine} == {torch.float32}
        np.testing.assert_array_equal(mine[0].numpy(), count)
        for each, value, size in zip(mine[1:], (mean, m2), sizes, strict=True):
            assert each.shape == value.shape
            # the columns of a tile have 64 numbers; more tiles, or a mean far from 0, cost nothing
            assert (np.abs(each.double().numpy() - value) <= 64 * UNIT * size).all()


@pytest.mark.parametrize("name", MODULES)
def test_a_layer_trains_as_by_the_reference(name, computed):
    with lma_hf.use_kernel("reference"):
        expected = train(MODULES[name], "cpu")
    torch.testing.assert_close(computed["modules"][name], expected)


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck_finds_nothing(name, computed):
    assert set(computed["operators"][name].values()) == {"SUCCESS"}


def test_without_triton_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(KernelError, match=r"^[^\n]*pip install 'lma_hf\[triton\]'[^\n]*$"):
        triton_kernel.load()


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_without_a_gpu_the_choice_of_triton_is_an_error(no_gpu, monkeypatch):
    monkeypatch.setenv(registry.VARIABLE, "triton")
    with pytest.raises(KernelError, match=r"^[^\n]*needs a GPU[^\n]*auto[^\n]*$"):
        lma_hf.LMA()(torch.ones(2, 3))


def test_without_a_gpu_nothing_else_changes(no_gpu, monkeypatch):
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    assert registry.resolve("cpu").kernel in ("cpu", "reference")
    kernel, reason = registry.resolve("cuda")
    assert (kernel, "needs a GPU" in reason) == ("reference", True)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Launches are compiled for an H100, which need not be there, and not run; the kernels are kept here."""
    from triton.backends.compiler import GPUTarget

    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: nothing is compiled")
    h100 = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    kernels, run = [], triton.JITFunction.run

    def compile_only(self, *arguments, **options):
        kernels.append(run(self, *arguments, **options | {"warmup": True}))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("triton.runtime.jit.driver", SimpleNamespace(active=h100))
    monkeypatch.setattr(triton.JITFunction, "run", compile_only)
    return kernels


@pytest.mark.parametrize(("k", "own"), [(8, False), (8, True), (33, True)], ids=["shared", "own", "own-33"])
def test_every_launch_compiles_for_an_h100(k, own, compiled):
    from lma_hf.kernels import triton_launch

    x, slope, intercept, lower, step, grad = problem((70, 66), k, own, torch.bfloat16)
    tables, mask = (slope, intercept, lower, step), torch.ones(70, dtype=torch.bool)
    triton_launch.lma(x, *tables)
    triton_launch.lma_with_statistics(x, *tables, mask)
    triton_launch.token_statistics(x, None, own)
    triton_launch.lma_backward(grad, x, slope, lower, step, True)
    triton_launch.lma_backward(grad, x, slope, lower, step, False)
    assert [kernel.asm["cubin"][:4] for kernel in compiled] == 7 * [b"\x7fELF"]


@pytest.mark.parametrize("count", [1, 2**31 + 1])
def test_a_launch_compiles_for_one_element_and_for_more_than_32_bits_count(count, compiled):
    from lma_hf.kernels import triton_launch

    _, slope, intercept, lower, step, _ = problem((1,), 8)
    x = torch.empty(count, dtype=torch.bfloat16, device="meta")
    triton_launch.lma(x, slope, intercept, lower, step)
    assert len(compiled) == 1


def test_float64_is_not_rounded_to_float32_in_silence():
    from lma_hf.kernels import triton_launch

    x, slope, intercept, lower, step, grad = problem((3, 5), 8)
    with pytest.raises(TypeError, match="float64; the kernels take"):
        triton_launch.lma(x.double(), slope, intercept, lower, step)
    with pytest.raises(TypeError, match="float64; the kernels take"):
        triton_launch.lma_backward(grad.double(), x.double(), slope, lower, step, True)
