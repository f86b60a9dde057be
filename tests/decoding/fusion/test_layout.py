"""Layouts: what stands where, who sees whom; against plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyorder import concatenate_paraphrases_with_positions, create_segment_isolation_mask
from anyorder.decoding.fusion.layout import POSITIONS
from anyorder.errors import UserError

ids = st.lists(st.integers(0, 99), max_size=4)
some = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), max_size=4)


@given(prefix=ids, segments=some, suffix=ids, separator=ids, positions=st.sampled_from(POSITIONS))
@settings(max_examples=60, deadline=None)
def test_tokens_and_spans(
    prefix: list[int], segments: list[list[int]], suffix: list[int], separator: list[int], positions: str
) -> None:
    layout = concatenate_paraphrases_with_positions(segments, prefix, suffix, positions, separator)
    whole = [*segment_and(segments, separator)]
    assert list(layout.token_ids) == [*prefix, *(token for segment in whole for token in segment), *suffix]
    assert layout.length == len(layout.token_ids) == len(layout.places)
    assert [list(layout.token_ids[start:end]) for start, end in layout.segment_spans] == whole
    assert list(layout.prefix) == prefix
    assert list(layout.token_ids[layout.suffix_start :]) == suffix


def segment_and(segments: list[list[int]], separator: list[int]) -> list[list[int]]:
    return [[*segment, *separator] for segment in segments]


@given(prefix=ids, segments=some, suffix=ids, answer=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_places(prefix: list[int], segments: list[list[int]], suffix: list[int], answer: int) -> None:
    start, longest = len(prefix), max(map(len, segments), default=0)
    expected: dict[str, list[list[float]]] = {"running": [], "shared": [], "right": [], "spread": []}
    passed = start
    for segment in segments:
        length = len(segment)
        expected["running"].append([passed + j for j in range(length)])
        expected["shared"].append([start + j for j in range(length)])
        expected["right"].append([start + longest - length + j for j in range(length)])
        expected["spread"].append([start + j * longest / length for j in range(length)])
        passed += length
    for positions, of_segments in expected.items():
        layout = concatenate_paraphrases_with_positions(segments, prefix, suffix, positions)
        assert [list(layout.places[a:b]) for a, b in layout.segment_spans] == [
            pytest.approx(places) for places in of_segments
        ]
        assert list(layout.places[:start]) == list(range(start))
        behind = passed if positions == "running" else start + longest
        assert list(layout.places[layout.suffix_start :]) == list(range(behind, behind + len(suffix)))
        assert layout.next_place == behind + len(suffix)
        whole = layout.rotary_positions(answer)[0].tolist()
        assert whole == [*layout.places, *range(layout.next_place, layout.next_place + answer)]
        assert layout.labels(answer)["position"][0].tolist() == [int(place) for place in whole]


@given(prefix=ids, segments=some, suffix=ids, answer=st.integers(0, 2), positions=st.sampled_from(POSITIONS))
@settings(max_examples=60, deadline=None)
def test_who_sees_whom(
    prefix: list[int], segments: list[list[int]], suffix: list[int], answer: int, positions: str
) -> None:
    layout = concatenate_paraphrases_with_positions(segments, prefix, suffix, positions)
    owner = [None] * len(prefix)
    owner += [number for number, segment in enumerate(segments) for _ in segment]  # type: ignore[misc]
    behind = len(owner)
    owner += [None] * len(suffix)
    mask = create_segment_isolation_mask(layout)
    assert mask.shape == (layout.length, layout.length)
    for row in range(layout.length):
        for key in range(layout.length):
            isolated = owner[row] is not None and owner[key] is not None and owner[row] != owner[key]
            assert bool(mask[row, key]) == (key <= row and not isolated), (row, key)
    labels = layout.labels(answer)
    assert labels["order"][0].tolist() == list(range(layout.length + answer))
    assert labels["part"][0].tolist() == [0] * len(prefix) + [1] * (behind - len(prefix)) + [2] * (len(suffix) + answer)


def test_one_layout_by_hand() -> None:
    layout = concatenate_paraphrases_with_positions([[1, 2, 3, 4], [5, 6]], [0], [9], "spread")
    assert layout.token_ids == (0, 1, 2, 3, 4, 5, 6, 9)
    assert layout.segment_spans == ((1, 5), (5, 7))
    assert layout.places == (0, 1, 2, 3, 4, 1, 3, 5)
    assert layout.labels()["segment"].tolist() == [[0, 1, 1, 1, 1, 2, 2, 3]]
    assert layout.rotary_positions().dtype == torch.float64


def test_positions_that_are_unknown() -> None:
    with pytest.raises(UserError, match="positions is 'left': choose one of shared, running, right, spread"):
        concatenate_paraphrases_with_positions([[1]], positions="left")


def test_a_segment_without_a_token_is_named() -> None:
    with pytest.raises(UserError, match="phrasing 1 has no token: give at least one word, or leave the phrasing out"):
        concatenate_paraphrases_with_positions([[1], []], separator=[2])
