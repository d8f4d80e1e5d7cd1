"""Losses as pure functions, the frozen teacher, and the objective that turns both into named parts."""
