"""Checkpoints on disk: whole or not there, damaged ones found, the newest kept, and a full disk survived."""

import errno
import os
import shutil

import pytest
import torch

from lma_hf.errors import OutputDirError
from lma_hf.training import checkpoint_store
from lma_hf.training.checkpoint_store import MANIFEST, STATE, CheckpointStore, hold

RUN = {"num_processes": 1}


def state_of(step):
    return {"weights": torch.full((5000,), float(step)), "counters": {"step": step, "best": -float("inf")}}


@pytest.fixture
def best(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"best of step 1")
    return file


@pytest.fixture
def store(tmp_path, best):
    store = CheckpointStore(tmp_path / "checkpoints", limit=2)
    for step in (1, 2, 3):
        store.save(step, state_of(step), hold(best.parent, [best.name]), RUN)
    return store


def entries(store):
    return sorted(os.listdir(store.folder))


def test_newest_are_kept_and_come_back(store):
    assert entries(store) == ["step-00000002", "step-00000003"]
    assert store.newest() == 3
    state, run, files = store.load(3)
    assert torch.equal(state["weights"], state_of(3)["weights"])
    assert (state["counters"], run) == (state_of(3)["counters"], RUN)
    assert [(name, file.name) for name, file in files.items()] == [("model.safetensors", "model.safetensors")]


def test_file_keeps_the_content_it_had(store, best):
    files = hold(best.parent, [best.name])
    with open(best, "ab") as file:  # a line more
        file.write(b" and more")
    store.save(4, state_of(4), files, RUN)
    files = hold(best.parent, [best.name])
    (best.parent / "next").write_bytes(b"best of step 5")
    os.replace(best.parent / "next", best)
    store.save(5, state_of(5), files, RUN)
    assert store.newest() == 5
    texts = [store.load(step)[2][best.name].read_text() for step in (4, 5)]
    assert texts == ["best of step 1", "best of step 1 and more"]


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [truncate, flip, os.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", [STATE, MANIFEST, "model.safetensors"])
def test_damaged_checkpoint_is_passed_over_with_a_warning(store, caplog, name, harm):
    if name == MANIFEST and harm is flip:
        pytest.skip("most flips in the manifest are no damage to the state")
    path = store.folder / "step-00000003" / name
    harm(path)
    assert store.newest() == 2
    assert "step-00000003 is damaged" in caplog.text
    assert "using the one before" in caplog.text
    store.drop_after(2)
    store.save(4, state_of(4), [], RUN)
    assert entries(store) == ["step-00000002", "step-00000004"]


def test_only_damaged_checkpoints_are_an_error_and_none_is_none(store, tmp_path):
    for step in (2, 3):
        truncate(store.folder / f"step-{step:08d}" / STATE)
    with pytest.raises(OutputDirError, match=r"all checkpoints in .* are damaged; remove that folder"):
        store.newest()
    assert CheckpointStore(tmp_path / "nothing", 2).newest() is None


class FullDisk:
    """A file that takes `room` bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


@pytest.mark.parametrize("room", [0, 10, 700, 15000, 20500, 21500, 21700])
def test_full_disk_leaves_the_older_checkpoints(store, monkeypatch, room):
    before = {name: checkpoint_store.damage(store.folder / name) for name in entries(store)}
    left = [room]

    def open_full(path, mode="r", **kwargs):
        file = open(path, mode, **kwargs)  # noqa: SIM115
        if "w" not in mode:
            return file
        full = FullDisk(file, left[0])
        left[0] = 60
        return full

    monkeypatch.setattr(checkpoint_store, "open", open_full, raising=False)
    with pytest.raises(OSError, match="No space left on device"):
        store.save(4, state_of(4), [], RUN)
    monkeypatch.undo()
    assert {name: checkpoint_store.damage(store.folder / name) for name in entries(store)} == before
    store.save(4, state_of(4), [], RUN)
    assert store.newest() == 4


@pytest.mark.parametrize("call", ["rename", "fsync", "mkdir"])
def test_death_at_any_system_call_leaves_a_whole_newest_checkpoint(store, monkeypatch, call, best):
    """As SIGKILL would: whatever comes after the call does not happen, not even tidying up."""

    class Killed(BaseException):
        pass

    def dead(*args, **kwargs):
        raise Killed

    target = {"mkdir": (type(store.folder), "mkdir")}.get(call, (os, call))
    monkeypatch.setattr(*target, dead)
    monkeypatch.setattr(shutil, "rmtree", dead)
    with pytest.raises(Killed):
        store.save(4, state_of(4), hold(best.parent, [best.name]), RUN)
    monkeypatch.undo()
    assert CheckpointStore(store.folder, 2).newest() == 3
    CheckpointStore(store.folder, 2).save(4, state_of(4), hold(best.parent, [best.name]), RUN)
    assert entries(store) == ["step-00000003", "step-00000004"]


def test_same_step_again_replaces_it(store):
    store.save(3, state_of(30), [], RUN)
    assert store.load(3)[0]["counters"]["step"] == 30
    assert entries(store) == ["step-00000002", "step-00000003"]
