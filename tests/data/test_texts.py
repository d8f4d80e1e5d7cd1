"""Splits to predict on: labels are not looked at, rows carry their number."""

import json

import pytest

from lma_hf.data.glue import custom_task
from lma_hf.data.sources import load_texts
from lma_hf.errors import DataError

MINE = custom_task("mine", ["text"], "label")


def write(folder, rows):
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("labels", [{}, {"label": -1}, {"label": None}, {"label": "nonsense"}])
def test_any_labels_and_none(tmp_path, labels):
    write(tmp_path, [{"text": text, **labels} for text in ("c", "a", "b")])
    rows = load_texts(str(tmp_path), MINE, "test")
    assert rows.to_list() == [{"text": text, "label": index} for index, text in enumerate("cab")]


def test_absent_splits_are_left_out_and_bad_ones_are_not(tmp_path, caplog):
    write(tmp_path, [{"text": None}])
    assert load_texts(str(tmp_path), MINE, "tset") is None
    assert "no split 'tset'" in caplog.text
    assert load_texts(str(tmp_path / "nowhere"), MINE, "test") is None
    assert "nowhere" in caplog.text
    with pytest.raises(DataError, match="missing texts in column 'text'"):
        load_texts(str(tmp_path), MINE, "test")
    write(tmp_path, [{"txt": "a"}])
    with pytest.raises(DataError, match="no column 'text'"):
        load_texts(str(tmp_path), MINE, "test")
