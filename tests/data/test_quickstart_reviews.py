import bz2

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lma_hf.data import quickstart
from lma_hf.data.quickstart import load_reviews, write_reviews
from lma_hf.errors import DataError


def csv_of(rows: list[tuple[str, str, str]]) -> str:
    return "category,text,movie_name\n" + "".join(f'{category},"{text}",{film}\n' for category, text, film in rows)


def many_films(count: int = 40) -> list[tuple[str, str, str]]:
    return [(verdict, f"{verdict} {film}", f"film_{film}") for film in range(count) for verdict in ("fresh", "rotten")]


def test_unusable_rows_are_dropped(tmp_path):
    rows = [*many_films(), ("plot", "a plot", "film_0"), ("fresh", "", "film_0"), ("fresh", " ", "film_1")]
    rows += [("fresh", "twice", "film_2"), ("fresh", "twice ", "film_3"), ("fresh", "null", "null")]
    rows += [("fresh", "torn", "film_4"), ("rotten", "torn", "film_5")]
    path = tmp_path / "reviews.csv.bz2"
    path.write_bytes(bz2.compress(csv_of(rows).encode()))
    texts = [text for split in load_reviews(path).values() for text in split["text"]]
    assert sorted(texts) == sorted([text for _, text, _ in many_films()] + ["twice", "null"])


def test_splits_have_the_promised_columns_sizes_and_labels(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text(csv_of(many_films(40)))
    splits = load_reviews(path)
    assert {name: len(split) for name, split in splits.items()} == {"train": 56, "validation": 12, "test": 12}
    for split in splits.values():
        assert split.features["label"].names == ["rotten", "fresh"]
        assert [text.split()[0] for text in split["text"]] == split.features["label"].int2str(split["label"])


@settings(max_examples=40, deadline=None)
@given(st.sets(st.text(st.characters(codec="utf-8")), min_size=6), st.randoms())
def test_films_are_split_without_overlap_whatever_their_order(films, random):
    splits = quickstart._split_films(films)
    assert sorted(film for split in splits.values() for film in split) == sorted(films)
    assert all(splits.values())
    assert quickstart._split_films(random.sample(sorted(films), len(films))) == splits


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (csv_of(many_films(5)), "reviews of 5 films, needs at least 6"),
        ("text,label\nfine,1\n", "is not the review corpus: Usecols do not match"),
        ("", "is not the review corpus: No columns"),
    ],
)
def test_unusable_corpus(tmp_path, content, complaint):
    path = tmp_path / "reviews.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=complaint) as caught:
        load_reviews(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [b"no bzip2 at all", bz2.compress(csv_of(many_films()).encode())[:-20]])
def test_truncated_corpus(tmp_path, packed):
    path = tmp_path / "reviews.csv.bz2"
    path.write_bytes(packed)
    with pytest.raises(DataError, match="is not the review corpus"):
        load_reviews(path)


def test_written_splits_read_back(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text(csv_of(many_films()))
    splits = load_reviews(path)
    write_reviews(splits, tmp_path / "data")
    for name, split in splits.items():
        again = datasets.Dataset.from_parquet(
            str(tmp_path / "data" / f"{name}.parquet"), cache_dir=str(tmp_path / "hf")
        )
        assert again.features == split.features
        assert again.to_dict() == split.to_dict()
