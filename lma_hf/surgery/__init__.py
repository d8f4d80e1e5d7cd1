"""Swapping FFN activations in place, putting the old ones back, and calibrating the new ones."""
