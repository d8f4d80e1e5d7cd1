"""Training with product quantization: codes and centroids follow the weights that train underneath."""

import torch
from torch import nn

from lma_hf.compression.quantization.fake_quantize import StraightThrough, check_not_prepared, register_step
from lma_hf.compression.quantization.product import centroids_of, nearest_codes, product_codes, scheme_for
from lma_hf.compression.quantization.targets import quantizable_modules
from lma_hf.errors import SurgeryError
from lma_hf.modeling.packed_lma import packed_like

PASSES_BETWEEN = 100  # of training, until every block may go to another centroid; a search takes as long as some steps


class NearestCentroids(nn.Module):
    """Replaces the blocks of a weight by their centroids; the gradient goes straight through to the weight.

    A centroid is the mean of its blocks (Lloyd's algorithm), so it moves in every step; every 100 steps each block
    goes to the centroid that is nearest by then. This is the exact noise of Fan et al. 2021 (arXiv 2004.07320, section
    4.2) on every block; Stock et al. 2020 (arXiv 1907.05686, section 3.3) keep the codes and train centroids alone.

    Args: scheme: a `ProductScheme`. codes: uint8 of shape (rows, blocks), to begin with.
    """

    def __init__(self, scheme, codes):
        super().__init__()
        self.scheme = scheme
        self.register_buffer("codes", codes)
        self.register_buffer("num_passes", torch.zeros((), dtype=torch.long))

    def forward(self, weight):
        """Args: weight: of shape (rows, row length). Returns: the same shape, in its dtype."""
        if self.training and torch.is_grad_enabled():
            self._pass(weight.detach())
        return StraightThrough.apply(weight, self._values(weight.detach()))

    @torch.no_grad()
    def _pass(self, weight):
        self.num_passes += 1
        if self.num_passes % PASSES_BETWEEN == 0:
            blocks = self.scheme.blocks(weight.float())
            self.codes.copy_(nearest_codes(blocks, centroids_of(blocks, self.codes, self.scheme)))

    def _values(self, weight):
        codes, codebook = self.parts(weight)
        return self.scheme.unpack({"packed": codes, "codebook": codebook}, slice(None), weight.shape[1]).to(weight)

    def parts(self, weight):
        """What a packed layer is filled with."""
        return self.codes, centroids_of(self.scheme.blocks(weight.float()), self.codes, self.scheme)


def prepare_codebooks_(model, scheme, *, modules_to_not_convert=None):
    """Let linear layers train with product quantization, and pack the embeddings, which do not train.

    Args:
        scheme: a `ProductScheme`, or {nn.Linear: one, nn.Embedding: another}.
        modules_to_not_convert: see `quantizable_modules`, which says what is raised.
    Returns: fqn -> module of what is quantized. Raises: SurgeryError also if a weight is not finite, or the model was
        prepared before; nothing is changed then.
    """
    check_not_prepared(model)
    modules = quantizable_modules(model, modules_to_not_convert)
    fits = {fqn: _fit(fqn, module, scheme) for fqn, module in modules.items()}
    for fqn, module in modules.items():
        its_scheme, codes, codebook = fits[fqn]
        if isinstance(module, nn.Embedding):
            packed = packed_like(module, its_scheme).to(module.weight.device, module.weight.dtype)
            model.set_submodule(fqn, packed.fill_(codes, codebook).train(module.training))
        else:
            register_step(module, NearestCentroids(its_scheme, codes))
    return modules


def _fit(fqn, module, scheme):
    """(the module's own scheme, its codes, its codebook)."""
    scheme = scheme_for(module, scheme)
    try:
        return scheme, *product_codes(module.weight, scheme)
    except ValueError as error:
        raise SurgeryError(f"{fqn} has {error}") from error
