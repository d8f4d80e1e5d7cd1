"""`evaluate` with model and dataset on a hub, through the unmodified clients and an empty cache."""

import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_models import logits_by_hand, make_pairs, save_foreign_model
from hub_server import HubServer

CLASSES = ["entailment", "neutral", "contradiction"]
ROWS = make_pairs(12)
SPLITS = {
    "mnli": ("validation_matched", "validation_mismatched", "test_matched", "test_mismatched"),
    "ax": ("test",),
}


def glue_files(labels):
    """A dataset repository as nyu-mll/glue is one: a folder a configuration, listed in the card, hidden labels -1."""
    files, card = {}, ["---", "configs:"]
    for config, splits in SPLITS.items():
        card += [f"- config_name: {config}", "  data_files:"]
        for split in splits:
            card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
            values = labels if split.startswith("validation") else [-1] * len(ROWS)
            rows = [
                {"premise": row["one"], "hypothesis": row["two"], "label": label, "idx": index}
                for index, (row, label) in enumerate(zip(ROWS, values, strict=True))
            ]
            pq.write_table(pa.Table.from_pylist(rows), content := io.BytesIO())
            files[f"{config}/{split}-00000-of-00001.parquet"] = content.getvalue()
    return files | {"README.md": "\n".join([*card, "---\n"]).encode()}


@pytest.fixture
def hub(tmp_path):
    """The model is on the branch "tuned"; main has one whose answers are others."""
    names = dict(enumerate(CLASSES))
    with HubServer() as server:
        repo = server.add_repo("tester/nli")
        for branch, seed in (("main", 7), ("tuned", 2)):
            save_foreign_model("bert", tmp_path / branch, seed=seed, id2label=names)
            files = {file.name: file.read_bytes() for file in (tmp_path / branch).iterdir()}
            repo.add_commit(branch, files, "a model")
        labels = logits_by_hand(tmp_path / "tuned", ROWS).argmax(-1).tolist()
        server.add_repo("tester/glue", glue_files(labels), repo_type="dataset")
        server.expected = [CLASSES[label] for label in labels]
        yield server


@pytest.mark.slow
def test_revision_of_a_pushed_model_scores_and_predicts(tmp_path, hub):
    flags = ["--model_dir", "tester/nli", "--revision", "tuned", "--dataset", "tester/glue", "--task_name", "mnli"]
    flags += ["--max_length", "24", "--predict", "out", "--output_file", "scores.json"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "lma_hf.cli", "evaluate", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores == {split: {"accuracy": 1.0} for split in SPLITS["mnli"][:2]}
    lines = ["index\tprediction", *(f"{index}\t{name}" for index, name in enumerate(hub.expected)), ""]
    for name in ("MNLI-m", "MNLI-mm", "AX"):
        assert (tmp_path / "out" / f"{name}.tsv").read_text() == "\n".join(lines)
    assert any("tester/nli" in request.path for request in hub.requests)
