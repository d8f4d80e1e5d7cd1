"""A study's cells and options, what its finished cells say, and the time that is left."""

import csv
import json
import math

import pytest
import study_worker

from lma_hf.compare.cells import Cell, CellResult, last_epoch_losses, read_results, write_table
from lma_hf.compare.study import CompareConfig, check_different, expand, select
from lma_hf.compare.study_run import seconds_left
from lma_hf.errors import ConfigError, DataError

PARTS = {
    "output_dir": "study",
    "tasks": {"rte": {"teacher": "t1"}, "reviews": {"teacher": "t2", "text_columns": ["text"]}},
    "students": {"3layers": {"num_layers": 3}, "2layers": {"num_layers": 2, "learning_rate": 1e-3}},
    "activations": {"gelu": {"activation": "gelu"}, "lma8": {"activation": "lma"}},
    "seeds": [3, 1],
    "axes": {"rows": {"100": {"max_train_samples": 100}, "all": None}},
    "common": {"learning_rate": 1e-4, "num_train_epochs": 2},
    "overrides": {"*/lma8/*": {"learning_rate": 5e-4}, "rte/2layers/lma8/*": {"learning_rate": 7e-4}},
}


def study(**changes):
    return CompareConfig(**{**PARTS, **changes})


def test_cells_are_the_product_with_the_first_seed_first():
    cells = expand(study())
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names) == 2 * 2 * 2 * 2 * 2
    assert names[0] == "rte/3layers/gelu/rows-100/seed-3"
    assert [cell.seed for cell in cells] == [3] * 16 + [1] * 16
    assert cells[0].model_name == "3layers/gelu/rows-100"


@pytest.mark.parametrize(
    ("name", "learning_rate"),
    [
        ("rte/3layers/gelu/rows-all/seed-1", 1e-4),  # common
        ("rte/2layers/gelu/rows-all/seed-1", 1e-3),  # the student's
        ("reviews/2layers/lma8/rows-all/seed-1", 5e-4),  # the first override
        ("rte/2layers/lma8/rows-all/seed-1", 7e-4),  # the last one that fits
    ],
)
def test_what_stands_later_wins(name, learning_rate):
    (cell,) = select(expand(study()), [name], "cells")
    assert cell.options["learning_rate"] == learning_rate
    assert cell.options["num_train_epochs"] == 2


def test_task_name_is_the_tasks_name_unless_the_data_is_own():
    options = {cell.name: cell.options for cell in expand(study())}
    assert options["rte/3layers/gelu/rows-100/seed-1"]["task_name"] == "rte"
    assert options["rte/3layers/gelu/rows-100/seed-1"]["max_train_samples"] == 100
    assert "task_name" not in options["reviews/3layers/gelu/rows-100/seed-1"]
    few = expand(study(tasks={"mnli_few": {"task_name": "mnli"}}, overrides={}))
    assert few[0].options["task_name"] == "mnli"


def test_patterns_choose_cells_and_must_fit_one():
    cells = expand(study())
    assert len(select(cells, ["rte/*/seed-1", "rte/3layers/gelu/*"], "cells")) == 8 + 2
    with pytest.raises(ConfigError, match=r"cells names 'rte/3layer/gelu/rows-100/seed-1'.*nearest.*rte/3layers/gelu"):
        select(cells, ["rte/3layer/gelu/rows-100/seed-1"], "cells")
    with pytest.raises(ConfigError, match="overrides names 'sst2/"):
        expand(study(overrides={"sst2/*": {}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "gel"}, "baseline is 'gel', allowed are the activations gelu, lma8"),
        ({"tasks": {}}, "tasks is {}, expected a mapping"),
        ({"axes": {"rows": {}}}, "axes: rows is {}, expected a mapping"),
        ({"students": {"a/b": {}}}, "students has the name 'a/b'"),
        ({"activations": {True: {}}}, "activations has the name True"),
        ({"students": {"small": [1]}}, r"students: small is \[1\], expected options"),
        ({"common": {"seed": 1}}, "common sets seed, which the study sets itself"),
        ({"overrides": {"*": {"output_dir": "x"}}}, "overrides: .* sets output_dir"),
        ({"seeds": [1, 2, 1]}, "seeds names 1 twice"),
        ({"seeds": []}, "seeds is empty"),
        ({"jobs": 0}, "jobs is 0"),
        ({"gpus_per_job": -1}, "gpus_per_job is -1"),
    ],
)
def test_studies_that_are_none(changes, message):
    with pytest.raises(ConfigError, match=message):
        study(**changes)


def test_two_cells_with_the_same_options_are_a_mistake():
    check_different(expand(study()))
    twins = {"gelu": {"activation": "gelu"}, "plain": {"activation": "gelu"}}
    with pytest.raises(ConfigError, match=r"rte/3layers/gelu/rows-100/seed-3 and rte/3layers/plain.* same options"):
        check_different(expand(study(activations=twins, overrides={})))


def test_last_epochs_losses_are_weighted_by_steps(tmp_path):
    lines = [
        {"step": 20, "epoch": 0.5, "loss": 9.0, "task_loss": 9.0},
        {"step": 40, "epoch": 1.0, "loss": 8.0, "task_loss": 8.0},
        {"step": 40, "evaluation": {"validation": {"accuracy": 0.5}}},
        {"step": 60, "epoch": 1.5, "loss": 3.0, "task_loss": 2.0, "learning_rate": 1.0},
        {"step": 70, "epoch": 1.75, "loss": 1.0, "task_loss": 1.0, "learning_rate": 0.5},
        {"step": 80, "epoch": 2.0, "loss": 2.0, "task_loss": 1.0, "learning_rate": 0.0},
        {"step": 80, "evaluation": {"validation": {"accuracy": 0.6}}},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    losses = last_epoch_losses(path)
    assert losses == {"loss": (20 * 3 + 10 * 1 + 10 * 2) / 40, "task_loss": (20 * 2 + 10 + 10) / 40}
    # steps without a finite loss were left out
    lines[-2] |= {"loss": None, "task_loss": None}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert last_epoch_losses(path) == {"loss": (20 * 3 + 10 * 1) / 30, "task_loss": (20 * 2 + 10) / 30}
    path.write_text(json.dumps(lines[-2]) + "\n")
    assert last_epoch_losses(path) == {}


def finished(folder, cell, seconds=10.0, **changes):
    folder = folder / "cells" / cell.name
    folder.mkdir(parents=True)
    study_worker.write_records(folder, {"seed": cell.seed})
    identity = {key: getattr(cell, key) for key in ("task", "student", "activation", "axes", "seed", "options")}
    cell_record = {**identity, "wall_seconds": seconds, "weights_sha256": "00", **changes}
    (folder / "cell.json").write_text(json.dumps(cell_record))
    (folder / "results.json").write_text(json.dumps(study_worker.results_of({"seed": cell.seed})))


def test_results_and_table_say_the_same_to_the_last_bit(tmp_path):
    cells = [Cell(task="rte", student="s", activation="gelu", seed=seed, axes=(("k", "8"),)) for seed in (10, 9, 3)]
    for cell in cells:
        finished(tmp_path, cell)
    (tmp_path / "latency.json").write_text(json.dumps({"latency_ms": {"s/gelu/k-8": 1.1}}))
    results = write_table(tmp_path)
    assert [result.seed for result in results] == [3, 9, 10]
    assert all(isinstance(result, CellResult) and result.latency_ms == 1.1 for result in results)
    with open(tmp_path / "cells.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, result in zip(rows, results, strict=True):
        assert (row["task"], row["k"], row["seed"], row["metric"]) == ("rte", "8", str(result.seed), "accuracy")
        assert float(row["score"]) == result.score
        assert float(row["train_loss"]) == result.train_losses["loss"]
        assert float(row["other/accuracy"]) == result.scores["other/accuracy"]
    assert [file.name for file in tmp_path.iterdir() if "saving" in file.name] == []


def test_broken_records_name_the_folder(tmp_path):
    finished(tmp_path, Cell(task="rte", student="s", activation="gelu", seed=1))
    file = tmp_path / "cells" / "rte" / "s" / "gelu" / "seed-1" / "results.json"
    file.write_text("{}")
    with pytest.raises(DataError, match="seed-1 has incomplete records"):
        read_results(tmp_path)
    file.write_text("{")
    with pytest.raises(DataError, match=r"results\.json cannot be read"):
        read_results(tmp_path)


def test_time_left_comes_from_the_finished_cells_most_alike(tmp_path):
    def cell(task, student, activation, seed):
        return Cell(task=task, student=student, activation=activation, seed=seed)

    assert seconds_left([cell("rte", "s", "gelu", 1)], [], 1) is None
    finished(tmp_path, cell("rte", "s", "gelu", 1), 10)
    finished(tmp_path, cell("rte", "s", "gelu", 2), 20)
    finished(tmp_path, cell("rte", "s", "lma", 1), 40)
    results = read_results(tmp_path)
    same, other_activation, other_task = (
        cell(*key, 3) for key in (("rte", "s", "gelu"), ("rte", "s", "x"), ("a",) * 3)
    )
    assert seconds_left([same], results, 1) == 15
    assert math.isclose(seconds_left([other_activation], results, 1), 70 / 3)
    assert math.isclose(seconds_left([same, other_task, same, same], results, 2), (45 + 70 / 3) / 2)
    # one cell does not end sooner by more jobs
    assert seconds_left([same], results, 8) == 15
