"""Answer one question in every way, mode and control, in as few forward passes as possible.

The options of a question are samples of one batch that share its frames. In the mode of inference, the same pass holds
the controls: no frames, the frames of another video, shuffled frames, and the options in every rotation.
"""

import zlib
from dataclasses import replace

import numpy as np

from fvlm.data.readers.questions import LETTERS
from fvlm.evaluate.benchmarks.answerer import Sample
from fvlm.evaluate.benchmarks.question import GENERATED, LETTER, PER_TOKEN, TEXT, Benchmark, Question, subtitles_at
from fvlm.evaluate.benchmarks.shown import NOTHING, Shown

OWN, NONE, OTHER, SHUFFLED, ROTATED = "own", "none", "other", "shuffled", "rotated"
Place = tuple[str, int, str, int]  # frames, rotation of the options, way, option


def ask(answerer, benchmark: Benchmark, question: Question, shown: Shown, other: Shown | None) -> dict:
    """Return all that is known about the answers to a question, as one line of the record.

    other   the frames of another video; None: there is none
    """
    before = subtitles_at(question.subtitles, list(shown.times_s)) if question.subtitles else ""
    if before:
        question = replace(question, text=f"{before}\n{question.text}")
    prompt = question.lettered() if benchmark.lettered else question.text
    record = {
        "id": question.id, "video": question.video, "files": [media.file for media in question.media],
        "frames": len(shown.frames), "positions": shown.positions, "times_s": [round(t, 3) for t in shown.times_s],
        "categories": question.categories, "prompt": prompt,
    }  # fmt: skip
    generated = answerer.generated(shown, prompt, benchmark.tokens)
    if benchmark.captions:
        return record | {"references": list(question.references), "generated": generated}
    letter_prompt = question.lettered() if benchmark.letters else None
    record |= {"letter_prompt": letter_prompt, "options": list(question.options), "answer": question.answer}
    passes, answers = [], []
    for mode in answerer.modes:
        views = {OWN: shown}
        if mode == answerer.modes[0]:
            views |= _controls(answerer, question, shown, other)
        places = list(_samples(benchmark, question, prompt, views, mode == answerer.modes[0]))
        losses = answerer.losses([sample for _, sample in places], mode)
        scored = {place: loss for (place, _), loss in zip(places, losses, strict=True)}
        for frames, rotation in dict.fromkeys(place[:2] for place in scored):
            one = {"mode": mode, "frames": frames, "rotation": rotation}
            one |= _by_way(scored, frames, rotation, len(question.options))
            passes.append(one)
            answers += [_answer(mode, frames, way, _lowest(one[way]), question) for way in one if way in SCORED]
            if frames == OWN and any(place[0] == ROTATED for place in scored):  # the first of the rotations
                answers.append(_answer(mode, ROTATED, LETTER, _lowest(one[LETTER]), question))
    chosen = benchmark.parse(generated, question.options)
    answers.append(_answer(answerer.modes[0], OWN, GENERATED, chosen, question))
    return record | {"passes": passes, "generated": generated, "answers": answers}


SCORED = (LETTER, TEXT, PER_TOKEN)


def _controls(answerer, question: Question, shown: Shown, other: Shown | None) -> dict[str, Shown]:
    """Return the frames of the controls, by name; a model without frames has none."""
    if not answerer.sees:
        return {}
    shuffled = shown.shuffled(zlib.crc32(question.id.encode()))
    views = {SHUFFLED: shuffled, OTHER: other, NONE: NOTHING}  # shuffled ones beside their own, whose frames they share
    return {name: view for name, view in views.items() if view is not None}


def _samples(benchmark: Benchmark, question: Question, prompt: str, views: dict[str, Shown], rotate: bool):
    """Yield each sample with its place."""
    count = len(question.options)
    for frames, view in views.items():
        # The controls are scored in the main way only. Samples of one prompt are neighbours.
        if benchmark.letters and (frames == OWN or benchmark.main == LETTER):
            for option in range(count):
                yield (frames, 0, LETTER, option), Sample(view, question.lettered(), LETTERS[option])
        if frames == OWN or benchmark.main != LETTER:
            for option in range(count):
                yield (frames, 0, TEXT, option), Sample(view, prompt, question.options[option])
        if frames == OWN and rotate and benchmark.letters:
            for rotation in range(1, count):
                lettered = question.lettered(rotation)
                for option in range(count):
                    letter = LETTERS[question.place(option, rotation)]
                    yield (ROTATED, rotation, LETTER, option), Sample(view, lettered, letter)


def _by_way(scored: dict[Place, list[float]], frames: str, rotation: int, count: int) -> dict[str, list[float]]:
    """Return way -> loss of each option. The token that ends an answer counts in texts, where it tells a short option
    from the beginning of a longer one, and not in letters."""
    result = {}
    for way in (LETTER, TEXT):
        if (frames, rotation, way, 0) not in scored:
            continue
        losses = [scored[frames, rotation, way, option] for option in range(count)]
        if way == LETTER:
            result[LETTER] = [sum(loss[:-1]) for loss in losses]
        else:
            result[TEXT] = [sum(loss) for loss in losses]
            result[PER_TOKEN] = [sum(loss) / len(loss) for loss in losses]
    return result


def _lowest(losses: list[float]) -> int | None:
    """Return the place of the lowest loss; None if there is none, as of weights that are not finite."""
    return int(np.argmin(losses)) if np.isfinite(losses).all() else None


def _answer(mode: str, frames: str, way: str, chosen: int | None, question: Question) -> dict:
    return {"mode": mode, "frames": frames, "way": way, "chosen": chosen, "right": chosen == question.answer}
