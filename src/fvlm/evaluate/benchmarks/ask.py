"""Ask a model one question: by the losses of its options and by generation, in all modes, and with controls.

The controls are no frames, another video's frames, shuffled frames, and the options in every rotation. They are scored
in the mode of inference and in the benchmark's main way. A run that was trained with the question before the frames and
behind them answers with the question on the other side, too, in all modes.
"""

import zlib
from collections.abc import Iterator

import numpy as np

from fvlm.data.readers.questions import LETTERS
from fvlm.evaluate.benchmarks.question import GENERATED, LETTER, PER_TOKEN, TEXT, Benchmark, Question, subtitles_at
from fvlm.evaluate.frames import NO_FRAMES, Frames

OWN, NONE, OTHER, SHUFFLED, ROTATED = "own", "none", "other", "shuffled", "rotated"
OTHER_SIDE = "other_side"  # own frames, the question on their other side
LOSSES = (LETTER, TEXT, PER_TOKEN)  # ways to choose by the lowest loss


def ask(model, benchmark: Benchmark, question: Question, frames: Frames, video, other) -> dict:
    """Return all that is known about the answers to a question, as one line of the record.

    model   a `fvlm.use.answer.Answers`, or another class with its attributes and methods
    video   the frames, as `model.video` returns them
    other   another video; None: there is none
    """
    subtitles = subtitles_at(question.subtitles, frames.times_s) if question.subtitles else ""
    prompt = benchmark.prompt_of(question, subtitles)
    generated = benchmark.start + "".join(video.ask(prompt, start=benchmark.start))
    record = {
        "id": question.id, "key": question.key, "video": question.video, "files": [one.file for one in question.media],
        "frame_count": len(frames.frames), "positions": frames.positions, "times_s": frames.times_s.round(3).tolist(),
        "categories": question.categories, "prompt": prompt,
    }  # fmt: skip
    if benchmark.captions:
        return record | {"references": list(question.references), "generated": generated}
    letter_prompt = benchmark.prompt_of(question, subtitles, letters=True) if benchmark.letters else None
    record |= {"letter_prompt": letter_prompt, "options": list(question.options), "answer": question.answer}
    controls = _controls(model, question, frames, video, other)
    passes = list(_passes(model, benchmark, question, subtitles, video, controls))
    answers = [
        _answer(one["mode"], one["frames"], way, _lowest(one[way]), question)
        for one in passes
        for way in LOSSES
        if way in one
    ]
    chosen = benchmark.parse(generated, question.options)
    answers.append(_answer(model.modes[0], OWN, GENERATED, chosen, question))
    return record | {"passes": passes, "generated": generated, "answers": answers}


def _controls(model, question: Question, frames: Frames, video, other) -> dict:
    """Return the videos of the controls by name; a model without frames has none."""
    if not model.sees:
        return {}
    controls = {OTHER: other, NONE: model.video(NO_FRAMES)} if other else {NONE: model.video(NO_FRAMES)}
    if len(frames.frames) > 1:
        order = np.random.default_rng(zlib.crc32(question.video.encode())).permutation(len(frames.frames))
        order = order if (np.diff(order) != 1).any() else order[::-1]
        controls[SHUFFLED] = video.seen_in(model.modes[0], order.tolist())
    return controls


def _passes(model, benchmark: Benchmark, question: Question, subtitles: str, video, controls: dict) -> Iterator[dict]:
    """Yield the losses of the options in each mode and control: {"mode", "frames", "rotation", way: losses}.

    The token that ends an answer counts in texts, where it tells a short option from the beginning of a longer one, and
    not in letters.
    """
    count, inference = len(question.options), model.modes[0]

    def letters(video, rotation: int = 0) -> dict:
        prompt = benchmark.prompt_of(question, subtitles, letters=True, rotation=rotation)
        answers = [LETTERS[question.place(option, rotation)] for option in range(count)]
        return {LETTER: [sum(loss[:-1]) for loss in video.losses(prompt, answers, benchmark.start)]}

    def texts(video) -> dict:
        losses = video.losses(benchmark.prompt_of(question, subtitles), question.options)
        return {TEXT: [sum(loss) for loss in losses], PER_TOKEN: [sum(loss) / len(loss) for loss in losses]}

    def in_main_way(video) -> dict:
        return letters(video) if benchmark.main == LETTER else texts(video)

    for mode in model.modes:
        own = video if mode == inference else video.seen_in(mode)
        by_letter = letters(own) if benchmark.letters else {}
        yield {"mode": mode, "frames": OWN, "rotation": 0, **by_letter, **texts(own)}
        if model.both_orders:
            turned = own.seen_in(mode, question_first=not model.question_first)
            yield {"mode": mode, "frames": OTHER_SIDE, "rotation": 0, **in_main_way(turned)}
        if mode != inference:
            continue
        if by_letter:
            yield {"mode": mode, "frames": ROTATED, "rotation": 0, **by_letter}
            for rotation in range(1, count):
                yield {"mode": mode, "frames": ROTATED, "rotation": rotation, **letters(own, rotation)}
        for name, view in controls.items():
            yield {"mode": mode, "frames": name, "rotation": 0, **in_main_way(view)}


def _lowest(losses: list[float]) -> int | None:
    """Return the place of the lowest loss; None if there is none, as of weights that are not finite."""
    return int(np.argmin(losses)) if np.isfinite(losses).all() else None


def _answer(mode: str, frames: str, way: str, chosen: int | None, question: Question) -> dict:
    return {"mode": mode, "frames": frames, "way": way, "chosen": chosen, "right": chosen == question.answer}
