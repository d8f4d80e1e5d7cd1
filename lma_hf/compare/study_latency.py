"""How fast the students of a study are, timed one after the other when no cell runs."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from lma_hf.compare.cells import LATENCIES, read_results, write_table
from lma_hf.compare.profiling import environment, measure_latency
from lma_hf.training.checkpoint import write_json

NUM_TOKENS, REPEATS = 128, 20


def measure_students(study_dir, threads):
    """Time one text of 128 tokens on the CPU in every student of a study; into latency.json and cells.csv.

    A model is built from its config, since its speed does not depend on its weights, which may be gone. Those of one
    student, which differ in their activations, take turns.

    Args: threads: CPU threads of the forward passes.
    """
    folders = {result.model_name: result.folder for result in read_results(study_dir)}
    students = {}
    for name, folder in folders.items():
        students.setdefault(name.partition("/")[0], {})[name] = folder
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        latency_ms = {name: ms for group in students.values() for name, ms in _time(group).items()}
        values = {"num_tokens": NUM_TOKENS, "batch_size": 1, "latency_ms": latency_ms, "environment": environment()}
    finally:
        torch.set_num_threads(before)
    write_json(values, Path(study_dir) / LATENCIES)
    write_table(study_dir)


def _time(folders):
    """Model name -> ms."""
    configs = {name: AutoConfig.from_pretrained(folder) for name, folder in folders.items()}
    models = {name: AutoModelForSequenceClassification.from_config(config) for name, config in configs.items()}
    length = min(NUM_TOKENS, *(getattr(config, "max_position_embeddings", NUM_TOKENS) for config in configs.values()))
    # far from padding's id, which some models read positions from
    ids = torch.randint(5, min(config.vocab_size for config in configs.values()), (1, length))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    timed = measure_latency(models, lambda _: batch, batch_sizes=(1,), repeats=REPEATS)
    return {name: by_size[1] for name, by_size in timed.items()}
