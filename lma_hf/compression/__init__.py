"""Making students smaller still: quantization of their weights."""
