"""What the hub accepts as a model card's metadata, written down from its documentation; independent of lma_hf."""

import re

import yaml

# https://huggingface.co/docs/hub/repositories-licenses, the common ones
LICENSES = {
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "wtfpl", "openrail"),
    *("gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "epl-2.0", "afl-3.0"),
    *("cc", "cc0-1.0", "cc-by-2.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    *("llama2", "llama3", "gemma", "unknown", "other"),
}
PIPELINE_TAGS = {"text-classification", "token-classification", "fill-mask", "feature-extraction"}
HUB_ID = re.compile(r"([\w.-]+/)?[\w.-]+")


def problems(content):
    """What is wrong with a card's text, one line each; none: the hub takes it."""
    head = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if head is None:
        return ["no metadata at the top"]
    metadata = yaml.safe_load(head[1])
    if not isinstance(metadata, dict):
        return ["metadata is no mapping"]
    return [*_names(metadata), *_model_index(metadata.get("model-index", []))]


def _names(metadata):
    if metadata.get("license", "mit") not in LICENSES:
        yield f"license {metadata['license']!r} is not known"
    if metadata.get("license") == "other" and not metadata.get("license_name"):
        yield "license other needs a license_name"
    if metadata.get("pipeline_tag") not in PIPELINE_TAGS:
        yield f"pipeline_tag {metadata.get('pipeline_tag')!r} is not known"
    for key in ("base_model", "datasets", "language", "tags", "metrics"):
        values = metadata.get(key, [])
        for value in [values] if isinstance(values, str) else values:
            if not isinstance(value, str):
                yield f"{key} holds {value!r}, which is no string"
            elif key in ("base_model", "datasets") and not HUB_ID.fullmatch(value):
                yield f"{key} holds {value!r}, which is no hub id"
            elif key == "language" and not re.fullmatch(r"[a-z]{2,3}|multilingual", value):
                yield f"language {value!r} is not ISO 639"


def _model_index(index):
    for model in index:
        if not model.get("name"):
            yield "model-index has no name"
        for result in model.get("results") or [{}]:
            for key in ("task.type", "dataset.type", "dataset.name"):
                outer, inner = key.split(".")
                if not isinstance(result.get(outer, {}).get(inner), str):
                    yield f"model-index has no {key}"
            for metric in result.get("metrics") or [{}]:
                if not isinstance(metric.get("type"), str) or isinstance(metric.get("value"), (bool, type(None))):
                    yield "model-index has a metric without type or value"
