import pytest
from hypothesis import given
from hypothesis import strategies as st

from lma_hf.distillation.schedules import Schedule, parse_schedules
from lma_hf.errors import ConfigError

NAMES = ("temperature", "replacement_rate")


def test_values_by_hand():
    linear, cosine = Schedule("linear", 4, 1), Schedule("cosine", 1, 0)
    assert [linear(progress) for progress in (0, 0.5, 1)] == [4, 2.5, 1]
    assert [cosine(progress) for progress in (0, 1 / 3, 0.5, 1)] == pytest.approx([1, 0.75, 0.5, 0], abs=1e-12)
    early = Schedule("linear", 0.3, 1, 0.5)
    assert [early(progress) for progress in (0, 0.25, 0.5, 0.9)] == pytest.approx([0.3, 0.65, 1, 1])


@given(
    kind=st.sampled_from(["linear", "cosine"]),
    ends=st.tuples(st.floats(0, 10), st.floats(0, 10)),
    steps=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_goes_one_way_and_stays_between_its_ends(kind, ends, steps):
    first, second = (Schedule(kind, *ends)(progress) for progress in sorted(steps))
    assert (second - first) * (ends[1] - ends[0]) >= -1e-9
    assert min(ends) - 1e-9 <= first <= max(ends) + 1e-9


def test_text_becomes_a_schedule():
    found = parse_schedules(["temperature=cosine:4:1", "replacement_rate=linear:0.3:1:0.6"], NAMES)
    assert found == {
        "temperature": Schedule("cosine", 4, 1),
        "replacement_rate": Schedule("linear", 0.3, 1, 0.6),
    }


@pytest.mark.parametrize(
    "text",
    [
        *("temperature", "temperature=", "temperature=linear", "temperature=linear:1", "temperature=square:1:2"),
        *("temperature=linear:1:2:0.5:1", "temperature=linear:1:2:0", "temperature=linear:1:2:1.5"),
        *("temperature=linear:-1:2", "temperature=linear:a:2", "temperature=linear:1:nan", "temperature=linear:1:inf"),
    ],
)
def test_other_text_is_an_error_that_shows_the_form(text):
    with pytest.raises(ConfigError, match=r"NAME=linear:FROM:TO") as error:
        parse_schedules([text], NAMES)
    assert text in str(error.value)


def test_unknown_and_repeated_names_are_errors():
    with pytest.raises(ConfigError, match="'momentum', allowed are temperature, replacement_rate"):
        parse_schedules(["momentum=linear:0:1"], NAMES)
    with pytest.raises(ConfigError, match="temperature twice"):
        parse_schedules(["temperature=linear:4:1", "temperature=linear:4:2"], NAMES)
