"""The one training loop on Accelerate, with its configuration, optimizer and saved models."""
