"""Training the embeddings of the words that occur is AdamW on the whole table, and leaves nothing behind."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from helpers import HEADS, VOCAB, tiny_config, tiny_model
from torch.utils.data import DataLoader
from transformers import AutoConfig

from lma_hf.compare.tiny_architectures import FAMILIES, build
from lma_hf.distillation.objective import TaskObjective
from lma_hf.training.config import TeachConfig
from lma_hf.training.trainer import Trainer
from lma_hf.training.used_embeddings import UsedEmbeddings

PAD, WORDS = 0, range(5, 40)  # of the rows; the vocabulary has more


def rows(count=32, padded=True):
    """Rows of 3 to 6 words of WORDS, padded to 6; or all of 6."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(WORDS.start, WORDS.stop, (count, 6), generator=generator)
    mask = torch.arange(6) < torch.randint(3 if padded else 6, 7, (count, 1), generator=generator)
    return [
        {"input_ids": row, "attention_mask": its.long(), "labels": (row[0] > WORDS.stop // 2).long()}
        for row, its in zip(ids.where(mask, PAD), mask, strict=True)
    ]


def train(model, token_ids, data=None, **values):
    """Two epochs with a strong weight decay. Returns: the tables that evaluations have seen, the trainer."""
    values = {
        "learning_rate": 1e-2,
        "weight_decay": 0.5,
        "num_train_epochs": 2,
        "gradient_accumulation_steps": 2,
    } | values
    config = TeachConfig(task_name="sst2", output_dir="unused", model_name_or_path="unused", **values)
    seen = []

    def evaluate(model, step):
        seen.append(model.eval().get_input_embeddings()(torch.arange(VOCAB)).detach().clone())
        return float(step)

    set_seed(0)
    trainer = Trainer(
        model,
        TaskObjective(),
        DataLoader(data or rows(), batch_size=4),
        evaluate=evaluate,
        save_best=lambda: None,
        log=lambda values, step: None,
        config=config,
        accelerator=Accelerator(cpu=True, gradient_accumulation_steps=config.gradient_accumulation_steps),
        token_ids=token_ids,
    )
    trainer.train()
    return seen, trainer


@pytest.mark.parametrize("token_ids", [[PAD, *WORDS], [*reversed(WORDS), PAD, 2, 2], range(VOCAB)])
@pytest.mark.parametrize("values", [{}, {"max_grad_norm": 0.1, "on_nan": "skip"}, {"eval_steps": 3}])
@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_trains_as_the_whole_table_would(architecture, values, token_ids):
    # in float64, so that Adam does not blow rounding up
    whole = tiny_model(config=tiny_config(architecture, 2)).double()
    model = copy.deepcopy(whole)
    start = model.get_input_embeddings().weight.detach().clone()
    expected, _ = train(whole, None, **values)
    seen, trainer = train(model, token_ids, **values)
    torch.testing.assert_close(seen, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=1e-9, atol=1e-12)
    assert len(trainer.embeddings.weight) == len(set(token_ids))
    # the decay of words that no row has is part of it
    assert (model.get_input_embeddings().weight[VOCAB - 1].abs() < start[VOCAB - 1].abs()).all()


def test_words_that_another_module_looks_up_in_the_same_weight_train():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": VOCAB}
    # read at the end of every row
    config = AutoConfig.for_model("t5", **sizes, dropout_rate=0.0, eos_token_id=1, decoder_start_token_id=0)
    model = HEADS["classification"].from_config(config)
    before = model.get_input_embeddings().weight.detach().clone()
    data = [row | {"input_ids": row["input_ids"].index_fill(0, torch.tensor(0), 1)} for row in rows(padded=False)]
    _, trainer = train(model, [1, *WORDS], data=data, weight_decay=0.0)
    assert trainer.embeddings is None
    assert (model.get_input_embeddings().weight - before)[list(WORDS)].abs().max() > 1e-3


def test_leaves_the_table_as_it_was():
    model = tiny_model(config=tiny_config("bert", 1))
    names, forward = list(model.state_dict()), model.get_input_embeddings().forward
    train(model, [PAD, *WORDS])
    assert list(model.state_dict()) == names
    assert model.get_input_embeddings().forward == forward
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_word_that_was_not_announced_is_an_error():
    with pytest.raises(IndexError):
        train(tiny_model(config=tiny_config("bert", 1)), [PAD, *WORDS[1:]])


def test_only_embeddings_that_train_and_are_nothing_else():
    model = tiny_model(config=tiny_config("bert", 1))
    assert UsedEmbeddings.suit(model)
    assert not UsedEmbeddings.suit(tiny_model(head="masked_lm", config=tiny_config("bert", 1)))
    model.get_input_embeddings().requires_grad_(False)
    assert not UsedEmbeddings.suit(model)
    assert not UsedEmbeddings.suit(build(FAMILIES[0], "canine"))  # has several tables
    _, trainer = train(model, [PAD, *WORDS])
    assert trainer.embeddings is None
    assert not model.get_input_embeddings().weight.requires_grad
