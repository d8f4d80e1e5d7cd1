"""Smaller models by other means than distillation: the vocabulary cut down to what a corpus needs."""
