"""Product quantization: centroids, codes, and packed models."""

import pytest
import torch
from helpers import padded_batch, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from lma_hf.compression.quantization import product
from lma_hf.compression.quantization.fake_quantize import prepare_quantization_
from lma_hf.compression.quantization.pack import quantize_
from lma_hf.compression.quantization.product import product_codes, scheme_for
from lma_hf.errors import SurgeryError
from lma_hf.modeling.quantizer_lma import packed_modules
from lma_hf.modeling.schemes_lma import ProductScheme, ScalarScheme, scheme_from_dict, scheme_to_dict


def matrix(seed, rows=40, length=32):
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(seed))


def decoded(weight, scheme):
    codes, codebook = product_codes(weight, scheme)
    return scheme.unpack(scheme.pack(codes, codebook), slice(None), weight.shape[1])


@given(st.sampled_from([1, 3, 8]), st.integers(1, 32), st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_every_block_has_the_nearest_centroid(block_size, num_centroids, seed):
    weight, scheme = matrix(seed, 12, 10), ProductScheme(block_size, num_centroids)
    codes, codebook = product_codes(weight, scheme)
    assert torch.equal(codebook, codebook.half().float())
    for at in range(0, 10, block_size):
        block = weight[:, at : at + block_size].double()
        distances = torch.cdist(block, codebook[:, : block.shape[1]].double())
        found = distances.gather(-1, codes[:, at // block_size].long()[:, None])[:, 0]
        torch.testing.assert_close(found, distances.amin(-1), rtol=0, atol=1e-3)


def test_the_error_is_that_of_k_means_on_all_blocks(monkeypatch):
    weight, scheme = matrix(0, 400, 64), ProductScheme(8, 32)
    blocks = scheme.blocks(weight).flatten(0, 1)
    best = KMeans(32, n_init=3, random_state=1).fit(blocks.numpy()).inertia_
    assert (weight - decoded(weight, scheme)).square().sum() <= 1.02 * best
    # also where the centroids saw a part of the blocks only, and these go through in pieces
    monkeypatch.setattr(product, "SAMPLE", 1600)
    monkeypatch.setattr(product, "CHUNK", 333)
    assert (weight - decoded(weight, scheme)).square().sum() <= 1.05 * best


def test_it_is_the_same_each_time():
    first, second = (product_codes(matrix(3), ProductScheme(8, 16)) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_fewer_distinct_blocks_than_centroids_are_kept_as_they_are():
    weight = matrix(1, 2, 16).half().float().repeat(30, 1)
    assert torch.equal(decoded(weight, ProductScheme(8, 16)), weight)


@pytest.mark.parametrize(("shape", "centroids"), [((2, 16), 1), ((50, 16), 16), ((512, 384), 256)])
def test_a_small_matrix_gets_a_small_codebook(shape, centroids):
    table = torch.nn.Embedding.from_pretrained(torch.zeros(shape))
    assert scheme_for(table, ProductScheme()).num_centroids == centroids


def test_a_packed_model_is_small_and_close_to_what_it_was():
    model = tiny_model(scale=1.0, num_layers=1, hidden_size=64, intermediate_size=128)
    batch = padded_batch(model, (20, 30))
    expected = model(**batch).logits
    report = quantize_(model, ProductScheme(2, 256))
    assert report.size_mb < 0.3 * report.size_mb_before
    assert 5 < report.sqnr_db < 40
    assert (model(**batch).logits - expected).abs().max() < 0.5
    assert all(isinstance(module.scheme, ProductScheme) for module in packed_modules(model).values())


def test_linear_layers_and_embeddings_may_have_schemes_of_their_own():
    model, schemes = tiny_model(), {torch.nn.Linear: ProductScheme(2, 8), torch.nn.Embedding: ScalarScheme(4)}
    quantize_(model, schemes)
    for fqn, module in packed_modules(model).items():
        assert type(module.scheme) is (ScalarScheme if "embeddings" in fqn else ProductScheme)


@pytest.mark.parametrize("values", [{"block_size": 0}, {"num_centroids": 257}, {"num_centroids": True}])
def test_a_scheme_says_what_is_allowed(values):
    with pytest.raises(ValueError, match="allowed are whole numbers from 1"):
        ProductScheme(**values)


@pytest.mark.parametrize("scheme", [ProductScheme(5, 3), ScalarScheme(2, 7)], ids=str)
def test_a_config_tells_the_schemes_apart(scheme):
    assert scheme_from_dict(scheme_to_dict(scheme)) == scheme
    with pytest.raises(ValueError, match="method is 'ternary', allowed are scalar, product"):
        scheme_from_dict(scheme_to_dict(scheme) | {"method": "ternary"})


def test_what_it_does_not_do_is_refused():
    with pytest.raises(SurgeryError, match="allowed in training is a ScalarScheme"):
        prepare_quantization_(tiny_model(), ProductScheme())
    with pytest.raises(SurgeryError, match="a ScalarScheme alone is calibrated"):
        quantize_(tiny_model(), ProductScheme(), batches=[])
    broken = tiny_model()
    broken.get_submodule("bert.pooler.dense").weight.data[0, 0] = float("nan")
    with pytest.raises(SurgeryError, match=r"bert\.pooler\.dense has weights that are not finite"):
        quantize_(broken, ProductScheme())


def test_zeros_that_fill_up_a_last_block_are_no_weights():
    scheme = ProductScheme(3, 4)
    centroids = torch.tensor([[1.0, 2.0, 9.0], [1.5, -2.0, 8.0], [-3.0, 0.5, 7.0], [4.0, 4.0, 6.0]])
    codes = torch.tensor([[0, 1, 2], [3, 2, 1], [1, 0, 3], [2, 3, 0]], dtype=torch.uint8)
    weight = scheme.unpack({"packed": codes, "codebook": centroids}, slice(None), 8)
    found, codebook = product_codes(weight, scheme)
    assert torch.equal(scheme.unpack({"packed": found, "codebook": codebook}, slice(None), 8), weight)
    assert torch.equal(codebook.sort(0).values, centroids.sort(0).values)
