"""The store of a teacher's answers: what is read is what was written, or it does not count as there."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lma_hf.distillation.cache import answer_batch, batches_of, fill
from lma_hf.distillation.store import AnswerStore
from lma_hf.errors import TeacherCacheError

sys.path.append(str(Path(__file__).parent))
from store_worker import LENGTHS, answer, logits_of, make_store, states_of

WORKER = [sys.executable, str(Path(__file__).with_name("store_worker.py"))]
ROWS = range(len(LENGTHS))


def full_store(root):
    store = make_store(root)
    assert fill(store, answer) == len(store.chunks) > 3
    return make_store(root)


def assert_complete(store):
    assert np.array_equal(store.logits.read(ROWS), np.concatenate([logits_of(row) for row in ROWS]))
    assert np.array_equal(store.states.read(ROWS), np.concatenate([states_of(row) for row in ROWS]))


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    chunk_tokens=st.integers(1, 60),
    draw=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_rows_in_any_order_are_read_bit_by_bit(tmp_path_factory, lengths, chunk_tokens, draw):
    generator = np.random.default_rng(len(lengths))
    logits = generator.normal(size=(len(lengths), 3)).astype(np.float32)
    states = [generator.normal(size=(length, 2, 4)).astype(np.float16) for length in lengths]
    root = tmp_path_factory.mktemp("store")
    store = AnswerStore(root, {}, lengths, 3, (2, 4), chunk_tokens)
    covered = [row for start, stop in store.chunks for row in range(start, stop)]
    assert covered == list(range(len(lengths)))
    fill(store, lambda start, stop: [logits[start:stop], np.concatenate(states[start:stop])])
    wanted = draw.draw(st.lists(st.sampled_from(covered), min_size=1))
    again = AnswerStore(root, {}, lengths, 3, (2, 4), chunk_tokens)
    assert again.logits.read(wanted).tobytes() == logits[wanted].tobytes()
    assert again.states.read(wanted).tobytes() == np.concatenate([states[row] for row in wanted]).tobytes()


def test_full_store_is_not_computed_again(tmp_path):
    store = full_store(tmp_path)
    assert fill(store, None) == 0
    assert_complete(store)
    assert store.size == len(LENGTHS) * 8 + LENGTHS.sum() * 12


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "grown", "no file", "no mark", "torn mark", "other store's"])
def test_damage_is_noticed_and_repaired(tmp_path, caplog, damage):
    store = full_store(tmp_path)
    path = store.states.path
    if damage == "cut":
        os.truncate(path, store.states.size - 5)
    elif damage == "flipped bit":
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
    elif damage == "grown":
        os.truncate(path, store.states.size + 5)
    elif damage == "no file":
        path.unlink()
    elif damage == "no mark":
        store.mark(1).unlink()
    elif damage == "torn mark":
        store.mark(1).write_text("")
    else:
        other = make_store(tmp_path, {"made for": "another teacher"})
        store.folder.rename(other.folder)
        store = other
    expected = {"grown": 0, "no file": len(store.chunks), "other store's": len(store.chunks)}.get(damage, 1)
    assert fill(make_store(store.folder.parent, store.origin), answer) == expected
    assert_complete(make_store(store.folder.parent, store.origin))
    assert ("damaged" in caplog.text) == (damage not in ("grown", "no mark"))


def test_failed_write_leaves_no_mark(tmp_path):
    store = make_store(tmp_path)

    def broken(start, stop):
        if start >= store.chunks[2][0]:
            raise RuntimeError("teacher failed")
        return answer(start, stop)

    with pytest.raises(RuntimeError, match="teacher failed"):
        fill(store, broken)
    assert [store.holds(index) for index in range(4)] == [True, True, False, False]
    with pytest.raises(ValueError, match=r"have shape \(1, 2\), expected"):
        store.write(2, np.zeros((1, 2)), np.zeros((1, 2, 3)))
    assert fill(make_store(tmp_path), answer) == len(store.chunks) - 2


def test_killed_build_is_resumed(tmp_path, caplog):
    store = make_store(tmp_path)
    process = subprocess.Popen([*WORKER, str(tmp_path), "0.2"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not store.mark(1).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    held = [store.holds(index) for index in range(len(store.chunks))]
    assert held[:2] == [True, True]
    assert not all(held)
    with caplog.at_level(logging.INFO):
        # also the chunk whose lock the dead process held
        assert fill(store, answer) == held.count(False)
    assert f"{held.count(False)} of {len(held)} chunks to compute" in caplog.text
    assert_complete(make_store(tmp_path))


def test_processes_at_once_share_the_work(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([*WORKER, str(tmp_path), "0.3"], **pipes) for _ in range(2)]
    # on a busy machine one may start long after the other, and find nothing left
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    computed = [int(worker.communicate(timeout=60)[0]) for worker in workers]
    assert sum(computed) == len(make_store(tmp_path).chunks)
    assert min(computed) > 0
    assert_complete(make_store(tmp_path))


def test_full_store_is_read_from_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    full_store(tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    store = make_store(tmp_path)
    monkeypatch.setattr(store, "allocate", refuse)
    assert fill(store, None) == 0
    assert_complete(store)
    store.mark(0).unlink()
    with pytest.raises(TeacherCacheError, match=r"cannot be used: Permission denied; it takes 0\.0 MB, choose"):
        fill(store, answer)


def test_folder_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TeacherCacheError, match=r"^teacher_cache .* cannot be used: Not a directory"):
        fill(make_store(tmp_path / "file"), answer)


def test_too_little_space_is_found_out_before_computing(tmp_path, monkeypatch):
    store = make_store(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": store.size - 1}))
    with pytest.raises(TeacherCacheError, match=r"No space left on device; it takes 0\.0 MB"):
        fill(store, None)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk_is_one_line_and_leaves_no_mark(tmp_path, monkeypatch):
    store = make_store(tmp_path)
    monkeypatch.setattr(store.logits, "path", Path("/dev/full"))
    monkeypatch.setattr(store.logits, "allocate", lambda: None)
    with pytest.raises(TeacherCacheError, match="No space left on device"):
        fill(store, answer)
    assert not store.mark(0).exists()


def test_batches_keep_the_budget():
    lengths = np.array([90, 40, 40, 8, 8, 8, 8, 8])
    assert list(batches_of(0, 8, lengths, 80)) == [(0, 1), (1, 3), (3, 8)]
    assert list(batches_of(2, 5, lengths, 80)) == [(2, 4), (4, 5)]


def test_numbers_that_cannot_be_kept_are_refused():
    batch = {"attention_mask": torch.ones(1, 2)}
    for logits, states, name in [(torch.nan, 1.0, "logits"), (0.0, 70_000.0, "hidden states, in half precision,")]:

        def teacher(batch, hidden, logits=logits, states=states):
            return torch.full((1, 2), logits), [torch.full((1, 2, 4), states)]

        with pytest.raises(TeacherCacheError, match=f"the teacher's {name} are not finite"):
            answer_batch(teacher, batch, (0,))
