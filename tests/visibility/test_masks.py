"""The two helpers that give plain tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyorder import create_chunked_attention_mask, generate_grouping_masks
from anyorder.errors import UserError


@given(group_ids=st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_grouping_masks_compare_ranks(group_ids: list[int]) -> None:
    content, query, targets = generate_grouping_masks(torch.tensor(group_ids))
    assert content.tolist() == [[key <= row for key in group_ids] for row in group_ids]
    assert query.tolist() == [[key < row for key in group_ids] for row in group_ids]
    columns = range(max(len(group_ids), max(group_ids) + 1))
    assert targets.tolist() == [[column == group for column in columns] for group in group_ids]


def test_each_sample_has_its_own_mask() -> None:
    group_ids = torch.tensor([[0, 0, 1], [2, 1, 0]])
    content, query, targets = generate_grouping_masks(group_ids, seq_len=3, device="cpu")
    assert content.shape == query.shape == targets.shape == (2, 3, 3)
    for sample in range(2):
        alone = generate_grouping_masks(group_ids[sample])
        assert torch.equal(content[sample], alone[0])
        assert torch.equal(query[sample], alone[1])
        assert torch.equal(targets[sample], alone[2])


def test_targets_are_one_hot_rows_of_a_batch() -> None:
    group_ids = torch.tensor([[0, 0, 1, 1, 2], [3, 1, 0, 2, 4]])
    _, _, targets = generate_grouping_masks(group_ids, 5, torch.device("cpu"))
    assert torch.equal(targets, torch.nn.functional.one_hot(group_ids, 5).bool())
    assert torch.equal(targets.int().argmax(-1), group_ids)


@pytest.mark.parametrize("group_ids", [torch.tensor(3), torch.tensor([0.0, 1.0]), torch.tensor([[True]])])
def test_group_ids_are_whole_numbers(group_ids: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"^group_ids is torch\.\w+ of shape .*: give whole numbers \[length\] or"):
        generate_grouping_masks(group_ids)


@pytest.mark.parametrize(
    ("group_ids", "length", "message"),
    [
        ([0, 1], 3, "seq_len is 3, but group_ids has 2 tokens: give as many, or leave it out"),
        ([0, -1], None, "group_ids has the group -1: number the groups from 0, in the order of writing"),
        ([0, 2**40], None, "group_ids has the group 1099511627776: number the groups from 0"),
    ],
)
def test_groups_are_numbered_from_0(group_ids: list[int], length: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate_grouping_masks(torch.tensor(group_ids), length)


def test_chunks_are_causal_within() -> None:
    mask = create_chunked_attention_mask(5, 2)
    assert mask.tolist() == [[key <= row and key // 2 == row // 2 for key in range(5)] for row in range(5)]
    with pytest.raises(UserError, match="chunk"):
        create_chunked_attention_mask(5, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": -1}, r"^seq_len is -1: give the number of tokens, 0 or more\.$"),
        ({"seq_len": 2**62}, r"^seq_len is 4611686018427387904: give at most 262,144\.$"),
        (
            {"seq_len": 3, "device": "diffusion"},
            r"^device is 'diffusion': give one of PyTorch's, such as 'cpu' or 'cuda'",
        ),
        ({"seq_len": 3, "device": range(3)}, r"^device is range\(0, 3\), a range: give "),
    ],
)
def test_absurd_sizes_and_devices_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_chunked_attention_mask(**{"attention_chunk_size": 2, **options})


@pytest.mark.parametrize("group_ids", [UserError("x"), object(), [0, 1], iter([0])])
def test_group_ids_are_a_tensor(group_ids: Any) -> None:
    with pytest.raises(UserError, match=r"^group_ids is .*: give an object of the class Tensor"):
        generate_grouping_masks(group_ids)
