"""What training would see of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyorder.data import DataConfig, inspect_data, prepare, report_of
from anyorder.errors import UserError
from tests.data import tokenizers
from tests.data.test_readers import write


@pytest.mark.parametrize("options", [{}, {"packed": False}, {"kind": "sft"}])
def test_it_is_what_prepare_makes(tmp_path: Path, options: dict[str, Any]) -> None:
    lines = [{"prompt": "a" * number, "response": "b" * 3 * number} for number in range(1, 9)]
    source = write(tmp_path / "a.jsonl", *lines, "{")
    tokenizer = tokenizers.characters()
    found = inspect_data(source, tokenizer, DataConfig(length=32, **options), examples=2)
    rows = prepare(source, tokenizer, DataConfig(length=32, skip_bad_lines=True, **options), cache_dir=tmp_path)
    assert found.report == report_of(rows)
    assert found.rows == list(rows)[:2]
    assert len(found.report.left_out) == 1


@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=20), kind=st.sampled_from(["pretrain", "sft"]))
@settings(deadline=None, max_examples=30)
def test_lengths(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], kind: str) -> None:
    lines = [{"input_ids": [1] * length, "prompt_length": 0} for length in lengths]
    source = write(tmp_path_factory.mktemp("lengths") / "a.jsonl", *lines)
    found = inspect_data(source, None, DataConfig(length=16, kind=kind, vocab_size=9))
    slow = [sum(size // 2 < length <= size for length in lengths) for size, _ in found.lengths]
    assert [count for _, count in found.lengths] == slow
    assert sum(slow) == len(lengths)  # those that are cut or packed as well
    sizes = [size for size, _ in found.lengths]
    assert sizes == [sizes[0] * 2**step for step in range(len(sizes))]


def test_data_of_which_nothing_can_be_used(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"text": "a"})
    found = inspect_data(source, tokenizers.characters(), DataConfig(length=8, kind="sft"))
    assert (found.report.rows, found.lengths, found.rows) == (0, [], [])
    assert len(found.report.left_out) == 1
    with pytest.raises(UserError, match="is no file or folder here"):
        inspect_data(tmp_path / "nothing", tokenizers.characters(), DataConfig(length=8))
