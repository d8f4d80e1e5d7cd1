"""Which teacher layer each student layer starts from and answers to."""

from lma_hf.errors import StudentError

LAYER_MAPS = ("uniform", "first", "last")


def resolve_layer_map(layer_map, num_layers, teacher_layers):
    """Teacher layer (0-based) of every student layer.

    Args:
        layer_map: "uniform" (evenly spread, ending at the teacher's last layer: 3 of 6 -> 1, 3, 5), "first", "last",
            or a list with one teacher layer for each student layer.
        num_layers, teacher_layers: depth of student and teacher.
    Returns: list of num_layers ints.
    Raises: StudentError if the teacher has no such layers.
    """
    if isinstance(num_layers, bool) or not isinstance(num_layers, int) or not 1 <= num_layers <= teacher_layers:
        raise StudentError(f"num_layers is {num_layers!r}, allowed are 1 to {teacher_layers}, the teacher's layers")
    if layer_map == "uniform":
        return [(i + 1) * teacher_layers // num_layers - 1 for i in range(num_layers)]
    if layer_map == "first":
        return list(range(num_layers))
    if layer_map == "last":
        return list(range(teacher_layers - num_layers, teacher_layers))
    if isinstance(layer_map, str):
        raise StudentError(f"layer_map is {layer_map!r}, allowed are {', '.join(LAYER_MAPS)} or a list of layers")
    layers = list(layer_map)
    if len(layers) != num_layers:
        raise StudentError(f"layer_map {layers} has {len(layers)} entries, the student has {num_layers} layers")
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < teacher_layers:
            raise StudentError(f"layer_map names layer {layer!r}, the teacher's layers are 0 to {teacher_layers - 1}")
    return layers
