"""What a run minimises: objectives map (model, batch) to named loss parts, of which "loss" is the total."""

from torch import nn

from lma_hf.distillation.losses import hidden_state_loss, knowledge_distillation_loss, logit_loss, task_loss
from lma_hf.distillation.teacher import model_inputs


def split_labels(batch):
    """(inputs, labels) of a batch."""
    return model_inputs(batch), batch["labels"]


class TaskObjective(nn.Module):
    """Fine-tuning on labels alone."""

    def forward(self, model, batch):
        """Args: batch: model inputs with "labels". Returns: {"loss": scalar}."""
        inputs, labels = split_labels(batch)
        return {"loss": task_loss(model(**inputs).logits.float(), labels)}


class DistillationObjective(nn.Module):
    """Labels, the teacher's logits and, if weighted, its hidden states along the layer map.

    loss = task_loss_weight * task + distill_loss_weight * soft targets (logit MSE for regression)
           + hidden_loss_weight * hidden-state MSE          (LMA paper: 0.3, 0.7, 0 and T = 2)

    Where student and teacher differ in width, the student's states go through linear projections, which are
    parameters of this objective and no part of the student.

    Args:
        teacher: a `Teacher` or `CachedTeacher`. layer_map: teacher layer (0-based) of every student layer.
        student_hidden_size, teacher_hidden_size: widths.
    """

    def __init__(
        self,
        teacher,
        *,
        temperature=2.0,
        task_loss_weight=0.3,
        distill_loss_weight=0.7,
        hidden_loss_weight=0.0,
        layer_map=(),
        student_hidden_size=None,
        teacher_hidden_size=None,
    ):
        super().__init__()
        self.teacher = teacher
        self.temperature = temperature
        self.weights = {"task": task_loss_weight, "distill": distill_loss_weight, "hidden": hidden_loss_weight}
        self.layer_map = list(layer_map)
        self.projections = nn.ModuleList()
        if hidden_loss_weight and student_hidden_size != teacher_hidden_size:
            count = len(self.layer_map) + 1
            self.projections.extend(nn.Linear(student_hidden_size, teacher_hidden_size) for _ in range(count))

    def forward(self, model, batch):
        """Args: batch: model inputs with "labels". Returns: {"loss", "task_loss", "distill_loss"[, "hidden_loss"]}."""
        inputs, labels = split_labels(batch)
        wants_states = bool(self.weights["hidden"])
        teacher_logits, teacher_states = self.teacher(batch, wants_states)
        output = model(**inputs, output_hidden_states=wants_states)
        logits = output.logits.float()
        parts = {"task": task_loss(logits, labels), "distill": self._distill(logits, teacher_logits)}
        if wants_states:
            parts["hidden"] = self._hidden(output.hidden_states, teacher_states, inputs.get("attention_mask"))
        total = sum(self.weights[name] * value for name, value in parts.items())
        return {"loss": total, **{f"{name}_loss": value for name, value in parts.items()}}

    def _distill(self, logits, teacher_logits):
        if logits.shape[-1] == 1:
            return logit_loss(logits, teacher_logits)
        return knowledge_distillation_loss(logits, teacher_logits, self.temperature)

    def _hidden(self, student_states, teacher_states, mask):
        student_states = [state.float() for state in student_states]
        if self.projections:
            student_states = [
                projection(state) for projection, state in zip(self.projections, student_states, strict=True)
            ]
        # state 0 is the embeddings' output, state i + 1 that of layer i
        paired = [teacher_states[0], *(teacher_states[layer + 1] for layer in self.layer_map)]
        return hidden_state_loss(student_states, [state.float() for state in paired], mask)
