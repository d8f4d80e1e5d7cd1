"""The flat folder that a pushed model carries with it: torch, transformers and relative imports only."""
