import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from lma_hf.errors import TrainingError
from lma_hf.training.prediction import predict_in_order


class Echo(torch.nn.Module):
    """Logits that name the row."""

    def forward(self, value):
        return type("Output", (), {"logits": torch.stack([value, -value], dim=1)})


def rows(numbers):
    return [{"value": torch.tensor(float(number)), "labels": torch.tensor(number)} for number in numbers]


def test_logits_come_in_the_order_of_the_numbers():
    accelerator = Accelerator(cpu=True)
    order = [3, 0, 4, 1, 2]
    loader = accelerator.prepare(DataLoader(rows(order), batch_size=2))
    logits, numbers = predict_in_order(Echo(), loader, accelerator)
    np.testing.assert_array_equal(logits[:, 0], np.arange(5))
    np.testing.assert_array_equal(numbers, np.arange(5))


@pytest.mark.parametrize("numbers", [[0, 1, 1], [0, 2, 3]])
def test_row_that_is_lost_or_double_is_an_error(numbers):
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(rows(numbers), batch_size=2))
    with pytest.raises(TrainingError, match=r"rows came back|of 3 rows"):
        predict_in_order(Echo(), loader, accelerator)
