"""Every recipe as it is shipped, for a few steps on a tiny model."""

import json
from pathlib import Path

import pytest
import yaml

from lma_hf.cli.__main__ import main

RECIPES = sorted((Path(__file__).resolve().parents[2] / "configs" / "recipes").glob("*.yaml"))
# what a model of 32 units cannot have
TINY = {
    "minilmv2": ["--relation_heads", "8"],
    "warmup": ["--intermediate_size", "32", "--activation_warmup_steps", "5"],
}
PARTS = {
    "distilbert": {"hidden_cosine_loss"},
    "tinybert": {"hidden_loss", "attention_loss"},
    "minilmv2": {"relation_loss"},
    "patient": {"hidden_cosine_loss"},
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs(tmp_path, data_flags, teacher_dir, recipe):
    flags = ["--teacher", str(teacher_dir), "--output_dir", str(tmp_path / "student"), "--num_layers", "2"]
    flags += ["--max_steps", "4", "--logging_steps", "2", "--calibration_batches", "2", "--max_eval_samples", "20"]
    assert main(["distill", str(recipe), *data_flags, *flags, *TINY.get(recipe.stem, [])]) == 0
    lines = [json.loads(line) for line in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    parts = [{name for name in line if name.endswith("_loss")} for line in lines if "loss" in line]
    assert parts == [{"task_loss", "distill_loss"} | PARTS.get(recipe.stem, set())] * 2


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_opens_with_its_command_and_says_where_it_is_from(recipe):
    first, second, *_ = recipe.read_text(encoding="utf-8").splitlines()
    assert first.startswith(f"# lma-hf distill configs/recipes/{recipe.name} --task_name ")
    assert second.startswith("# ")
    assert yaml.safe_load(recipe.read_text(encoding="utf-8"))


def test_there_are_recipes():
    assert {path.stem for path in RECIPES} >= {"lma_paper", "distilbert", "tinybert", "minilmv2", "patient", "theseus"}
