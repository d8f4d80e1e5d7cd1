"""What a run minimises: objectives map (model, batch) to named loss parts, of which "loss" is the total."""

from torch import nn

from lma_hf.distillation.losses import (
    hidden_cosine_loss,
    hidden_state_loss,
    knowledge_distillation_loss,
    logit_loss,
    task_loss,
)
from lma_hf.distillation.teacher import model_inputs

FEATURES = ("hidden", "hidden_cosine", "attention", "relation")


def paired_states(layer_map, parts, cosine_layers="last"):
    """Numbers of the teacher's hidden states that losses pair with the student's last as many, in order.

    State 0 is the embeddings' output, i + 1 that of layer i.

    Args: parts: names of the losses that count, of which "hidden" needs every mapped layer and the embeddings,
        "hidden_cosine" the `cosine_layers` ("last" or "all").
    """
    states = (0, *(layer + 1 for layer in layer_map))
    if "hidden" in parts:
        return states
    if "hidden_cosine" in parts:
        return states[1:] if cosine_layers == "all" else states[-1:]
    return ()


class TaskObjective(nn.Module):
    """Fine-tuning on labels alone."""

    def forward(self, model, batch):
        """Args: batch: model inputs with "labels". Returns: {"loss": scalar}."""
        return {"loss": task_loss(model(**model_inputs(batch)).logits.float(), batch["labels"])}


class DistillationObjective(nn.Module):
    """Labels, the teacher's logits and, if weighted, what happens inside it, along the layer map.

    loss = task_loss_weight * task + distill_loss_weight * soft targets (logit MSE for regression)
           + hidden_loss_weight * hidden-state MSE + hidden_cosine_loss_weight * hidden-state cosine
           + attention_loss_weight * attention + relation_loss_weight * relations
                                       (LMA paper: 0.3, 0.7, none of the others, and T = 2)

    Where student and teacher differ in width, the student's states go through linear projections, which are
    parameters of this objective and no part of the student.

    Args:
        teacher: a `Teacher`, `CachedTeacher` or `TeacherEnsemble`.
        layer_map: teacher layer (0-based) of every student layer.
        distill_loss_type: "kl" (soft targets) or "mse" (of the logits).
        hidden_cosine_layers: "last" or "all". hidden_cosine_tokens: "all", or "first" ([CLS]).
        student_hidden_size, teacher_hidden_size: widths.
        labelled_share: see `task_loss`.
        schedules: name ("temperature", "task_loss_weight", ...) -> function of the progress, in place of the constant.
        feature_stage: share of the run in which only what happens inside counts, and after it only labels and logits
            (TinyBERT, Jiao et al. 2020, section 3.2); 0: all count all the time.
        attention: an `AttentionObjective`, for weighted attention or relations.
        replacement: a `ModuleReplacement`, driven by `replacement_rate`.
    Attributes: progress: optimizer steps done over all steps, which a trainer keeps up to date.
    """

    def __init__(
        self,
        teacher,
        *,
        temperature=2.0,
        task_loss_weight=0.3,
        distill_loss_weight=0.7,
        distill_loss_type="kl",
        hidden_loss_weight=0.0,
        hidden_cosine_loss_weight=0.0,
        hidden_cosine_layers="last",
        hidden_cosine_tokens="all",
        attention_loss_weight=0.0,
        relation_loss_weight=0.0,
        replacement_rate=1.0,
        layer_map=(),
        student_hidden_size=None,
        teacher_hidden_size=None,
        labelled_share=1.0,
        schedules=None,
        feature_stage=0.0,
        attention=None,
        replacement=None,
    ):
        super().__init__()
        self.teacher, self.attention, self.replacement = teacher, attention, replacement
        constants = {"temperature": temperature, "replacement_rate": replacement_rate}
        constants |= {"task_loss_weight": task_loss_weight, "distill_loss_weight": distill_loss_weight}
        constants |= {"hidden_loss_weight": hidden_loss_weight, "hidden_cosine_loss_weight": hidden_cosine_loss_weight}
        constants |= {"attention_loss_weight": attention_loss_weight, "relation_loss_weight": relation_loss_weight}
        self.settings = constants | (schedules or {})
        self.distill_loss_type, self.labelled_share = distill_loss_type, labelled_share
        self.hidden_cosine_layers, self.hidden_cosine_tokens = hidden_cosine_layers, hidden_cosine_tokens
        self.feature_stage, self.progress = feature_stage, 0.0
        parts = [part for part in ("hidden", "hidden_cosine") if self._wants(part)]
        self.states = paired_states(layer_map, parts, hidden_cosine_layers)
        self.first_state = len(layer_map) + 1 - len(self.states)  # of the student
        self.projections = nn.ModuleList()
        if student_hidden_size != teacher_hidden_size:
            # only those that a loss uses, since DDP would wait for the gradients of others
            self.projections.extend(nn.Linear(student_hidden_size, teacher_hidden_size) for _ in self.states)

    def forward(self, model, batch):
        """Args: batch: model inputs with "labels". Returns: {"loss", "task_loss", "distill_loss", ...}, each weighted
        part under its own name, before it is weighted."""
        mask, wants_states = batch.get("attention_mask"), bool(self.states)
        if self.attention:
            self.attention.listen()
        if self.replacement:
            self.replacement.draw(self._now("replacement_rate"))
        teacher_logits, teacher_states = self.teacher(batch, wants_states)
        output = model(**model_inputs(batch), output_hidden_states=wants_states)
        logits = output.logits.float()
        parts = {
            "task": task_loss(logits, batch["labels"], self.labelled_share),
            "distill": self._distill(logits, teacher_logits),
        }
        if wants_states:
            parts |= self._hidden(output.hidden_states, teacher_states, mask)
        if self.attention:
            parts |= self.attention.parts(mask)
        total = sum(self._weight(name) * value for name, value in parts.items())
        return {"loss": total, **{f"{name}_loss": value for name, value in parts.items()}}

    def _now(self, name):
        """Present value of a temperature, rate or weight."""
        setting = self.settings[name]
        return setting(self.progress) if callable(setting) else setting

    def _weight(self, part):
        # a weight of 0 still computes the part: log lines keep their columns, and DDP its gradients
        if self.feature_stage and (part in FEATURES) != (self.progress < self.feature_stage):
            return 0.0
        return self._now(f"{part}_loss_weight")

    def _wants(self, part):
        """Whether a part counts at any time of the run."""
        return self.settings[f"{part}_loss_weight"] != 0

    def _distill(self, logits, teacher_logits):
        if logits.shape[-1] == 1 or self.distill_loss_type == "mse":
            return logit_loss(logits, teacher_logits)
        return knowledge_distillation_loss(logits, teacher_logits, self._now("temperature"))

    def _hidden(self, student_states, teacher_states, mask):
        """Parts "hidden" and "hidden_cosine"."""
        ours = [state.float() for state in student_states[self.first_state :]]
        if self.projections:
            ours = [projection(state) for projection, state in zip(self.projections, ours, strict=True)]
        theirs = [teacher_states[index].float() for index in self.states]
        parts = {}
        if self._wants("hidden"):
            parts["hidden"] = hidden_state_loss(ours, theirs, mask)
        if self._wants("hidden_cosine"):
            # without the embeddings' output, which is there for the other loss
            start = int(self._wants("hidden")) if self.hidden_cosine_layers == "all" else -1
            counted = mask if self.hidden_cosine_tokens == "all" else _first_token(mask, ours[0])
            parts["hidden_cosine"] = hidden_cosine_loss(ours[start:], theirs[start:], counted)
        return parts


def _first_token(mask, states):
    """A mask of every row's first real token, of shape (batch, length)."""
    real = states.new_ones(states.shape[:2]) if mask is None else (mask != 0).to(states.dtype)
    return (real.cumsum(1) == 1) * real
