"""From a `DistillConfig` to its objective: losses, attention, module replacement."""

from lma_hf.distillation.attention import AttentionObjective
from lma_hf.distillation.objective import DistillationObjective
from lma_hf.distillation.theseus import ModuleReplacement
from lma_hf.errors import ConfigError
from lma_hf.surgery.targets import layer_lists


def make_objective(answers, teacher, student, layer_map, config, labelled_share=1.0):
    """The `DistillationObjective` that the config describes.

    Args:
        answers: what answers for the teachers, see `lma_hf.cli.teachers.answering`.
        teacher: the first teacher's model, which is kept for attention losses and module replacement only.
        labelled_share: see `task_loss`.
    """
    return DistillationObjective(
        answers,
        temperature=config.temperature,
        task_loss_weight=config.task_loss_weight,
        distill_loss_weight=config.distill_loss_weight,
        distill_loss_type=config.distill_loss_type,
        hidden_loss_weight=config.hidden_loss_weight,
        hidden_cosine_loss_weight=config.hidden_cosine_loss_weight,
        hidden_cosine_layers=config.hidden_cosine_layers,
        hidden_cosine_tokens=config.hidden_cosine_tokens,
        attention_loss_weight=config.attention_loss_weight,
        relation_loss_weight=config.relation_loss_weight,
        replacement_rate=config.replacement_rate,
        schedules=config.resolved_schedules,
        feature_stage=config.feature_stage,
        attention=_attention(teacher, student, layer_map, config),
        replacement=_replacement(teacher, student, layer_map) if config.replaces_modules else None,
        layer_map=layer_map,
        student_hidden_size=student.config.hidden_size,
        teacher_hidden_size=teacher.config.hidden_size,
        labelled_share=labelled_share,
    )


def _attention(teacher, student, layer_map, config):
    parts = config.weighted_parts
    if not {"attention", "relation"} & set(parts):
        return None
    return AttentionObjective(
        student,
        teacher,
        layer_map,
        attention=config.attention_loss_type if "attention" in parts else None,
        relation="relation" in parts,
        relation_layer=config.relation_layer,
        relation_heads=config.relation_heads,
    )


def _replacement(teacher, student, layer_map):
    widths = {model.config.hidden_size for model in (student, teacher)}
    if len(widths) > 1:
        raise ConfigError(
            f"hidden_size is {student.config.hidden_size} and the teacher's {teacher.config.hidden_size}; "
            "replacement_rate needs the same width, drop hidden_size"
        )
    layers = [[*model.base_model.get_submodule(name)] for model in (student, teacher) for name in layer_lists(model)]
    if len(layers) != 2:
        raise ConfigError(f"replacement_rate needs one list of layers, {type(teacher).__name__} has another structure")
    return ModuleReplacement(*layers, layer_map)
