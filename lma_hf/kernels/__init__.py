"""LMA, fast: the functions of `lma_hf.modeling.reference_lma` as fused kernels for CPUs (C++) and GPUs (Triton)."""
