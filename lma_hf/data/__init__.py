"""GLUE and custom datasets: the task table, loading, label alignment, batching and metrics."""
