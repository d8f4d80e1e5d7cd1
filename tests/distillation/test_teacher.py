import pytest
import torch
from helpers import padded_batch, tiny_config, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from lma_hf.distillation.teacher import Teacher, TeacherEnsemble, average_logits

LOGITS = [torch.tensor([[0.0, 4.0]]), torch.tensor([[2.0, 1.0]]), torch.tensor([[100.0, -2.0]])]


def test_averages_by_hand():
    even = torch.ones(3) / 3
    assert average_logits(LOGITS, "mean", even)[0].tolist() == pytest.approx([34, 1])
    assert average_logits(LOGITS, "mean", torch.tensor([0.5, 0.5, 0.0]))[0].tolist() == [1, 2.5]
    assert average_logits(LOGITS, "median", even)[0].tolist() == [2, 1]
    assert average_logits(LOGITS[:2], "median", even[:2])[0].tolist() == [1, 2.5]


@given(seed=st.integers(0, 1000), average=st.sampled_from(["mean", "median"]))
def test_order_of_the_teachers_does_not_matter_and_equal_ones_agree(seed, average):
    logits = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    even = torch.ones(3) / 3
    averaged = average_logits(list(logits), average, even)
    torch.testing.assert_close(average_logits([logits[2], logits[0], logits[1]], average, even), averaged)
    torch.testing.assert_close(average_logits([logits[0]] * 3, average, even), logits[0], rtol=1e-6, atol=1e-6)


def test_ensemble_matches_labels_and_takes_the_hidden_states_of_the_first():
    models = [tiny_model(seed=seed, config=tiny_config("bert", 2)) for seed in (0, 1)]
    ensemble = TeacherEnsemble([Teacher(model) for model in models], [[0, 1], [1, 0]], weights=[3.0, 1.0])
    batch = padded_batch(models[0], [7, 4, 9])
    logits, states = ensemble(batch, hidden_states=True)
    first, second = (model(**batch, output_hidden_states=True) for model in models)
    torch.testing.assert_close(logits, 0.75 * first.logits + 0.25 * second.logits.flip(-1))
    torch.testing.assert_close(states, first.hidden_states)
    assert ensemble(batch)[1] is None
    assert not any(parameter.requires_grad for model in models for parameter in model.parameters())
