"""A small BERT trained by the kernel ends as near to one trained in float64 as one trained by the reference."""

import pytest
import torch
from helpers import padded_batch, tiny_model

import lma_hf

LENGTHS, LABELS = (30, 4, 17, 9), torch.tensor([0, 1, 1, 0])
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    # the keys' biases have gradients of 0 but for rounding, which a smaller eps would turn into whole steps
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, eps=1e-4),
}


def train(config, optimizer, kernel, dtype, steps=30):
    """Parameters and statistics of the trained model, as float64."""
    model = tiny_model("bert")
    lma_hf.swap_activations_(model, config)
    model.to(dtype).train()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    with lma_hf.use_kernel(kernel):
        for step in range(steps):
            optimizer.zero_grad()
            model(**padded_batch(model, LENGTHS, seed=step), labels=LABELS).loss.backward()
            optimizer.step()
    return {name: value.double() for name, value in model.state_dict().items()}


def distance(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_training_ends_where_it_ends_by_the_reference(statistics, own, optimizer, cpu):
    config = lma_hf.LMAConfig(statistics=statistics, per_channel=own, momentum=0.1)
    exact = train(config, optimizer, "reference", torch.float64)
    reference = distance(train(config, optimizer, "reference", torch.float32), exact)
    assert reference < 1e-5
    kernel = distance(train(config, optimizer, "cpu", torch.float32), exact)
    assert kernel <= 2 * reference + torch.finfo(torch.float32).eps
