"""Filling a store with a teacher's answers, alone or together with other processes."""

import contextlib
import errno
import logging
import os
import shutil
import time

import torch
from filelock import FileLock, Timeout

from lma_hf.errors import TeacherCacheError

logger = logging.getLogger(__name__)

# padded tokens of a batch; on a CPU core, 4096 took 10 % longer than 1024 or 2048, and 8192 30 %
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 16_384


def fill(store, answer):
    """Compute every chunk that the store lacks. Processes that fill one store at a time share the work.

    Args: answer: (start, stop) -> the arrays of these rows, as `AnswerStore.write` takes them.
    Returns: how many chunks this process computed.
    Raises: TeacherCacheError if the folder cannot be read or written.
    """
    try:
        missing = _missing_chunks(store)
        if not missing:
            logger.info("teacher cache %s: all %d rows are there", store.folder, len(store))
            return 0
        store.allocate()
        _check_space(store, len(missing))
        return _fill_missing(store, missing, answer)
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        reason = getattr(error, "strerror", None) or error
        raise TeacherCacheError(
            f"teacher_cache {store.folder} cannot be used: {reason}; it takes "
            f"{store.size / 1e6:.1f} MB, choose another folder or make room"
        ) from error


def _missing_chunks(store):
    chunks = range(len(store.chunks))
    marked = {index for index in chunks if store.mark(index).exists()}
    missing = [index for index in chunks if not store.holds(index)]
    if damaged := marked.intersection(missing):
        logger.warning("teacher cache %s: %d chunks are damaged, computing them again", store.folder, len(damaged))
    if missing:
        logger.info("teacher cache %s: %d of %d chunks to compute", store.folder, len(missing), len(chunks))
    return missing


def _check_space(store, missing):
    """Find out before any computing. (The files are sparse, so what is missing takes no space yet.)"""
    needed = store.size * missing // len(store.chunks)
    if shutil.disk_usage(store.folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _fill_missing(store, missing, answer):
    computed, start = 0, time.perf_counter()
    # first what nobody is at; then wait for what others are at, and do it where they died
    for timeout in (0, -1):
        for index in list(missing):
            lock = FileLock(store.mark(index).with_suffix(".lock"), timeout=timeout)
            with contextlib.suppress(Timeout), lock:
                if not store.holds(index):
                    store.write(index, *answer(*store.chunks[index]))
                    computed += 1
                missing.remove(index)
    seconds = time.perf_counter() - start
    logger.info("teacher cache %s: computed %d chunks in %.1f s", store.folder, computed, seconds)
    return computed


def batches_of(start, stop, lengths, batch_tokens):
    """(start, stop) of batches of at most `batch_tokens` padded tokens, or of one row. Args: lengths: descending."""
    while start < stop:
        end = min(stop, start + max(1, batch_tokens // int(lengths[start])))
        yield start, end
        start = end


def answer_batch(teacher, batch, states=()):
    """The arrays that a store keeps of one batch.

    Args: teacher: a `Teacher`. batch: model inputs. states: which hidden states, 0 being the embeddings' output.
    Returns: [logits (rows, num_labels)] and, with states, half-precision ones of real tokens, (tokens, states, width).
    Raises: TeacherCacheError if a number is not finite.
    """
    logits, hidden = teacher(batch, bool(states))
    arrays = [_finite(logits, "logits").cpu().numpy()]
    if states:
        real = batch["attention_mask"].bool()
        chosen = torch.stack([hidden[index][real] for index in states], dim=1)
        arrays.append(_finite(chosen.half(), "hidden states, in half precision,").cpu().numpy())
    return arrays


def _finite(values, name):
    if not torch.isfinite(values).all():
        raise TeacherCacheError(
            f"the teacher's {name} are not finite; check the teacher, or leave out --teacher_cache"
        )
    return values
