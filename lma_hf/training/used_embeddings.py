"""Word embeddings trained as a small table: of the words that the training rows have, often a tenth of all."""

import torch
from torch import nn
from torch.nn import functional as F


def word_embeddings(model):
    """The module that looks words up; None where there are several, as in CANINE, which hashes characters."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


class UsedEmbeddings(nn.Module):
    """Inside the context, a model in training mode looks its words up in `weight`, which is what trains.

    It is AdamW on the whole table, to rounding: a word that no row has gets no gradient, so that its moments stay 0
    and only weight decay moves it, which is put off until `settle`. Saved are the gradient and two moments of such
    words (47 MB each for 30,522 x 384) and the optimizer's way through them at every step.

    Attributes: weight: of shape (number of used words, width). decay: what the other words' embeddings are still to
        be multiplied by.

    Args: model: the unwrapped model. token_ids: all that training batches can hold.
    """

    def __init__(self, model, token_ids):
        super().__init__()
        table = model.get_input_embeddings()
        ids = torch.as_tensor(token_ids, dtype=torch.long).unique()
        places = torch.full((table.num_embeddings,), -1)  # which no lookup accepts
        places[ids] = torch.arange(len(ids))
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("decay", torch.ones((), dtype=torch.float64))
        self.weight = nn.Parameter(table.weight.detach()[ids])
        padding = table.padding_idx
        self.padding = None if padding is None or places[padding] < 0 else int(places[padding])
        # through __dict__, so that the table is no child of this module
        self.__dict__["table"] = table

    @staticmethod
    def suit(model):
        """Whether the model's word embeddings train, and are looked up in one module, which nothing else shares."""
        table = word_embeddings(model)
        if type(table) is not nn.Embedding or not table.weight.requires_grad:
            return False
        # an output layer may share the weight; so may the encoder's own table, where T5 looks its words up
        return sum(getattr(module, "weight", None) is table.weight for module in model.modules()) == 1

    def __enter__(self):
        self.table.weight.requires_grad_(False)
        self.table.__dict__["forward"] = self.forward
        return self

    def __exit__(self, *exception):
        self.settle()
        del self.table.__dict__["forward"]
        self.table.weight.requires_grad_(True)

    def forward(self, input_ids):
        """Args: input_ids: of any shape. Returns: the same with the embeddings' width added."""
        if not self.table.training:
            return nn.Embedding.forward(self.table, input_ids)
        return F.embedding(self.places[input_ids], self.weight, self.padding)

    def after_step(self, group):
        """Remember the weight decay of a step. Args: group: the parameter group that holds `weight`."""
        self.decay *= 1 - group["lr"] * group["weight_decay"]

    @torch.no_grad()
    def settle(self):
        """Make the model's table what AdamW would have made of it by now."""
        self.table.weight.mul_(self.decay)
        self.decay.fill_(1.0)
        self.table.weight.index_copy_(0, self.ids, self.weight)
