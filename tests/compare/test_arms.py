"""Activations written as a few words."""

import pytest

from lma_hf.compare.arms import parse_arm, parse_arms
from lma_hf.errors import ConfigError
from lma_hf.modeling.configuration_lma import BaselineConfig, LMAConfig

MEANINGS = {
    "gelu": BaselineConfig("gelu"),
    "gelu_affine": BaselineConfig("gelu_affine"),
    "aplu-4": BaselineConfig("aplu", 4),
    "lma": LMAConfig(),
    "lma-16 fit running": LMAConfig(16, init="fit", statistics="running"),
    "lma per_channel continuous frozen": LMAConfig(per_channel=True, continuous=True, statistics="frozen"),
    "lma-4 range_sigmas=2.5 momentum=0.1": LMAConfig(4, range_sigmas=2.5, momentum=0.1),
}


@pytest.mark.parametrize("text", MEANINGS)
def test_words_become_settings(text):
    assert parse_arm(text).settings == MEANINGS[text]


def test_spaces_do_not_matter_and_order_is_kept():
    assert [arm.name for arm in parse_arms(["relu", " lma   fit "])] == ["relu", "lma fit"]


@pytest.mark.parametrize(
    ("texts", "culprit"),
    [
        ([], "activations is empty"),
        ([""], "activation is ''"),
        (["swich"], "did you mean 'swish'"),
        (["gelu fit"], "only lma takes further words, not 'fit'"),
        (["lma fitt"], "unknown word 'fitt'.*nearest is fit$"),
        (["lma fit relu"], "'relu' contradicts or repeats"),
        (["lma-16 num_segments=8"], "unknown word 'num_segments=8'"),
        (["lma-x"], "'x' is no number of pieces"),
        (["lma-1"], "num_segments is 1, allowed are whole numbers from 2 to 64"),
        (["lma range_sigmas=wide"], "range_sigmas is 'wide', expected a number"),
        (["lma range_sigmas=-1"], "range_sigmas is -1.0"),
        (["gelu", "lma  fit", "lma fit"], "'lma fit' twice"),
    ],
)
def test_bad_words(texts, culprit):
    with pytest.raises(ConfigError, match=culprit) as error:
        parse_arms(texts)
    assert "\n" not in str(error.value)
