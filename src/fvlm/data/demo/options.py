"""Questions with four options about scenes, for the demo's benchmark, in the words that its models are trained on."""

from collections.abc import Iterable

import numpy as np

from fvlm.data.demo.scenes import COLOURS, NUMBERS, PLACES, SHAPES, Scene, at, colour_question, pick, some

SECONDS = 4
OPTIONS = 4


def benchmark_scene(rng: np.random.Generator, item: int) -> Scene:
    """Return a scene of four seconds with two questions: what, where, when, how many, in which order."""
    return (_grid, _shapes, _late_shape, _order)[item % 4](rng)


def _grid(rng: np.random.Generator) -> Scene:
    """Four squares. The wrong lists of their colours differ in two places or more."""
    colours = [pick(rng, COLOURS) for _ in PLACES]
    things = {place: at(place, colour, "square") for place, colour in zip(PLACES, colours, strict=True)}
    lists = [colours]
    while len(lists) < OPTIONS:
        other = [pick(rng, COLOURS) for _ in PLACES]
        if sum(one != own for one, own in zip(other, colours, strict=True)) >= 2 and other not in lists:
            lists.append(other)
    texts = [" ".join(one) for one in lists]
    place = pick(rng, PLACES)
    question = colour_question(place, things[place])
    rows = [
        _choice(rng, "what", "What colours are there?", texts[0], texts),
        _choice(rng, "what", question["question"], question["answer"], COLOURS),
    ]
    return Scene([list(things.values())] * SECONDS, rows)


def _shapes(rng: np.random.Generator) -> Scene:
    """Three or four shapes of different colours."""
    things = _different(rng, int(rng.choice([3, 4])))
    return Scene([list(things.values())] * SECONDS, [_how_many(rng, len(things)), _where(rng, things)])


def _late_shape(rng: np.random.Generator) -> Scene:
    """Three shapes, one of which appears later."""
    things, moment = _different(rng, 3), int(rng.integers(1, SECONDS))
    late = list(things)[-1]
    before = [thing for place, thing in things.items() if place != late]
    question = f"When does the shape at the {late} appear?"
    moments = [f"at second {second}" for second in range(1, OPTIONS + 1)]
    when = _choice(rng, "when", question, f"at second {moment}", moments)
    return Scene([before] * moment + [list(things.values())] * (SECONDS - moment), [when, _where(rng, things)])


def _order(rng: np.random.Generator) -> Scene:
    """One shape that changes its colour every second; the wrong options have the same colours in other orders."""
    shape, place, colours = pick(rng, SHAPES), pick(rng, PLACES), some(rng, COLOURS, SECONDS)
    orders = [" then ".join(colours)]
    while len(orders) < OPTIONS:
        order = " then ".join(some(rng, colours, SECONDS))
        if order not in orders:
            orders.append(order)
    states = [[at(place, colour, shape)] for colour in colours]
    return Scene(states, [_choice(rng, "order", "What happens?", orders[0], orders), _how_many(rng, 1)])


def _different(rng: np.random.Generator, count: int) -> dict:
    """Return place -> a shape, no two of one colour, so that each colour is at one place."""
    places, colours = some(rng, PLACES, count), some(rng, COLOURS, count)
    return {place: at(place, colour, pick(rng, SHAPES)) for place, colour in zip(places, colours, strict=True)}


def _where(rng: np.random.Generator, things: dict) -> dict:
    place = next(iter(things))
    where = [f"at the {other}" for other in PLACES]
    return _choice(rng, "where", f"Where is the {things[place].colour} shape?", f"at the {place}", where)


def _how_many(rng: np.random.Generator, count: int) -> dict:
    return _choice(rng, "how many", "How many shapes are there?", NUMBERS[count], NUMBERS[1:])


def _choice(rng: np.random.Generator, task: str, question: str, answer: str, options: Iterable[str]) -> dict:
    """Return a row of the table, with its options in random order."""
    return {"question": question, "answer": answer, "options": some(rng, options, OPTIONS), "task": task}
