"""Pairing, averaging and correcting over a study, against the same computed with pandas."""

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from study_cells import made_up_cell, made_up_study

from lma_hf.compare.cells import read_results
from lma_hf.compare.paired import holm
from lma_hf.compare.study_plan import StudyPlan, Variant, read_plan
from lma_hf.compare.study_statistics import AVERAGE, Study, compare_to_baseline, summarise
from lma_hf.errors import ConfigError, DataError

TASKS, SEEDS = ("cola", "rte", "mrpc"), (1, 2, 3, 10)
GAINS = {"gelu": 0.0, "relu": -0.01, "lma": 0.005}


def drawn_cells(gains=None, *, seed_effect=0.0, draw_seed=0, drop=()):
    """Cells of TASKS, SEEDS and the activations; `drop`: (task, activation, seed) to leave out."""
    draw = np.random.default_rng(draw_seed)
    cells = []
    for task in TASKS:
        for activation, gain in (gains or GAINS).items():
            for seed in SEEDS:
                score = 0.6 + gain + draw.normal(0, 0.01) + seed_effect * seed
                if (task, activation, seed) not in drop:
                    cells.append(made_up_cell(task, activation=activation, seed=seed, score=score))
    return cells


def frame_of(cells):
    keys = ("task", "student", "activation", "seed", "score")
    return pd.DataFrame([{key: getattr(cell, key) for key in keys} for cell in cells])


def difference_of(cells, activation, baseline="gelu", task=AVERAGE):
    found = compare_to_baseline(Study(cells), baseline, 0.5)
    return next(each for each in found if each.variant.activation == activation and each.task == task)


@pytest.mark.parametrize("activation", ["relu", "lma"])
@pytest.mark.parametrize("task", [*TASKS, AVERAGE])
def test_differences_are_those_of_pandas(activation, task):
    cells = drawn_cells()
    table = frame_of(cells).pivot_table(index="seed", columns=["task", "activation"], values="score") * 100
    tasks = list(TASKS) if task == AVERAGE else [task]
    expected = sum(table[each][activation] - table[each]["gelu"] for each in tasks) / len(tasks)
    found = difference_of(cells, activation, task=task)
    assert found.seeds == SEEDS
    assert found.result.differences == pytest.approx(expected.loc[list(SEEDS)].tolist())
    assert (found.result.mean, found.result.std) == pytest.approx((expected.mean(), expected.std()))


def test_only_complete_pairs_are_compared():
    cells = drawn_cells(drop={("rte", "gelu", 2), ("cola", "lma", 10)})
    assert difference_of(cells, "lma", task="rte").seeds == (1, 3, 10)
    assert difference_of(cells, "lma", task="cola").seeds == (1, 2, 3)
    assert difference_of(cells, "lma", task="mrpc").seeds == SEEDS
    assert difference_of(cells, "lma").seeds == (1, 3)
    assert difference_of(cells, "relu").seeds == (1, 3, 10)
    missing = {(variant.activation, task, seed) for variant, task, seed in Study(cells).missing()}
    assert missing == {("gelu", "rte", 2), ("lma", "cola", 10)}


def test_average_is_over_the_tasks_with_a_pair():
    cells = drawn_cells(drop={("rte", "lma", seed) for seed in SEEDS})
    found = difference_of(cells, "lma")
    assert found.tasks == ("cola", "mrpc")
    each = [difference_of(cells, "lma", task=task).result.mean for task in found.tasks]
    assert found.result.mean == pytest.approx(np.mean(each))


def test_no_common_seed_is_no_difference():
    cells = [made_up_cell(activation=name, seed=seed) for seed, name in enumerate(("gelu", "lma"))]
    assert compare_to_baseline(Study(cells), "gelu", 0.5) == []


def test_holm_is_over_the_tasks_and_on_average_over_the_variants():
    found = compare_to_baseline(Study(drawn_cells()), "gelu", 0.5)
    for family in (
        [each for each in found if each.task != AVERAGE and each.variant.activation == "lma"],
        [each for each in found if each.task == AVERAGE],
    ):
        assert [each.num_compared for each in family] == [len(family)] * len(family)
        for plain, corrected in (("p_t", "p_t_holm"), ("p_sign_flip", "p_sign_flip_holm")):
            expected = holm([getattr(each.result, plain) for each in family])
            assert [getattr(each, corrected) for each in family] == pytest.approx(expected)


def test_sign_flips_over_all_pairs_tell_more_than_over_few_seeds():
    found = difference_of(drawn_cells({"gelu": 0.0, "lma": 0.05}), "lma")
    assert found.result.p_sign_flip == 2 / 2 ** len(SEEDS)
    assert found.p_all_pairs == 2 / 2 ** (len(SEEDS) * len(TASKS))


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 1000), st.floats(-0.05, 0.05))
def test_swapped_baseline_negates_and_a_seeds_own_luck_cancels(draw_seed, seed_effect):
    cells = drawn_cells(draw_seed=draw_seed)
    forth, back = difference_of(cells, "lma"), difference_of(cells, "gelu", baseline="lma")
    assert forth.result.mean == pytest.approx(-back.result.mean)
    assert forth.p_all_pairs == pytest.approx(back.p_all_pairs)
    lucky = difference_of(drawn_cells(draw_seed=draw_seed, seed_effect=seed_effect), "lma")
    assert lucky.result.differences == pytest.approx(forth.result.differences, abs=1e-9)


def test_baseline_along_any_axis_keeps_the_other_settings():
    cells = [
        made_up_cell(student=student, activation=name, seed=seed, axes=(("temperature", heat),), score=score)
        for seed in (1, 2)
        for student, name, heat, score in (
            *(("big", "gelu", "1.0", 0.50), ("big", "gelu", "2.0", 0.51)),
            *(("big", "lma", "1.0", 0.53), ("big", "lma", "2.0", 0.55)),
            ("small", "lma", "2.0", 0.40),
        )
    ]
    found = compare_to_baseline(Study(cells), "temperature=1.0", 0.5)
    means = {str(each.variant): each.result.mean for each in found if each.task == AVERAGE}
    expected = {"big gelu (temperature=2.0)": 1.0, "big lma (temperature=2.0)": 2.0}
    assert means == {name: pytest.approx(value) for name, value in expected.items()}
    by_student = compare_to_baseline(Study(cells), "student=big", 0.5)
    assert [each.baseline for each in by_student] == [Variant("big", "lma", (("temperature", "2.0"),))] * 2


@pytest.mark.parametrize(
    ("baseline", "message"), [("gel", "activation gelu, relu, lma"), ("width=3", "no axis 'width'")]
)
def test_unknown_baseline_names_what_there_is(baseline, message):
    with pytest.raises(ConfigError, match=message):
        compare_to_baseline(Study(drawn_cells()), baseline, 0.5)


def test_the_same_cell_twice_is_an_error(tmp_path):
    cells = [made_up_cell(folder=tmp_path / name) for name in ("a", "b")]
    with pytest.raises(DataError, match=r"b and .*a are the same cell"):
        Study(cells)


def test_plan_gives_the_order_the_baseline_and_what_never_ran(tmp_path):
    plan = {
        "tasks": {"rte": None, "cola": {}},
        "students": {"3layers": {}},
        "seeds": [2, 1],
        "axes": {"heat": {"1": {}}},
    }
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump(plan | {"activations": {"lma": {}, "gelu": {}}}, sort_keys=False)
    )
    read = read_plan(tmp_path)
    assert read == StudyPlan(["rte", "cola"], ["3layers"], ["lma", "gelu"], {"heat": ["1"]}, [2, 1], "lma")
    cells = [made_up_cell(name, seed=seed, axes=(("heat", "1"),)) for name in ("cola", "rte") for seed in (1, 2)]
    study = Study(cells, read)
    assert (study.tasks, study.seeds) == (["rte", "cola"], [2, 1])
    never = Variant("3layers", "lma", (("heat", "1"),))
    assert study.missing() == [(never, task, seed) for task in ("rte", "cola") for seed in (2, 1)]


@pytest.mark.parametrize("text", ["tasks: {rte: }", "[]", "a: [", "activations: {}"])
def test_plan_that_cannot_be_read_is_one_line(tmp_path, text):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(DataError, match=r"study.yaml is no study's configuration \([^\n]*\); restore it$"):
        read_plan(tmp_path)


def test_summaries_are_those_of_pandas(tmp_path):
    missing = {("rte", "3layers", "lma", 2)}
    made_up_study(tmp_path, TASKS, ["3layers"], GAINS, SEEDS, teacher=0.8, missing=missing)
    cells = read_results(tmp_path)
    table = frame_of(cells).groupby(["activation", "task"])["score"].agg(["mean", "std"]) * 100
    summaries = {(each.variant.activation, each.task): each for each in summarise(Study(cells))}
    for key, (mean, std) in table.iterrows():
        assert (summaries[key].mean, summaries[key].std) == pytest.approx((mean, std))
        assert summaries[key].teacher == pytest.approx(80)
        assert summaries[key].share_of_teacher == pytest.approx(mean / 0.8)
    wide = frame_of(cells).pivot_table(index=["activation", "seed"], columns="task", values="score").dropna() * 100
    for activation in GAINS:
        average = wide.loc[activation].mean(axis=1)
        found = summaries[activation, AVERAGE]
        assert list(found.points) == average.index.tolist()
        assert (found.mean, found.std) == pytest.approx((average.mean(), average.std()))
        losses = [
            cell.train_losses["distill_loss"]
            for cell in cells
            if cell.activation == activation and cell.seed in found.points
        ]
        assert found.losses["distill_loss"] == pytest.approx(np.mean(losses))
