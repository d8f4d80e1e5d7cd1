"""Candidates take turns, kept memory is what the graph holds, and rows and CSV report it."""

import csv

import pytest
import torch
from torch import nn

import lma_hf
from lma_hf.compare import timing
from lma_hf.compare.profiling import environment
from lma_hf.compare.timing import COLUMNS, TRACE, Candidate, Setting, kept_bytes, measure, time_in_turns, write_csv
from lma_hf.errors import ConfigError

SETTING = Setting("activation", "4x8", "float32", 1, "inference")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the steps move: clock.wait(seconds) makes a step."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

        def wait(self, seconds, name=None, calls=None):
            def step():
                self.now += seconds
                if calls is not None:
                    calls.append(name)

            return step

    found = Clock()
    monkeypatch.setattr(timing, "time", found)
    return found


def test_candidates_take_turns_in_an_order_drawn_for_each_repeat(clock):
    calls = []
    steps = {name: clock.wait(seconds, name, calls) for name, seconds in (("a", 0.2), ("b", 0.25), ("c", 0.3))}
    samples = time_in_turns(steps, repeats=12)
    warm_up, timed = calls[: 3 * timing.WARMUP], calls[3 * timing.WARMUP :]
    assert sorted(warm_up) == sorted("abc" * timing.WARMUP)
    turns = [tuple(timed[at : at + 3]) for at in range(0, len(timed), 3)]
    assert len(turns) == 12
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 3
    for name, milliseconds in (("a", 200), ("b", 250), ("c", 300)):
        assert samples[name] == pytest.approx([milliseconds] * 12)


def test_short_steps_settle_and_repeat_within_a_sample(clock):
    calls = []
    samples = time_in_turns({"short": clock.wait(0.3e-3, "short", calls)}, repeats=2)
    assert len(calls) == timing.WARMUP + 2 * (1 + 4)
    assert samples["short"] == pytest.approx([0.3, 0.3])


def test_long_steps_are_warm_after_one_call(clock):
    calls = []
    samples = time_in_turns({"long": clock.wait(2.0, "long", calls)}, repeats=2)
    assert len(calls) == 1 + 2
    assert samples["long"] == pytest.approx([2000.0, 2000.0])


def test_no_repeats():
    with pytest.raises(ConfigError, match="repeats is 0, must be at least 1"):
        time_in_turns({}, 0)


def test_rows_hold_medians_and_their_ratios(monkeypatch):
    samples = {"copy": [1.0, 2.0, 9.0], "gelu": [4.0, 4.0, 4.0], "lma": [8.0, 1.0, 3.0]}
    monkeypatch.setattr(timing, "time_in_turns", lambda steps, repeats: {name: samples[name] for name in steps})
    candidates = {name: Candidate(lambda: None, "torch", number) for number, name in enumerate(samples)}
    rows = measure(SETTING, candidates, 3)
    assert [tuple(row) for row in rows] == [COLUMNS] * 3
    assert list(rows[2].values()) == [*SETTING, "lma", "torch", 3, 3.0, 1.0, 0.75, 1.5, 2, None]
    (row,) = measure(SETTING, {"lma": candidates["lma"]}, 3)
    assert (row["ratio_to_gelu"], row["ratio_to_copy"]) == (None, None)


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_threads_and_inference_mode_hold_for_the_steps_only(mode):
    seen = []
    before = torch.get_num_threads()
    step = Candidate(lambda: seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled())), "torch")
    measure(SETTING._replace(threads=before + 1, mode=mode), {"a": step}, 1)
    assert set(seen) == {(before + 1, mode == "inference")}
    assert (torch.get_num_threads(), torch.is_inference_mode_enabled()) == (before, False)


def test_kept_memory_is_what_the_graph_holds_at_the_end_without_parameters():
    linear, x = nn.Linear(24, 24), torch.ones(64, 24, requires_grad=True)
    size = x.numel() * 4
    assert kept_bytes(lambda: linear(x), linear) == size
    assert kept_bytes(lambda: linear(x) + linear(x), linear) == size
    assert kept_bytes(lambda: (x.exp().detach(), x.sin()), linear) == size
    with torch.no_grad():
        assert kept_bytes(lambda: linear(x), linear) == 0


def test_csv_says_where_every_row_was_measured(tmp_path):
    rows = measure(SETTING, {"copy": Candidate(list, "torch"), "lma": Candidate(dict, "reference", 7)}, 1)
    described, path = environment(), tmp_path / "benchmark.csv"
    write_csv(rows, path, described)
    with open(path, newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [tuple(row) for row in written] == [(*COLUMNS, *TRACE)] * 2
    for row, original in zip(written, rows, strict=True):
        assert (row["date"], row["processor"]) == (described["date"], described["processor"])
        assert (row["torch"], row["lma_hf"]) == (torch.__version__, lma_hf.__version__)
        assert float(row["median_ms"]) == pytest.approx(original["median_ms"], rel=1e-5)
    assert [row["kept_bytes"] for row in written] == ["", "7"]
    assert [row["ratio_to_gelu"] for row in written] == ["", ""]
    with pytest.raises(FileExistsError):
        write_csv(rows, path, described)
