import pytest
from hypothesis import given
from hypothesis import strategies as st

from lma_hf.errors import StudentError
from lma_hf.student.layer_map import resolve_layer_map

depths = st.integers(1, 24).flatmap(lambda teacher: st.tuples(st.integers(1, teacher), st.just(teacher)))


@pytest.mark.parametrize(
    ("layer_map", "num_layers", "teacher_layers", "expected"),
    [
        ("uniform", 3, 6, [1, 3, 5]),
        ("uniform", 2, 6, [2, 5]),
        ("uniform", 2, 12, [5, 11]),
        ("uniform", 4, 6, [0, 2, 3, 5]),
        ("uniform", 1, 6, [5]),
        ("first", 3, 6, [0, 1, 2]),
        ("last", 3, 6, [3, 4, 5]),
        ([4, 0], 2, 6, [4, 0]),
        ((2, 2), 2, 3, [2, 2]),
    ],
)
def test_known_maps(layer_map, num_layers, teacher_layers, expected):
    assert resolve_layer_map(layer_map, num_layers, teacher_layers) == expected


@given(depths)
def test_uniform_spreads_evenly_and_ends_at_the_last_layer(depth):
    num_layers, teacher_layers = depth
    layers = resolve_layer_map("uniform", num_layers, teacher_layers)
    gaps = [b - a for a, b in zip([-1, *layers], layers, strict=False)]
    assert layers[-1] == teacher_layers - 1
    assert len(layers) == num_layers
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


@given(depths)
def test_first_and_last_are_the_ends(depth):
    num_layers, teacher_layers = depth
    every = list(range(teacher_layers))
    assert resolve_layer_map("first", num_layers, teacher_layers) == every[:num_layers]
    assert resolve_layer_map("last", num_layers, teacher_layers) == every[-num_layers:]


@given(st.integers(1, 24))
def test_full_depth_keeps_every_layer(depth):
    every = list(range(depth))
    assert all(resolve_layer_map(name, depth, depth) == every for name in ("uniform", "first", "last", every))


@pytest.mark.parametrize(
    ("layer_map", "num_layers", "message"),
    [
        ("uniform", 7, "num_layers is 7, allowed are 1 to 6"),
        ("uniform", 0, "num_layers is 0, allowed are 1 to 6"),
        ("first", True, "num_layers is True, allowed are 1 to 6"),
        ("last", 2.0, r"num_layers is 2\.0, allowed are 1 to 6"),
        ("middle", 2, "'middle', allowed are uniform, first, last"),
        ([0, 6], 2, "names layer 6, the teacher's layers are 0 to 5"),
        ([-1, 5], 2, "names layer -1, the teacher's layers are 0 to 5"),
        ([True, 5], 2, "names layer True"),
        (["0", 5], 2, "names layer '0'"),
        ([0, 1, 2], 2, "has 3 entries, the student has 2 layers"),
        ([], 2, "has 0 entries"),
    ],
)
def test_impossible_maps_name_what_is_allowed(layer_map, num_layers, message):
    with pytest.raises(StudentError, match=message):
        resolve_layer_map(layer_map, num_layers, 6)
