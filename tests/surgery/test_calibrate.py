import copy

import pytest
import torch
from helpers import ARCHITECTURES, ffn_fqns, logits_of, padded_batch, tiny_model
from torch import nn

from lma_hf import LMA, LMAConfig, calibrate_, swap_activations_
from lma_hf.errors import SurgeryError

LENGTHS = [[9, 4, 7, 12], [3, 10], [5]]
# Measured over 3 seeds of BERT, RoBERTa, DistilBERT and MPNet, as shares of the logits' standard deviation: the mean
# difference is at most .027 (k = 8), .0062 (k = 16) and .0024 (k = 16, per channel); ELECTRA's and ALBERT's random
# heads give nearly the same logits for every row, which makes the share meaningless.
CLOSENESS = [
    (LMAConfig(8, init="fit"), 0.04),
    (LMAConfig(16, init="fit"), 0.01),
    (LMAConfig(16, init="fit", continuous=True), 0.01),
    (LMAConfig(16, init="fit", per_channel=True), 0.004),
]


class Rows(nn.Module):
    """A linear map, an activation and a sum, without a padding mask."""

    def __init__(self, activation):
        super().__init__()
        self.up, self.activation = nn.Linear(3, 4), activation

    def forward(self, x):
        return self.activation(self.up(x)).cumsum(-1)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Log(nn.Module):
    def forward(self, x):
        return x.log()


class UpTo100(nn.Module):
    def forward(self, x):
        return x.masked_fill(x > 100, torch.nan)


def batches_of(model):
    return [padded_batch(model, lengths, seed=seed) for seed, lengths in enumerate(LENGTHS)]


def swapped(model, settings):
    model = copy.deepcopy(model)
    swap_activations_(model, settings)
    return model


@torch.no_grad()
def observed(model, architecture, batches):
    """Fqn of the activation -> its inputs at real tokens over all batches, in float64."""
    rows, mask = {fqn: [] for fqn in ffn_fqns(architecture)}, None
    handles = [
        model.get_submodule(fqn).register_forward_pre_hook(
            lambda module, args, fqn=fqn: rows[fqn].append(args[0][mask].double())
        )
        for fqn in rows
    ]
    for batch in batches:
        mask = batch["attention_mask"].bool()
        model(**batch)
    for handle in handles:
        handle.remove()
    return {fqn: torch.cat(parts) for fqn, parts in rows.items()}


def statistics(model):
    return {name: buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_std"))}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_statistics_are_those_of_the_original_network_at_real_tokens(architecture, per_channel):
    plain = tiny_model(architecture)
    batches = batches_of(plain)
    model = swapped(plain, LMAConfig(per_channel=per_channel))
    calibrate_(model, batches)
    for fqn, rows in observed(plain, architecture, batches).items():
        dims = 0 if per_channel else (0, 1)
        module = model.get_submodule(fqn)
        torch.testing.assert_close(module.running_mean.double(), rows.mean(dims), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(module.running_std.double(), rows.std(dims, correction=0), rtol=1e-5, atol=1e-6)
        assert module.num_batches_tracked == 100  # one window of the moving average


def test_statistics_depend_on_neither_batches_nor_padding_nor_order():
    plain = tiny_model()
    whole = padded_batch(plain, [9, 4, 7, 12])
    far = padded_batch(plain, [9, 4, 7, 12], pad_to=20)
    single = [{name: value[i : i + 1] for name, value in whole.items()} for i in (2, 0, 3, 1)]
    expected = swapped(plain, LMAConfig(init="fit"))
    calibrate_(expected, [whole])
    for batches in ([far], single, iter(single)):
        model = swapped(plain, LMAConfig(init="fit"))
        calibrate_(model, batches)
        torch.testing.assert_close(statistics(model), statistics(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("settings", "share"), CLOSENESS)
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "mpnet"])
def test_fitted_model_stays_close(architecture, settings, share):
    plain = tiny_model(architecture)
    batches = batches_of(plain)
    model = swapped(plain, settings)
    calibrate_(model, batches)
    before = torch.cat([logits_of(plain, batch) for batch in batches])
    after = torch.cat([logits_of(model, batch) for batch in batches])
    assert 0 < (after - before).abs().mean() < share * before.std(0).mean()


@pytest.mark.parametrize("init", ["relu", "fit"])
@pytest.mark.parametrize("continuous", [False, True])
def test_report_tells_the_distance_to_the_original(init, continuous):
    plain = tiny_model(seed=1)
    batches = batches_of(plain)
    model = swapped(plain, LMAConfig(4, init=init, continuous=continuous))
    report = calibrate_(model, batches)
    before = torch.cat([logits_of(plain, batch) for batch in batches])
    after = torch.cat([logits_of(model, batch) for batch in batches])
    difference = (after - before).abs()
    assert (report.num_modules, report.num_batches) == (3, 3)
    assert report.max_logit_difference == pytest.approx(difference.max().item(), rel=1e-6)
    assert report.mean_logit_difference == pytest.approx(difference.mean().item(), rel=1e-5)
    assert report.label_agreement == pytest.approx((before.argmax(-1) == after.argmax(-1)).float().mean().item())
    assert f"{report.max_logit_difference:.4f}" in str(report)


def test_report_covers_all_rows_of_a_plain_module():
    model, x = Rows(nn.GELU()), torch.randn(50, 3)
    before = model(x)
    swap_activations_(model, LMAConfig(init="fit"), filter_fn=lambda module, fqn: fqn == "activation")
    report = calibrate_(model, [{"x": x}])
    difference = (model(x) - before).abs().detach()
    assert report.max_logit_difference == pytest.approx(difference.max().item(), rel=1e-6)
    assert report.mean_logit_difference == pytest.approx(difference.mean().item(), rel=1e-5)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("start", ["relu", "fit"])
def test_paper_start_is_a_relu_hinged_at_the_mean(start, continuous):
    """With init="fit" the same, if the activation is such a ReLU itself: its kink then falls on a knot."""
    model = Rows(nn.ReLU())
    x = torch.randn(60, 3)
    with torch.no_grad():
        # pre-activations with mean exactly 0
        x = torch.cat([x, -x])
        model.up.bias.zero_()
        before = model(x)
    swap_activations_(
        model, LMAConfig(init=start, continuous=continuous), filter_fn=lambda _, fqn: fqn == "activation"
    )
    calibrate_(model, [{"x": x}])
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


def test_training_mode_labels_and_dropout_do_not_matter():
    dropout = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    plain = tiny_model(**dropout)
    batches = batches_of(plain)
    expected, model = swapped(plain, LMAConfig()), swapped(plain.train(), LMAConfig())
    report = calibrate_(expected, batches)
    # labels beyond the classes would be an error if they reached the model
    assert calibrate_(
        model, [{**batch, "labels": torch.full((len(batch["input_ids"]),), 99)} for batch in batches]
    ) == (report)
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in expected.modules())
    torch.testing.assert_close(statistics(model), statistics(expected), rtol=0, atol=0)


def test_gradients_are_not_recorded_and_hooks_are_gone():
    model = swapped(tiny_model(), LMAConfig(init="fit"))
    calibrate_(model, batches_of(model))
    lma = [module for module in model.modules() if isinstance(module, LMA)]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lma)


@pytest.mark.parametrize(
    "activation", [nn.Softmax(-1), nn.Softmax(0), nn.RReLU(), nn.GLU(), Noise(), Log()], ids=lambda m: type(m).__name__
)
def test_what_is_no_finite_elementwise_function_cannot_be_fitted(activation):
    model = Rows(activation)
    swap_activations_(model, LMAConfig(init="fit"), filter_fn=lambda _, fqn: fqn == "activation")
    model.train()
    with pytest.raises(SurgeryError, match=f"activation replaced {type(activation).__name__}.*"):
        calibrate_(model, [{"x": torch.randn(20, 3)}])
    assert model.training


def test_nothing_to_fit_to_is_an_error():
    with pytest.raises(SurgeryError, match="activation replaced no activation"):
        calibrate_(Rows(LMA(init="fit")), [{"x": torch.randn(20, 3)}])


def test_no_lma_and_no_batches_are_errors():
    plain = tiny_model()
    with pytest.raises(SurgeryError, match="BertForSequenceClassification holds no LMA"):
        calibrate_(plain, batches_of(plain))
    with pytest.raises(SurgeryError, match="no batches"):
        calibrate_(swapped(plain, LMAConfig()), iter([]))


def broken_weights(model):
    model.up.weight.data[0, 0] = torch.nan


def spare_activation(model):
    model.spare = nn.GELU()


def fit_that_fails(model):
    model.activation = UpTo100()
    model.up.bias.data += 1000


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken_weights, r"pre-activations of activation are not finite \(mean nan\)"),
        (spare_activation, "no real token of the batches reaches spare"),
        (fit_that_fails, "no finite elementwise function"),
    ],
)
@pytest.mark.parametrize("continuous", [False, True])
def test_what_cannot_be_calibrated_stays_as_it_was(spoil, message, continuous):
    model = Rows(nn.GELU())
    spoil(model)
    swap_activations_(
        model,
        LMAConfig(init="fit", continuous=continuous),
        filter_fn=lambda module, fqn: isinstance(module, nn.GELU | UpTo100),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SurgeryError, match=message):
        calibrate_(model, [{"x": torch.randn(20, 3)}])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0, equal_nan=True)


def test_batches_of_padding_alone_are_an_error():
    model = swapped(tiny_model(), LMAConfig())
    batch = padded_batch(model, [9, 4])
    with pytest.raises(SurgeryError, match="no real token"):
        calibrate_(model, [{**batch, "attention_mask": torch.zeros_like(batch["attention_mask"])}])
