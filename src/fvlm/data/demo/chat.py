"""Short conversations of the demo: counting, opposites, colours of things."""

import numpy as np

OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "day": "night", "open": "closed", "full": "empty",
}  # fmt: skip
THINGS = {
    "grass": "green", "a leaf": "green", "the sky": "blue", "the sea": "blue", "a tomato": "red", "a lemon": "yellow",
}  # fmt: skip


def counting(rng: np.random.Generator) -> tuple[str, str]:
    start = int(rng.integers(1, 7))
    return f"Count from {start} to {start + 3}.", " ".join(str(start + i) for i in range(4))


def opposites(rng: np.random.Generator) -> tuple[str, str]:
    word = str(rng.choice(list(OPPOSITES)))
    return f"What is the opposite of {word}?", OPPOSITES[word]


def colours(rng: np.random.Generator) -> tuple[str, str]:
    thing = str(rng.choice(list(THINGS)))
    return f"What colour is {thing}?", THINGS[thing]


TASKS = (counting, opposites, colours)


def conversation(rng: np.random.Generator) -> list[dict[str, str]]:
    """Return one or two questions with their answers, as messages."""
    messages = []
    for _ in range(int(rng.integers(1, 3))):
        question, answer = TASKS[int(rng.integers(len(TASKS)))](rng)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages
