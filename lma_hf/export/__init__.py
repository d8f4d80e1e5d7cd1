"""Saved models as files that other runtimes run: ONNX, int8 ONNX and torch.export programs."""
