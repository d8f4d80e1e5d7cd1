"""The embeddings' gradient by rows is the dense one, and leaves nothing behind."""

import copy

import pytest
import torch
from helpers import tiny_config, tiny_model

from lma_hf.training.row_gradients import RowGradients

BATCHES = [torch.randint(5, 40, (4, 6), generator=torch.Generator().manual_seed(seed)) for seed in range(6)]


def train(model, rows, accumulation=1):
    """Three steps of SGD. Returns: the gradients that it saw."""
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9), []
    with rows:
        for start in range(0, 3 * accumulation, accumulation):
            for ids in BATCHES[start : start + accumulation]:
                model(input_ids=ids).logits.square().sum().backward()
            rows.fill()
            seen.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
            optimizer.step()
            rows.clear()
            optimizer.zero_grad()
    return seen


@pytest.mark.parametrize("accumulation", [1, 2])
def test_optimizer_sees_the_dense_gradient(accumulation):
    dense = tiny_model(config=tiny_config("bert", 2))
    model = copy.deepcopy(dense)
    rows = RowGradients(model)
    torch.testing.assert_close(
        train(model, rows, accumulation), train(dense, RowGradients(dense, False), accumulation)
    )
    torch.testing.assert_close(model.state_dict(), dense.state_dict())
    assert rows.gradient is not None
    assert not model.get_input_embeddings().sparse


def test_table_that_is_also_the_output_layer_has_its_dense_gradient():
    dense = tiny_model(head="masked_lm", config=tiny_config("bert", 1))
    model = copy.deepcopy(dense)
    rows = RowGradients(model)
    torch.testing.assert_close(train(model, rows), train(dense, RowGradients(dense, False)))
    assert rows.gradient is None


def test_frozen_table_is_left_alone():
    model = tiny_model(config=tiny_config("bert", 1))
    model.get_input_embeddings().requires_grad_(False)
    with RowGradients(model) as rows:
        assert not model.get_input_embeddings().sparse
        rows.fill()
        rows.clear()
