"""Which option a generated answer names: by its letter, or by its text.

An answer that names no option, or two, chooses none: it counts as wrong and is counted as unread.
"""

import re

from fvlm.data.readers.questions import LETTERS

# "B", "(B)", "b.", "**B**", "B)": a letter and punctuation, and nothing else
ALONE = re.compile(r"\W*([a-z])\W*", re.IGNORECASE)
# "B. a dog", "(b) a dog": a letter that punctuation makes a mark, at the start of a line
MARK = re.compile(r"^\W*?(?:\(([a-z])\)|([a-z])[.):](?=\s|$))", re.IGNORECASE | re.MULTILINE)
# "(B)" anywhere
BRACKETED = re.compile(r"\(([a-z])\)", re.IGNORECASE)
# "Answer: B", "the answer is (b)", "option B": a word that announces a letter; "the answer is a dog" is no letter
ANNOUNCED = re.compile(
    r"\b(?:answer|option|choice)s?\b(?:\s+is|\s+would\s+be)?[\s:(\"'*]*"
    r"([a-z])(?![\w'])(?=[)\"'*]*(?:[.,:;!?\])]|\s*$|\s+(?:is|because|since|as)\b))",
    re.IGNORECASE | re.MULTILINE,
)
# "B because ...", "B or C": a capital that is no word of its own; "A" is one, but not in "A is ..."
CAPITAL = re.compile(
    r"(?<![\w'.])([B-HJ-Z])(?![\w'.])|(?<![\w'.])([B-HJ-Z])(?=\.(?:\s|$))|(?<![\w'.])(A)(?=\s+(?:is|because|since)\b)"
)

# "A and B", "A, B", "A/B": two of them
SEVERAL = re.compile(r"(?<![\w'])([A-Z])\s*(?:,|/|&|\band\b|\bor\b)\s*([A-Z])(?![\w'])")


def chosen_option(answer: str, options: tuple[str, ...]) -> int | None:
    """Return the position of the one option that an answer names, or None."""
    by_text = _as_words(answer)
    exact = [i for i, option in enumerate(options) if _as_words(option) == by_text and by_text]
    alone = ALONE.fullmatch(answer.strip())
    if alone and 0 <= (place := LETTERS.find(alone[1].upper())) < len(options):
        return place
    if len(exact) == 1:
        return exact[0]
    letters = _letters(answer, len(options))
    if len(letters) > 1:
        return None
    named = _named(by_text, options)
    if letters:
        (place,) = letters
        return place if not named or place in named else None
    return named[0] if len(named) == 1 else None


def _letters(answer: str, count: int) -> set[int]:
    """Return the places of all options whose letter an answer names."""
    found = set()
    for pattern in (MARK, BRACKETED, ANNOUNCED, CAPITAL, SEVERAL):
        for match in pattern.finditer(answer):
            found |= {LETTERS.find(letter.upper()) for letter in match.groups() if letter}
    return {place for place in found if 0 <= place < count}  # without case, [a-z] matches a dotted capital I too


def _named(answer: str, options: tuple[str, ...]) -> list[int]:
    """Return the options whose words are in an answer, without those that are part of a longer one there."""
    words = {i: _as_words(option) for i, option in enumerate(options)}
    inside = [i for i, text in words.items() if text and f" {text} " in f" {answer} "]
    return [i for i in inside if not any(i != j and f" {words[i]} " in f" {words[j]} " for j in inside)]


def _as_words(text: str) -> str:
    """Return lower-case words with single blanks, without punctuation."""
    return " ".join(re.findall(r"[\w']+", text.casefold()))
