"""`lma-hf push`: a finished run's model to the hub, checked first."""

import shutil
import tempfile
from pathlib import Path

from lma_hf.cli.card import write_card
from lma_hf.data.sources import is_local
from lma_hf.errors import ConfigError
from lma_hf.hub.check import check_no_token, check_reload
from lma_hf.hub.curves import CURVES
from lma_hf.hub.provenance import CARD
from lma_hf.hub.push import check_repo_id, find_token, list_files, push_folder
from lma_hf.hub.stage import stage
from lma_hf.kernels.registry import use_kernel
from lma_hf.training.config import PushConfig

# what a card is written from
CARD_OPTIONS = ("license", "base_model", "teacher", "baselines", "other_seeds", "dataset")
HOW_TO_LOAD = """Three ways to load it:
  AutoModelForSequenceClassification.from_pretrained("{id}"{revision}, trust_remote_code=True)  # without lma_hf
  import lma_hf; AutoModelForSequenceClassification.from_pretrained("{id}"{revision})           # with it
  pipeline("text-classification", "{id}"{revision}, trust_remote_code=True)"""


def push(config):
    """`push_student` for a `PushConfig`."""
    return push_student(config)


def push_student(model_dir, repo_id=None, **options):
    """Push a finished run's model, tokenizer, code, card and results: `push_student("runs/rte/lma", "you/rte-lma")`.

    Args:
        model_dir: the run's output_dir, which is not changed, or a whole `PushConfig` in place of all arguments.
        repo_id: repository on the hub, created (privately) if it is missing. options: fields of `PushConfig`.
    Returns: where it landed (`lma_hf.hub.push.Pushed`); None after a dry run.
    Raises: PushRefusedError before any request if the model should not be pushed, ConfigError, PushError.
    """
    config = model_dir
    if not isinstance(config, PushConfig):
        config = PushConfig(model_dir=str(model_dir), repo_id=repo_id, **options)
    model_dir = Path(config.model_dir).expanduser()
    if not model_dir.is_dir():
        raise ConfigError(f"model_dir {str(model_dir)!r} is no folder; give the output_dir of a finished run")
    check_repo_id(config.repo_id)
    _check_own_card(config, model_dir)
    token = None if config.dry_run else find_token(config.token)
    with tempfile.TemporaryDirectory(prefix="lma-hf-push-") as folder:
        prepare(config, model_dir, Path(folder), token)
        _print_files(folder)
        if config.dry_run:
            print(f"dry run: nothing was sent to {config.repo_id}")
            return None
        pushed = push_folder(
            folder,
            config.repo_id,
            token=token,
            private=config.private,
            revision=config.revision,
            commit_message=config.commit_message,
            timeout_s=config.timeout_s,
        )
    _print_pushed(pushed)
    return pushed


def _check_own_card(config, model_dir):
    """Raises: ConfigError if the folder has a card, and options say how to write one."""
    given = [name for name in CARD_OPTIONS if getattr(config, name)]
    if given and (model_dir / CARD).is_file():
        raise ConfigError(
            f"{model_dir / CARD} is pushed as the card, so {', '.join(given)} would have no effect; drop them, or "
            "move it away and have a card written"
        )


def prepare(config, model_dir, folder, token=None):
    """Fill `folder` with what goes to the hub, and check it; only the card may ask the hub for something.

    Raises: PushRefusedError, ConfigError.
    """
    model, tokenizer = stage(model_dir, folder)
    # a pushed model has no other kernel
    with use_kernel("reference"):
        check_reload(folder, model, tokenizer)
    if (model_dir / CARD).is_file():
        for name in filter(lambda name: (model_dir / name).is_file(), (CARD, CURVES)):
            shutil.copyfile(model_dir / name, folder / name)
    else:
        _write_card(config, model_dir, folder, model, token)
    check_no_token(folder, token)


def _write_card(config, model_dir, folder, model, token):
    names = ("repo_id", "license", "base_model", "baselines", "other_seeds")
    given = {name: getattr(config, name) for name in names}
    if config.dry_run:
        # no network: nothing that may lie on the hub
        local = config.teacher is None or is_local(config.teacher)
        given |= {"teacher": config.teacher if local else None, "with_latency": False, "ask_hub": False}
    else:
        given |= {"teacher": config.teacher, "dataset": config.dataset, "with_latency": config.with_latency}
    write_card(folder, model, model_dir=model_dir, token=token, **given)


def _print_files(folder):
    sizes = {path: file.stat().st_size for path, file in list_files(folder).items()}
    width = max(map(len, sizes))
    for path, size in sizes.items():
        print(f"{path:<{width}}  {size:>12,} bytes")
    print(f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.2f} MB")


def _print_pushed(pushed):
    revision = "" if pushed.revision == "main" else f', revision="{pushed.revision}"'
    visibility = "private" if pushed.private else "public"
    print(f"pushed to {pushed.url} ({visibility}), branch {pushed.revision}, commit {pushed.commit[:8]}")
    print(HOW_TO_LOAD.format(id=pushed.repo_id, revision=revision))
