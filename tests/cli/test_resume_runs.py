"""Real runs that are killed, told to stop, or run out of disk, and then resumed."""

import os
import random
import shutil
import signal
import time

import pytest
from killed_runs import FLAGS, has_checkpoint, outcome, start, wait_for

from lma_hf.cli.__main__ import main
from lma_hf.training import checkpoint_store
from lma_hf.training.checkpoint_store import CheckpointStore


@pytest.fixture(scope="session")
def flags(data_flags, teacher_dir):
    return ["distill", *data_flags, "--teacher", str(teacher_dir), *FLAGS]


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, flags):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main([*flags, "--output_dir", str(folder)]) == 0
    return folder


class Died(BaseException):
    """Nothing handles it, as nothing handles a SIGKILL."""


def stop_in_process(flags, folder, step, monkeypatch):
    """Run up to the checkpoint of a step, then die without tidying up."""
    save = CheckpointStore.save

    def save_and_die(self, at, *args):
        save(self, at, *args)
        if at == step:
            raise Died

    monkeypatch.setattr(CheckpointStore, "save", save_and_die)
    with pytest.raises(Died):
        main([*flags, "--output_dir", str(folder)])
    monkeypatch.undo()


def test_checkpoints_do_not_change_the_run(tmp_path, flags, uninterrupted):
    assert main([*flags, "--output_dir", str(tmp_path / "run"), "--save_steps", "1000"]) == 0
    assert outcome(tmp_path / "run") == outcome(uninterrupted)
    assert sorted(os.listdir(uninterrupted / "checkpoints")) == ["step-00000015", "step-00000018"]


def test_ctrl_c_is_one_line(tmp_path, flags, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointStore, "save", interrupt)
    assert main([*flags, "--output_dir", str(tmp_path / "run")]) == 130
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "lma-hf: interrupted"
    assert "Traceback" not in said


def kill_and_resume(flags, folder, delay_s):
    """Kill with SIGKILL so long after the first checkpoint, then resume."""
    process = start(flags, folder)
    wait_for(has_checkpoint(folder), process)
    time.sleep(delay_s)
    process.kill()
    process.communicate()
    assert main([*flags, "--output_dir", str(folder), "--resume", "true"]) == 0


@pytest.mark.parametrize("delay_s", [0.1])
def test_killed_run_ends_with_the_same_bits(tmp_path, flags, uninterrupted, delay_s):
    kill_and_resume(flags, tmp_path / "run", delay_s)
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


@pytest.mark.slow
def test_twenty_random_moments(tmp_path, flags, uninterrupted):
    """Anywhere from before the first step to the end; also killed again after it was resumed."""
    draw = random.Random(time.time_ns())
    for number in range(20):
        folder = tmp_path / f"run-{number}"
        while True:
            process = start(flags, folder, "--resume", "true", "--save_steps", "1")
            wait_for((folder / "run_config.yaml").is_file, process)
            time.sleep(draw.uniform(0, 2.5))
            process.kill()
            process.communicate()
            if draw.random() < 0.6:
                break
        assert main([*flags, "--output_dir", str(folder), "--resume", "true"]) == 0
        assert outcome(folder) == outcome(uninterrupted), number
        shutil.rmtree(folder)


def test_sigterm_saves_and_exits_with_143(tmp_path, flags, uninterrupted):
    folder = tmp_path / "run"
    flags = [*flags, "--save_steps", "2"]
    process = start(flags, folder)
    wait_for(has_checkpoint(folder), process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    step = max(CheckpointStore(folder / "checkpoints", 2).steps())
    assert f"lma-hf: stopped by SIGTERM at step {step}; --resume true goes on from step {step}" in errors
    assert "Traceback" not in errors
    assert main([*flags, "--output_dir", str(folder), "--resume", "true"]) == 0
    assert outcome(folder) == outcome(uninterrupted)


def test_damaged_newest_checkpoint(tmp_path, flags, uninterrupted, monkeypatch, caplog):
    stop_in_process(flags, tmp_path / "run", 12, monkeypatch)
    os.truncate(tmp_path / "run" / "checkpoints" / "step-00000012" / "state.pt", 1000)
    assert main([*flags, "--output_dir", str(tmp_path / "run"), "--resume", "true"]) == 0
    assert "step-00000012 is damaged (state.pt has 1000 bytes instead of" in caplog.text
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


def test_a_run_whose_checkpoints_are_all_damaged_starts_again_without_them(
    tmp_path, flags, uninterrupted, monkeypatch, capsys
):
    folder = tmp_path / "run"
    stop_in_process(flags, folder, 12, monkeypatch)
    for state in (folder / "checkpoints").glob("step-*/state.pt"):
        os.truncate(state, 1000)
    again = [*flags, "--output_dir", str(folder), "--resume", "true"]
    assert main(again) == 2
    assert "are damaged; remove that folder, and --resume true starts again" in capsys.readouterr().err
    shutil.rmtree(folder / "checkpoints")
    assert main(again) == 0
    assert outcome(folder) == outcome(uninterrupted)


def test_full_disk_at_a_checkpoint_does_not_stop_the_run(tmp_path, flags, uninterrupted, monkeypatch, caplog):
    write_state = checkpoint_store.write_state

    def full_once(state, path):
        if "step-00000009" in str(path):
            raise OSError(28, "No space left on device")
        return write_state(state, path)

    monkeypatch.setattr(checkpoint_store, "write_state", full_once)
    assert main([*flags, "--output_dir", str(tmp_path / "run")]) == 0
    assert "checkpoint of step 9 could not be written ([Errno 28] No space left on device)" in caplog.text
    assert "the one of step 6 is kept" in caplog.text
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


@pytest.mark.parametrize(
    "victim",
    [
        "save_model",
        pytest.param("append_json_line", marks=pytest.mark.extended),
        pytest.param("write_json", marks=pytest.mark.extended),
    ],
)
def test_full_disk_elsewhere_is_one_clear_error(tmp_path, flags, uninterrupted, monkeypatch, capsys, victim):
    import lma_hf.cli.run as run

    original, calls = getattr(run, victim), []

    def full(*args):
        calls.append(args)
        # the best model, a line in the middle, results.json (environment.json is the first)
        if len(calls) == {"save_model": 1, "append_json_line": 6, "write_json": 2}[victim]:
            raise OSError(28, "No space left on device")
        return original(*args)

    monkeypatch.setattr(run, victim, full)
    assert main([*flags, "--output_dir", str(tmp_path / "run")]) == 1
    monkeypatch.undo()
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("lma-hf: error: output_dir ")
    assert "No space left on device" in message
    assert main([*flags, "--output_dir", str(tmp_path / "run"), "--resume", "true"]) == 0
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


def test_other_settings_are_refused_by_name(tmp_path, flags, monkeypatch, capsys, pretrained_dir, teacher_dir):
    folder = tmp_path / "run"
    stop_in_process(flags, folder, 6, monkeypatch)
    resume = [*flags, "--output_dir", str(folder), "--resume", "true"]
    before = sorted(folder.rglob("*"))
    assert main([*resume, "--learning_rate", "1e-4", "--seed", "7"]) == 2
    assert "(learning_rate is 0.0001, was 0.001; seed is 7, was 42)" in capsys.readouterr().err
    other = tmp_path / "other-teacher"
    teach = ["--model_name_or_path", str(pretrained_dir), "--output_dir", str(other), "--max_steps", "1"]
    assert main(["teach", *flags[1:7], *teach]) == 0
    assert main([*resume, "--teacher", str(other), "--allow_weak_teacher", "true"]) == 2
    assert "other teacher weights" in capsys.readouterr().err
    data = tmp_path / "data"
    shutil.copytree(flags[2], data)
    with open(data / "train.jsonl", "a") as file:
        file.write('{"text": "a film", "label": "fresh"}\n')
    assert main([*resume, "--dataset", str(data)]) == 2
    assert "other rows of split train" in capsys.readouterr().err
    # nothing is lost by trying, nor by forgetting --resume
    assert main([*flags, "--output_dir", str(folder)]) == 2
    assert "pass --resume true to go on with it" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_moved_files_and_other_records_are_no_other_run(tmp_path, flags, uninterrupted, monkeypatch, teacher_dir):
    stop_in_process(flags, tmp_path / "run", 6, monkeypatch)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    shutil.copytree(teacher_dir, tmp_path / "teacher")
    more = ["--teacher", str(tmp_path / "teacher"), "--save_steps", "7", "--save_total_limit", "1"]
    assert main([*flags, "--output_dir", str(tmp_path / "moved"), "--resume", "true", *more]) == 0
    weights, results, lines = outcome(tmp_path / "moved")
    results["teacher"]["name"] = str(teacher_dir)
    assert (weights, results, lines) == outcome(uninterrupted)
    assert os.listdir(tmp_path / "moved" / "checkpoints") == ["step-00000014"]


def test_finished_run_says_so_and_stays(tmp_path, flags, uninterrupted, caplog):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    assert main([*flags, "--output_dir", str(uninterrupted), "--resume", "true"]) == 0
    assert "is finished (20 steps), so there is nothing to resume" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before


def test_resume_where_nothing_is_starts(tmp_path, flags, uninterrupted, capsys):
    run = tmp_path / "run"
    assert main([*flags, "--output_dir", str(run), "--resume", "true", "--overwrite_output_dir", "true"]) == 2
    assert "resume and overwrite_output_dir are both true" in capsys.readouterr().err
    assert main([*flags, "--output_dir", str(run), "--resume", "true"]) == 0
    assert outcome(run) == outcome(uninterrupted)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    assert main([*flags, "--output_dir", str(tmp_path / "foreign"), "--resume", "true"]) == 2
    assert (tmp_path / "foreign" / "thesis.tex").is_file()


THESEUS = ["--replacement_rate", "0.5", "--layer_map", "1", "3", "--hidden_loss_weight", "0"]
MORE = {
    "stages": ["--schedules", "temperature=linear:4:1", "--feature_stage", "0.4"],
    "theseus": THESEUS,
    "budget": ["--tokens_per_batch", "256", "--gradient_accumulation_steps", "2"],
    "quant-noise": ["--quantize", "int4", "--noise_rate", "0.5"],
    "codebooks": ["--quantize", "pq"],
    "product noise": ["--quantize", "pq", "--noise_rate", "0.2"],
    "quantized theseus": ["--quantize", "int8", *THESEUS],
    "activations": ["--train", "activations+bias", "--activation_warmup_steps", "3"],
}


IN_DEFAULT_TIER = ("stages", "activations")


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(more, id=name, marks=[] if name in IN_DEFAULT_TIER else pytest.mark.extended)
        for name, more in MORE.items()
    ],
)
def test_every_way_to_train_resumes(tmp_path, flags, monkeypatch, more):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert main([*flags, *more, "--output_dir", str(whole)]) == 0
    stop_in_process([*flags, *more], folder, 12, monkeypatch)
    assert main([*flags, *more, "--output_dir", str(folder), "--resume", "true"]) == 0
    assert outcome(folder) == outcome(whole)
    deltas = [sorted((path / "delta").glob("*")) for path in (folder, whole)]
    assert [file.read_bytes() for file in deltas[0]] == [file.read_bytes() for file in deltas[1]]
    assert len(deltas[0]) == (2 if "--train" in more else 0)
