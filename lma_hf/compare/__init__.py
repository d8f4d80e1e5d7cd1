"""Studies over activations and seeds: profiling, statistics, tables and plots."""
