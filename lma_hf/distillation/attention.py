"""What student and teacher attend to: queries, keys and values, heard by hooks, and the losses on them.

Attention scores are computed from queries and keys, so that they are free of dropout and every attention kernel can
stay (transformers' own `output_attentions` needs the slow "eager" one).
"""

from functools import partial

import torch
from torch import nn

from lma_hf.distillation.losses import attention_score_loss, relation_loss, relation_scores
from lma_hf.errors import ConfigError

# names of the three maps in one attention block: BERT, RoBERTa, ELECTRA, ALBERT; DistilBERT; MPNet
NAMES = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))


class AttentionTap:
    """Listens to the query, key and value maps of a model's layers, in the order they are called.

    Args: model: a transformers encoder. what: how messages call it.
    Attributes: width: of the queries. num_heads: attention heads.
    Raises: ConfigError if the model's attention has no such maps.
    """

    def __init__(self, model, what):
        self.heard, self.listening, blocks = None, False, []
        for module in model.modules():
            children = dict(module.named_children())
            names = [names for names in NAMES if all(isinstance(children.get(name), nn.Linear) for name in names)]
            blocks += [[children[name] for name in found] for found in names]
        if not blocks:
            raise ConfigError(
                f"{what} is a {type(model).__name__}, whose queries, keys and values are not known; the attention and "
                "relation losses work for BERT, RoBERTa, DistilBERT, ELECTRA, MPNet and ALBERT: set their weights to 0"
            )
        for block in blocks:
            for index, module in enumerate(block):
                module.register_forward_hook(partial(self._hear, index))
        self.what, self.width, self.num_heads = what, blocks[0][0].out_features, model.config.num_attention_heads

    def listen(self):
        """Keep what the next forward pass computes."""
        self.heard, self.listening = ([], [], []), True

    def take(self):
        """(queries, keys, values) of the pass, each a list with a float tensor (batch, length, width) a layer."""
        # not beyond this: evaluation, or a recomputation for the backward pass, would pile up tensors
        self.listening, heard, self.heard = False, self.heard, None
        return heard

    def _hear(self, index, module, args, output):
        if self.listening:
            self.heard[index].append(output.float())


class AttentionObjective:
    """The parts "attention" and "relation" of a distillation.

    Args:
        student, teacher: the models. layer_map: teacher layer (0-based) of every student layer.
        attention: None, "mse" (scores before the softmax) or "kl" (probabilities); needs as many heads in both.
        relation: whether the student's last layer learns MiniLMv2's relations.
        relation_layer: the teacher's layer for it; None: that of the layer map.
        relation_heads: None: the teacher's attention heads.
    Raises: ConfigError if the two models' heads or widths do not allow it.
    """

    def __init__(
        self, student, teacher, layer_map, *, attention=None, relation=False, relation_layer=None, relation_heads=None
    ):
        self.student, self.teacher = AttentionTap(student, "the student"), AttentionTap(teacher, "the teacher")
        self.layer_map, self.attention, self.relation = list(layer_map), attention, relation
        self.relation_layer = self.layer_map[-1] if relation_layer is None else relation_layer
        self.relation_heads = relation_heads or self.teacher.num_heads
        if attention and self.student.num_heads != self.teacher.num_heads:
            raise ConfigError(
                f"the student has {self.student.num_heads} attention heads and the teacher {self.teacher.num_heads}, "
                "an attention loss needs as many; use relation_loss_weight, which does not"
            )
        if relation:
            self._check_relation(teacher.config.num_hidden_layers)

    def _check_relation(self, num_layers):
        if not 0 <= self.relation_layer < num_layers:
            raise ConfigError(
                f"relation_layer is {self.relation_layer}, the teacher's layers are 0 to {num_layers - 1}"
            )
        for tap in (self.student, self.teacher):
            if tap.width % self.relation_heads:
                raise ConfigError(
                    f"relation_heads is {self.relation_heads}, which does not divide the {tap.width} units of "
                    f"{tap.what}'s queries; the student's and the teacher's have to be multiples of it"
                )

    def listen(self):
        """To be called before the forward passes of both models."""
        self.student.listen()
        self.teacher.listen()

    def parts(self, attention_mask):
        """Name -> scalar loss of the forward passes since `listen`.

        Args: attention_mask: of shape (batch, length); None counts all tokens.
        """
        student, teacher = self.student.take(), self.teacher.take()
        example, parts = student[0][0], {}
        if attention_mask is None:
            attention_mask = torch.ones(example.shape[:2], device=example.device)
        # an objective with projections runs under autocast, which would round the scores
        with torch.autocast(example.device.type, enabled=False):
            if self.attention:
                parts["attention"] = self._attention(student, teacher, attention_mask)
            if self.relation:
                parts["relation"] = self._relation(student, teacher, attention_mask)
        return parts

    def _attention(self, student, teacher, mask):
        loss = attention_score_loss if self.attention == "mse" else relation_loss
        scores = partial(relation_scores, num_heads=self.teacher.num_heads)
        pairs = enumerate(self.layer_map)
        losses = [loss(scores(*_at(student, own)[:2]), scores(*_at(teacher, other)[:2]), mask) for own, other in pairs]
        return torch.stack(losses).mean()

    def _relation(self, student, teacher, mask):
        """Sum over queries, keys and values."""
        pairs = zip(_at(student, -1), _at(teacher, self.relation_layer), strict=True)
        scores = partial(relation_scores, num_heads=self.relation_heads)
        return sum(relation_loss(scores(own, own), scores(other, other), mask) for own, other in pairs)


def _at(heard, layer):
    """Query, key and value of one layer."""
    return [outputs[layer] for outputs in heard]
