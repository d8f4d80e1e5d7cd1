"""Records that go to the hub say nothing about the machine they were written on."""

import json

import pytest
import yaml

from lma_hf.hub.public_records import without_paths, write_public_records


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/someone/runs/teacher", "teacher"),
        ("/home/someone/my runs/the teacher/", "the teacher"),
        ("~/runs/teacher", "teacher"),
        ("../teacher", "teacher"),
        ("./teacher", "teacher"),
        ("runs/rte/teacher", "teacher"),
        ("/", "."),
        (r"C:\Users\someone\teacher", "teacher"),
        ("file:///home/someone/teacher", "teacher"),
        ("saved to /home/someone/x.pt, and to '/tmp/y/z.pt'", "saved to x.pt, and to 'z.pt'"),
        # what is no local path stays
        ("nyu-mll/glue", "nyu-mll/glue"),
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        ("https://huggingface.co/nyu-mll/glue", "https://huggingface.co/nyu-mll/glue"),
        ("see https://huggingface.co/nyu-mll/glue/tree", "see https://huggingface.co/nyu-mll/glue/tree"),
        ("AMD EPYC 7B13 w/ AVX2", "AMD EPYC 7B13 w/ AVX2"),
        ("", ""),
    ],
)
def test_paths_become_their_last_component(text, expected):
    assert without_paths(text) == expected
    assert without_paths({"a": [text, 1, None]}) == {"a": [expected, 1, None]}


def test_a_folder_that_is_there_is_a_path_even_if_it_could_be_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    assert without_paths("runs/teacher") == "runs/teacher"
    monkeypatch.chdir(tmp_path)
    assert without_paths("runs/teacher") == "teacher"


def test_every_record_is_read_and_written(tmp_path):
    source, target = tmp_path / "run", tmp_path / "staged"
    source.mkdir()
    target.mkdir()
    (source / "results.json").write_text(json.dumps({"teacher": {"name": "/home/someone/t"}, "score": 0.5}))
    (source / "metrics.jsonl").write_text('{"step": 1}\n{"file": "/home/someone/x"}\n')
    header = "# lma-hf teach /home/some one/run_config.yaml --output_dir ANOTHER_FOLDER\n"
    (source / "run_config.yaml").write_text(header + "output_dir: /home/some one/run\nseed: 1\n")
    (source / "other.json").write_text("{}")
    write_public_records(source, target)
    assert sorted(path.name for path in target.iterdir()) == ["metrics.jsonl", "results.json", "run_config.yaml"]
    assert json.loads((target / "results.json").read_text()) == {"teacher": {"name": "t"}, "score": 0.5}
    assert (target / "metrics.jsonl").read_text() == '{"step": 1}\n{"file": "x"}\n'
    text = (target / "run_config.yaml").read_text()
    assert text.splitlines()[0] == "# lma-hf teach run_config.yaml --output_dir ANOTHER_FOLDER"
    assert yaml.safe_load(text) == {"output_dir": "run", "seed": 1}


def test_records_that_cannot_be_read(tmp_path):
    (tmp_path / "run_config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"run_config\.yaml is not YAML"):
        write_public_records(tmp_path, tmp_path)
