"""What word embeddings cost in score when they are made small in several ways, and all else stays as it is.

python scripts/embedding_sizes.py --model_dir runs/teachers/stsb --dataset ../shared/glue

STS-B, every third validation row, no training afterwards. Low rank: the leading right singular vectors, rotated at
random, so that the numbers of a row are of one size before they are rounded.
"""

import argparse
from functools import partial

import torch
from datasets import load_dataset
from scipy.stats import pearsonr
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lma_hf  # noqa: F401 (models with its activations)
from lma_hf.compression.quantization.pack import FITS
from lma_hf.compression.quantization.product import scheme_for
from lma_hf.modeling.packed_lma import packed_like
from lma_hf.modeling.schemes_lma import ProductScheme, ScalarScheme, rounded

SCHEMES = (ScalarScheme(8), ScalarScheme(4), ScalarScheme(2, 32), ProductScheme(4), ProductScheme(8))
RANKS = (64, 128, 192, 256)


def packed(embedding, scheme):
    """(embeddings, bytes) of a scheme."""
    scheme = scheme_for(embedding, scheme)
    layer = packed_like(embedding, scheme).fill_(*FITS[type(scheme)](embedding.weight.detach(), scheme))
    return layer.rows(), sum(part.numel() * (2 if part.is_floating_point() else 1) for part in layer.buffers())


def low_rank(weight, rank, bits):
    """(embeddings, bytes): a factor of `bits` with a scale and a zero point a row, and a small one in float16."""
    vectors = torch.linalg.eigh((weight.T @ weight).double()).eigenvectors.flip(1)[:, :rank].float()
    turn = torch.linalg.qr(torch.randn(rank, rank, generator=torch.Generator().manual_seed(0))).Q
    factor = (turn.T @ vectors.T).half().float()
    size = len(weight) * (rank * bits // 8 + 3) + 2 * factor.numel()
    return rounded(weight @ vectors @ turn, ScalarScheme(bits)) @ factor, size


@torch.inference_mode()
def pearson(model, tokenizer, rows):
    logits = []
    for start in range(0, len(rows), 50):
        batch = rows[start : start + 50]
        texts = (batch["sentence1"], batch["sentence2"])
        inputs = tokenizer(*texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        logits.append(model(**inputs).logits[:, 0])
    return pearsonr(torch.cat(logits).numpy(), rows["label"][:]).statistic


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", required=True)
    parser.add_argument("--dataset", required=True)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model_dir)
    model = AutoModelForSequenceClassification.from_pretrained(args.model_dir, dtype=torch.float32).eval()
    rows = load_dataset("parquet", data_files=f"{args.dataset}/stsb/validation.parquet", split="train")
    rows = rows.select(range(0, len(rows), 3))
    embedding = model.get_input_embeddings()
    weight = embedding.weight.detach().clone()
    ways = {str(scheme): partial(packed, embedding, scheme) for scheme in SCHEMES}
    ways |= {f"rank {rank}, {bits} bits": partial(low_rank, weight, rank, bits) for rank in RANKS for bits in (8, 4)}
    print("way,mb,sqnr_db,pearson")
    print(f"float32,{weight.nbytes / 1e6:.2f},,{pearson(model, tokenizer, rows):.4f}")
    for way, make in ways.items():
        embedding.weight.data.copy_(weight)
        values, size = make()
        embedding.weight.data.copy_(values)
        sqnr_db = 10 * torch.log10(weight.square().sum() / (weight - values).square().sum())
        print(f'"{way}",{size / 1e6:.2f},{sqnr_db:.1f},{pearson(model, tokenizer, rows):.4f}', flush=True)


if __name__ == "__main__":
    main()
