"""Distillation losses: pure functions of logits, hidden states and attention, each a mean over the batch's rows.

Rows count alike, however long they are or whether they have a label: so the mean over a large batch is that over
smaller ones of equal size, and gradient accumulation and several processes change nothing.
"""

import torch
import torch.nn.functional as F

UNLABELLED = -100  # torch's ignore_index; of a regression, where any number may be a label, it is NaN


def _check_shapes(student, teacher):
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher outputs must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )


def _mean_over_rows(values, weight):
    """Mean over rows of every row's mean; `weight` is 0 where a value does not count, and broadcasts to `values`."""
    weight = weight.to(values.dtype).expand_as(values)
    counted, total = weight.flatten(1).sum(1), (values * weight).flatten(1).sum(1)
    return (total / counted.clamp_min(1)).mean()


def task_loss(logits, labels, labelled_share=1.0):
    """Loss against the labels: cross-entropy, or the squared error of regression when there is one output.

    Rows without a label add nothing. The sum over the others is divided by the labels that a batch of this size has
    on average, not by those it happens to have, so that accumulated batches still add up to one large batch.

    Args:
        logits: of shape (batch, num_labels).
        labels: of shape (batch,), integers, -100 where there is none; for regression numbers, NaN where there is none.
        labelled_share: share of the training rows that have a label.
    Returns: scalar.
    """
    expected = len(labels) * labelled_share
    if logits.shape[-1] == 1:
        difference = logits.squeeze(-1) - labels.nan_to_num().to(logits.dtype)
        return (difference.square() * ~labels.isnan()).sum() / expected
    return F.cross_entropy(logits, labels, reduction="sum", ignore_index=UNLABELLED) / expected


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
    Returns: scalar, mean over pairs, rows, tokens of a row and units.
    Raises: ValueError if the lists or shapes do not match.
    """
    return _mean_over_pairs(lambda a, b: (a - b).square().mean(-1), student_states, teacher_states, attention_mask)


def hidden_cosine_loss(student_states, teacher_states, attention_mask=None):
    """1 - cosine of hidden states over real tokens (DistilBERT, Sanh et al. 2019, section 2).

    On the first token of every layer it is half of patient distillation's loss (Sun et al. 2019, section 3.2), since
    the squared distance of two unit vectors is 2 - 2 cosine.

    Args, Raises: as of `hidden_state_loss`. Returns: scalar in [0, 2], mean over pairs, rows and tokens of a row.
    """
    return _mean_over_pairs(
        lambda a, b: 1 - F.cosine_similarity(a, b, dim=-1), student_states, teacher_states, attention_mask
    )


def _mean_over_pairs(distance, student_states, teacher_states, attention_mask):
    if len(student_states) != len(teacher_states) or not student_states:
        raise ValueError(
            f"hidden states to pair: {len(student_states)} of the student, {len(teacher_states)} of the teacher"
        )
    losses = []
    for student, teacher in zip(student_states, teacher_states, strict=True):
        _check_shapes(student, teacher)
        values = distance(student, teacher)
        losses.append(_mean_over_rows(values, torch.ones_like(values) if attention_mask is None else attention_mask))
    return torch.stack(losses).mean()


def relation_scores(left, right, num_heads):
    """Scaled dot products of all pairs of tokens, left @ right^T / sqrt(head size), before any softmax.

    Of queries and keys these are the attention scores; of queries with queries, keys with keys and values with values
    MiniLMv2's relations, where the number of heads is free (Wang et al. 2021, section 3.1).

    Args: left, right: of shape (batch, length, width); num_heads must divide width.
    Returns: tensor of shape (batch, num_heads, length, length).
    """
    left, right = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (left, right))
    return left @ right.transpose(-1, -2) * left.shape[-1] ** -0.5


def attention_score_loss(student_scores, teacher_scores, attention_mask):
    """Mean squared difference of attention scores before the softmax (TinyBERT, Jiao et al. 2020, equation 7).

    Args:
        student_scores, teacher_scores: of shape (batch, heads, length, length).
        attention_mask: of shape (batch, length), nonzero at real tokens.
    Returns: scalar, mean over rows, heads and pairs of real tokens.
    Raises: ValueError if the shapes differ.
    """
    _check_shapes(student_scores, teacher_scores)
    real = attention_mask != 0
    return _mean_over_rows((student_scores - teacher_scores).square(), real[:, None, :, None] & real[:, None, None, :])


def relation_loss(student_scores, teacher_scores, attention_mask):
    """KL(teacher || student) of the softmax over real tokens of `relation_scores`.

    Of attention scores it is MiniLM's attention transfer (Wang et al. 2020, section 3.1), of relations MiniLMv2's
    loss (Wang et al. 2021, section 3.1).

    Args, Raises: as of `attention_score_loss`.
    Returns: scalar, mean over rows, heads and the real tokens of a row, in nats.
    """
    _check_shapes(student_scores, teacher_scores)
    real = attention_mask != 0
    # not -inf: a row of nothing but padding would become NaN
    padding, lowest = ~real[:, None, None, :], torch.finfo(student_scores.dtype).min
    student, teacher = (F.log_softmax(x.masked_fill(padding, lowest), -1) for x in (student_scores, teacher_scores))
    divergence = F.kl_div(student, teacher, log_target=True, reduction="none").masked_fill(padding, 0).sum(-1)
    return _mean_over_rows(divergence, real[:, None, :])
