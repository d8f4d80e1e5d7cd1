"""Distillation losses: pure functions of logits and hidden states, each a mean over the batch."""

import torch
import torch.nn.functional as F


def _check_shapes(student, teacher):
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher outputs must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )


def task_loss(logits, labels):
    """Loss against the labels: cross-entropy, or the squared error of regression when there is one output.

    Args: logits: of shape (batch, num_labels). labels: of shape (batch,), integers or, for regression, floats.
    Returns: scalar.
    """
    if logits.shape[-1] == 1:
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)


def knowledge_distillation_loss(student_logits, teacher_logits, temperature):
    """Soft-target loss T^2 * KL(teacher || student) (Hinton et al. 2015, section 2).

    Args:
        student_logits, teacher_logits: of shape (batch, num_labels).
        temperature: > 0; divides both logits.
    Returns: scalar, mean over the batch, in nats.
    Raises: ValueError if the shapes differ or temperature <= 0.
    """
    _check_shapes(student_logits, teacher_logits)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}, allowed are numbers above 0")
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")


def logit_loss(student_logits, teacher_logits):
    """Mean squared difference of the logits (Ba and Caruana 2014, equation 1); the soft target of a regression.

    Args: both of shape (batch, num_labels).
    Returns: scalar. Raises: ValueError if the shapes differ.
    """
    _check_shapes(student_logits, teacher_logits)
    return F.mse_loss(student_logits, teacher_logits)


def hidden_state_loss(student_states, teacher_states, attention_mask=None):
    """Mean squared difference of hidden states over real tokens (TinyBERT, Jiao et al. 2020, equation 8).

    Args:
        student_states, teacher_states: lists of tensors of shape (batch, length, hidden_size), pairwise compared.
        attention_mask: of shape (batch, length), nonzero at real tokens; None counts all.
    Returns: scalar, mean over pairs, tokens and units.
    Raises: ValueError if the lists or shapes do not match.
    """
    if len(student_states) != len(teacher_states) or not student_states:
        raise ValueError(
            f"hidden states to pair: {len(student_states)} of the student, {len(teacher_states)} of the teacher"
        )
    losses = []
    for student, teacher in zip(student_states, teacher_states, strict=True):
        _check_shapes(student, teacher)
        difference = (student - teacher).square().mean(-1)
        if attention_mask is None:
            losses.append(difference.mean())
        else:
            weight = attention_mask.to(difference.dtype)
            losses.append((difference * weight).sum() / weight.sum().clamp_min(1))
    return torch.stack(losses).mean()
