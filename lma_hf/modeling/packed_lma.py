"""Linear layers and embeddings that compute with packed weights."""

import torch
from torch import nn
from torch.nn import functional as F

NOT_FINITE = "weights that are not finite, or too far apart for a scale in float16"


class PackedWeight(nn.Module):
    """A matrix in the buffers of its scheme. Floats are float16 in a file, in memory of the dtype computed in."""

    def __init__(self, num_rows, row_length, scheme):
        super().__init__()
        self.row_length, self.scheme = row_length, scheme
        for name, (shape, dtype) in scheme.buffers(num_rows, row_length).items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    @property
    def num_weights(self):
        """How many numbers the matrix has."""
        return len(self.packed) * self.row_length

    def fill_(self, *parts):
        """Take over a matrix. Args: parts: what the scheme's `pack` takes. Raises: ValueError if it is not finite."""
        for name, tensor in self.scheme.pack(*parts).items():
            if not torch.isfinite(tensor).all():
                raise ValueError(NOT_FINITE)
            getattr(self, name).copy_(tensor)
        return self

    def rows(self, index=slice(None)):
        """Unpacked rows. Args: index: as a tensor of rows is indexed. Returns: of shape (*index, row length)."""
        return self.scheme.unpack(dict(self.named_buffers()), index, self.row_length)

    @property
    def weight(self):
        """Of shape (rows, row length); a copy, since transformers fills weights of some models after loading."""
        return self.rows()

    def cast_(self, dtype):
        """Compute in another dtype from now on."""
        for name, tensor in self.named_buffers():
            if tensor.is_floating_point():
                setattr(self, name, tensor.to(dtype))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self.named_buffers():
            if tensor.is_floating_point():
                destination[prefix + name] = destination[prefix + name].half()

    def extra_repr(self):
        return f"{len(self.packed)}x{self.row_length}, {self.scheme}"


class PackedEmbedding(PackedWeight):
    """`nn.Embedding` for inference that unpacks the rows that are looked up."""

    def __init__(self, num_embeddings, embedding_dim, scheme, padding_idx=None):
        super().__init__(num_embeddings, embedding_dim, scheme)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx

    @classmethod
    def like(cls, module, scheme):
        """An empty one in the place of an `nn.Embedding`."""
        return cls(module.num_embeddings, module.embedding_dim, scheme, module.padding_idx)

    def to_float(self):
        """The `nn.Embedding` that computes the same."""
        return nn.Embedding.from_pretrained(self.rows(), freeze=False, padding_idx=self.padding_idx)

    def forward(self, input_ids):
        """Args: input_ids: of any shape. Returns: the same with the embedding's width added."""
        return self.rows(input_ids)


class PackedLinear(PackedWeight):
    """`nn.Linear` for inference; unpacks its weight at the first pass, and keeps it."""

    def __init__(self, in_features, out_features, scheme, bias=True):
        super().__init__(out_features, in_features, scheme)
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)
        self.unpacked = None

    @classmethod
    def like(cls, module, scheme):
        """An empty one in the place of an `nn.Linear`."""
        return cls(module.in_features, module.out_features, scheme, module.bias is not None)

    def to_float(self):
        """The `nn.Linear` that computes the same."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.rows())
        linear.bias = self.bias
        return linear

    @property
    def weight(self):
        """Of shape (out_features, in_features); a copy, see `PackedWeight`."""
        return self._kept().clone()

    def _kept(self):
        if self.unpacked is None:
            # kept for passes with gradients too, which take no tensor of inference mode
            with torch.inference_mode(False), torch.no_grad():
                self.unpacked = self.rows()
        return self.unpacked

    def forward(self, x):
        """Args: x: of shape (..., in_features). Returns: of shape (..., out_features)."""
        return F.linear(x, self._kept(), self.bias)

    def cast_(self, dtype):
        self.unpacked = None
        super().cast_(dtype)

    def _apply(self, fn, recurse=True):
        self.unpacked = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args):
        self.unpacked = None
        super()._load_from_state_dict(*args)


PACKED = {nn.Linear: PackedLinear, nn.Embedding: PackedEmbedding}


def packable_kind(module):
    """The one of PACKED that a module computes as, or None.

    A subclass with a forward of its own may scale or shift, such as Gemma's word embeddings and OPT's positions.
    """
    return next((kind for kind in PACKED if isinstance(module, kind) and type(module).forward is kind.forward), None)


def packed_like(module, scheme):
    """An empty packed layer in the place of a linear layer or an embedding. Raises: ValueError for another module."""
    kind = packable_kind(module)
    if kind is None:
        raise ValueError(
            f"a {type(module).__name__} cannot be packed, allowed are nn.Linear, nn.Embedding and subclasses with "
            "their forward; leave it out and pack the model anew"
        )
    return PACKED[kind].like(module, scheme)
