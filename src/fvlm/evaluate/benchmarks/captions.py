"""Scores of captions against captions that people wrote: CIDEr, BLEU-4 and ROUGE-L of the package pycocoevalcap.

This project does not install the package. Its tokenizer and METEOR need Java: here a regular expression finds the
words, and there is no METEOR.
"""

import re

from fvlm.errors import UserError

Scores = dict[str, tuple[float, list[float] | None]]


def check_package() -> None:
    """Raise UserError if pycocoevalcap is not installed."""
    try:
        import pycocoevalcap.cider.cider  # noqa: F401
    except ImportError as error:
        raise UserError(
            "benchmark captions needs the package pycocoevalcap (104 MB), which is not installed; "
            "pip install --no-deps pycocoevalcap"
        ) from error


def caption_scores(captions: list[str], references: list[tuple[str, ...]]) -> Scores:
    """Return measure -> score in per cent of all captions, and of each one; BLEU-4 has none of each one."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    written = {i: [_words(one) for one in several] for i, several in enumerate(references)}
    generated = {i: [_words(one)] for i, one in enumerate(captions)}
    cider, each_cider = Cider().compute_score(written, generated)
    rouge, each_rouge = Rouge().compute_score(written, generated)
    bleu, _ = Bleu(4).compute_score(written, generated, verbose=0)
    return {
        "cider": (100 * float(cider), [100 * float(one) for one in each_cider]),
        "bleu4": (100 * float(bleu[3]), None),
        "rouge_l": (100 * float(rouge), [100 * float(one) for one in each_rouge]),
    }


def _words(text: str) -> str:
    """Return lower-case words with single blanks, without punctuation."""
    return " ".join(re.findall(r"[\w']+", text.lower()))
