import pytest

from lma_hf.distillation.schedules import Schedule
from lma_hf.errors import ConfigError
from lma_hf.training.config import DistillConfig


def config(**values):
    return DistillConfig(task_name="sst2", teacher="unused", output_dir="unused", **values)


def test_defaults_are_the_papers_labels_and_soft_targets():
    found = config()
    assert found.weighted_parts == ["task", "distill"]
    assert found.resolved_schedules == {}
    assert not found.replaces_modules


def test_schedule_counts_as_a_weight_and_replaces_the_constant():
    found = config(schedules=["hidden_loss_weight=linear:0:2", "task_loss_weight=linear:0:0"], distill_loss_weight=0.0)
    assert found.weighted_parts == ["hidden"]
    assert found.resolved_schedules["hidden_loss_weight"] == Schedule("linear", 0, 2)
    assert config(schedules=["replacement_rate=linear:0.5:1"]).replaces_modules


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task_loss_weight": 0.0, "distill_loss_weight": 0.0}, "all loss weights are 0"),
        ({"schedules": ["task_loss_weight=linear:0:0"], "distill_loss_weight": 0.0}, "all loss weights are 0"),
        ({"attention_loss_weight": -1.0}, "attention_loss_weight is -1"),
        ({"relation_heads": 0}, "relation_heads is 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"schedules": ["temperature=linear:1:0"]}, "temperature of 0"),
        ({"schedules": ["learning_rate=linear:1:0"]}, "'learning_rate', allowed are temperature"),
        ({"schedules": ["replacement_rate=linear:0:2"]}, "replacement_rate is 2"),
        ({"replacement_rate": 1.5}, "replacement_rate is 1.5"),
        ({"replacement_rate": 0.5, "attention_loss_weight": 1.0}, "set attention_loss_weight to 0"),
        ({"feature_stage": 1.0, "hidden_loss_weight": 1.0}, "feature_stage is 1.0, allowed are 0 up to"),
        ({"feature_stage": 0.5}, "weighted are only task, distill; two stages need one of hidden"),
        ({"teacher_average": "median"}, "give extra_teachers"),
        ({"teacher_weights": ["1"]}, "give extra_teachers"),
        ({"extra_teachers": ["b"], "teacher_weights": ["1"]}, "for 2 teachers"),
        ({"extra_teachers": ["b"], "teacher_weights": ["1", "x"]}, "for 2 teachers"),
        ({"extra_teachers": ["b"], "teacher_weights": ["0", "0"]}, "not all 0"),
        ({"extra_teachers": ["b"], "teacher_weights": ["1", "1"], "teacher_average": "median"}, "and the median"),
        ({"max_unlabelled_samples": 0}, "max_unlabelled_samples is 0"),
        ({"max_unlabelled_samples": 9}, "max_unlabelled_samples is 9, .* with unlabelled_dataset; set that too"),
        ({"relation_heads": 4, "attention_loss_weight": 1.0}, "relation_heads is 4, .* with relation_loss_weight"),
        ({"relation_layer": 0}, "relation_layer is 0, .* with relation_loss_weight"),
        ({"attention_loss_type": "kl"}, "attention_loss_type is 'kl', .* with attention_loss_weight"),
        ({"hidden_cosine_layers": "all"}, "hidden_cosine_layers is 'all', .* with hidden_cosine_loss_weight"),
        ({"hidden_cosine_tokens": "first"}, "hidden_cosine_tokens is 'first', .* with hidden_cosine_loss_weight"),
        ({"temperature": 4.0, "distill_loss_type": "mse"}, "temperature is 4.0, .* with distill_loss_type kl"),
        ({"schedules": ["temperature=linear:2:1"], "distill_loss_type": "mse"}, "temperature has a schedule"),
        ({"activation_warmup_steps": -1}, "activation_warmup_steps is -1"),
    ],
    ids=str,
)
def test_values_that_cannot_be_used(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        config(**values)
    assert "\n" not in str(error.value)


def test_weight_that_only_a_schedule_raises_gives_its_options_effect():
    assert config(schedules=["relation_loss_weight=linear:0:1"], relation_heads=4).relation_heads == 4


def test_teacher_weights_are_numbers():
    assert config(extra_teachers=["b", "c"], teacher_weights=["1", "0.5", "0"]).resolved_teacher_weights == [1, 0.5, 0]
