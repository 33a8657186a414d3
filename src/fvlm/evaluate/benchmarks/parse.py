"""Which option a generated answer names: by its letter, or by its text.

An answer that names no option, or two, chooses none: it counts as wrong and is counted as unread. A clause that denies
something, such as "it is not B", names no option, unless the option itself denies it: "There is no dog".
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

# "The answer is not B", "B is wrong", "neither A nor B": a clause with one of these, in the form of `_as_words`
DENIAL = re.compile(
    r"\b(?:not?|none|never|neither|nor|cannot|\w+n't|(?:is|are) (?:incorrect|wrong|false)|instead of|rather than)\b"
)
# Where a clause ends: at punctuation, but for "(B) is ..."; before "because", "rather than", ...; at "and not"
CLAUSE = re.compile(
    r"([.,:;!?\n]+|\)(?!\s+(?:(?:is|are|was|can|could|does|would|cannot)\b|\w+n't))|\s-+\s|\band\b(?=\s+not\b)"
    r"|\b(?=(?:because|since|as|so|but|while|instead of|rather than)\b))",
    re.IGNORECASE,
)


def chosen_option(answer: str, options: tuple[str, ...]) -> int | None:
    """Return the position of the one option that an answer names, or None."""
    answer = answer.strip().replace("\u2019", "'")
    same = [i for i, option in enumerate(options) if option.strip() == answer]  # words alone do not tell 1 from -1
    exact = same or [i for i, option in enumerate(options) if _as_words(option) == _as_words(answer) != ""]
    answer = _without_denials(answer, options)
    alone = ALONE.fullmatch(answer)
    if alone and 0 <= (place := LETTERS.find(alone[1].upper())) < len(options):
        return place
    if len(exact) == 1:
        return exact[0]
    letters = _letters(answer, len(options))
    if len(letters) > 1:
        return None
    named = _named(_as_words(answer), options)
    if letters:
        (place,) = letters
        return place if not named or place in named else None
    return named[0] if len(named) == 1 else None


def _without_denials(answer: str, options: tuple[str, ...]) -> str:
    """Return an answer without its clauses that deny something; a denial in the words of an option stays."""
    denials = [text for text in map(_as_words, options) if DENIAL.search(text)]
    first, *rest = CLAUSE.split(answer)
    kept = ""
    for end, clause in zip(["", *rest[::2]], [first, *rest[1::2]], strict=True):
        words = f" {_as_words(clause)} "
        for text in denials:
            words = words.replace(f" {text} ", "  ")
        kept += "" if DENIAL.search(words) else end + clause
    return kept.strip()


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
