import string
from pathlib import Path

import pytest
from transformers import BertTokenizerFast

REPO = Path(__file__).resolve().parent.parent
WORDS = """
the a an and or but not no of to in on at for with from by as is are was were be been it its this that these those he
she they we you i his her their our my who what which when where why how all some any more most very too so good bad
great best worst funny boring film movie story actor plot scene character time year day man woman people city company
market bank price share percent million water food house car dog cat book music game world life work say said says go
went make made take took see saw come came know think give find tell can could will would should may one two three four
five six seven eight nine ten first last new old big small long short high low same other only just
"""
PIECES = ["##s", "##ed", "##ing", "##ly", "##er", "##est", "##tion", "##ness", "##al", "##able"]


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """Folder of the local GLUE copy beside the repository; tests that need it are skipped where it is absent."""
    folder = REPO.parent / "shared" / "glue"
    if not folder.is_dir():
        pytest.skip("no local GLUE copy beside the repository (../shared/glue)")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> BertTokenizerFast:
    """Lower-casing WordPiece tokenizer that spells any printable ASCII text without [UNK]."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    vocabulary = dict.fromkeys([*vocabulary, *WORDS.split(), *PIECES])
    ids = {token: position for position, token in enumerate(vocabulary)}
    return BertTokenizerFast(vocab=ids, model_max_length=512)
