"""The commands of `lma-hf`, one file a verb."""
