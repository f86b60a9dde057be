"""A plain call, `model(ids)`: the network's default mode, whatever padding there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import anyorder
from anyorder import LlamaTwoStreamForCausalLM
from anyorder.checkpoints.adapt import adapt
from anyorder.errors import UserError
from anyorder.inspection.speed import twin
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, Mode, blocks, diffusion
from anyorder.training import train_causal
from tests.model.networks import VOCABULARY, network
from tests.published import bidirectional_logits, write_dream, write_llada

MASK = 30

MODES = {
    "left to right": LEFT_TO_RIGHT, "any order": ANY_ORDER, "diffusion": diffusion(MASK),
    "shifted diffusion": diffusion(MASK, shifted=True), "blocks": blocks(MASK, 3),
    "shifted blocks": blocks(MASK, 3, shifted=True),
}  # fmt: skip


def writing(*modes: Mode, **changes: object) -> Llama:
    return adapt(network(**changes), modes).eval()


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() < 1e-5 * other.abs().max().clamp(min=1))


def aligned(logits_BLV: Tensor) -> Tensor:
    """Logits of the token itself, from those of the next token."""
    return torch.cat((logits_BLV[:, :1], logits_BLV[:, :-1]), 1)


@torch.no_grad()
def test_published_diffusion_models_see_everything(tmp_path: Path) -> None:
    ids = torch.randint(0, 96, (2, 11))
    for name, write in (("llada", write_llada), ("dream", write_dream)):
        theirs = write(tmp_path / name)
        model, _ = anyorder.load(tmp_path / name, device="cpu")
        expected = bidirectional_logits(theirs, ids)
        assert close(model(ids).logits, aligned(expected) if name == "dream" else expected)


@torch.no_grad()
def test_blocks_see_themselves_and_those_before() -> None:
    model = writing(blocks(MASK, 3))
    ids = torch.randint(0, VOCABULARY, (2, 8))
    theirs = twin(model)
    assert isinstance(theirs, LlamaForCausalLM)
    block_L = torch.arange(8) // 3
    seen_LL = block_L[None, :] <= block_L[:, None]
    assert close(model(ids).logits, theirs(ids, attention_mask=seen_LL.expand(2, 1, 8, 8)).logits)
    shifted = writing(blocks(MASK, 3, shifted=True))
    assert close(shifted(ids).logits, aligned(model(ids).logits))


@torch.no_grad()
def test_any_order_reads_its_query_rows() -> None:
    model = writing(ANY_ORDER)
    ids = torch.randint(0, VOCABULARY, (2, 8))
    found = model(ids).logits
    assert close(found, LlamaTwoStreamForCausalLM.of(model)(ids).logits)
    for at in (0, 3, 7):  # of the tokens before alone
        changed = ids.clone()
        changed[:, at:] = (changed[:, at:] + 1) % VOCABULARY
        assert close(model(changed).logits[:, at], found[:, at])


@torch.no_grad()
def test_of_several_ways_the_default_is_taken() -> None:
    ids = torch.randint(0, VOCABULARY, (2, 8))
    one, other = LEFT_TO_RIGHT, diffusion(MASK)
    causal, masked = writing(one)(ids).logits, writing(other)(ids).logits
    assert not close(causal, masked)
    assert close(writing(one, other)(ids).logits, causal)
    assert close(writing(other, one)(ids).logits, masked)


@pytest.mark.parametrize("name", MODES)
@settings(max_examples=25, deadline=None)
@given(mask=st.lists(st.booleans(), min_size=1, max_size=9).filter(any), seed=st.integers(0, 99))
def test_padding_anywhere_changes_neither_logits_nor_loss(name: str, mask: list[bool], seed: int) -> None:
    model = writing(MODES[name])
    valid = torch.tensor([mask])
    random = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(0, VOCABULARY, (2, 1, len(mask)), generator=random)
    given, alone = ids[valid][None], labels[valid][None]
    padded, plain = model(ids, attention_mask=valid.long(), labels=labels), model(given, labels=alone)
    assert close(padded.logits[valid], plain.logits[0])
    if plain.loss.isfinite():  # of one token, there is none after it
        torch.testing.assert_close(padded.loss, plain.loss)


@pytest.mark.parametrize("name", MODES)
def test_the_loss_counts_each_label_once(name: str) -> None:
    model = writing(MODES[name])
    ids = torch.randint(0, VOCABULARY, (2, 6))
    labels = ids.masked_fill(torch.rand(2, 6) < 0.3, -100)
    found = model(ids, labels=labels)
    losses = [
        F.cross_entropy(found.logits[row, at - (name == "left to right")], labels[row, at])
        for row in range(2)
        for at in range(1 if name == "left to right" else 0, 6)
        if labels[row, at] != -100
    ]
    torch.testing.assert_close(found.loss, torch.stack(losses).mean())
    summed = model(ids, labels=labels, num_items_in_batch=7).loss
    torch.testing.assert_close(summed, torch.stack(losses).sum() / 7)


def test_what_does_not_fit_is_refused() -> None:
    model, ids = writing(LEFT_TO_RIGHT), torch.zeros((1, 4), dtype=torch.long)
    with pytest.raises(UserError, match=r"^attention_mask has the shape \[1, 3\]: give \[1, 4\]\.$"):
        model(ids, attention_mask=torch.ones(1, 3))
    with pytest.raises(UserError, match=r"^labels has the shape \[1, 5\]: give \[1, 4\]\.$"):
        model(ids, labels=torch.zeros((1, 5), dtype=torch.long))
    unshifted = writing(Mode(name="left-to-right", shifted=False))
    with pytest.raises(UserError, match="'left-to-right' is not shifted: give a network"):
        unshifted(ids)


@pytest.mark.parametrize("name", ["any order", "diffusion", "shifted diffusion", "blocks"])
def test_nothing_is_trained_causally_without_a_word(name: str) -> None:
    with pytest.raises(UserError, match="has no logits for the next token"):
        train_causal(
            writing(MODES[name]), torch.zeros((4, 5), dtype=torch.long), steps=1, batch_size=2, learning_rate=1e-3
        )


def test_a_causal_call_is_that_of_transformers() -> None:
    model = writing(LEFT_TO_RIGHT)
    theirs = twin(model)
    assert isinstance(theirs.config, LlamaConfig)
    ids = torch.randint(0, VOCABULARY, (2, 8))
    ours, expected = model(ids, labels=ids), theirs(ids, labels=ids)
    assert close(ours.logits, expected.logits)
    torch.testing.assert_close(ours.loss, expected.loss)
