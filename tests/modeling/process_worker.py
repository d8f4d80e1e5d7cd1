"""One of several training processes; run as `python process_worker.py RANK WORLD_SIZE FOLDER` by test_processes."""

import contextlib
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from modeling.tiny_models import sentences, statistics, tiny_model
from torch.nn.parallel import DistributedDataParallel

import lma_hf

CASES = {
    f"{name}-{mode}-{'own' if per_channel else 'shared'}": (
        name,
        lma_hf.LMAConfig(statistics=mode, per_channel=per_channel, momentum=0.2),
    )
    for name in ("bert", "albert")
    for mode in ("batch", "running")
    for per_channel in (False, True)
}
# the first half, rank 0's, holds far more tokens
LENGTHS = (32, 31, 28, 30, 25, 27, 32, 29, 3, 5, 1, 4, 7, 2, 6, 3)
STEPS = 2


def build(case):
    name, config = CASES[case]
    return tiny_model(name, config).double()


def train(model, rows, padded_to):
    """SGD steps over the given rows of the batches, from the same start whoever calls it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    labels = torch.arange(len(LENGTHS)) % 2
    for step in range(STEPS):
        inputs = {key: value[rows, :padded_to] for key, value in sentences(LENGTHS, 40, seed=step).items()}
        optimizer.zero_grad()
        model(**inputs, labels=labels[rows]).loss.backward()
        optimizer.step()


def main(rank, world_size, folder):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    share = len(LENGTHS) // world_size
    rows = slice(rank * share, (rank + 1) * share)
    results = {}
    for case in CASES:
        model = build(case)
        # every rank pads to its own longest sentence
        train(DistributedDataParallel(model.train()), rows, max(LENGTHS[rows]))
        if rank == 0:
            # evaluation must need no other process
            model.eval()(**sentences((4, 2), 8))
        results[case] = {"statistics": statistics(model), "weights": model.state_dict()}
    torch.save(results, f"{folder}/rank{rank}.pt")
    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
