"""Product quantization whose centroids train and whose codes stay (Stock et al. 2020, arXiv 1907.05686, 3.3)."""

from torch import nn
from torch.nn.utils import parametrize

from lma_hf.compression.quantization.fake_quantize import check_not_prepared
from lma_hf.compression.quantization.product import product_codes, scheme_for
from lma_hf.compression.quantization.targets import quantizable_modules
from lma_hf.errors import SurgeryError
from lma_hf.modeling.packed_lma import packed_like


class FixedCodes(nn.Module):
    """The parametrization of a weight whose master is its codebook.

    Args: scheme: a `ProductScheme`. codes: uint8 of shape (rows, blocks). row_length: of the weight.
    """

    def __init__(self, scheme, codes, codebook, row_length):
        super().__init__()
        self.scheme, self.row_length = scheme, row_length
        self.register_buffer("codes", codes)
        # until it is registered; then it is the parametrization's `original`
        self.__dict__["start"] = codebook

    def forward(self, codebook):
        """Args: codebook: of shape (num_centroids, block_size). Returns: the weight, of shape (rows, row length)."""
        # as it will be saved; the gradient goes straight through
        codebook = codebook + (codebook.half().to(codebook) - codebook).detach()
        return self.scheme.unpack({"packed": self.codes, "codebook": codebook}, slice(None), self.row_length)

    def right_inverse(self, weight):
        """The codebook that stands in for the weight."""
        return self.__dict__.pop("start")

    def parts(self, codebook):
        """What a packed layer is filled with."""
        return self.codes, codebook.half().to(codebook)


def prepare_codebooks_(model, scheme, *, modules_to_not_convert=None):
    """Replace the weights of linear layers by codebooks that train, and pack the embeddings, which do not.

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
        weight, (its_scheme, codes, codebook) = module.weight, fits[fqn]
        if isinstance(module, nn.Embedding):
            packed = packed_like(module, its_scheme).to(weight.device, weight.dtype)
            model.set_submodule(fqn, packed.fill_(codes, codebook).train(module.training))
        else:
            step = FixedCodes(its_scheme, codes, codebook.to(weight), weight.shape[1])
            # unsafe: the master has another shape than the weight
            parametrize.register_parametrization(module, "weight", step, unsafe=True)
    return modules


def _fit(fqn, module, scheme):
    """(the module's own scheme, its codes, its codebook)."""
    scheme = scheme_for(module, scheme)
    try:
        return scheme, *product_codes(module.weight, scheme)
    except ValueError as error:
        raise SurgeryError(f"{fqn} has {error}") from error
