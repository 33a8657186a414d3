"""The order of training samples: a function of (seed, epoch), no sample twice, an exact mixture in every window."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvlm.data.batches.order import cut_to_flops, cut_to_samples, draw_order, in_file_order, interleave, split_held_out
from fvlm.data.shards.index import Index
from fvlm.errors import UserError


def index(kind: str, count: int, seed: int = 0, source: str | None = None) -> Index:
    rng = np.random.default_rng(seed)
    frames = {
        "video": rng.integers(1, 65, count),
        "image": np.ones(count, int),
        "text": np.zeros(count, int),
        "preference": np.ones(count, int),
    }[kind]
    columns = {
        "shards": np.array(["a.tar"]), "shard": np.zeros(count, np.int32),
        "offset": np.arange(count), "length": np.ones(count, int),
        "frames": frames, "text_tokens": rng.integers(5, 400, count), "answer_tokens": np.full(count, 3),
        "question_tokens": np.full(count, 4),
        "rejected_tokens": rng.integers(5, 400, count) if kind == "preference" else np.zeros(count, int),
        "group": rng.integers(0, 2**62, count), "keys": np.array([f"{kind}-{i}" for i in range(count)]),
        "hashes": np.zeros((count, 2), np.uint64), "kind": kind, "source": source or kind, "rejected": 0,
        "tokenizer": "",
    }  # fmt: skip
    return Index(**columns)


INDICES = [
    index("video", 500, 0, "long"),
    index("image", 300, 1, "pictures"),
    index("text", 200, 2, "chat"),
    index("video", 100, 3, "short"),
]
ROWS = [np.arange(len(one)) for one in INDICES]
SHARE = {"video": 0.60, "image": 0.26, "text": 0.14}


def order(seed=42, share=SHARE, static_frames=8, weights=None, epoch=0, **changes):
    return draw_order(INDICES, ROWS, share, weights or {}, static_frames, 512, seed, epoch, **changes)


def kinds_of(drawn):
    return np.array([one.kind for one in INDICES])[drawn.source]


def names(drawn):
    return list(zip(drawn.source.tolist(), drawn.row.tolist(), strict=True))


percents = st.integers(1, 98).flatmap(
    lambda video: st.integers(1, 99 - video).map(lambda image: (video, image, 100 - video - image))
)


@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 3), parts=percents)
@settings(max_examples=40, deadline=None)
def test_no_sample_twice_and_exact_shares_in_any_hundred_samples(seed, epoch, parts):
    share = {kind: part / 100 for kind, part in zip(("video", "image", "text"), parts, strict=True)}
    drawn = order(seed, share, epoch=epoch)
    assert len(set(names(drawn))) == len(drawn)
    kinds = kinds_of(drawn)
    for kind, part in zip(share, parts, strict=True):
        upto = np.concatenate([[0], np.cumsum(kinds == kind)])
        assert (upto[100:] - upto[:-100] == part).all()


@given(parts=st.lists(st.floats(0.01, 1), min_size=2, max_size=4), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_any_shares_are_kept_to_one_sample_until_a_queue_is_empty(parts, seed):
    counts = np.random.default_rng(seed).integers(0, 300, len(parts)).tolist()
    drawn = interleave(parts, counts)
    taken = np.bincount(drawn, minlength=len(parts))
    assert (taken <= counts).all() and (taken == counts).any()
    places = np.arange(1, len(drawn) + 1)
    for queue, part in enumerate(np.array(parts) / sum(parts)):
        assert (np.abs(np.cumsum(drawn == queue) - places * part) <= len(parts) / 2 + 0.5 + 1e-4 * len(drawn)).all()


def test_the_order_is_a_function_of_seed_and_epoch():
    same = order()
    assert names(order()) == names(same)
    for other in (order(seed=43), order(epoch=1), order(seed=43, epoch=1)):
        assert names(other)[:200] != names(same)[:200]
        assert (kinds_of(other) == kinds_of(same)).all()


def test_weights_decide_between_the_sources_of_a_kind():
    drawn = order(weights={"long": 3, "short": 1})
    videos = drawn.source[kinds_of(drawn) == "video"]
    for start in range(len(videos) - 4):
        assert (videos[start : start + 4] == 0).sum() == 3
    assert len(set(names(drawn))) == len(drawn)
    even = order()
    videos = even.source[kinds_of(even) == "video"]
    assert (videos == 0).mean() == pytest.approx(5 / 6, abs=0.05)  # the sources have 500 and 100 samples
    with pytest.raises(UserError, match=r"'r': train.samples is 200"):
        cut_to_samples(order(weights={"long": 1, "short": 9}), 200, "r")  # needs 108 of the 100 short ones


def test_a_shorter_run_is_the_start_of_a_longer_one():
    longer = order()
    assert names(cut_to_samples(longer, 100, "r")) == names(longer)[:100]


def test_an_image_becomes_static_frames():
    drawn = order(static_frames=16)
    kinds = kinds_of(drawn)
    assert (drawn.positions[kinds == "image"] == 16).all()
    assert (drawn.positions[kinds == "text"] == 0).all()


def test_a_kind_without_samples_is_refused():
    with pytest.raises(UserError, match=r"data.share.* text"):
        draw_order(INDICES, [ROWS[0], ROWS[1], ROWS[2][:0], ROWS[3]], SHARE, {}, 8, 512, 0)


def test_a_budget_is_spent_and_not_exceeded():
    drawn = order()
    cost = drawn.positions * 10.0 + drawn.text_tokens + 1
    cut = cut_to_flops(drawn, cost, 20_000, "r")
    spent = cost[: len(cut)].sum()
    assert spent <= 20_000 < spent + cost[len(cut)]
    with pytest.raises(UserError, match=r"'r'.* raise the budget"):
        cut_to_flops(drawn, cost, cost[0] / 2, "r")
    with pytest.raises(UserError, match=r"'r'.* lower the budget"):
        cut_to_flops(drawn, cost, 1e9, "r")


def placed(drawn) -> dict:
    """Sample -> whether its question comes first."""
    return dict(zip(names(drawn), drawn.question_first.tolist(), strict=True))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_share_of_questions_before_the_frames(share):
    training = order(question_first=share)
    held_out = in_file_order(INDICES, ROWS, 8, 512, question_first=share)
    assert names(training) == names(order())
    for drawn in (training, held_out):
        shown = kinds_of(drawn) != "text"
        assert not drawn.question_first[~shown].any() and (~shown).any()
        error = (share * (1 - share) / shown.sum()) ** 0.5
        assert abs(drawn.question_first[shown].mean() - share) < 3.5 * error + 1e-9
    assert placed(held_out) == placed(in_file_order(INDICES, ROWS, 8, 512, question_first=share))


def test_the_place_of_a_question_depends_only_on_sample_seed_and_epoch():
    first = placed(order(question_first=0.5))
    fewer = [rows[: len(rows) // 2] for rows in ROWS]
    for same in (
        order(share={"video": 0.3, "image": 0.7}, weights={"long": 1, "short": 1}, question_first=0.5),
        draw_order(INDICES, fewer, SHARE, {}, 8, 512, 42, question_first=0.5),
    ):
        common = placed(same).keys() & first.keys()
        assert len(common) > 100 and all(placed(same)[name] == first[name] for name in common)
    for other in (order(seed=43, question_first=0.5), order(epoch=1, question_first=0.5)):
        common = placed(other).keys() & first.keys()
        assert 0.2 < np.mean([placed(other)[name] != first[name] for name in common]) < 0.6


def test_a_model_without_visual_tokens_has_no_positions():
    drawn = order(question_first=0.5, frames_seen=False)
    assert names(drawn) == names(order()) and (drawn.text_tokens == order().text_tokens).all()
    assert not drawn.positions.any() and not drawn.question_first.any()
    assert not in_file_order(INDICES, ROWS, 8, 512, question_first=1.0, frames_seen=False).positions.any()


def test_a_pair_counts_both_halves():
    pairs = index("preference", 50)
    drawn = draw_order([pairs], [np.arange(50)], {"preference": 1.0}, {}, 8, 200, 0, pairs=True)
    chosen, rejected = (np.minimum(column[drawn.row], 200) for column in (pairs.text_tokens, pairs.rejected_tokens))
    assert (drawn.positions == 16).all()
    assert (drawn.text_tokens == chosen + rejected).all() and (drawn.rejected_tokens == rejected).all()
    positions, tokens = drawn.sequences()
    assert (positions == 8).all() and tokens.tolist() == [*chosen, *rejected]
    single = draw_order([pairs], [np.arange(50)], {"preference": 1.0}, {}, 8, 200, 0)
    assert names(single) == names(drawn) and (single.positions == 8).all() and (single.text_tokens == chosen).all()
    assert [column.tolist() for column in single.sequences()] == [
        single.positions.tolist(),
        single.text_tokens.tolist(),
    ]


def test_a_pair_without_its_rejected_answer_is_named():
    pairs = index("preference", 50, source="feedback")
    pairs.rejected_tokens[7] = 0
    with pytest.raises(UserError, match=r"'feedback': 1 of .*'preference-7'.*data.loss 'preference'"):
        in_file_order([pairs], [np.arange(50)], 8, 512, pairs=True)
    assert len(in_file_order([pairs], [np.r_[0:7, 8:50]], 8, 512, pairs=True)) == 49


@given(seed=st.integers(0, 2**31), clips=st.integers(1, 6), share=st.floats(0.02, 0.5))
@settings(max_examples=25, deadline=None)
def test_all_samples_of_a_video_are_held_out_or_none(seed, clips, share):
    one = index("video", 3000)
    one.group[:] = np.repeat(np.random.default_rng(seed).integers(0, 2**62, 3000), clips)[:3000]
    train, held = split_held_out(one, share)
    assert not set(one.group[train]) & set(one.group[held])
    assert sorted([*train, *held]) == list(range(3000))
    assert abs(len(held) / 3000 - share) < 5 * (share * clips / 3000) ** 0.5


@pytest.mark.parametrize(
    ("videos", "share", "expected"),
    [(21, 0.1, 2), (5, 0.1, 1), (2, 0.001, 1), (1, 0.5, 0), (300, 0.25, 75), (4, 0.0, 0)],
)
def test_a_share_of_few_videos_is_counted(videos, share, expected):
    few = index("video", videos)
    training, held = split_held_out(few, share)
    assert len(held) == expected and sorted([*training, *held]) == list(range(videos))
    again = replace(few, group=few.group[::-1])
    assert set(again.group[split_held_out(again, share)[1]]) == set(few.group[held])


def test_added_files_move_few_others():
    more = index("video", 400)
    less = replace(more, group=more.group[:380], keys=more.keys[:380])
    one, other = ({*part.group[split_held_out(part, 0.1)[1]]} for part in (less, more))
    assert len(one) == 38 and len(other) == 40 and len(one - other) <= 2
    many = index("video", 20_000)
    fewer = replace(many, group=many.group[:15_000], keys=many.keys[:15_000])
    kept, _ = (set(part.group[split_held_out(part, 0.1)[1]]) for part in (fewer, many))
    assert kept <= set(many.group[split_held_out(many, 0.1)[1]]) and abs(len(kept) - 1500) < 150
