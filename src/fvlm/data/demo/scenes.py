"""Scenes of the demo corpus: coloured shapes on a noisy background, and true sentences about them.

Most sentences are about colours, which a model can learn on a CPU within seconds; some are about shapes, counts,
movements and times.

All shapes are in the central square of the picture, which decoding keeps, one in each quarter. Scenes change at
i - 0.4 s, so that the frame at second i shows the new state at any frame rate.
"""

from dataclasses import dataclass, field

import numpy as np

COLOURS = {
    "red": (225, 30, 35),
    "green": (25, 165, 45),
    "blue": (35, 60, 230),
    "yellow": (250, 225, 35),
}
SHAPES = ("square", "circle", "triangle")
# Centres within the central square of side 1.
PLACES = {
    "top left": (0.25, 0.25), "top right": (0.75, 0.25), "bottom left": (0.25, 0.75), "bottom right": (0.75, 0.75),
}  # fmt: skip
SIZE = 0.41  # side of a shape, as a share of the side of the central square
NUMBERS = ("no", "one", "two", "three", "four")
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
    """The things shown in each second, and the rows of the table about them.

    seconds     things at second 0, 1, 2, ...; the last state stays
    rows        {"caption"} or {"question", "answer"} or {"question", "chosen", "rejected"} or {"messages"}
    """

    seconds: list[list[Thing]]
    rows: list[dict] = field(default_factory=list)

    def second_of(self, count: int) -> list[int]:
        """Position in `seconds` for each of `count` ticks; a scene begins 2 ticks (0.4 s) early."""
        return [min((tick + 2) // TICKS_PER_S, len(self.seconds) - 1) for tick in range(count)]


def pick(rng: np.random.Generator, options) -> str:
    return str(rng.choice(list(options)))


def some(rng: np.random.Generator, options, count: int) -> list[str]:
    """Return `count` different options in random order."""
    return [str(option) for option in rng.permutation(list(options))[:count]]


def background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Grey blocks and fine noise on a brightness gradient, (height, width, 3) uint8."""
    block = 16
    rows, columns = -(-height // block), -(-width // block)
    blocks = rng.integers(-28, 29, (rows, columns, 1)).repeat(block, 0).repeat(block, 1)[:height, :width]
    grain = rng.integers(-8, 9, (height, width, 1))
    slope = np.linspace(-20, 20, width)[None, :, None] * rng.choice([-1, 1])
    tint = rng.integers(-8, 9, 3)
    return np.clip(128 + blocks + grain + slope + tint, 0, 255).astype(np.uint8)


def draw(canvas: np.ndarray, things: list[Thing]) -> np.ndarray:
    """Return a copy of the canvas with the things on it."""
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


def at(place: str, colour: str, shape: str) -> Thing:
    return Thing(colour, shape, *PLACES[place], SIZE)


def grid_scene(rng: np.random.Generator, seconds: int) -> Scene:
    """Four squares that do not change; the caption lists their colours row by row."""
    colours = [pick(rng, COLOURS) for _ in PLACES]
    things = [at(place, colour, "square") for place, colour in zip(PLACES, colours, strict=True)]
    return Scene([things] * seconds, [{"caption": " ".join(colours)}])


def moves_scene(rng: np.random.Generator, seconds: int) -> Scene:
    """One shape; up to four times it changes its colour, moves, disappears or comes back."""
    shape, place, colour = pick(rng, SHAPES), pick(rng, PLACES), pick(rng, COLOURS)
    words, hidden, states = [colour], False, [[at(place, colour, shape)]]
    events = min(seconds - 1, 4)
    # Evenly spread; in a clip of up to five seconds, every second.
    moments = {(i + 1) * seconds // (events + 1) for i in range(events)} - {0}
    for second in range(1, seconds):
        if second in moments:
            event = "back" if hidden else str(rng.choice(["turns", "moves", "hidden"], p=[0.7, 0.15, 0.15]))
            if event == "turns":
                event = colour = pick(rng, [name for name in COLOURS if name != colour])
            elif event == "moves":
                event = place = pick(rng, [name for name in PLACES if name != place])
            words.append(event)
            hidden = event == "hidden"
        states.append([] if hidden else [at(place, colour, shape)])
    return Scene(states, [{"caption": " then ".join(words)}])


def questions_scene(rng: np.random.Generator, seconds: int) -> Scene:
    """Three or four shapes, one of which may appear later; most questions are about the colour at a place."""
    count = int(rng.choice([3, 4, 4, 4]))
    places = some(rng, PLACES, count)
    things = {place: at(place, pick(rng, COLOURS), pick(rng, SHAPES)) for place in places}
    states = [list(things.values())] * seconds
    details = [
        {"question": "How many shapes are there?", "answer": NUMBERS[count]},
        {"question": f"What is the shape at the {places[0]}?", "answer": f"a {things[places[0]].shape}"},
    ]
    colours = [thing.colour for thing in things.values()]
    unique = [place for place, thing in things.items() if colours.count(thing.colour) == 1]
    if unique:
        details.append({"question": f"Where is the {things[unique[0]].colour} shape?", "answer": f"at the {unique[0]}"})
    if seconds > 1 and rng.random() < 0.2:
        late, moment = places[-1], int(rng.integers(1, min(seconds, 8)))
        before = [thing for place, thing in things.items() if place != late]
        states = [before] * moment + states[moment:]
        question = f"When does the shape at the {late} appear?"
        details = [{"question": question, "answer": f"at second {moment}"}]
    rows = [colour_question(place, things[place]) for place in places]
    if rng.random() < 0.5:
        rows.insert(int(rng.integers(3)), details[int(rng.integers(len(details)))])
    return Scene(states, rows)


def colour_question(place: str, thing: Thing) -> dict[str, str]:
    return {"question": f"What colour is the shape at the {place}?", "answer": thing.colour}


def pictures_scene(rng: np.random.Generator, seconds: int) -> Scene:
    """A picture: a grid with its caption, or shapes with a question."""
    return grid_scene(rng, 1) if rng.random() < 0.6 else questions_scene(rng, 1)


def board_scene(rng: np.random.Generator, seconds: int) -> Scene:
    """One to four squares, and a question about the colour of each: only the question says where to look.

    Without the easy boards of one or two squares, small models do not learn the others. Nor do they soon find the words
    that count among many, so the chat has no system prompt and the question no other words.
    """
    things = {place: at(place, pick(rng, COLOURS), "square") for place in some(rng, PLACES, int(rng.integers(1, 5)))}
    chats = ({"system": "", "user": place, "assistant": thing.colour} for place, thing in things.items())
    rows = [{"messages": [{"role": role, "content": text} for role, text in chat.items()]} for chat in chats]
    return Scene([list(things.values())] * seconds, rows)


def preferences_scene(rng: np.random.Generator, seconds: int) -> Scene:
    """A picture, a question about a colour, the right answer and a wrong one."""
    scene = questions_scene(rng, 1)
    row = next(row for row in scene.rows if row["answer"] in COLOURS)
    wrong = pick(rng, [name for name in COLOURS if name != row["answer"]])
    return Scene(scene.seconds, [{"question": row["question"], "chosen": row["answer"], "rejected": wrong}])


SCENES = {
    "grid": grid_scene,
    "moves": moves_scene,
    "questions": questions_scene,
    "pictures": pictures_scene,
    "boards": board_scene,
    "preferences": preferences_scene,
}
