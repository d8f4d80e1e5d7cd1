"""What is timed as an activation computes what its name says, in groups that the settings span."""

import pytest
import torch
from torch.nn import functional as F

import lma_hf
from lma_hf.compare import activation_benchmark
from lma_hf.compare.activation_benchmark import CANDIDATES, AuthorsLMA, build_candidates, left_out, measure_activations
from lma_hf.compare.timing import Setting
from lma_hf.modeling.activation_lma import LMA

SETTING = ("activation", "4x8", "float32", 1, "inference")
LIKE_RELU = [name for name in CANDIDATES if name not in ("copy", "gelu", "silu")]


def inputs(shape=(64, 24)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def pair_with_equal_parameters(**settings):
    """The authors' form and our module, with the same random pieces."""
    authors, ours = AuthorsLMA(), LMA(**settings)
    with torch.no_grad():
        for module in (authors, ours):
            torch.manual_seed(1)
            module.slope.normal_()
            module.intercept.normal_()
    return authors, ours


def test_authors_form_trains_as_the_module_with_statistics_of_the_batch():
    x, grad = inputs()
    results = []
    for module in pair_with_equal_parameters(statistics="batch"):
        leaf = (0.7 * x + 0.3).requires_grad_()
        y = module(leaf)
        results.append([y, *torch.autograd.grad(y, [leaf, module.slope, module.intercept], grad)])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def test_authors_form_evaluates_by_its_moving_statistics():
    x, _ = inputs()
    authors, ours = (module.eval() for module in pair_with_equal_parameters())
    for module, names in ((authors, ("moving_mean", "moving_std")), (ours, ("running_mean", "running_std"))):
        for name, value in zip(names, (0.2, 1.4), strict=True):
            getattr(module, name).fill_(value)
    torch.testing.assert_close(authors(x), ours(x))
    assert authors.moving_mean == torch.tensor(0.2)


def test_moving_statistics_of_the_authors_form():
    x, _ = inputs()
    authors = AuthorsLMA()
    authors(x)
    torch.testing.assert_close(authors.moving_mean, 0.01 * x.mean())
    torch.testing.assert_close(authors.moving_std, 0.99 + 0.01 * x.std(correction=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_candidate_computes_its_activation(dtype):
    x, grad = (tensor.to(dtype) for tensor in inputs())
    expected = {"copy": x, "gelu": F.gelu(x), "silu": F.silu(x)} | dict.fromkeys(LIKE_RELU, F.relu(x))
    candidates = build_candidates(CANDIDATES, x, grad, "inference")
    assert set(expected) == set(candidates) == set(CANDIDATES)
    for name, candidate in candidates.items():
        y = candidate.step()
        assert y.dtype == dtype, name
        # a paper's start is a ReLU hinged at 0, up to the rounding of the place of the hinge
        torch.testing.assert_close(y, expected[name], rtol=1e-5, atol=1e-2 if name == "authors" else 1e-5)


def test_every_candidate_trains_input_and_parameters():
    x, grad = inputs()
    activations = {"gelu": F.gelu, "silu": F.silu} | dict.fromkeys(LIKE_RELU, F.relu)
    candidates = build_candidates(["copy", *activations], x, grad, "training")
    assert candidates.pop("copy").step() is None
    for name, candidate in candidates.items():
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(activations[name](leaf), leaf, grad)
        grad_x, *grads = candidate.step()
        # most LMA are hinged at the mean of the batch or the channel, which is near 0
        beside = x.abs() < (0 if name in ("relu", "gelu", "silu", "lma frozen") else 0.5)
        torch.testing.assert_close(grad_x.masked_fill(beside, 0), expected.masked_fill(beside, 0))
        assert len(grads) == (0 if name in ("relu", "gelu", "silu") else 2), name
        assert all(each.abs().sum() > 0 for each in grads), name


def test_candidates_are_the_settings_that_their_names_say():
    x, grad = inputs()
    modules = {
        name: activation_benchmark.BUILDERS[name](24) for name in CANDIDATES if name.startswith(("lma", "reference"))
    }
    settings = {name: module.settings for name, module in modules.items()}
    assert {name: found.statistics for name, found in settings.items()} == {
        **dict.fromkeys(modules, "running"),
        "lma frozen": "frozen",
        "lma batch": "batch",
    }
    assert [name for name, found in settings.items() if found.per_channel] == ["lma per channel"]
    assert [name for name, found in settings.items() if found.num_segments != 8] == ["lma 16"]
    assert settings["lma 16"].num_segments == 16
    for name in ("lma", "lma frozen"):
        candidate = build_candidates([name], x, grad, "training")[name]
        candidate.step()
        module = candidate.step.args[0]
        # once for the memory, once for the step
        assert module.num_batches_tracked == (2 if name == "lma" else 0)


def test_reference_is_timed_on_the_reference(monkeypatch):
    used = []
    original = activation_benchmark.use_kernel
    monkeypatch.setattr(activation_benchmark, "use_kernel", lambda choice: used.append(choice) or original(choice))
    x, grad = inputs()
    with lma_hf.use_kernel("auto"):
        candidates = build_candidates(["gelu", "lma", "reference"], x, grad, "inference")
        assert used == ["reference"]
        candidates["reference"].step()
    assert used == ["reference"] * 2
    kernels = {name: candidate.kernel for name, candidate in candidates.items()}
    assert kernels == {"gelu": "torch", "lma": activation_benchmark.kernel_of(LMA()), "reference": "reference"}
    with lma_hf.use_kernel("reference"):
        assert build_candidates(["lma"], x, grad, "training")["lma"].kernel == "reference"


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_lma_keeps_what_gelu_keeps(kernel):
    x, grad = inputs()
    with lma_hf.use_kernel(kernel):
        kept = {name: each.kept_bytes for name, each in build_candidates(CANDIDATES, x, grad, "training").items()}
    size = x.numel() * 4
    assert kept["copy"] == 0
    assert kept["gelu"] == kept["relu"] == kept["silu"] == size
    # the input, and lower and step: two numbers in all, or two a channel
    scalars = ("reference", "lma", "lma frozen", "lma batch", "lma 16")
    assert {name: kept[name] - size for name in scalars} == dict.fromkeys(scalars, 8)
    assert kept["lma per channel"] - size == 8 * x.shape[1]
    # x, the slope of every element, and its segment as int64
    assert kept["authors"] == 4 * size


def test_groups_of_activations():
    groups = list(measure_activations([(4, 8), (3, 5)], ["float32", "bfloat16"], [1, 2], ["gelu", "lma"], repeats=1))
    assert len(groups) == 2 * 2 * 2 * 2
    settings = [tuple(group[0][key] for key in Setting._fields) for group in groups]
    assert settings[0] == SETTING
    assert settings[-1] == ("activation", "3x5", "bfloat16", 2, "training")
    assert len(set(settings)) == len(settings)
    for group in groups:
        assert [row["candidate"] for row in group] == ["gelu", "lma"]
        assert all(0 < row["min_ms"] <= row["median_ms"] for row in group)
        assert all((row["kept_bytes"] is None) == (row["mode"] == "inference") for row in group)


def test_the_slowest_are_left_out_where_they_take_seconds(monkeypatch):
    assert left_out((16384, 3072), "training") == ("authors", "reference")
    assert left_out((16384, 3072), "inference") == left_out((4096, 3072), "training") == ()
    monkeypatch.setattr(activation_benchmark, "LARGE", 32)
    names = [[row["candidate"] for row in group] for group in measure_activations([(4, 8)], ["float32"], [1], None, 1)]
    assert names[0] == list(CANDIDATES)
    assert set(CANDIDATES) - set(names[1]) == {"authors", "reference"}
    *_, asked = measure_activations([(4, 8)], ["float32"], [1], ["authors"], 1)
    assert [row["candidate"] for row in asked] == ["authors"]
