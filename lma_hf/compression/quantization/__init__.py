"""Weights of few bits: trained with the rounding or with noise of it, and packed."""
