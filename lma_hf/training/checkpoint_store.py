"""Checkpoints on disk: folders step-XXXXXXXX, each there whole or not at all, and the newest few are kept."""

import contextlib
import json
import logging
import os
import re
import shutil
import zlib
from pathlib import Path

import torch

from lma_hf.errors import OutputDirError

logger = logging.getLogger(__name__)

STATE, MANIFEST = "state.pt", "manifest.json"
CHUNK = 2**22


class CheckpointStore:
    """The folder `checkpoints` of a run. Only one process may write.

    A checkpoint is written into a hidden folder, synced to disk, and renamed, so that whatever ends the process
    leaves the checkpoints before it as they were. Its manifest holds size and CRC-32 of every file.

    Args: limit: how many checkpoints are kept.
    """

    def __init__(self, folder, limit):
        self.folder, self.limit = Path(folder), limit

    def save(self, step, state, files, run):
        """Write a checkpoint, then drop the oldest ones beyond the limit.

        Args:
            state: for `torch.save`, of types that `torch.load(weights_only=True)` takes.
            files: from `hold`; copies of them belong to the checkpoint. Links would be free, but then damage to
                one file would be damage to every checkpoint.
            run: JSON values that say which run this is.
        Raises: OSError if it cannot be written; the other checkpoints stay.
        """
        final = self._path(step)
        temporary = self.folder / f".saving-{final.name}"
        try:
            self._remove_leftovers()
            temporary.mkdir(parents=True)
            checks = {STATE: write_state(state, temporary / STATE)}
            checks |= {name: copy_file(file, size, temporary / name) for name, file, size in files}
            for folder in {(temporary / name).parent for name in checks}:
                sync_folder(folder)
            write_synced(json.dumps({"step": step, "files": checks, "run": run}), temporary / MANIFEST)
            sync_folder(temporary)
            remove_folder(final)  # left by a run that went on from an older checkpoint
            os.rename(temporary, final)
            sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            for _, file, _ in files:
                file.close()
        self._drop(self.steps()[: -self.limit])

    def steps(self):
        """Steps of which there is a checkpoint, damaged or not, in order."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d{8,}", name))

    def newest(self):
        """Step of the newest checkpoint that is whole; None if there is none at all. Warns of damaged ones.

        Raises: OutputDirError if all are damaged.
        """
        for step in reversed(self.steps()):
            reason = damage(self._path(step))
            if reason is None:
                return step
            logger.warning("checkpoint %s is damaged (%s); using the one before it", self._path(step), reason)
        if self.steps():
            raise OutputDirError(
                f"all checkpoints in {self.folder} are damaged; remove that folder, and --resume true starts again"
            )
        return None

    def load(self, step):
        """(state, run, {name: path} of the files) of a checkpoint; tensors on the CPU."""
        folder = self._path(step)
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        return state, manifest["run"], {name: folder / name for name in manifest["files"] if name != STATE}

    def drop_after(self, step):
        """Remove the checkpoints after `step`: damaged ones, which would count as the newest."""
        self._drop([later for later in self.steps() if later > step])

    def _path(self, step):
        return self.folder / f"step-{step:08d}"

    def _drop(self, steps):
        for step in steps:
            remove_folder(self._path(step))

    def _remove_leftovers(self):
        for path in self.folder.glob(".*-step-*"):
            shutil.rmtree(path, ignore_errors=True)


def damage(folder):
    """What is wrong with a checkpoint, in words; None if it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, (size, crc) in files.items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            if checksum(folder / name)[1] != crc:
                return f"{name} has another checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def write_state(state, path):
    """`torch.save`, synced to disk. Returns: (size, CRC-32). Raises: OSError."""
    with _synced(path) as writer:
        try:
            torch.save(state, writer)
        except RuntimeError as error:
            # torch hides the file's error behind one about positions
            raise writer.error or error from None
    return writer.size, writer.crc


def hold(folder, names):
    """(name, open file, size) of each: the content as it is now, also when it is replaced or appended to later.

    Args: names: paths below the folder.
    """
    files = [open(Path(folder) / name, "rb") for name in names]  # noqa: SIM115, `save` closes them
    return [(name, file, os.fstat(file.fileno()).st_size) for name, file in zip(names, files, strict=True)]


def copy_file(file, size, target):
    """Copy the first `size` bytes of an open file, synced to disk. Returns: (size, CRC-32)."""
    target.parent.mkdir(exist_ok=True)
    with _synced(target) as writer:
        while writer.size < size and (data := file.read(min(CHUNK, size - writer.size))):
            writer.write(data)
    return writer.size, writer.crc


def write_synced(text, path):
    """Write a text file, synced to disk."""
    with _synced(path) as writer:
        writer.write(text.encode())


@contextlib.contextmanager
def _synced(path):
    """A writer whose file is on disk when the context ends."""
    with open(path, "wb") as file:
        yield _ChecksumWriter(file)
        file.flush()
        os.fsync(file.fileno())


class _ChecksumWriter:
    """A file to write to that sums up what goes through."""

    def __init__(self, file):
        self.file, self.size, self.crc, self.error = file, 0, 0, None

    def write(self, data):
        try:
            count = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.size, self.crc = self.size + count, zlib.crc32(data, self.crc)
        return count

    def flush(self):
        self.file.flush()


def checksum(path):
    """(size, CRC-32) of a file."""
    size, crc = 0, 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def sync_folder(path):
    """Put a folder's entries on disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(path):
    """Remove a checkpoint, under another name, so that half of one never passes for a damaged one."""
    if path.exists():
        hidden = path.with_name(f".removing-{path.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)
