"""The benchmark of training: its figures, its table and its clock."""

import math

from lma_hf.compare.training_contenders import job
from lma_hf.compare.training_table import figures_of, seconds_to_score, training_table


def run(contender, *epochs, examples=100):
    measured = {"seconds": 20.0, "cpu_seconds": 30.0, "peak_memory_mb": 500.4}
    return {"contender": contender, **figures_of(examples, epochs), **measured}


def test_figures_are_those_of_the_last_epoch():
    figures = figures_of(300, [(2.0, 0.5), (6.0, 0.4)])
    assert figures["train_seconds"] == 6.0
    assert figures["examples_per_second"] == 50.0
    assert figures["score"] == 0.4


def test_score_is_reached_at_the_first_epoch_that_has_it():
    row = run("a", (1.0, 0.5), (2.0, 0.8), (3.0, 0.7))
    assert [seconds_to_score(row, score) for score in (0.4, 0.8, 0.7, 0.9)] == [1.0, 2.0, 2.0, math.inf]


def test_table_holds_medians_and_the_time_to_the_first_contenders_score():
    rows = [run("plain", (seconds / 2, 0.6), (seconds, 0.8)) for seconds in (10.0, 40.0, 20.0)]
    rows += [run("fast", (1.0, 0.8), (2.0, 0.81)), run("fast", (3.0, 0.7), (4.0, 0.7)), run("fast", (1.5, 0.9))]
    rows += [run("weak", (1.0, 0.9)), run("weak", (1.0, 0.1)), run("weak", (1.0, 0.1))]
    assert training_table(rows).splitlines() == [
        "| contender | examples/s | training s | s to 0.8000 | whole job s | CPU s | peak memory MB | score |",
        "|---|---|---|---|---|---|---|---|",
        "| plain | 5.0 | 20.0 | 20.0 | 20.0 | 30.0 | 500 | 0.8000 |",
        "| fast | 50.0 | 2.0 | 1.5 | 20.0 | 30.0 | 500 | 0.8100 |",
        "| weak | 100.0 | 1.0 | not reached | 20.0 | 30.0 | 500 | 0.1000 |",
    ]


def test_clock_stops_while_a_model_is_evaluated(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(job.time, "perf_counter", lambda: now[0])

    def evaluate(model):
        now[0] += 50
        return model

    clock = job.EpochClock(evaluate)
    clock.start()
    for score in (0.1, 0.2):
        now[0] += 3
        clock.end_epoch(score)
    assert clock.epochs == [(3.0, 0.1), (6.0, 0.2)]
