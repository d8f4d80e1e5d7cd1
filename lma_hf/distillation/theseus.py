"""BERT-of-Theseus: student layers that stand in for groups of the teacher's layers, more and more often."""

import torch

from lma_hf.errors import ConfigError


class ModuleReplacement:
    """Progressive module replacement (BERT-of-Theseus, Xu et al. 2020, sections 3.1 and 3.2).

    While the student trains, each of its layers is used with probability `rate`; else the frozen teacher layers that
    it stands for compute in its place, on the same input. In evaluation the student is on its own.

    Args:
        student_layers, teacher_layers: the modules, in order; a teacher layer must take what a student layer takes.
        layer_map: teacher layer (0-based) of every student layer; the student layer stands for the teacher layers
            after the one before it, up to its own.
    Raises: ConfigError if the layers do not make up the whole teacher, or the layers' widths differ.
    """

    def __init__(self, student_layers, teacher_layers, layer_map):
        bounds = [-1, *layer_map]
        if (
            len(student_layers) != len(layer_map)
            or sorted(set(bounds)) != bounds
            or len(teacher_layers) - 1 != bounds[-1]
        ):
            raise ConfigError(
                f"layer_map is {list(layer_map)} over {len(teacher_layers)} teacher layers with their own weights; "
                "replacement_rate needs layers that rise and end with the teacher's last, such as layer_map uniform"
            )
        self.used = [True] * len(layer_map)
        for index, layer in enumerate(student_layers):
            group = list(teacher_layers[bounds[index] + 1 : bounds[index + 1] + 1])
            layer.register_forward_hook(_Replacement(self, index, group), with_kwargs=True)

    def draw(self, rate):
        """Decide which student layers the next forward pass uses.

        Once a pass, not in the hooks, since gradient checkpointing runs these twice.
        """
        self.used = (torch.rand(len(self.used)) < rate).tolist()


class _Replacement:
    """The forward hook of one student layer."""

    def __init__(self, replacement, index, teacher_layers):
        self.replacement, self.index, self.teacher_layers = replacement, index, teacher_layers

    def __call__(self, layer, args, kwargs, output):
        if not layer.training or self.replacement.used[self.index]:
            return output
        hidden = args[0]
        for teacher_layer in self.teacher_layers:
            hidden = _states(teacher_layer(hidden, *args[1:], **kwargs))
        # the student layer has a gradient of 0 rather than none, which DDP would wait for
        hidden = hidden + 0 * _states(output)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _states(output):
    return output[0] if isinstance(output, tuple) else output
