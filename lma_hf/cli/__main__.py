"""The `lma-hf` command; also `python -m lma_hf.cli` and, for several processes, `accelerate launch -m lma_hf.cli`."""

import importlib
import logging
import os
import sys

import torch.distributed as dist
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

from lma_hf.cli.parser import parse_config
from lma_hf.compare.study import CompareConfig
from lma_hf.errors import ConfigError, LmaHfError, TrainingInterrupted
from lma_hf.training.compress_config import CompressConfig
from lma_hf.training.config import (
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    ProfileConfig,
    PushConfig,
    QuickstartConfig,
    ReportConfig,
    TeachConfig,
)
from lma_hf.training.interruption import lost_process_is_an_error
from lma_hf.training.probe_config import ProbeConfig

# verb -> (settings, description); lma_hf/cli/<verb>.py holds the function of that name
VERBS = {
    "quickstart": (QuickstartConfig, "Distil a first LMA student on movie reviews, with no hub."),
    "teach": (TeachConfig, "Fine-tune a teacher on a GLUE task or your own data."),
    "distill": (DistillConfig, "Distil a shallow student from a fine-tuned teacher."),
    "compare": (CompareConfig, "Run a study: tasks x students x activations x seeds, in one YAML."),
    "evaluate": (EvaluateConfig, "Evaluate a saved model on a task's validation splits."),
    "compress": (CompressConfig, "Make a saved model small: weights of 8, 4 or 2 bits, packed."),
    "push": (PushConfig, "Push a finished run's model, with its card, to the hub."),
    "export": (ExportConfig, "Write a saved model as ONNX, also in int8, or as a torch.export program."),
    "report": (ReportConfig, "Write the tables, pictures and HTML report of a study again."),
    "probe": (ProbeConfig, "Say how many hidden units an activation is worth, by narrow FFNs fitted to a model's."),
    "profile": (ProfileConfig, "Say which kernel computes LMA here, and how fast it is."),
}
USAGE = "usage: lma-hf VERB [FILE.yaml] [--flag VALUE ...]\n\n" + "\n".join(
    f"  {verb:<11} {description}" for verb, (_, description) in VERBS.items()
)


def main(argv=None):
    """Run one verb.

    Returns: exit code; 2 on misuse, 1 when the run itself failed, 143 after SIGTERM in training, 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    quiet_down()
    try:
        with lost_process_is_an_error():
            return _run(argv)
    except TrainingInterrupted as stop:
        print(f"lma-hf: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("lma-hf: interrupted", file=sys.stderr)
        return 130
    except LmaHfError as error:
        print(f"lma-hf: error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def quiet_down():
    """Our own log on the main process only, and of other packages only what is wrong."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    is_main_process = os.environ.get("RANK", "0") == "0"
    logging.getLogger("lma_hf").setLevel(logging.INFO if is_main_process else logging.ERROR)
    # it prints by itself
    hub_logging.disable_propagation()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _run(argv):
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    verb = argv[0]
    if verb not in VERBS:
        raise ConfigError(f"unknown verb {verb!r}, allowed are {', '.join(VERBS)}; see `lma-hf --help`")
    config_class, description = VERBS[verb]
    config = parse_config(config_class, argv[1:], prog=f"lma-hf {verb}", description=description)
    command = getattr(importlib.import_module(f"lma_hf.cli.{verb}"), verb)
    command(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
