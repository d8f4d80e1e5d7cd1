"""The quickstart with real downloads, on few rows."""

import json
import subprocess
import sys
import time

import pytest

from lma_hf.cli.__main__ import main
from lma_hf.training.checkpoint import check_output_dir

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache):
    output = tmp_path_factory.mktemp("quickstart") / "run"
    flags = ["--output_dir", str(output), "--cache_dir", str(cache), "--max_train_samples", "2500"]
    assert main(["quickstart", *flags, "--teacher_epochs", "2", "--student_epochs", "2"]) == 0
    return output


def test_table_holds_teacher_and_both_students(folder):
    table = json.loads((folder / "results.json").read_text())["table"]
    assert [row["model"] for row in table] == ["teacher", "student-gelu", "student-lma"]
    teacher, *students = table
    for student in students:
        assert student["size_mb"] < teacher["size_mb"]
        assert student["latency_ms_batch_32"] < teacher["latency_ms_batch_32"]
        assert student["validation_accuracy"] > teacher["validation_accuracy"] - 4


def test_the_printed_lines_load_the_student_in_a_fresh_process(folder):
    script = f"""
import lma_hf, transformers
classify = transformers.pipeline("text-classification", {str(folder / "student-lma")!r})
print(classify("a warm and funny film")[0]["label"], classify("a dull and lifeless mess")[0]["label"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["fresh", "rotten"], done.stderr[-2000:]


def test_a_quickstart_that_was_killed_can_be_started_again(tmp_path, cache, capsys):
    flags = ["quickstart", "--output_dir", str(tmp_path / "run"), "--cache_dir", str(cache)]
    with subprocess.Popen([sys.executable, "-m", "lma_hf.cli", *flags], stdout=subprocess.DEVNULL) as process:
        while not (tmp_path / "run" / "teacher").is_dir():
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    assert main(flags) == 2
    refused = capsys.readouterr().err
    assert "pass --overwrite_output_dir true" in refused
    assert "resume" not in refused
    check_output_dir(tmp_path / "run", overwrite=True)
