"""The model card of a run, into a folder that will be pushed: the comparison, the picture, and README.md."""

from pathlib import Path

from lma_hf.cli.card_rows import compare_run
from lma_hf.hub.card import build_card
from lma_hf.hub.curves import CURVES, draw_activation_curves, learned_activations
from lma_hf.hub.provenance import CARD, inherit


def write_card(
    folder, model, *, model_dir, repo_id=None, license=None, base_model=None, token=None, ask_hub=True, **comparison
):
    """Write README.md, and the picture of the learned activations if there are any, into `folder`.

    Args:
        folder: what will be pushed, complete but for the card. model: the model in it, loaded.
        model_dir: the run's own folder. repo_id: where the model will be.
        license, base_model: override what the run inherits. token, ask_hub: for the card of a teacher on the hub.
        comparison: keyword arguments of `compare_run`.
    Returns: the `ModelCard`.
    Raises: ConfigError, DataError, MissingDependencyError without matplotlib, PushRefusedError.
    """
    folder = Path(folder)
    compared = compare_run(model_dir, **comparison)
    provenance = inherit(model_dir, license=license, base_model=base_model, token=token, ask_hub=ask_hub)
    if learned_activations(model):
        draw_activation_curves(model, folder / CURVES)
    card = build_card(folder, model=model, comparison=compared, provenance=provenance, repo_id=repo_id)
    card.save(folder / CARD)
    return card
