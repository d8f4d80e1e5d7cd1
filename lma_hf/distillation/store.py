"""A teacher's answers on disk: memory-mapped, in chunks that are each there whole or not at all."""

import functools
import hashlib
import itertools
import json
import os
from pathlib import Path

import numpy as np

from lma_hf.distillation.fingerprint import digest_of

CHUNK_TOKENS = 32_768  # what a killed build loses at most: seconds on a CPU


class RaggedFile:
    """A file of items of one shape; row i owns the items offsets[i] to offsets[i + 1].

    Args: path. dtype, item_shape: of one item. offsets: int64, of length rows + 1.
    """

    def __init__(self, path, dtype, item_shape, offsets):
        self.path, self.dtype, self.item_shape, self.offsets = Path(path), np.dtype(dtype), tuple(item_shape), offsets
        self.item_bytes = self.dtype.itemsize * int(np.prod(self.item_shape))
        self.size = int(offsets[-1]) * self.item_bytes

    def allocate(self):
        """Give the file its size; what it holds stays."""
        with open(self.path, "ab") as file:
            file.truncate(self.size)

    def write(self, start, stop, values):
        """Write the items of rows start to stop, onto the disk. Args: values: of shape (items, *item_shape)."""
        values = np.ascontiguousarray(values, dtype=self.dtype)
        expected = (int(self.offsets[stop] - self.offsets[start]), *self.item_shape)
        if values.shape != expected:
            raise ValueError(f"values for rows {start} to {stop} have shape {values.shape}, expected {expected}")
        # not through a memory map, where a full disk is a signal instead of an error
        with open(self.path, "r+b") as file:
            file.seek(int(self.offsets[start]) * self.item_bytes)
            file.write(memoryview(values).cast("B"))
            file.flush()
            os.fsync(file.fileno())

    def stored_bytes(self, start, stop):
        """The bytes of rows start to stop; fewer where the file is cut short."""
        low, high = (int(self.offsets[row]) * self.item_bytes for row in (start, stop))
        return np.fromfile(self.path, np.uint8, count=high - low, offset=low)

    @functools.cached_property
    def items(self):
        """All items as a memory-mapped array; writing to it does not reach the file."""
        return np.memmap(self.path, self.dtype, mode="c", shape=(int(self.offsets[-1]), *self.item_shape))

    def read(self, rows):
        """The items of `rows`, one row after the other, as a new array."""
        return np.concatenate(
            [self.items[:0], *(self.items[self.offsets[row] : self.offsets[row + 1]] for row in rows)]
        )


class AnswerStore:
    """Logits and, if wanted, hidden states of a fixed sequence of rows.

    A chunk's mark is written after its data and holds a checksum over data and key, so that a chunk that is partial,
    damaged or of another cache does not count as held. Writing a chunk twice, also by two processes at once, is fine.

    Args:
        root: folder of all stores; this one is the folder in it that `key`, the hash of `origin`, names.
        origin: everything that the answers depend on, as JSON can hold it.
        lengths: tokens of every row.
        num_labels: logits of a row. state_shape: (states, hidden_size) of a token, or None for logits only.
    """

    def __init__(self, root, origin, lengths, num_labels, state_shape=None, chunk_tokens=CHUNK_TOKENS):
        self.origin, self.key = origin, digest_of(origin)
        self.folder = Path(root) / self.key
        rows, tokens = np.arange(len(lengths) + 1), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self.logits = RaggedFile(self.folder / "logits.f32", np.float32, (num_labels,), rows)
        self.files = [self.logits]
        if state_shape:
            self.states = RaggedFile(self.folder / "states.f16", np.float16, state_shape, tokens)
            self.files.append(self.states)
        # a chunk ends where its token count passes the next multiple
        ends = np.flatnonzero(np.diff(tokens[:-1] // chunk_tokens)) + 1
        bounds = [0, *ends.tolist(), len(lengths)]
        self.chunks = list(itertools.pairwise(bounds))

    def __len__(self):
        return int(self.logits.offsets[-1])

    @property
    def size(self):
        """Bytes of all answers."""
        return sum(file.size for file in self.files)

    def allocate(self):
        """Make the folder and its files; chunks that are there stay."""
        (self.folder / "chunks").mkdir(parents=True, exist_ok=True)
        for file in self.files:
            file.allocate()
        # for people; nothing reads it
        (self.folder / "origin.json").write_text(json.dumps(self.origin, indent=2) + "\n", encoding="utf-8")

    def write(self, index, *arrays):
        """Write chunk `index`.

        Args: arrays: its logits and, in a store with hidden states, those of all its tokens.
        """
        for file, values in zip(self.files, arrays, strict=True):
            file.write(*self.chunks[index], values)
        mark = self.mark(index)
        temporary = mark.with_suffix(f".{os.getpid()}.saving")
        temporary.write_text(self._checksum(index), encoding="ascii")
        os.replace(temporary, mark)

    def holds(self, index):
        """Whether chunk `index` is there, undamaged and of this key."""
        try:
            return self.mark(index).read_bytes() == self._checksum(index).encode()
        except FileNotFoundError:
            return False

    def mark(self, index):
        """The file that says that chunk `index` is complete."""
        return self.folder / "chunks" / f"{index:06d}"

    def _checksum(self, index):
        digest = hashlib.blake2b(self.key.encode(), digest_size=16)
        for file in self.files:
            digest.update(file.stored_bytes(*self.chunks[index]))
        return digest.hexdigest()
