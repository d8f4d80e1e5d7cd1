"""All random number generators of a process, as one value that `torch.load(weights_only=True)` reads."""

import random

import numpy as np
import torch


def random_state(device, generator=None):
    """States of Python's, NumPy's and torch's generators, the device's included.

    Args: device: the process's torch.device. generator: one more torch.Generator, such as a sampler's.
    """
    kind, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": (kind, keys.tolist(), *rest), "torch": torch.get_rng_state()}
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    if generator is not None:
        state["generator"] = generator.get_state()
    return state


def set_random_state(state, device, generator=None):
    """Put every generator back to a value of `random_state`; what the value lacks is left alone."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"])
    if generator is not None and "generator" in state:
        generator.set_state(state["generator"])
