"""Scenes of the demo corpus: coloured shapes on a busy background, and sentences that are true of them.

Everything lies in the central square of the picture, because decoding keeps no more, and every shape is at
least 40 pixels wide in the decoded 224 x 224 frame. Scenes change between whole seconds (at i - 0.4 s), so
that the frame shown at second i is clear of the change whatever the frame rate.
"""

from dataclasses import dataclass, field

import numpy as np

COLOURS = {
    "red": (225, 30, 35),
    "green": (25, 165, 45),
    "blue": (35, 60, 230),
    "yellow": (250, 225, 35),
    "purple": (205, 45, 210),
    "cyan": (40, 220, 235),
}
SHAPES = ("square", "circle", "triangle")
# Centres within the central square of side 1.
PLACES = {
    "left": (0.19, 0.5), "right": (0.81, 0.5), "top": (0.5, 0.19), "bottom": (0.5, 0.81),
    "centre": (0.5, 0.5),
}  # fmt: skip
NUMBERS = ("no", "one", "two", "three", "four", "five")
TICKS_PER_S = 5  # states per second; a change at i - 0.4 s falls on one of them


@dataclass(frozen=True)
class Thing:
    """One coloured shape; `x`, `y`, `size` as shares of the central square."""

    colour: str
    shape: str
    x: float
    y: float
    size: float


@dataclass
class Scene:
    """What is shown second by second, and the rows of the table that speak of it.

    seconds     things shown at second 0, 1, 2, ...; the last state stays
    rows        {"caption"} or {"question", "answer"} or {"question", "chosen", "rejected"}
    """

    seconds: list[list[Thing]]
    rows: list[dict[str, str]] = field(default_factory=list)

    def second_of(self, count: int) -> list[int]:
        """Which of `seconds` is shown at each of `count` ticks."""
        # + 2 ticks: 0.4 s early
        return [min((tick + 2) // TICKS_PER_S, len(self.seconds) - 1) for tick in range(count)]


def pick(rng: np.random.Generator, options) -> str:
    return str(rng.choice(list(options)))


def some(rng: np.random.Generator, options, count: int) -> list[str]:
    """`count` different ones, in random order."""
    return [str(option) for option in rng.permutation(list(options))[:count]]


def background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: grey blocks and fine grain over a slope of brightness."""
    block = 16
    rows, columns = -(-height // block), -(-width // block)
    blocks = rng.integers(-28, 29, (rows, columns, 1)).repeat(block, 0).repeat(block, 1)[:height, :width]
    grain = rng.integers(-8, 9, (height, width, 1))
    slope = np.linspace(-20, 20, width)[None, :, None] * rng.choice([-1, 1])
    tint = rng.integers(-8, 9, 3)
    return np.clip(128 + blocks + grain + slope + tint, 0, 255).astype(np.uint8)


def draw(canvas: np.ndarray, things: list[Thing]) -> np.ndarray:
    """A copy of the canvas with the things on it."""
    image = canvas.copy()
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    for thing in things:
        radius = thing.size * side / 2
        x, y = left + thing.x * side, top + thing.y * side
        x0, x1 = max(0, round(x - radius)), min(width, round(x + radius))
        y0, y1 = max(0, round(y - radius)), min(height, round(y + radius))
        across = (np.arange(x0, x1) + 0.5 - x)[None, :] / radius
        down = (np.arange(y0, y1) + 0.5 - y)[:, None] / radius
        if thing.shape == "circle":
            inside = across**2 + down**2 <= 1
        elif thing.shape == "triangle":
            inside = np.abs(across) <= (down + 1) / 2
        else:
            inside = np.ones((y1 - y0, x1 - x0), bool)
        image[y0:y1, x0:x1][inside] = COLOURS[thing.colour]
    return image


def at(place: str, colour: str, shape: str, size: float) -> Thing:
    return Thing(colour, shape, *PLACES[place], size)


def where(place: str) -> str:
    """The place in a sentence."""
    words = {"left": "on the left", "right": "on the right", "centre": "in the centre"}
    return words.get(place, f"at the {place}")


def grid_scene(rng: np.random.Generator, seconds: int) -> Scene:
    """Nine squares that stay; the caption reads their colours row by row."""
    colours = [pick(rng, COLOURS) for _ in range(9)]
    things = [Thing(colour, "square", (i % 3 + 0.5) / 3, (i // 3 + 0.5) / 3, 0.27) for i, colour in enumerate(colours)]
    return Scene([things] * max(1, seconds), [{"caption": " ".join(colours)}])


def moves_scene(rng: np.random.Generator, seconds: int) -> Scene:
    """One or two shapes; up to three times the first moves, turns another colour, hides or comes back."""
    shape, other = some(rng, SHAPES, 2)
    place, other_place = some(rng, PLACES, 2)
    colour, other_colour = some(rng, COLOURS, 2)
    still = [at(other_place, other_colour, other, 0.3)] if rng.random() < 0.4 else []
    words = f"a {colour} {shape} {where(place)}"
    if still:
        words += f" and a {other_colour} {other} {where(other_place)}"
    events = min(seconds - 1, 2 if still else 3)
    # Spread over the clip; a clip of three or four seconds changes every second.
    moments = {(i + 1) * seconds // (events + 1) for i in range(events)} - {0}
    hidden, states = False, [[at(place, colour, shape, 0.3), *still]]
    subject = f"the {shape}" if still else "it"
    for second in range(1, seconds):
        if second in moments:
            event = "comes back" if hidden else pick(rng, ("turns", "turns", "moves", "moves", "hides"))
            if event == "turns":
                colour = pick(rng, [name for name in COLOURS if name not in (colour, other_colour)])
                words += f", then {subject} turns {colour}"
            elif event == "moves":
                place = pick(rng, [name for name in PLACES if name not in (place, other_place)])
                words += f", then {subject} moves to the {place}"
            else:
                words += f", then {subject} {event}"
            hidden = event == "hides"
            subject = "it"
        states.append([*([] if hidden else [at(place, colour, shape, 0.3)]), *still])
    return Scene(states, [{"caption": words}])


def questions_scene(rng: np.random.Generator, seconds: int) -> Scene:
    """Three to five shapes, one of which comes late or changes colour; questions ask for details."""
    count = int(rng.integers(3, 6))  # fewer than there are colours, so that one is left to turn to
    places, colours = some(rng, PLACES, count), some(rng, COLOURS, count)
    things = {place: at(place, colour, pick(rng, SHAPES), 0.24) for place, colour in zip(places, colours, strict=True)}
    rows, states = [], [list(things.values())] * seconds
    if seconds > 1:
        place, moment = places[0], int(rng.integers(1, min(seconds, 8)))
        rest = [thing for name, thing in things.items() if name != place]
        if rng.random() < 0.5:
            states = [rest] * moment + [[things[place], *rest]] * (seconds - moment)
            question = f"When does the {colours[0]} shape appear?"
        else:
            new = pick(rng, [name for name in COLOURS if name not in colours])
            changed = Thing(new, things[place].shape, things[place].x, things[place].y, things[place].size)
            states = [[things[place], *rest]] * moment + [[changed, *rest]] * (seconds - moment)
            question = f"When does the {colours[0]} shape turn {new}?"
        rows.append({"question": question, "answer": f"at second {moment}"})
    steady = list(zip(places, colours, strict=True))[1:]
    for place, colour in steady[:2]:
        rows.append({"question": f"What colour is the shape {where(place)}?", "answer": colour})
    place, colour = steady[-1]
    rows.append({"question": f"Where is the {colour} shape?", "answer": where(place)})
    rows.append({"question": f"What is the shape {where(place)}?", "answer": f"a {things[place].shape}"})
    if seconds == 1:
        rows.append({"question": "How many shapes are there?", "answer": NUMBERS[count]})
    order = [0, *(1 + rng.permutation(len(rows) - 1)).tolist()]
    return Scene(states, [rows[i] for i in order])


def pictures_scene(rng: np.random.Generator, seconds: int) -> Scene:
    """A still grid, or still shapes, with a caption or a question."""
    if rng.random() < 0.4:
        return grid_scene(rng, 1)
    scene = questions_scene(rng, 1)
    if rng.random() < 0.4:
        shown = {(thing.x, thing.y): thing for thing in scene.seconds[0]}
        named = [(place, shown[spot]) for place, spot in PLACES.items() if spot in shown][:3]
        words = " and ".join(f"a {thing.colour} {thing.shape} {where(place)}" for place, thing in named)
        return Scene(scene.seconds, [{"caption": words}])
    return Scene(scene.seconds, [scene.rows[int(rng.integers(len(scene.rows)))]])


def preferences_scene(rng: np.random.Generator, seconds: int) -> Scene:
    """A still scene, a question, the right answer and a wrong one of the same form."""
    scene = questions_scene(rng, 1)
    row = next(row for row in scene.rows if row["answer"] in COLOURS)
    wrong = pick(rng, [name for name in COLOURS if name != row["answer"]])
    return Scene(scene.seconds, [{"question": row["question"], "chosen": row["answer"], "rejected": wrong}])


SCENES = {
    "grid": grid_scene,
    "moves": moves_scene,
    "questions": questions_scene,
    "pictures": pictures_scene,
    "preferences": preferences_scene,
}
