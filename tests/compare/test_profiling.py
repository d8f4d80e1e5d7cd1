import socket
from datetime import datetime
from pathlib import Path

import pytest
import torch
from torch import nn

from lma_hf.compare import profiling
from lma_hf.compare.profiling import (
    count_parameters,
    environment,
    folder_size_mb,
    measure_latency,
    print_table,
    results_table,
)
from lma_hf.errors import ConfigError, DataError


class Recorder(nn.Module):
    def __init__(self, name, calls):
        super().__init__()
        self.name, self.calls, self.inner = name, calls, nn.Linear(2, 2)

    def forward(self, x):
        self.calls.append((self.name, len(x), self.training, self.inner.training, torch.is_inference_mode_enabled()))


def test_shared_parameters_count_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 9 + 3 + 3


def test_folder_size_counts_the_weights_only(tmp_path):
    (tmp_path / "model-1.safetensors").write_bytes(bytes(1_500_000))
    (tmp_path / "model-2.safetensors").write_bytes(bytes(500_000))
    (tmp_path / "tokenizer.json").write_bytes(bytes(1000))
    assert folder_size_mb(tmp_path) == 2.0


def test_folder_without_weights(tmp_path):
    with pytest.raises(DataError, match=r"holds no \*\.safetensors"):
        folder_size_mb(tmp_path)


def test_models_take_turns_in_eval_and_inference_mode():
    calls = []
    models = {name: Recorder(name, calls) for name in "ab"}
    measure_latency(models, lambda n: {"x": torch.zeros(n, 2)}, batch_sizes=(1, 3), repeats=2, warmup=1)
    assert [(name, size) for name, size, *_ in calls] == [("a", 1), ("b", 1)] * 3 + [("a", 3), ("b", 3)] * 3
    assert {tuple(modes) for _, _, *modes in calls} == {(False, False, True)}


def test_training_modes_come_back_even_after_an_error():
    model = Recorder("a", [])
    model.inner.eval()
    with pytest.raises(RuntimeError, match="no batch"):
        measure_latency({"a": model}, lambda n: (_ for _ in ()).throw(RuntimeError("no batch")))
    assert (model.training, model.inner.training) == (True, False)


def test_latency_is_the_median_of_the_timed_passes(monkeypatch):
    times = iter([900.0, 1.0, 5.0, 3.0])
    monkeypatch.setattr(profiling, "_time_ms", lambda model, batch: next(times))
    assert measure_latency({"a": nn.Identity()}, lambda n: {}, (4,), repeats=3, warmup=1) == {"a": {4: 3.0}}


def test_time_is_in_milliseconds(monkeypatch):
    clock = iter([1.0, 1.25])
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: next(clock))
    assert profiling._time_ms(nn.Identity(), {"input": torch.zeros(1)}) == 250.0


def test_no_repeats():
    with pytest.raises(ConfigError, match="repeats is 0, must be at least 1"):
        measure_latency({}, dict, repeats=0)


def test_table_columns_alignment_and_gaps():
    rows = [{"model": "teacher", "params": 22713216, "accuracy": 91.128, "size_mb": 123.45, "note": None}]
    rows.append({"model": "[student]", "params": 1, "accuracy": None})
    columns = results_table(rows, "[x]").columns
    assert [str(column.header) for column in columns] == list(rows[0])
    assert [column.justify for column in columns] == ["left", "right", "right", "right", "left"]
    cells = [[str(cell) for cell in column.cells] for column in columns]
    assert cells == [["teacher", "[student]"], ["22,713,216", "1"], ["91.13", "-"], ["123.5", "-"], ["-", "-"]]


def test_table_refuses_what_it_would_not_show():
    with pytest.raises(ConfigError, match="has no column 'b'"):
        results_table([{"a": 1}, {"a": 1, "b": 2}], "t")
    with pytest.raises(ConfigError, match="has no rows"):
        results_table([], "t")


def test_printed_table_is_not_truncated(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_table([{f"column_{n}": f"value number {n}" for n in range(5)}], "Results")
    printed = capsys.readouterr().out
    assert "Results" in printed
    assert all(f"value number {n}" in printed for n in range(5))


def test_environment_says_what_a_measurement_depends_on():
    found = environment()
    assert datetime.fromisoformat(found["date"]).utcoffset().total_seconds() == 0
    assert found["versions"]["torch"] == torch.__version__
    assert found["torch_threads"] == torch.get_num_threads()
    assert found["processor"]
    assert found["cpu_capability"] in torch.__config__.show()
    assert socket.gethostname() not in str(found)
    assert str(Path.home()) not in str(found)


def test_environment_without_git_and_without_packages(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(profiling, "REPORTED_PACKAGES", ("no-such-package",))
    found = environment()
    assert found["git_commit"] is None
    assert found["versions"] == {"no-such-package": None}


def test_commit_only_of_a_checkout_that_tracks_this_file(monkeypatch):
    answers = {"ls-files": None, "describe": "0" * 40}
    monkeypatch.setattr(profiling, "_git", lambda command, *_: answers[command])
    assert profiling._git_commit() is None
    answers["ls-files"] = "profiling.py"
    assert profiling._git_commit() == "0" * 40
