"""Samples in batches: scored tokens, frames, the place of the question, both halves of a pair."""

import numpy as np
import pytest
import torch

from fvlm.data.batches.loader import Corpus, Steps, load_steps, validation_steps
from fvlm.data.batches.order import in_file_order
from fvlm.data.shards.samples import decode_frames, sample_text
from fvlm.data.shards.text import END, START
from fvlm.errors import UserError
from fvlm.evaluate.maps import fixed_videos
from fvlm.train.summary import fill_of
from tests.index_cases import write_tar
from tests.loader_cases import FORMS, make_index, make_results, preference_run, run_of, spoken, steps_of
from tests.reader_cases import picture

BLIND = {"model.architecture": "blind"}
HEADER = f"{START}assistant\n"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make_results(tmp_path_factory.mktemp("loader") / "results")


def samples_of(batches) -> list[tuple]:
    """Key, ids, mask, question and frames of every sample, batch after batch."""
    samples = []
    for batch in batches:
        counts = batch.token_counts.tolist()
        frames = batch.frames[batch.frame_index].split(batch.frame_counts.tolist())
        ids, masks = batch.token_ids.split(counts), batch.loss_mask.split(counts)
        samples += zip(batch.keys, ids, masks, batch.question_counts.tolist(), frames, strict=True)
    return samples


def every_sample(steps: Steps) -> list[tuple]:
    return [sample for step in range(len(steps)) for sample in samples_of(steps[step])]


def stored_samples(steps: Steps) -> dict[str, tuple]:
    """Key -> the index, the row and the members of each sample in the shards."""
    stored = {}
    for index in steps.corpus.indices:
        for row, key in enumerate(index.keys.tolist()):
            stored[key] = index, row, index.read(row, steps.results)
    return stored


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_only_answers_are_scored(results, share):
    """The scored ids are the answers of a conversation with their ends, without prompts and headers."""
    steps = steps_of(*run_of(results, **{"data.question_first": share}), "answers")
    answers = {}
    for key, (_, _, members) in stored_samples(steps).items():
        text = sample_text(members, "?")
        turns = text.get("messages") or [{"role": "assistant", "content": text["assistant"]}]
        answers[key] = [turn["content"] + END for turn in turns if turn["role"] == "assistant"]
    for key, ids, mask, _, _ in every_sample(steps):
        assert spoken(steps.tokenizer, ids.numpy(), mask.numpy()) == answers[key]
    assert max(map(len, answers.values())) == 2


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_all_text_is_scored_but_its_first_token(results, share):
    for _, ids, mask, _, _ in every_sample(steps_of(*run_of(results, **{"data.question_first": share}), "all")):
        assert mask.tolist() == [False] + [True] * (len(ids) - 1)


@pytest.mark.parametrize("pairs", [False, True])
def test_every_sample_shows_its_own_frames(results, pairs):
    """An image at all of its positions, a video once, in a batch of several."""
    run, study = (preference_run if pairs else run_of)(results, **{"operation.micro_frames": 100})
    steps = steps_of(run, study, batch_size=8)
    assert len(steps[0]) == 1
    stored = stored_samples(steps)
    for key, _, _, _, shown in every_sample(steps):
        index, _, members = stored[key]
        frames = decode_frames(members)
        if index.kind in ("image", "preference"):
            frames = frames.repeat(run.data.static_frames, 0)
        assert np.array_equal(shown.numpy(), frames), key


@pytest.mark.parametrize("most", [1, 2, 3])
def test_of_a_longer_video_evenly_spaced_frames_are_read(results, most):
    run, study = run_of(results, **{"data.max_frames": most, "operation.micro_frames": 100})
    steps, longer = steps_of(run, study, batch_size=8), 0
    stored = stored_samples(steps)
    for key, _, _, _, shown in every_sample(steps):
        index, _, members = stored[key]
        frames = decode_frames(members)
        if index.kind == "video":
            count = min(len(frames), most)
            longer += len(frames) > most
            assert np.array_equal(shown.numpy(), frames[[i * len(frames) // count for i in range(count)]]), key
    assert longer


def forms(results, samples: list[dict]) -> Corpus:
    """One source of samples with two frames each."""
    jpegs = {f"{i}.jpg": picture(90 * i, "JPEG", (224, 224)) for i in range(2)}
    index = make_index(results, "forms", "video", [{**sample, **jpegs} for sample in samples])
    assert index.rejected == 0
    return Corpus(["forms"], [index], [np.arange(len(index))], ["Describe it."])


@pytest.mark.parametrize("most", [512, 24])
def test_the_question_ends_at_the_place_in_the_index(results, most):
    run, study = run_of(results, **{"data.max_text_tokens": most})
    samples = [{"__key__": name, "json": form} for name, form in FORMS.items()]
    samples.append({"__key__": "tokens", "json": {"token_ids": [5, 6, 7, 8], "loss_mask": [0, 0, 1, 1]}})
    corpus = forms(results, samples)
    (index,), rows = corpus.indices, corpus.rows
    order = in_file_order([index], rows, 8, most, question_first=1.0)
    steps, cut = Steps(corpus, order, run, study, "answers", 1), 0
    for row in range(len(index)):
        ((key, ids, mask, question, _),) = samples_of(steps[row])
        if index.text_tokens[row] <= most:
            assert question == index.question_tokens[row], key
        cut += index.text_tokens[row] > most
        rest = steps.tokenizer.decode(ids[question:].numpy(), skip_special_tokens=False)
        assert rest.startswith(HEADER) == (key != "tokens"), key
        assert not mask[:question].any() and mask.any()
    assert (cut > 0) == (most == 24)


def test_questions_come_first_as_in_the_order(results):
    run, study = run_of(results, **{"data.question_first": 0.5})
    steps = steps_of(run, study, batch_size=8)
    assert 0.3 < steps.order.question_first[steps.order.positions > 0].mean() < 0.7
    expected = {}
    for i, (source, row) in enumerate(zip(steps.order.source, steps.order.row, strict=True)):
        index = steps.corpus.indices[source]
        expected[str(index.keys[row])] = int(index.question_tokens[row]) * bool(steps.order.question_first[i])
    counts = {key: question for key, _, _, question, _ in every_sample(steps)}
    assert counts == expected and min(counts.values()) == 0 < max(counts.values())
    video_first = every_sample(steps_of(*run_of(results), batch_size=8))
    assert not any(question for _, _, _, question, _ in video_first)
    for one, other in zip(every_sample(steps), video_first, strict=True):
        assert one[0] == other[0] and torch.equal(one[1], other[1]) and torch.equal(one[4], other[4])


def test_the_controls_of_evaluation_keep_or_drop_the_question(results):
    """The question stays before another sample's frames; without frames there is no question before them."""
    steps = steps_of(*run_of(results, **{"data.question_first": 1.0}), batch_size=8)
    batch = steps.batch(np.flatnonzero(steps.order.positions > 0)[:4].tolist())
    assert batch.question_counts.all()
    assert torch.equal(batch.with_frames_of_neighbour().question_counts, batch.question_counts)
    assert not batch.without_frames().question_counts.any()
    video_first = batch.video_first()
    assert not video_first.question_counts.any() and batch.question_counts.all()
    assert video_first.frame_index is batch.frame_index and video_first.token_ids is batch.token_ids


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_batches_are_the_same_with_workers_and_from_any_step(results, workers):
    steps = steps_of(*run_of(results, **{"data.question_first": 0.5}), batch_size=4)

    def contents(batches) -> list[tuple]:
        return [tuple(x.tolist() if torch.is_tensor(x) else x for x in sample) for sample in samples_of(batches)]

    expected = [contents(steps[step]) for step in range(len(steps))]
    for first in (0, 3):
        assert [contents(batches) for batches in load_steps(steps, first, workers)] == expected[first:]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("pairs", [False, True])
def test_ranks_share_mixed_orders_and_whole_pairs(results, ranks, pairs):
    run, study = (preference_run if pairs else run_of)(results, **{"data.question_first": 0.5})
    one_rank = steps_of(run, study, batch_size=6)
    shared = [steps_of(run, study, batch_size=6, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step in range(len(one_rank)):
        parts = [samples_of(steps[step]) for steps in shared]
        expected = [(key, question, ids.tolist()) for key, ids, _, question, _ in samples_of(one_rank[step])]
        samples = [(key, question, ids.tolist()) for part in parts for key, ids, _, question, _ in part]
        assert sorted(samples) == sorted(expected)
        if pairs:
            assert all(one[0] == other[0] for part in parts for one, other in zip(part[::2], part[1::2], strict=True))


def test_a_blind_run_decodes_no_frames(results, tmp_path):
    """A frame that cannot be decoded does not stop it, and its texts are those of other runs."""
    run, study = run_of(results, **BLIND, **{"data.question_first": 0.5})
    steps = steps_of(run, study)
    for step in range(len(steps)):
        for batch in steps[step]:
            assert batch.frames.shape == (0, 224, 224, 3) and not len(batch.frame_index)
            assert not batch.frame_counts.any() and not batch.question_counts.any()
    blind, sighted = (
        {key: (ids.tolist(), mask.tolist()) for key, ids, mask, _, _ in every_sample(each)}
        for each in (steps, steps_of(*run_of(results)))
    )
    assert blind == sighted
    assert fill_of(steps, np.ones(len(steps.order)))["tokens"] > 0
    corpus = forms(results, [{"__key__": "a", "json": FORMS["caption"]}])
    tar = results / "forms.tar"
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b"JFIF", b"XXXX").replace(b"\xff\xd8\xff\xe0", b"\0\0\0\0"))
    order = in_file_order(corpus.indices, corpus.rows, 8, 512, frames_seen=False)
    assert len(Steps(corpus, order, run, study, "answers", 1)[0][0].frames) == 0
    order = in_file_order(corpus.indices, corpus.rows, 8, 512)
    with pytest.raises(UserError, match=r"forms\.tar: sample 'a'.*decoded"):
        Steps(corpus, order, run, study, "answers", 1)[0]


@pytest.mark.parametrize("share, changes", [(0.0, {}), (1.0, {}), (0.5, {"data.max_text_tokens": 16}), (0.0, BLIND)])
def test_a_pair_is_two_neighbours_that_share_their_frames(results, share, changes):
    run, study = preference_run(results, **{"data.question_first": share}, **changes)
    steps = steps_of(run, study, batch_size=4)
    index, blind = steps.corpus.indices[0], not run.model.visual_tokens
    stored, keys = stored_samples(steps), []
    for step in range(len(steps)):
        for batch in steps[step]:
            samples = samples_of([batch])
            assert len(batch.frames) == (0 if blind else len(batch) // 2)
            assert (batch.frame_counts == (0 if blind else run.data.static_frames)).all()
            assert batch.sources == ["preferences"] * len(batch)
            for (key, ids, mask, question, frames), other in zip(samples[::2], samples[1::2], strict=True):
                assert key == other[0] and torch.equal(frames, other[4])
                _, row, members = stored[key]
                text = sample_text(members, "?")
                for i, m, answer in ((ids, mask, "chosen"), (other[1], other[2], "rejected")):
                    (scored,) = spoken(steps.tokenizer, i.numpy(), m.numpy())
                    assert scored and (text[answer] + END).startswith(scored)
                    assert len(i) == run.data.max_text_tokens or scored == text[answer] + END
                if share == 1.0:
                    assert question == other[3] == index.question_tokens[row] > 0
                    assert torch.equal(ids[:question], other[1][:question])
                keys.append(key)
    assert sorted(keys) == sorted(index.keys[steps.order.row].tolist()) and len(set(keys)) == len(keys) > 8


def test_pairs_keep_within_their_budgets_in_one_batch(results):
    run, study = preference_run(results)
    steps = steps_of(run, study, batch_size=12)
    assert len(steps[0]) > 1
    for step in range(len(steps)):
        for group, batch in zip(steps.groups_by_rank(step)[0], steps[step], strict=True):
            assert len(batch.frame_index) == steps.order.positions[group].sum()
            assert len(batch.token_ids) == steps.order.text_tokens[group].sum()
            assert len(batch.frame_index) <= run.operation.micro_frames or len(group) == 1
    single = steps_of(run, study, batch_size=1)  # each pair is two rows with the width of its longer half
    halves = np.stack([single.order.text_tokens - single.order.rejected_tokens, single.order.rejected_tokens])
    halves += run.data.static_frames
    fill = fill_of(single, np.ones(len(single.order)))
    assert fill["rows"] == pytest.approx(halves.sum() / (2 * halves.max(0).sum())) and fill["rows"] < 1
    assert fill["frames"] == pytest.approx(2 * run.data.static_frames / run.operation.micro_frames)


def test_with_another_loss_only_chosen_answers_are_used(results):
    run, study = preference_run(results)
    run = run.model_copy(update={"data": run.data.model_copy(update={"loss": "answers"})})
    steps = steps_of(run, study)
    answers = {key: spoken(steps.tokenizer, ids.numpy(), mask.numpy()) for key, ids, mask, _, _ in every_sample(steps)}
    assert all("it is" in answer for (answer,) in answers.values()) and len(answers) == len(steps.order)
    with pytest.raises(ValueError, match="pairs=True"):
        Steps(steps.corpus, steps.order, run, study, "preference", 4)


def test_a_pair_without_its_rejected_answer_is_named(results):
    """The shard was replaced after its index was made."""
    run, study = preference_run(results)
    pair = {"__key__": "lost", "jpg": picture(9, "JPEG", (224, 224)), "json": FORMS["pair"]}
    index = make_index(results, "lost", "preference", [pair])
    corpus = Corpus(["lost"], [index], [np.arange(1)], ["?"])
    order = in_file_order([index], corpus.rows, 8, 512, pairs=True)
    write_tar(results / "lost.tar", [{**pair, "json": {**FORMS["pair"], "rejected": ""}}])
    with pytest.raises(
        UserError, match=r"lost.tar: sample 'lost' has no rejected answer.*delete the index of source 'lost'"
    ):
        Steps(corpus, order, run, study, "preference", 1)[0]


def test_validation_uses_the_settings_of_training(results):
    pairs = validation_steps(*preference_run(results))
    (batch,) = pairs[0][:1]
    assert batch.keys[0] == batch.keys[1] and batch.keys[0].startswith("preferences_held_out")
    mixed = validation_steps(*run_of(results, **{"data.question_first": 1.0}))
    assert all((question > 0) == (len(frames) > 0) for _, _, _, question, frames in every_sample(mixed))
    assert not validation_steps(*run_of(results, **BLIND)).order.positions.any()
    plain = validation_steps(*run_of(results))
    assert plain.order.positions.any() and not plain.order.question_first.any()


def test_the_fixed_videos_are_the_same_for_every_run(results):
    run, study = run_of(results)
    steps = fixed_videos(run, study, 3)
    keys = [sample[0] for sample in every_sample(steps)]
    assert len(steps) == len(set(keys)) == 3 and all(key.startswith("grid_held_out") for key in keys)
    first = fixed_videos(*run_of(results, **{"data.question_first": 1.0, "train.seed": 7}), 3)
    assert [sample[0] for sample in every_sample(first)] == keys
    assert all(question for _, _, _, question, _ in every_sample(first))
    assert not any(question for _, _, _, question, _ in every_sample(steps))
    assert len(fixed_videos(*preference_run(results), 3)) == 0
    assert len(fixed_videos(run, study, 0)) == 0
