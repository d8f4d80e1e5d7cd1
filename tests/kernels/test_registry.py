"""Which kernel computes, and what happens where it cannot be had."""

import copy
import gc
import logging
import weakref

import pytest
import torch
from modeling.lma_oracle import variants

import lma_hf
from lma_hf.errors import ConfigError, KernelError
from lma_hf.kernels import cpu as cpu_kernel
from lma_hf.kernels import registry
from lma_hf.kernels.registry import chosen_kernel, kernels_for, resolve, use_kernel
from lma_hf.modeling.reference_lma import REFERENCE

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
REASON = "there is no C++ compiler 'c++'; install g++"


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv("LMA_HF_KERNEL", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def no_compiler(monkeypatch):
    """Nothing is loaded, and the C++ kernel cannot be compiled; the attempts at it."""
    attempts = []

    def load():
        attempts.append(1)
        raise KernelError(REASON)

    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.setattr(cpu_kernel, "load", load)
    return attempts


def assert_one_line(error):
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_auto_takes_the_kernel_made_for_the_device(cpu):
    assert chosen_kernel() == "auto"
    assert resolve("cpu") == ("cpu", None)
    assert kernels_for(torch.zeros(3), 8).name == "cpu"


@pytest.mark.parametrize("choice", ["cpu", "auto", "reference"])
def test_the_variable_chooses(choice, cpu, monkeypatch):
    monkeypatch.setenv("LMA_HF_KERNEL", choice)
    assert kernels_for(torch.zeros(3), 8).name == ("reference" if choice == "reference" else "cpu")


def test_the_reference_is_explained_when_it_was_chosen():
    with use_kernel("reference"):
        kernel, reason = resolve("cpu")
    assert kernel == "reference"
    assert "LMA_HF_KERNEL" in reason


@pytest.mark.parametrize("wrong", ["gpu", "CPU", "cpu ", "none"])
def test_a_choice_that_does_not_exist_is_named_with_those_that_do(wrong, monkeypatch):
    monkeypatch.setenv("LMA_HF_KERNEL", wrong)
    with pytest.raises(ConfigError, match=f"LMA_HF_KERNEL.*'{wrong}'.*auto, reference, cpu, triton") as error:
        lma_hf.LMA()(torch.zeros(3, 4))
    assert_one_line(error)


def test_auto_knows_no_kernel_for_other_devices():
    assert resolve("meta").kernel == "reference"
    assert "meta" in resolve("meta").reason
    assert kernels_for(torch.zeros(3, device="meta"), 8) is REFERENCE


def test_an_explicit_kernel_refuses_other_devices(cpu):
    with use_kernel("cpu"), pytest.raises(ConfigError, match=r"'cpu'.*meta.*auto") as error:
        kernels_for(torch.zeros(3, device="meta"), 8)
    assert_one_line(error)


BEYOND = [(torch.float64, 8), (torch.float32, 65), (torch.int32, 8)]


@pytest.mark.parametrize(("dtype", "k"), BEYOND, ids=str)
def test_auto_leaves_what_the_kernels_cannot_do_to_the_reference(dtype, k, cpu):
    assert kernels_for(torch.zeros(3, dtype=dtype), k) is REFERENCE
    assert kernels_for(torch.zeros(3), 64).name == "cpu"


@pytest.mark.parametrize(("dtype", "k"), BEYOND, ids=str)
def test_an_explicit_kernel_refuses_what_it_cannot_do(dtype, k, cpu):
    with use_kernel("cpu"), pytest.raises(ConfigError, match=rf"'cpu'.*{dtype}.*{k}.*auto") as error:
        kernels_for(torch.zeros(3, dtype=dtype), k)
    assert_one_line(error)


def test_a_module_in_float64_computes_by_the_reference(cpu):
    module = lma_hf.LMA().double().train()
    x = torch.randn(30, 5, dtype=torch.float64)
    with use_kernel("cpu"), pytest.raises(ConfigError, match="float64"):
        module(x)
    assert module(x).dtype == torch.float64


@WITHOUT_GPU
def test_triton_without_a_gpu_is_refused_each_time(monkeypatch):
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.setenv("LMA_HF_KERNEL", "triton")
    messages = []
    for _ in range(3):
        with pytest.raises(KernelError) as error:
            kernels_for(torch.zeros(3), 8)
        assert_one_line(error)
        messages.append(str(error.value))
    assert len(set(messages)) == 1


def test_auto_falls_back_and_keeps_the_reason(no_compiler, caplog):
    for _ in range(3):
        assert kernels_for(torch.zeros(3), 8) is REFERENCE
        assert resolve("cpu") == ("reference", REASON)
    assert len(no_compiler) == 1
    assert [record.message.count(REASON) for record in caplog.records] == [1]


def test_an_explicit_kernel_that_cannot_be_had_is_an_error_each_time(no_compiler, caplog):
    with use_kernel("cpu"):
        for _ in range(3):
            with pytest.raises(KernelError, match=r"C\+\+ compiler"):
                kernels_for(torch.zeros(3), 8)
    assert len(no_compiler) == 1
    assert caplog.records == []


def test_an_explicit_kernel_is_an_error_also_after_auto_fell_back(no_compiler):
    assert resolve("cpu").kernel == "reference"
    with use_kernel("cpu"), pytest.raises(KernelError):
        resolve("cpu")


def test_falling_back_keeps_no_input_alive(no_compiler, caplog):
    # pytest would keep the warning, with the error and its frames
    caplog.set_level(logging.CRITICAL)
    module, alive = lma_hf.LMA().eval(), []
    for _ in range(3):
        x = torch.zeros(3, 4)
        alive.append(weakref.ref(x))
        module(x)
        del x
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3


def test_contexts_nest():
    with use_kernel("reference"):
        with use_kernel("cpu"):
            assert chosen_kernel() == "cpu"
        assert chosen_kernel() == "reference"
    assert chosen_kernel() == "auto"


def test_a_context_overrules_the_variable(monkeypatch):
    monkeypatch.setenv("LMA_HF_KERNEL", "triton")
    with use_kernel("reference"):
        assert resolve("cpu").kernel == "reference"
    with use_kernel("auto"):
        assert chosen_kernel() == "auto"


def test_a_context_ends_with_an_exception():
    with pytest.raises(ZeroDivisionError), use_kernel("reference"):
        _ = 1 / 0
    assert chosen_kernel() == "auto"


def test_a_context_with_a_choice_that_does_not_exist_is_an_error():
    with pytest.raises(ConfigError, match=r"'gpu'.*reference"), use_kernel("gpu"):
        kernels_for(torch.zeros(3), 8)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("kernel", ["cpu", "reference"])
def test_padding_may_hold_anything(kernel, own, cpu):
    statistics = {"cpu": cpu, "reference": REFERENCE}[kernel].token_statistics
    x, mask = torch.randn(30, 5), torch.arange(30) % 3 > 0
    expected = statistics(x, mask, own)
    x[~mask] = torch.nan
    assert all(map(torch.equal, statistics(x, mask, own), expected))


def trained(module, dtype):
    """Outputs, gradients and statistics over three steps of training and one evaluation."""
    found = []
    for seed in range(4):
        module.train(seed < 3)
        generator = torch.Generator().manual_seed(seed)
        x = (0.5 + torch.randn(50, 9, generator=generator)).to(dtype).requires_grad_()
        y = module(x)
        y.backward(torch.randn(50, 9, generator=generator).to(dtype))
        found += [y.detach(), x.grad]
    return found, {name: p.grad for name, p in module.named_parameters()}, dict(module.named_buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", variants(), ids=lambda each: "-".join(map(str, each.values())))
def test_a_module_computes_the_same_by_the_kernel_and_by_the_reference(settings, dtype, cpu):
    module = lma_hf.LMA(**settings, momentum=0.3, num_channels=9)
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    results = []
    for kernel in ("cpu", "reference"):
        with use_kernel(kernel):
            results.append(trained(copy.deepcopy(module), dtype))
    (mine, *mine_tables), (theirs, *their_tables) = results
    torch.testing.assert_close(mine, theirs, rtol=torch.finfo(dtype).eps * 4, atol=1e-5)
    torch.testing.assert_close(mine_tables, their_tables, rtol=2e-6, atol=2e-5)
