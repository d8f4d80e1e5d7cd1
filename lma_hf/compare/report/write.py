"""`write_report`: a study's tables as CSV, and a report for people as Markdown and as one HTML file."""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lma_hf.compare.cells import read_results
from lma_hf.compare.report import tables
from lma_hf.compare.report.figures import Picture, colours_of
from lma_hf.compare.report.words import missing_words, notes
from lma_hf.compare.study_plan import read_plan
from lma_hf.compare.study_statistics import AVERAGE, Difference, Study, Summary, compare_to_baseline, summarise
from lma_hf.errors import DataError
from lma_hf.hub.card_words import listing

logger = logging.getLogger(__name__)

REPORT, SCRATCH = "report", ".report-"
WANTED = 0.5
Compared = Mapping[str, Sequence[Difference]]


def write_report(study_dir: str | Path, *, baselines: Sequence[str] | None = None, wanted: float = WANTED) -> Path:
    """Write the report of a study's finished cells into its folder `report`, in place of an earlier one.

    That is report.html (one file, works offline), report.md with images/, summary.csv and differences.csv.

    Args:
        study_dir: folder of `lma-hf compare`.
        baselines: what the variants are compared with, each an activation of the study or an axis as NAME=VALUE;
            unset: the study's own.
        wanted: a difference, in points; the report says how many seeds it needs.
    Returns: the folder. Raises: ConfigError for a baseline that the study lacks; DataError where it has no cell.
    """
    study_dir = Path(study_dir).expanduser()
    results = read_results(study_dir)
    if not results:
        raise DataError(f"{study_dir} holds no finished cell of a study; give the folder of `lma-hf compare`")
    study = Study(results, read_plan(study_dir))
    summaries = summarise(study)
    compared = _compare(study, baselines, wanted)
    pictures = draw_pictures(study, summaries, compared)
    context = report_context(study, summaries, compared, wanted, title=study_dir.resolve().name)
    with _alone(study_dir), tempfile.TemporaryDirectory(dir=study_dir, prefix=SCRATCH) as scratch:
        folder = Path(scratch) / REPORT
        _write_files(folder, context, pictures)
        tables.write_rows([tables.summary_row(each) for each in summaries], folder / "summary.csv")
        differences = [each for some in compared.values() for each in some]
        tables.write_rows([tables.difference_row(each, wanted) for each in differences], folder / "differences.csv")
        shutil.rmtree(study_dir / REPORT, ignore_errors=True)
        os.replace(folder, study_dir / REPORT)
    return study_dir / REPORT


def _compare(study: Study, baselines: Sequence[str] | None, wanted: float) -> Compared:
    """Baseline -> differences; the study's own may have no finished cell yet, one that is asked for must have."""
    own = study.plan.baseline
    if not baselines and all(variant.activation != own for variant in study.cells):
        return {own: []}
    return {baseline: compare_to_baseline(study, baseline, wanted) for baseline in baselines or [own]}


@contextlib.contextmanager
def _alone(study_dir: Path) -> Iterator[None]:
    """Hold a lock of the folder: processes that run one study end at the same moment. Drop what killed ones left."""
    descriptor = os.open(study_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for leftover in study_dir.glob(f"{SCRATCH}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def draw_pictures(study: Study, summaries: Sequence[Summary], compared: Compared) -> list[Picture]:
    """Every picture that the study has data for; none, with a warning, without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        logger.warning("the report has no pictures, which need matplotlib; run pip install 'lma_hf[plots]'")
        return []
    from lma_hf.compare.report.learned_pictures import learned_pictures
    from lma_hf.compare.report.learning_pictures import learning_picture
    from lma_hf.compare.report.score_pictures import cost_picture, difference_picture, seed_picture

    pictures = []
    for number, (baseline, differences) in enumerate(compared.items(), 1):
        averages = [each for each in differences if each.task == AVERAGE]
        pictures += [difference_picture(averages, baseline, number)] if averages else []
    numbered = list(enumerate(study.students, 1))
    colours = colours_of(variant.name for variant in study.cells)  # the same in every picture
    pictures += [seed_picture(study, student, number, colours) for number, student in numbered]
    pictures += [learning_picture(study, student, number, colours) for number, student in numbered]
    averages = [each for each in summaries if each.task == AVERAGE and list(each.tasks) == list(study.tasks)]
    pictures += [cost_picture(averages, colours, len(study.cells) - len(averages))] if averages else []
    return [*pictures, *learned_pictures(study)]


def report_context(
    study: Study,
    summaries: Sequence[Summary],
    compared: Compared,
    wanted: float,
    title: str,
) -> dict[str, Any]:
    """What the templates show."""
    averages = {name: [each for each in some if each.task == AVERAGE] for name, some in compared.items()}
    return {
        "title": title,
        "facts": _facts(study, compared),
        "missing": missing_words(study),
        "verdicts": {name: tables.verdict_entries(some, wanted) for name, some in averages.items()},
        "evidence": {name: tables.evidence_table(some, wanted) for name, some in averages.items() if some},
        "scores": [tables.score_table(study, student, summaries) for student in study.students],
        "differences": [
            table
            for baseline, some in compared.items()
            for table in (tables.difference_table(study, student, baseline, some) for student in study.students)
            if table.rows
        ],
        "notes": notes([each for some in compared.values() for each in some], wanted),
    }


def _facts(study: Study, compared: Compared) -> dict[str, str]:
    variants = list(dict.fromkeys(variant.name for variant in study.cells))
    return {
        "cells": f"{sum(1 for _ in study)} finished, {len(study.missing())} missing",
        "tasks": listing(study.tasks),
        "students": listing(study.students),
        "activations": listing(variants),
        "seeds": listing(study.seeds),
        "compared with": listing(compared),
    }


def _write_files(folder: Path, context: Mapping[str, Any], pictures: Sequence[Picture]) -> None:
    """report.html, report.md and the images that the latter shows."""
    environment = Environment(
        loader=PackageLoader("lma_hf.compare.report", "."),
        autoescape=lambda name: name.startswith("report.html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = lambda svg: "data:image/svg+xml;base64," + b64encode(svg.encode()).decode()
    (folder / "images").mkdir(parents=True)
    for picture in pictures:
        (folder / "images" / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
    for name in ("report.html", "report.md"):
        text = environment.get_template(f"{name}.j2").render(**context, pictures=pictures)
        (folder / name).write_text(text, encoding="utf-8")
