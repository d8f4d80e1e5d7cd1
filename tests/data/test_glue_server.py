import dataclasses

import numpy as np
import pytest

from lma_hf.data.glue import GLUE_TASKS, get_task
from lma_hf.data.glue_server import SERVER_FILES, check_server_files, to_server_format, write_server_file
from lma_hf.errors import OutputDirError

# the names on gluebenchmark.com; the format below is that of its sample submission
NAMES = "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm QNLI RTE WNLI AX"


def test_every_task_has_its_official_files():
    assert list(SERVER_FILES) == list(GLUE_TASKS)
    assert sorted(file.name for files in SERVER_FILES.values() for file in files) == sorted(
        f"{name}.tsv" for name in NAMES.split()
    )


@pytest.mark.parametrize(
    ("task_name", "expected"),
    [
        ("cola", "0 1"),
        ("sst2", "0 1"),
        ("mrpc", "0 1"),
        ("qqp", "0 1"),
        ("wnli", "0 1"),
        ("qnli", "entailment not_entailment"),
        ("rte", "entailment not_entailment"),
        ("mnli", "entailment neutral contradiction"),
    ],
)
def test_classes_are_what_the_server_reads(task_name, expected):
    task, words = get_task(task_name), expected.split()
    assert to_server_format(task, np.arange(len(words))) == words
    # a dataset may have GLUE's classes in another order
    turned = dataclasses.replace(task, label_names=task.label_names[::-1])
    assert to_server_format(turned, np.arange(len(words))) == words[::-1]


def test_scores_are_clipped_and_have_three_decimals():
    scores = np.array([-0.3, -0.0, 0.00049, 2.71828, 4.99951, 7.5], dtype=np.float32)
    assert to_server_format(get_task("stsb"), scores) == ["0.000", "0.000", "0.000", "2.718", "5.000", "5.000"]


def test_file_is_byte_for_byte_what_the_server_expects(tmp_path):
    path = tmp_path / "new" / "folder" / "RTE.tsv"
    write_server_file(path, ["entailment", "not_entailment"])
    assert path.read_bytes() == b"index\tprediction\n0\tentailment\n1\tnot_entailment\n"
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_overwritten(tmp_path):
    check_server_files(tmp_path / "absent", "mnli")
    (tmp_path / "RTE.tsv").write_text("mine")
    check_server_files(tmp_path, "mnli")
    with pytest.raises(OutputDirError, match=r"RTE\.tsv already"):
        check_server_files(tmp_path, "rte")
    with pytest.raises(OutputDirError, match="is a file"):
        check_server_files(tmp_path / "RTE.tsv", "rte")
    with pytest.raises(OutputDirError, match="cannot be written"):
        write_server_file(tmp_path / "RTE.tsv" / "WNLI.tsv", ["0"])
