"""Fills a store from a process of its own: `python store_worker.py ROOT SECONDS_PER_CHUNK`.

It prints that it is ready, begins once its input has a line or an end, and prints how many chunks it computed.

The answers to row i are functions of i, so that whoever reads the store knows what must be in it.
"""

import sys
import time

import numpy as np

from lma_hf.distillation.cache import fill
from lma_hf.distillation.store import AnswerStore

LENGTHS = np.arange(40, 0, -1)
ORIGIN, STATE_SHAPE, CHUNK_TOKENS = {"made for": "tests"}, (2, 3), 100


def logits_of(row):
    return np.array([[row, -row / 3]], np.float32)


def states_of(row):
    return (row + np.arange(LENGTHS[row] * 6).reshape(-1, *STATE_SHAPE) / 64).astype(np.float16)


def answer(start, stop):
    rows = range(start, stop)
    return [np.concatenate([each(row) for row in rows]) for each in (logits_of, states_of)]


def make_store(root, origin=ORIGIN):
    return AnswerStore(root, origin, LENGTHS, 2, STATE_SHAPE, CHUNK_TOKENS)


if __name__ == "__main__":

    def slow_answer(start, stop):
        time.sleep(float(sys.argv[2]))
        return answer(start, stop)

    print("ready", flush=True)
    sys.stdin.readline()
    print(fill(make_store(sys.argv[1]), slow_answer))
