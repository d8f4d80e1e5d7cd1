"""What a saved model carries along: this folder, and in its config's `auto_map` the classes to load it with.

So it also loads where lma_hf is not installed, with trust_remote_code=True.
"""

import functools
import shutil
from pathlib import Path

from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from .swap_record_lma import CODE, needs_our_code

# arguments of save_pretrained that are push_to_hub's
_PUBLISHING = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


def connect_saving(model):
    """Let a model save the code that it needs; set on the instance, transformers' classes stay untouched.

    (As a partial, since a bound method that is pickled comes back as that of the class.)
    """
    if isinstance(model, PreTrainedModel):
        for part in dict.fromkeys([model.base_model, model]):
            part.save_pretrained = functools.partial(save_pretrained, part)


def save_pretrained(self, save_directory, is_main_process=True, *args, push_to_hub=False, **kwargs):
    """`PreTrainedModel.save_pretrained`, and beside the model the code that loads it where lma_hf is not installed."""
    needs_code = needs_our_code(self.config)
    if needs_code:
        # a model that comes with code of its own keeps naming it
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **auto_map(self.config)}
    publishing = {key: kwargs.pop(key) for key in _PUBLISHING if push_to_hub and key in kwargs}
    type(self).save_pretrained(self, save_directory, is_main_process, *args, **kwargs)
    if needs_code and is_main_process:
        for file in code_files():
            shutil.copyfile(file, Path(save_directory) / file.name)
    if push_to_hub and is_main_process:
        # not through transformers' save_pretrained, which uploads only what it has written itself
        self.push_to_hub(publishing.pop("repo_id", Path(save_directory).name), **publishing)


def code_files():
    """The files that a saved model carries along, this one among them."""
    return sorted(path for path in Path(__file__).parent.glob("*.py") if path.name != "__init__.py")


def auto_map(config):
    """Auto class -> "modeling_lma.<class>" for every transformers class that this config's model type has."""
    names = {}
    for auto_class in (value for value in vars(modeling_auto).values() if isinstance(value, type)):
        mapping = getattr(auto_class, "_model_mapping", None)
        if mapping is not None and type(config) in mapping:
            found = mapping[type(config)]
            # some model types offer several classes for one task, the first of which is the default
            name = (found[0] if isinstance(found, tuple) else found).__name__
            names[auto_class.__name__] = f"{CODE}.{name}"
    return names
