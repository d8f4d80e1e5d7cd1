"""A tiny student and its ONNX folder."""

import pytest
from export.students import make_student

from lma_hf.export.folder import export_model


@pytest.fixture(scope="session")
def student(tiny_tokenizer):
    return make_student(vocab_size=len(tiny_tokenizer), max_position_embeddings=40)


@pytest.fixture(scope="session")
def exported(student, tiny_tokenizer, tmp_path_factory):
    """Folder of the student in ONNX and int8."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export_model(student, tiny_tokenizer, folder, quantize="int8", max_length=40)
    return folder
