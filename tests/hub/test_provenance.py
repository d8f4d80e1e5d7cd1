"""What a model inherits along the chain it was made from; nothing is guessed."""

import json

import huggingface_hub
import pytest

from lma_hf.errors import ConfigError
from lma_hf.hub.provenance import Provenance, inherit

CARD = "---\nlicense: mit\nlanguage: en\nbase_model: owner/base\n---\n# Model\n"


def make_run(folder, card=None, **results):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    if card:
        (folder / "README.md").write_text(card)
    return folder


@pytest.fixture
def downloads(in_process, tmp_path, monkeypatch):
    """The hub, for this process's downloads as well, with an empty cache."""
    template = in_process.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return in_process


@pytest.fixture
def chain(tmp_path):
    """A student of a local teacher that was made from a local pretrained model, which has a card."""
    base = make_run(tmp_path / "pretrained", "---\nlicense: apache-2.0\nlanguage: en\n---\n")
    teacher = make_run(tmp_path / "teacher", model=str(base))
    return make_run(tmp_path / "student", teacher={"name": str(teacher)})


def test_licence_of_the_model_that_the_teacher_was_made_from(chain):
    source = "the model that the teacher was made from"
    assert inherit(chain) == Provenance(license="apache-2.0", language="en", source=source)


def test_the_teacher_comes_first(chain, tmp_path):
    (tmp_path / "teacher" / "README.md").write_text(CARD)
    expected = Provenance(license="mit", base_model="owner/base", language="en", source="the teacher")
    assert inherit(chain) == expected


def test_arguments_override(chain):
    given = inherit(chain, license="bsd-3-clause", base_model="me/mine")
    assert (given.license, given.base_model) == ("bsd-3-clause", "me/mine")
    assert given.source == "the person who published it"


def test_another_licence_keeps_its_name_and_link(chain, tmp_path):
    card = "---\nlicense: other\nlicense_name: mine\nlicense_link: https://example.com\n---\n"
    (tmp_path / "teacher" / "README.md").write_text(card)
    found = inherit(chain)
    assert (found.license, found.license_name, found.license_link) == ("other", "mine", "https://example.com")


def test_what_nobody_says_stays_unknown(tmp_path):
    run = make_run(tmp_path / "student", teacher={"name": str(tmp_path / "gone")})
    assert inherit(run, ask_hub=False) == Provenance()
    assert inherit(make_run(tmp_path / "bare"), ask_hub=False) == Provenance()


def test_base_model_and_licence_from_the_hub(downloads, tmp_path):
    downloads.add_repo("owner/teacher", {"README.md": CARD.encode()})
    run = make_run(tmp_path / "student", teacher={"name": "owner/teacher"})
    found = inherit(run)
    assert (found.license, found.base_model, found.language) == ("mit", "owner/teacher", "en")


def test_model_without_a_card_on_the_hub(downloads, tmp_path):
    downloads.add_repo("owner/bare", {"config.json": b"{}"})
    run = make_run(tmp_path / "student", teacher={"name": "owner/bare"})
    assert inherit(run) == Provenance(base_model="owner/bare")


def test_the_hub_is_not_asked_for_what_is_known(downloads, tmp_path):
    run = make_run(tmp_path / "student", teacher={"name": "owner/missing"})
    assert inherit(run, license="mit", base_model="owner/base").base_model == "owner/base"
    inherit(run, ask_hub=False)
    assert downloads.requests == []
    # a relative path looks like a hub id once its folder is gone
    for given in ({}, {"license": "mit"}):
        with pytest.raises(ConfigError, match=r"'owner/missing'.*pass --license and --base_model"):
            inherit(run, **given)


def test_unreadable_card_is_one_line(chain, tmp_path):
    (tmp_path / "teacher" / "README.md").write_text("---\n- a\n- list\n---\n")
    with pytest.raises(ConfigError, match=r"metadata of .*README.md cannot be read") as error:
        inherit(chain)
    assert "\n" not in str(error.value)


def test_circle_ends(tmp_path):
    run = make_run(tmp_path / "model", model=str(tmp_path / "model"))
    assert inherit(run) == Provenance()
