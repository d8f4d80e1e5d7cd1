"""The probe's vectors are the model's own, and its fits differ in nothing but the activation."""

import pytest
import torch
from helpers import HIDDEN, ffn_fqns, padded_batch, tiny_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from lma_hf.compare.arms import parse_arms
from lma_hf.compare.probe import Plan, Probe
from lma_hf.compare.probe_fit import Recipe, batch_rows, error_on, fit_, start_ffn
from lma_hf.compare.probe_vectors import collect_ffns, collect_vectors
from lma_hf.errors import ConfigError, TrainingError
from lma_hf.modeling.configuration_lma import BaselineConfig, LMAConfig
from lma_hf.surgery.targets import ffn_sites

RECIPE = Recipe(learning_rate=3e-3, activation_learning_rate=1e-2, steps=60, batch_size=32)
LENGTHS = [9, 20, 30, 3, 17, 12]


def batches_of(model):
    return {part: [padded_batch(model, LENGTHS, seed=seed)] for seed, part in enumerate(("train", "tuning", "report"))}


@pytest.fixture(scope="module")
def ffns():
    model = tiny_model()
    return collect_ffns(model, [0, 2], batches_of(model))


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_vectors_are_those_of_each_sentence_alone(architecture):
    """An independent look: hooks on the two linear maps, one sentence at a time, without padding."""
    model = tiny_model(architecture)
    (vectors, *_) = collect_vectors(model, ffn_sites(model), [padded_batch(model, LENGTHS)])
    seen = []
    up, down = (model.get_submodule(ffn_fqns(architecture, part)[0]) for part in ("up", "down"))
    up.register_forward_hook(lambda _, args, output: seen.append([args[0][0]]))
    down.register_forward_hook(lambda _, args, output: seen[-1].append(output[0]))
    ids = padded_batch(model, LENGTHS)["input_ids"]
    with torch.no_grad():
        for row, length in zip(ids, LENGTHS, strict=True):
            model(input_ids=row[None, :length], attention_mask=torch.ones(1, length))
    x, y = (torch.cat(side) for side in zip(*seen, strict=True))
    assert vectors.x.shape == (sum(LENGTHS), HIDDEN)
    torch.testing.assert_close(vectors.x, x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors.y, y, rtol=1e-4, atol=1e-5)


def test_padding_is_left_out():
    model = tiny_model()
    short, long = (
        collect_vectors(model, ffn_sites(model), [padded_batch(model, LENGTHS, pad_to=size)]) for size in (30, 40)
    )
    for mine, padded in zip(short, long, strict=True):
        assert len(padded.x) == sum(LENGTHS)
        torch.testing.assert_close(mine.x, padded.x, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.y, padded.y, rtol=1e-4, atol=1e-5)


def test_all_units_with_the_models_own_activation_leave_nothing_unexplained(ffns):
    for ffn in ffns:
        narrow = start_ffn(ffn, len(ffn.ranking), BaselineConfig("gelu"))
        assert error_on(narrow, ffn.report) < 1e-9


def test_most_important_units_come_first(ffns):
    for ffn in ffns:
        contribution = ffn.activation(ffn.up(ffn.train.x)).abs().mean(0) * ffn.down.weight.abs().mean(0)
        assert contribution[ffn.ranking].diff().max() < 1e-5


@pytest.mark.parametrize("settings", [BaselineConfig("relu"), BaselineConfig("aplu"), LMAConfig(init="fit")])
def test_every_activation_starts_from_the_same_weights(ffns, settings):
    mine, gelu = (start_ffn(ffns[0], 8, each) for each in (settings, BaselineConfig("gelu")))
    for part in ("up", "down"):
        for name, parameter in getattr(mine, part).named_parameters():
            assert torch.equal(parameter, getattr(gelu, part).get_parameter(name))


def test_batches_depend_on_the_seed_alone_and_use_every_row():
    def order(seed):
        return torch.stack(list(batch_rows(100, RECIPE, seed)))

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(1), order(2))
    counts = order(1).flatten().bincount(minlength=100)
    assert counts.max() - counts.min() <= 1


def test_fit_lowers_the_error_and_error_moves_no_statistics(ffns):
    narrow = start_ffn(ffns[0], 8, LMAConfig(init="fit", statistics="running"))
    before = error_on(narrow, ffns[0].report)
    fit_(narrow, ffns[0].train, RECIPE, 0)
    state = {key: value.clone() for key, value in narrow.state_dict().items()}
    assert error_on(narrow, ffns[0].report) < 0.9 * before
    assert all(torch.equal(value, narrow.state_dict()[key]) for key, value in state.items())


def run_probe(ffns, texts, **changes):
    plan = {"widths": [4, 8], "seeds": [0, 1], "learning_rates": [1e-3, 1e-2], "steps": 10, "batch_size": 32}
    plan |= {"activation_learning_rates": [1e-3, 1e-2, 5e-2], **changes}
    return Probe(ffns, Plan(parse_arms(texts), **plan)).run()


def test_equal_activations_get_equal_numbers(ffns):
    rows = run_probe(ffns, ["lma fit", "lma-8 fit", "gelu"])
    twins = [
        [{**row, "activation": None} for row in rows if row["activation"] == name] for name in ("lma fit", "lma-8 fit")
    ]
    assert twins[0] == twins[1]
    assert rows == run_probe(ffns, ["lma fit", "lma-8 fit", "gelu"])


def test_rates_are_chosen_by_the_tuning_error_and_each_fit_is_done_once(ffns):
    rows = run_probe(ffns, ["gelu", "lma fit"], widths=[8])
    fits = [tuple(row[key] for key in list(row)[:6]) for row in rows]
    assert len(set(fits)) == len(fits)
    # 2 rates and a second seed; 2 rates, 2 more of the activation, and a second seed; in 2 layers
    assert [sum(row["activation"] == name for row in rows) for name in ("gelu", "lma fit")] == [2 * 3, 2 * 5]
    for name in ("gelu", "lma fit"):
        scores = {}
        for row in rows:
            if (row["activation"], row["seed"]) == (name, 0):
                rates = row["learning_rate"], row["activation_learning_rate"]
                scores[rates] = scores.get(rates, 1) * row["tuning_error"]
        chosen = {
            (row["learning_rate"], row["activation_learning_rate"])
            for row in rows
            if row["chosen"] and row["activation"] == name
        }
        assert chosen == {min(scores, key=scores.get)}


def test_rate_at_which_everything_diverges(ffns):
    with pytest.raises(TrainingError, match="gelu at width 4 diverges at all learning_rates"):
        run_probe(ffns, ["gelu"], learning_rates=[1e38])


def test_layer_that_is_not_there_and_gated_ffns():
    model = tiny_model()
    with pytest.raises(ConfigError, match="layers names 7, the model has FFNs 0 to 2"):
        collect_ffns(model, [0, 7], batches_of(model))
    config = AutoConfig.for_model(
        "llama", hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50
    )
    gated = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ConfigError, match="layer 0 in LlamaForSequenceClassification is gated"):
        collect_ffns(gated, None, {})
