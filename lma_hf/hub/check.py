"""What has to hold before anything is pushed: the staged folder loads without lma_hf, to the same bits."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from lma_hf.errors import PushRefusedError
from lma_hf.hub import reload
from lma_hf.hub.stage import same_bits

RELOAD_TIMEOUT_S = 600
# settings and secrets that a clean process must not see
_PRIVATE_VARIABLES = ("HF_", "HUGGING", "TRANSFORMERS_", "LMA_HF_")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")


def check_reload(folder, model, tokenizer):
    """Load the staged folder in a process where lma_hf cannot be imported, and compare outputs bit by bit.

    The model must compute with the reference kernel, which is all that a pushed model has.

    Raises: PushRefusedError if that process fails or computes anything else than `model` does here.
    """
    here = reload.outputs(model, tokenizer)
    there = _outputs_without_lma_hf(folder)
    for name, value in here.items():
        if not same_bits(value, there.get(name)):
            raise PushRefusedError(
                f"the model does not reload: {name!r} differs by {_distance(value, there.get(name))} in a process "
                "without lma_hf, where it must be equal bit by bit; save the model again"
            )


def _outputs_without_lma_hf(folder):
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "outputs.safetensors"
        command = [sys.executable, "-P", reload.__file__, str(folder), str(file), str(torch.get_num_threads())]
        try:
            process = subprocess.run(
                command, env=_clean_environment(scratch), capture_output=True, text=True, timeout=RELOAD_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise PushRefusedError(f"the model does not reload without lma_hf within {RELOAD_TIMEOUT_S} s") from None
        if process.returncode != 0:
            reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise PushRefusedError(f"the model does not load without lma_hf: {reason}; save the model again")
        return load_file(file)


def _clean_environment(scratch):
    """The environment without the hub's settings, with an empty cache and no network."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_PRIVATE_VARIABLES)}
    return {**kept, "HF_HOME": scratch, "HF_MODULES_CACHE": str(Path(scratch) / "modules"), "HF_HUB_OFFLINE": "1"}


def _distance(value, other):
    if other is None or value.shape != other.shape:
        return "shape"
    return f"up to {(value.double() - other.double()).abs().max().item():.3g}"


def check_no_token(folder, token=None):
    """Raises: PushRefusedError if a text file in the folder holds the token, or anything that looks like one."""
    for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        content = b"" if file.suffix == ".safetensors" else file.read_bytes()
        if _TOKEN.search(content) or (token and token.encode() in content):
            raise PushRefusedError(f"{file.name} holds an access token; remove it from there, and revoke the token")
