"""Token ids with labels, masks and padding, as other programs write them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyorder.data import DataConfig, prepare
from anyorder.data.fields import Fields
from anyorder.data.records import Place, TokenIds
from anyorder.data.token_ids import read_ids
from anyorder.errors import UserError
from tests.data.test_readers import only, write


@pytest.mark.parametrize(
    ("record", "ids", "turns"),
    [
        ({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, (5, 6, 7), ((1, 3),)),
        ({"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0], "labels": [-100, 6, -100]}, (5, 6), ((1, 2),)),
        ({"input_ids": [0, 5, 6], "attention_mask": [0, 1, 1], "completion_mask": [0, 0, 1]}, (5, 6), ((1, 2),)),
        ({"input_ids": [5, 6, 7, 8], "assistant_masks": [False, True, False, True]}, (5, 6, 7, 8), ((1, 2), (3, 4))),
        ({"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "loss_mask": [1, 0, 1]}, (5, 6, 7), ((2, 3),)),
        ({"input_ids": [5, 6], "labels": [5, 6], "position_ids": [0, 1], "token_type_ids": [0, 0]}, (5, 6), ((0, 2),)),
        ({"input_ids": [5, 6], "labels": None, "attention_mask": [1, 1]}, (5, 6), None),
    ],
)  # fmt: skip
def test_labels_and_masks(tmp_path: Path, record: dict[str, Any], ids: tuple[int, ...], turns: object) -> None:
    found = only(tmp_path, record)
    assert isinstance(found, TokenIds)
    assert (found.ids, found.answer_spans) == (ids, turns)


@given(
    loss_mask=st.lists(st.booleans(), min_size=1, max_size=12).filter(any),
    left=st.integers(0, 3),
    right=st.integers(0, 3),
)
@settings(deadline=None)
def test_spans_are_exactly_the_labels(loss_mask: list[bool], left: int, right: int) -> None:
    ids = [9] * left + list(range(10, 10 + len(loss_mask))) + [9] * right
    marks = [False] * left + loss_mask + [False] * right
    fields = {
        "input_ids": ids,
        "labels": [token if mark else -100 for token, mark in zip(ids, marks, strict=True)],
        "attention_mask": [0] * left + [1] * len(loss_mask) + [0] * right,
    }
    found = read_ids("token ids", Place(Path("a"), 1), Fields(fields))
    assert found.answer_spans is not None
    spelled = [token for begin, end in found.answer_spans for token in found.ids[begin:end]]
    assert spelled == [token for token, mark in zip(ids, marks, strict=True) if mark]
    assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(found.answer_spans))


def test_they_are_the_answers_of_a_row(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, -100]})
    rows = prepare(source, None, DataConfig(length=8, kind="sft", vocab_size=10), cache_dir=tmp_path)
    assert rows[0] == {"sample": 0, "input_ids": [5, 6, 7, 8], "prompt_length": 1, "turns": [[1, 2], [3, 4]]}
    rows = prepare(
        source, None, DataConfig(length=8, kind="sft", vocab_size=10, last_answer_only=True), cache_dir=tmp_path
    )
    assert rows[0] == {"sample": 0, "input_ids": [5, 6, 7, 8], "prompt_length": 3, "turns": [[3, 4]]}


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"labels": [6, 7, -100]}, "`labels` has 6 at place 0, where the token is 5: give the token itself, or -100"),
        ({"labels": [-100] * 3}, "has no token that is trained on"),
        ({"labels": [5]}, "`labels` has 1 numbers and there are 3 tokens"),
        ({"labels": "5"}, "`labels` is '5': give a list of whole numbers"),
        ({"loss_mask": [0, 1, 2]}, "`loss_mask` is 2: give 1 for what is trained on and 0"),
        ({"attention_mask": [1, 0, 1]}, "`attention_mask` hides more than padding at the ends"),
        ({"attention_mask": [0, 0, 0]}, "`attention_mask` hides more than padding"),
        ({"position_ids": [0, 1, 0]}, "`position_ids` do not count up, as in packed texts"),
        ({"labels": [5, 6, 7], "prompt_length": 1}, "marks tokens of the prompt as trained on"),
    ],
)
def test_what_contradicts_itself(tmp_path: Path, record: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as error:
        only(tmp_path, {"input_ids": [5, 6, 7], **record})
    assert problem in str(error.value)
