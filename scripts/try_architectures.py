"""Write docs/architectures.md: which transformers architectures the swap works for (a quarter of a minute).

python scripts/try_architectures.py
"""

from pathlib import Path

from transformers.utils import logging

import lma_hf  # noqa: F401 (adds our activations to transformers)
from lma_hf.compare.architectures import architectures_page, try_all

if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    page = Path(__file__).resolve().parent.parent / "docs" / "architectures.md"
    page.write_text(architectures_page(try_all()), encoding="utf-8")
    print(f"wrote {page}")
