"""Loading torch and transformers: quietly, and without the collector that would walk all of them again and again."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Around the imports with which a command begins its work.

    Importing makes 640 000 objects that live as long as the process; looking through them for garbage meanwhile takes
    a fifth of the time, and once more later, so they are taken out of the collector's sight. A tokenizer's own threads
    would fight torch's over the cores, and progress bars of the libraries would tear the display. What loads
    policies imports transformers where it is used; here it is loaded beforehand.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    first, collecting = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM  # noqa: F401
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        yield
    finally:
        if first:
            gc.freeze()
        if collecting:
            gc.enable()
