"""The two helpers that give plain tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyorder import create_chunked_attention_mask, generate_grouping_masks
from anyorder.errors import UserError


@given(group_ids=st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_grouping_masks_compare_ranks(group_ids: list[int]) -> None:
    content, query = generate_grouping_masks(torch.tensor(group_ids))
    assert content.tolist() == [[key <= row for key in group_ids] for row in group_ids]
    assert query.tolist() == [[key < row for key in group_ids] for row in group_ids]


def test_each_sample_has_its_own_mask() -> None:
    group_ids = torch.tensor([[0, 0, 1], [2, 1, 0]])
    content, query = generate_grouping_masks(group_ids)
    assert content.shape == query.shape == (2, 3, 3)
    for sample in range(2):
        alone = generate_grouping_masks(group_ids[sample])
        assert torch.equal(content[sample], alone[0])
        assert torch.equal(query[sample], alone[1])


@pytest.mark.parametrize("group_ids", [torch.tensor(3), torch.tensor([0.0, 1.0]), torch.tensor([[True]])])
def test_group_ids_are_whole_numbers(group_ids: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"^group_ids is torch\.\w+ of shape .*: give whole numbers \[length\] or"):
        generate_grouping_masks(group_ids)


def test_chunks_are_causal_within() -> None:
    mask = create_chunked_attention_mask(5, 2)
    assert mask.tolist() == [[key <= row and key // 2 == row // 2 for key in range(5)] for row in range(5)]
    with pytest.raises(UserError, match="chunk"):
        create_chunked_attention_mask(5, 0)
