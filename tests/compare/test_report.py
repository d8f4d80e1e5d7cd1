"""The report of made-up studies: what it says must follow from the cells, and it needs nothing but itself."""

import csv
import json
import re
import sys
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from helpers import padded_batch, tiny_model
from study_cells import made_up_cell, made_up_study

import lma_hf
from lma_hf.cli.__main__ import main
from lma_hf.compare.cells import read_results, write_table
from lma_hf.compare.report import write
from lma_hf.compare.report.figures import COLOURS, colours_of, legend, panels, to_svg
from lma_hf.compare.report.learned_pictures import learned_pictures
from lma_hf.compare.report.learning_pictures import read_curves
from lma_hf.compare.report.score_pictures import cost_picture, pareto_front, seed_picture
from lma_hf.compare.report.words import missing_words, verdict
from lma_hf.compare.report.write import write_report
from lma_hf.compare.study import COLUMNS
from lma_hf.compare.study_statistics import AVERAGE, Study, compare_to_baseline, summarise
from lma_hf.errors import ConfigError, DataError

TASKS, SEEDS = ["cola", "rte"], [1, 2, 3, 4, 5]
GAINS = {"gelu": 0.0, "relu": -0.05, "lma <8>": 0.0}
MISSING = {("cola", "2layers", "lma <8>", 2)}
NO_LMA_ON_COLA = {("cola", "2layers", "lma", 1)}


class Tags(HTMLParser):
    """Every (tag, attributes) of a page, and its visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "grid"
    made_up_study(folder, TASKS, ["2layers"], GAINS, SEEDS, missing=MISSING)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(study_dir):
    return Tags((study_dir / "report" / "report.html").read_text(encoding="utf-8"))


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_are_the_statistics(study_dir):
    study = Study(read_results(study_dir))
    rows = read_csv(study_dir / "report" / "summary.csv")
    summaries = summarise(study)
    assert [float(row["mean"]) for row in rows] == pytest.approx([each.mean for each in summaries])
    assert {row["train_distill_loss"] != "" for row in rows} == {True}
    rows = read_csv(study_dir / "report" / "differences.csv")
    differences = compare_to_baseline(study, "gelu", 0.5)
    assert [(row["activation"], row["task"]) for row in rows] == [
        (each.variant.activation, each.task) for each in differences
    ]
    for name, column in (("mean", "mean"), ("p_t", "p_t"), ("p_sign_flip", "p_sign_flip")):
        expected = [getattr(each.result, name) for each in differences]
        assert [float(row[column]) for row in rows] == pytest.approx(expected)
    assert [row["seeds"] for row in rows if row["activation"] == "lma <8>"] == [
        "1 3 4 5",
        "1 2 3 4 5",
        "1 3 4 5",
    ]


def test_page_and_markdown_say_every_verdict(study_dir, page):
    text = "".join(page.words)
    markdown = (study_dir / "report" / "report.md").read_text(encoding="utf-8")
    differences = compare_to_baseline(Study(read_results(study_dir)), "gelu", 0.5)
    for difference in (each for each in differences if each.task == AVERAGE):
        assert verdict(difference, 0.5) in text
        assert verdict(difference, 0.5) in markdown
    for said in (text, markdown):
        assert "2layers lma <8> on CoLA: seed 2" in said
        assert "is at least 0.125 with 4 seeds and 0.0625 with 5 seeds, which Holm's correction" in said


def test_page_needs_nothing_but_itself(page):
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    links = [attributes[key] for _, attributes in page.tags for key in ("src", "href") if key in attributes]
    assert links
    assert all(link.startswith(("data:image/svg+xml;base64,", "#")) for link in links)
    for link in (link for link in links if link.startswith("data:")):
        picture = b64decode(link.partition(",")[2]).decode()
        assert ElementTree.fromstring(picture).tag.endswith("svg")
        assert not re.search(r'href="(?!#)', picture)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_markdown_shows_the_images_that_are_there(study_dir):
    folder = study_dir / "report"
    shown = re.findall(r"\]\((images/.*?)\)", (folder / "report.md").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(str(path.relative_to(folder)) for path in (folder / "images").iterdir())
    names = {path.removeprefix("images/").removesuffix(".svg") for path in shown}
    assert names == {"differences-1", "seeds-1", "learning-1", "cost"}


def test_same_report_again_in_place_of_the_first(study_dir):
    def contents():
        files = (path for path in (study_dir / "report").rglob("*") if path.is_file())
        return {path.relative_to(study_dir): path.read_bytes() for path in files}

    before = contents()
    assert main(["report", "--study_dir", str(study_dir)]) == 0
    assert contents() == before
    assert sorted(path.name for path in study_dir.iterdir()) == ["cells", "report"]


def test_learned_activations_are_drawn_where_weights_are_left(tmp_path):
    made_up_study(tmp_path, ["rte"], ["2layers"], GAINS, [1, 2])
    model = tiny_model("bert", num_layers=2)
    lma_hf.swap_activations_(model, lma_hf.LMAConfig(init="fit", per_channel=True))
    lma_hf.calibrate_(model, [padded_batch(model, [9, 20, 30])])
    cell = tmp_path / "cells" / "rte" / "2layers" / "lma <8>" / "seed-2"
    model.save_pretrained(cell)
    (cell / "run_config.yaml").write_text(f"task_name: rte\ndataset: {tmp_path / 'gone'}\nnum_layers: 2\n")
    pictures = {each.name: each for each in learned_pictures(Study(read_results(tmp_path)))}
    assert list(pictures) == ["activations-1", "movement"]
    assert pictures["activations-1"].title == "Learned activations: 2layers lma <8>"
    assert pictures["activations-1"].caption.startswith("RTE, seed 2. The data is not at hand")


def test_a_baseline_that_has_not_run_yet_leaves_the_rest_of_the_report(tmp_path):
    made_up_study(tmp_path, ["rte"], ["2layers"], {"relu": 0.0}, [1, 2])
    plan = {"tasks": {"rte": None}, "students": {"2layers": None}, "activations": {"gelu": None, "relu": None}}
    (tmp_path / "study.yaml").write_text(json.dumps({**plan, "seeds": [1, 2]}))
    text = (write_report(tmp_path) / "report.md").read_text(encoding="utf-8")
    assert "Nothing shares its tasks and a seed with gelu." in text
    assert "| relu |" in text


def test_tasks_that_lack_the_same_seeds_are_one_line(tmp_path):
    missing = {(task, "2layers", "lma", seed) for task in TASKS for seed in (1, 3)}
    missing.add(("rte", "2layers", "gelu", 2))
    made_up_study(tmp_path, TASKS, ["2layers"], {"gelu": 0.0, "lma": 0.0}, [1, 2, 3], missing=missing)
    lines = missing_words(Study(read_results(tmp_path)))
    assert lines == ["2layers gelu on RTE: seed 2", "2layers lma on CoLA and RTE: seeds 1 and 3"]


def test_steps_that_were_left_out_are_no_points_of_a_curve(tmp_path):
    made_up_study(tmp_path, ["rte"], ["2layers"], {"gelu": 0.0}, [1])
    file = next(tmp_path.rglob("metrics.jsonl"))
    null = re.sub(r'(?m)^(.*"step": 20,.*)"distill_loss": [^}]*', r'\1"distill_loss": null', file.read_text())
    file.write_text(null)
    (result,) = read_results(tmp_path)
    assert 20 not in read_curves(result)[0]
    write_report(tmp_path)


def test_two_who_write_a_report_at_once_both_succeed(study_dir, monkeypatch):
    monkeypatch.setattr(write, "draw_pictures", lambda *_: [])
    (study_dir / ".report-killed").mkdir()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(write_report, [study_dir] * 8)) == {study_dir / "report"}
    assert sorted(path.name for path in study_dir.iterdir()) == ["cells", "report"]


def test_costs_that_hardly_differ_are_drawn_on_an_axis_that_can_be_read(tmp_path):
    gains = {"gelu": 0, "relu": 0, "lma": 0}
    made_up_study(tmp_path, ["cola", "rte"], ["2layers"], gains, [1], missing=NO_LMA_ON_COLA)
    study = Study(read_results(tmp_path))
    averages = [replace(each, size_mb=55.38 + 1e-3 * index) for index, each in enumerate(summarise(study))]
    picture = cost_picture(averages, colours_of(gains), left_out=1)
    labels = re.findall("<!-- ([0-9.+e]+) -->", picture.svg)
    assert labels
    assert not any("+" in label for label in labels)
    assert picture.caption.endswith("Left out: 1 that have not run on all tasks.")
    drawn = {each.name: each.caption for each in write.draw_pictures(study, summarise(study), {})}
    assert "Left out: 1 " in drawn["cost"]


def test_a_variant_has_one_colour_in_all_pictures_also_where_another_is_left_out(tmp_path):
    gains = {"gelu": 0, "relu": 0, "lma": 0}
    made_up_study(tmp_path, ["cola", "rte"], ["2layers"], gains, [1], missing={("rte", "2layers", "gelu", 1)})
    study = Study(read_results(tmp_path))
    drawn = {each.name: each.svg for each in write.draw_pictures(study, summarise(study), {})}
    used = {name: [colour for colour in COLOURS[:3] if colour.lower() in svg] for name, svg in drawn.items()}
    assert used == {"seeds-1": list(COLOURS[:3]), "learning-1": list(COLOURS[:3]), "cost": list(COLOURS[1:3])}


def test_many_variants_have_room_for_their_names(tmp_path):
    gains = {f"activation{n}": 0.0 for n in range(40)}
    made_up_study(tmp_path, ["cola", "rte"], ["2layers"], gains, [1])
    svg = seed_picture(Study(read_results(tmp_path)), "2layers", 1, colours_of(gains)).svg
    width = float(re.search(r'width="([0-9.]+)pt"', svg)[1])
    assert width / 40 > 10  # points, for letters of 8


def test_every_column_of_the_tables_is_a_name_that_an_axis_cannot_have(study_dir):
    write_table(study_dir)
    files = ("cells.csv", "report/summary.csv", "report/differences.csv")
    columns = {name for file in files for name in read_csv(study_dir / file)[0]}
    metrics = {"matthews_correlation", "accuracy"}
    assert {name for name in columns - metrics if not re.match("train_.*loss|seeds_for_", name)} <= COLUMNS
    (study_dir / "cells.csv").unlink()


def test_without_matplotlib_the_tables_are_there(study_dir, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = write_report(study_dir, baselines=["relu", "gelu"])
    assert "pip install 'lma_hf[plots]'" in caplog.text
    assert not list((folder / "images").iterdir())
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "## Pictures" not in text
    assert "2layers, against relu" in text
    assert "2layers, against gelu" in text


def verdict_of(differences, *, gain=0.0, others=0):
    """The verdict on one task of a baseline against scores that differ by the points given, a seed each."""
    cells = [made_up_cell(activation="gelu", seed=seed, score=0.5) for seed in range(len(differences))]
    for name in ["lma", *(f"other{number}" for number in range(others))]:
        cells += [
            made_up_cell(activation=name, seed=seed, score=0.5 + (points + gain) / 100)
            for seed, points in enumerate(differences)
        ]
    return verdict(compare_to_baseline(Study(cells), "gelu", 0.5)[-1 - others], 0.5)


def test_verdicts():
    noise = [0.3, 0.5, -0.1, 0.8, 0.2]
    assert verdict_of(noise) == (
        "lma minus gelu (1 task, 5 seeds): +0.34 points, 95 % interval [-0.08, 0.76], p = 0.087 (sign-flip 0.125): "
        "no evidence of a difference. To find 0.5 points it would take 6 seeds."
    )
    assert verdict_of(noise, gain=5).endswith("p < 0.001 (sign-flip 0.062): evidence that it is better.")
    assert verdict_of(noise, gain=-5).endswith("evidence that it is worse.")
    small = [value / 10 for value in noise]
    assert verdict_of(small).endswith("no evidence of a difference. 0.5 points would probably have been found.")
    assert "not after Holm's correction over 20 (p = " in verdict_of(noise, gain=0.3, others=19)
    assert verdict_of([0.3]).endswith("+0.30 points: one seed says nothing about chance.")
    assert "leaves nothing to judge chance by" in verdict_of([0.3, 0.3])


def test_pareto_front():
    points = [(3, 70), (1, 60), (2, 65), (2, 66), (2.5, 66), (4, 69)]
    assert pareto_front(points) == ([1, 2, 3], [60, 66, 70])


def test_bad_input(study_dir, tmp_path, capsys):
    with pytest.raises(DataError, match="no finished cell"):
        write_report(tmp_path)
    with pytest.raises(ConfigError, match="has the activation gelu, lma <8>, relu"):
        write_report(study_dir, baselines=["swish"])
    assert main(["report", "--study_dir", str(study_dir), "--wanted_difference", "0"]) == 2
    assert main(["report", "--study_dir", str(study_dir), "--baselines", "gelu", "gelu"]) == 2
    assert "each once" in capsys.readouterr().err


@pytest.mark.parametrize("variants", [1, 9, 60])
def test_a_legend_of_any_length_leaves_room_for_the_axes(variants):
    figure, ((axes,),) = panels(1)
    for number in range(variants):
        axes.plot([0, 1], [0, number], label=f"lma8_per_channel (lr=middle) {number}")
    legend(figure, axes)
    to_svg(figure)  # matplotlib warns, which is an error in tests, where axes have no room
    inches = axes.get_position().height * figure.get_figheight()
    assert inches > 1.5
