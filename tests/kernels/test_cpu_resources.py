"""What the C++ kernel takes: threads do not change results, and backward keeps x and the small tables only."""

import pytest
import torch
from kernel_problems import DTYPES, evaluate, problem
from torch import nn

OWN = pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])


def everything(cpu, arguments, mask):
    statistics = cpu.token_statistics(arguments.x, mask, arguments.slope.dim() == 2)
    return [*evaluate(cpu.lma, arguments), *statistics, *cpu.lma_with_statistics(arguments.x, *arguments[1:5], mask)]


@OWN
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "k"), [((2001, 96), 8), ((2001, 96), 33), ((70000, 3), 8), ((5, 50000), 8)], ids=str
)
def test_results_do_not_depend_on_the_number_of_threads(shape, k, dtype, own, cpu, instruction_set, threads):
    arguments = problem(shape, k, own, dtype)
    mask = torch.rand(shape[0], generator=torch.Generator().manual_seed(1)) < 0.7
    results = []
    for number in (1, 2, 5, 5):
        threads(number)
        results.append(everything(cpu, arguments, mask))
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))


def kept_for_backward(function, x):
    """Bytes of all memory that autograd keeps."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x).sum()
    return sum(kept.values())


@OWN
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_keeps_no_more_than_that_of_gelu_and_the_tables(dtype, own, cpu):
    arguments = problem((256, 64), 8, own, dtype)
    tables = [tensor.requires_grad_() for tensor in arguments[1:3]] + [*arguments[3:5]]
    allowed = kept_for_backward(nn.GELU(), arguments.x.requires_grad_()) + sum(table.nbytes for table in tables)
    assert kept_for_backward(lambda x: cpu.lma(x, *tables), arguments.x) <= allowed
    assert kept_for_backward(lambda x: cpu.lma_with_statistics(x, *tables)[0], arguments.x) <= allowed


def test_pieces_shared_by_channels_with_bounds_of_their_own_are_not_copied_for_backward(cpu):
    shared, own = problem((256, 64), 8), problem((256, 64), 8, own=True)
    tables = shared.slope.requires_grad_(), shared.intercept, own.lower, own.step
    allowed = shared.x.nbytes + sum(table.nbytes for table in tables)
    assert kept_for_backward(lambda x: cpu.lma(x, *tables), shared.x.requires_grad_()) <= allowed
