"""Attention shares against weights that are taken apart by a plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyorder.decoding.fusion.attention_share import attention_shares, segment_shares
from anyorder.decoding.fusion.layout import Question
from anyorder.decoding.fusion.method import Fusion
from anyorder.decoding.fusion.weighting import APE
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.visibility import causal
from tests.decoding.fusion.test_decoder import net, questions
from tests.decoding.fusion.writing import write_fused
from tests.model.oracle import narrowed, oracle_logits


def loop_shares(model: Llama, ids: list[int], group: list[int], groups: int) -> Tensor:
    """`[rows, groups]` of causal text, summed in an oracle that tells all weights."""
    total = torch.zeros(len(ids), groups, dtype=torch.float64)

    def weigh(scores: Tensor, row: int, keys: list[int]) -> Tensor:
        weights = scores.softmax(0)
        for weight, key in zip(weights, keys, strict=True):
            if group[key] >= 0:
                total[row, group[key]] += weight
        return weights

    oracle_logits(
        model, ids, range(len(ids)), lambda kind, row, key: key <= row and narrowed(kind, row, key), len(ids), weigh
    )
    return total / (len(model.config.layers) * model.config.num_attention_heads)


@pytest.mark.parametrize("layers", ["plain", "NoPE", "window"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_equals_a_loop(layers: str, backend: str, data: st.DataObject) -> None:
    """Also with more groups than a head is wide."""
    model = net(layers, backend)
    ids = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=7))
    groups = data.draw(st.integers(1, 9))
    group = [data.draw(st.integers(-1, groups - 1)) for _ in ids]
    position = torch.arange(len(ids)).unsqueeze(0)
    views = model.prepare(causal(), {"position": position})
    shares = attention_shares(model, torch.tensor([ids]), views, torch.tensor([group]), groups)
    torch.testing.assert_close(shares[0], loop_shares(model, ids, group, groups), rtol=0, atol=1e-9)


def test_shares_of_all_groups_add_up_to_one() -> None:
    model = net()
    position = torch.arange(6).unsqueeze(0)
    group = torch.tensor([[0, 1, 2, 0, 1, 2]])
    shares = attention_shares(model, position, model.prepare(causal(), {"position": position}), group, 3)
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, 6, dtype=torch.float64))
    assert not any(layer.get_submodule("self_attn")._forward_pre_hooks for layer in model.model.layers)


@settings(max_examples=6, deadline=None)
@given(asked=st.lists(questions, min_size=1, max_size=3), correction=st.sampled_from(["1/N", "none", APE(0.7, 1.2)]))
def test_segments_of_a_batch_are_those_of_each_question(asked: list[Question], correction: str) -> None:
    model = net()
    fusion = Fusion(correction=correction)
    written = write_fused(model, asked, fusion=fusion, max_new_tokens=3).written
    batch = segment_shares(model, asked, fusion, written)
    for question, ids, shares in zip(asked, written, batch, strict=True):
        assert [len(shares)] == [len(question.segments)]
        assert all(share > 0 for share in shares)
        assert sum(shares) < 1
        assert segment_shares(model, [question], fusion, [ids])[0] == pytest.approx(shares, abs=1e-12)


def test_copies_share_alike_and_a_weight_counts() -> None:
    model = net()
    segments = ((1, 2, 3),) * 4
    same = Question(segments=segments, prefix=(9,), suffix=(8,))
    heavy = Question(segments=segments, prefix=(9,), suffix=(8,), weights=(1.0, 1.0, 6.0, 1.0))
    shares, weighed = (segment_shares(model, [one], Fusion(), [[5, 6]])[0] for one in (same, heavy))
    assert shares == pytest.approx([shares[0]] * 4, abs=1e-12)
    assert weighed[2] / weighed[0] == pytest.approx(6, abs=1e-9)


def test_the_rows_are_those_that_chose_the_answer() -> None:
    """The last row of the suffix and those of the answer but the last; without a suffix those of the answer."""
    model = net()
    one = Question(segments=((1, 2), (3,)), prefix=(9,), suffix=(8, 7))
    layout = one.layout("shared")
    first = segment_shares(model, [one], Fusion(), [[5]])[0]
    second = segment_shares(model, [Question(segments=one.segments, prefix=(9,), suffix=(8, 7, 5))], Fusion(), [[6]])[0]
    both = segment_shares(model, [one], Fusion(), [[5, 6]])[0]
    assert both == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)], abs=1e-12)
    without = Question(segments=one.segments, prefix=(9,))
    assert segment_shares(model, [without], Fusion(), [[8, 7]])[0] == pytest.approx(
        segment_shares(model, [Question(segments=one.segments, prefix=(9,), suffix=(8,))], Fusion(), [[7]])[0]
    )
    assert layout.length == 6


def test_an_attention_of_another_kind_is_refused() -> None:
    model = net()

    class Other(torch.nn.Module):
        pass

    model.model.layers[1].self_attn = Other()
    position = torch.arange(2).unsqueeze(0)
    views = model.prepare(causal(), {"position": position})
    with pytest.raises(UserError, match="attention is Other, of which no shares are known: derive it from Self"):
        attention_shares(model, position, views, position, 2)
    assert not model.model.layers[0].get_submodule("self_attn")._forward_pre_hooks
