"""Short conversations with something to learn in them: counting, order, sums, opposites, rhymes, colours."""

import numpy as np

OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "left": "right", "day": "night", "open": "closed",
    "full": "empty", "fast": "slow", "early": "late", "light": "dark", "happy": "sad", "wet": "dry",
    "old": "new", "top": "bottom",
}  # fmt: skip
RHYMES = {
    "cat": "hat", "dog": "log", "sun": "fun", "tree": "bee", "light": "night", "blue": "shoe", "red": "bed",
    "car": "star", "house": "mouse", "rain": "train", "ring": "king", "cake": "lake", "ball": "wall",
}  # fmt: skip
MIXES = {
    "blue and yellow": "green", "red and blue": "purple", "red and yellow": "orange", "red and white": "pink",
}  # fmt: skip
THINGS = {
    "grass": "green", "the sky": "blue", "a banana": "yellow", "a tomato": "red", "snow": "white",
    "coal": "black", "a lemon": "yellow", "a leaf": "green", "the sea": "blue",
}  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _numbers(values) -> str:
    return " ".join(str(value) for value in values)


def counting(rng: np.random.Generator) -> tuple[str, str]:
    start, length = int(rng.integers(0, 12)), int(rng.integers(4, 8))
    up = list(range(start, start + length))
    if rng.random() < 0.5:
        return f"Count from {up[0]} to {up[-1]}.", _numbers(up)
    return f"Count down from {up[-1]} to {up[0]}.", _numbers(up[::-1])


def sorting(rng: np.random.Generator) -> tuple[str, str]:
    values = rng.permutation(20)[: int(rng.integers(3, 6))].tolist()
    if rng.random() < 0.5:
        return f"Sort these numbers: {_numbers(values)}", _numbers(sorted(values))
    return f"Which is the largest: {_numbers(values)}?", str(max(values))


def arithmetic(rng: np.random.Generator) -> tuple[str, str]:
    a, b = int(rng.integers(0, 10)), int(rng.integers(0, 10))
    if rng.random() < 0.5:
        return f"What is {a} plus {b}?", str(a + b)
    return f"What is {max(a, b)} minus {min(a, b)}?", str(abs(a - b))


def words(rng: np.random.Generator) -> tuple[str, str]:
    table, question = [
        (OPPOSITES, "What is the opposite of {}?"),
        (RHYMES, "Name a word that rhymes with {}."),
        (MIXES, "Which colour do {} make?"),
        (THINGS, "What colour is {}?"),
    ][int(rng.integers(4))]
    word = str(rng.choice(list(table)))
    return question.format(word), table[word]


def days(rng: np.random.Generator) -> tuple[str, str]:
    i = int(rng.integers(7))
    if rng.random() < 0.5:
        return f"Which day comes after {DAYS[i]}?", DAYS[(i + 1) % 7]
    return f"Which day comes before {DAYS[i]}?", DAYS[i - 1]


TASKS = (counting, sorting, arithmetic, words, days)


def conversation(rng: np.random.Generator) -> list[dict[str, str]]:
    """One to three questions with their answers, as messages."""
    messages = []
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        question, answer = TASKS[int(rng.integers(len(TASKS)))](rng)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages
