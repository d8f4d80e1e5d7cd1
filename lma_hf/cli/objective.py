"""From a `DistillConfig` to its objective: teachers, attention losses, module replacement."""

from lma_hf.cli.loading import label_names_of, labels_of_model
from lma_hf.data.labels import label_mapping
from lma_hf.distillation.attention import AttentionObjective
from lma_hf.distillation.objective import DistillationObjective
from lma_hf.distillation.teacher import Teacher, TeacherEnsemble
from lma_hf.distillation.theseus import ModuleReplacement
from lma_hf.errors import ConfigError
from lma_hf.surgery.targets import layer_lists


def make_objective(teacher, student, layer_map, config, accelerator, *, extra_teachers=(), labelled_share=1.0):
    """The `DistillationObjective` that the config describes, on this process's device.

    Args: extra_teachers: (model, label map) pairs of `load_extra_teachers`. labelled_share: see `task_loss`.
    """
    return DistillationObjective(
        _answering(teacher, extra_teachers, config, accelerator),
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
    ).to(accelerator.device)


def load_extra_teachers(run, task, tokenizer, first):
    """The config's extra teachers as (model, their label id of every label of the first teacher), on this device.

    Raises: ConfigError if one was trained with another tokenizer, LabelMismatchError if one has other labels.
    """
    found = []
    for number, name in enumerate(run.config.extra_teachers, start=1):
        its_tokenizer, model = run.load(name, f"extra teacher {number}")
        if its_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise ConfigError(f"extra teacher {name!r} has another vocabulary than {run.config.teacher!r}; drop it")
        if its_tokenizer.model_input_names != tokenizer.model_input_names:
            raise ConfigError(
                f"extra teacher {name!r} takes {', '.join(its_tokenizer.model_input_names)} and "
                f"{run.config.teacher!r} {', '.join(tokenizer.model_input_names)}; teachers must take the same"
            )
        found.append((model, _label_map(first, model, name, task, run.config)))
    return found


def _label_map(first, model, name, task, config):
    if task.is_regression:
        labels_of_model(model, task, config.dataset, name)  # raises if it has classes
        return [0]
    # the names are the first teacher's, not a dataset's, which the message says
    return label_mapping(label_names_of(first), label_names_of(model), dataset=config.teacher, model=name)


def _answering(teacher, extra_teachers, config, accelerator):
    first = Teacher(teacher, accelerator.autocast)
    if not extra_teachers:
        return first
    teachers = [first, *(Teacher(model, accelerator.autocast) for model, _ in extra_teachers)]
    label_maps = [list(range(teacher.config.num_labels)), *(label_map for _, label_map in extra_teachers)]
    return TeacherEnsemble(
        teachers, label_maps, average=config.teacher_average, weights=config.resolved_teacher_weights
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
