"""What a student inherits: base model, licence and language, looked up along the chain of models it comes from."""

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, metadata_load
from huggingface_hub.errors import RemoteEntryNotFoundError

from lma_hf.errors import ConfigError
from lma_hf.hub.public_records import RESULTS

CARD = "README.md"


@dataclass(frozen=True)
class Provenance:
    """Licence, base model (a hub id) and language as a model card's metadata names them; None is not known.

    `source` says where the licence stands, in words for the reader.
    """

    license: str | None = None
    base_model: str | None = None
    language: str | list[str] | None = None
    license_name: str | None = None
    license_link: str | None = None
    source: str | None = None


def inherit(model_dir, *, license=None, base_model=None, token=None, ask_hub=True):
    """What the model in a run's folder inherits from its teacher, or from the model it was fine-tuned from.

    A folder's own README.md counts, then that of the model it was made from, which its results.json names. Nothing is
    guessed: what none of them says stays None. The hub is asked only for what the arguments leave open.

    Args: license, base_model: override what is found. ask_hub: False: local folders only.
    Raises: ConfigError if a model's card cannot be read.
    """
    found = {"license": license, "base_model": base_model}
    if license is not None:
        found["source"] = "the person who published it"
    name, place = _origin(Path(model_dir)), "teacher" if _is_student(model_dir) else "base model"
    seen = set()
    while name is not None and name not in seen:
        seen.add(name)
        folder = Path(name).expanduser()
        if not folder.is_dir() and found["base_model"] is None and can_be_hub_id(name):
            found["base_model"] = name
        # also if only to see that there is such a model
        on_hub = ask_hub and can_be_hub_id(name) and (found["license"] is None or found["base_model"] == name)
        metadata = _local_metadata(folder / CARD) if folder.is_dir() else _hub_metadata(name, token) if on_hub else {}
        _fill(found, metadata, place)
        name, place = _origin(folder), f"model that the {place} was made from"
    return Provenance(**found)


def _fill(found, metadata, place):
    """Take what is still open from a card's metadata; a licence with the name and link that belong to it."""
    if found["license"] is None and metadata.get("license"):
        found.update({key: metadata.get(key) for key in ("license", "license_name", "license_link")})
        found["source"] = f"the {place}"
    if found["base_model"] is None:
        found["base_model"] = metadata.get("base_model")
    found["language"] = found.get("language") or metadata.get("language")


def _is_student(folder):
    return "teacher" in _results(Path(folder))


def _results(folder):
    file = folder / RESULTS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _origin(folder):
    """The name of the model that the one in a run's folder was made from, or None."""
    results = _results(folder)
    return results["teacher"]["name"] if "teacher" in results else results.get("model")


def can_be_hub_id(name):
    """Whether a name that is no folder here can be that of a model or dataset on the hub."""
    return not name.startswith((".", "~", "/")) and name.count("/") <= 1 and "\\" not in name


def _local_metadata(card):
    try:
        return (metadata_load(card) if card.is_file() else None) or {}
    except Exception as error:  # YAML's own errors, or ours for what is no mapping
        reason = " ".join(str(error).split())
        raise ConfigError(f"the metadata of {card} cannot be read: {reason}; correct it") from error


def _hub_metadata(name, token):
    try:
        card = HfApi(token=token, library_name="lma_hf").hf_hub_download(name, CARD)
    except RemoteEntryNotFoundError:
        return {}
    except Exception as error:  # the client passes on whatever its layers raise
        raise ConfigError(
            f"the card of {name!r}, which this model was made from, cannot be read from the hub: "
            f"{type(error).__name__}; pass --license and --base_model"
        ) from None
    return _local_metadata(Path(card))
