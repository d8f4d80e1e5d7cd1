"""The accelerator of a command, as this machine's hardware lets it be."""

import pytest
import torch

from lma_hf.cli.accelerator import make_accelerator
from lma_hf.training.config import EvaluateConfig

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="about machines without an accelerator")


@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"])
@pytest.mark.parametrize("present", [True, False])
def test_bf16_on_a_cpu_without_its_instructions_is_warned_of(monkeypatch, caplog, instructions, present):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, instructions: present})
    make_accelerator(EvaluateConfig(model_dir="m", task_name="rte", mixed_precision="bf16"))
    warned = [record.message for record in caplog.records if "no bf16 instructions" in record.message]
    assert len(warned) == (not present)


def test_other_precisions_are_not_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    make_accelerator(EvaluateConfig(model_dir="m", task_name="rte", mixed_precision="no"))
    assert "bf16" not in caplog.text
