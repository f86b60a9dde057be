"""A caller's own `DynamicCache`: empty or filled, it is used and filled as transformers' networks do."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from anyorder.errors import UserError
from tests.huggingface.twins import assert_close, batch, twins

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(name="no_gradients")
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def longer(mask: Tensor, by: int = 1) -> Tensor:
    return torch.cat((mask, mask.new_ones((len(mask), by))), 1)


def test_a_loop_over_an_empty_one() -> None:
    """The habit of a loop that gives the same object each time and never reads the output's."""
    ours, theirs = twins()
    ids, mask = batch(7, 4)
    caches = DynamicCache(), DynamicCache(config=theirs.config)
    for _ in range(3):
        rows = ids[:, caches[0].get_seq_length() :]
        output = ours(rows, attention_mask=mask, past_key_values=caches[0])
        expected = theirs(
            rows, attention_mask=mask, position_ids=positions(mask)[:, -rows.shape[1] :], past_key_values=caches[1]
        )
        assert_close(output.logits[:, -1], expected.logits[:, -1])
        assert output.past_key_values is caches[0]
        assert caches[0].get_seq_length() == mask.shape[1]
        for mine, other in zip(*(cache.layers for cache in caches), strict=True):
            there = mask.bool()[:, None, :, None]
            assert_close(mine.keys.where(there, 0), other.keys.where(there, 0))
            assert_close(mine.values.where(there, 0), other.values.where(there, 0))
        ids, mask = torch.cat((ids, expected.logits[:, -1:].argmax(-1)), 1), longer(mask)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_generate_fills_it_for_the_next_turn(options: dict[str, Any]) -> None:
    ours, theirs = twins()
    ids, mask = batch(6)
    options |= {"do_sample": False, "eos_token_id": None, "max_new_tokens": 4}
    caches = DynamicCache(), DynamicCache()
    for _ in range(2):
        found = ours.generate(ids, attention_mask=mask, past_key_values=caches[0], **options)
        expected = theirs.generate(ids, attention_mask=mask, past_key_values=caches[1], **options)
        assert found.tolist() == expected.tolist()
        assert caches[0].get_seq_length() == caches[1].get_seq_length() == expected.shape[1] - 1
        ids = torch.cat((expected, torch.tensor([[7, 8]])), 1)
        mask = torch.ones_like(ids)


def test_a_copy_for_each_ending_and_a_crop() -> None:
    """The prompt is read once; each ending goes on from a copy of its cache."""
    ours, _ = twins()
    prompt, mask = batch(6, 3)
    cache = DynamicCache()
    ours(prompt, attention_mask=mask, past_key_values=cache)
    for _ in range(2):
        ending = torch.randint(3, 96, (2, 3))
        whole = ours(torch.cat((prompt, ending), 1), attention_mask=longer(mask, 3)).logits
        used = copy.deepcopy(cache)
        assert_close(ours(ending, attention_mask=longer(mask, 3), past_key_values=used).logits, whole[:, -3:])
        used.crop(-2)
        assert_close(ours(ending[:, 1:], attention_mask=longer(mask, 3), past_key_values=used).logits, whole[:, -2:])
        assert cache.get_seq_length() == 6


def test_keys_of_another_network_go_on() -> None:
    """What transformers' Llama has read, padding included, ours goes on from."""
    ours, theirs = twins()
    ids, mask = batch(7, 4)
    more = torch.randint(3, 96, (2, 3))
    past = theirs(ids, attention_mask=mask, position_ids=positions(mask)).past_key_values
    whole = longer(mask, 3)
    output = ours(more, attention_mask=whole, past_key_values=past)
    assert_close(output.logits, ours(torch.cat((ids, more), 1), attention_mask=whole).logits[:, 7:])
    then = ours(more[:, :1], past_key_values=output.past_key_values)  # it remembers the padding
    assert_close(then.logits, ours(torch.cat((ids, more, more[:, :1]), 1), attention_mask=longer(whole)).logits[:, -1:])


def test_caches_that_do_not_fit() -> None:
    ours, theirs = twins()
    ids, mask = batch(5)
    with pytest.raises(UserError, match=r"cache has 3 layers, the first of \[1, 2, 5, 8\], not 3 layers of \[2,"):
        ours(ids.repeat(2, 1), past_key_values=theirs(ids).past_key_values)
    with pytest.raises(UserError, match="attention_mask has 2 columns, but cache 5: give one for each"):
        ours(ids[:, :1], attention_mask=mask[:, :2], past_key_values=theirs(ids).past_key_values)


GIVEN = ["empty", "filled by us", "filled by transformers"]


@pytest.mark.parametrize(
    ("given", "place"),
    [*itertools.product([*GIVEN, "ours"], ["layer", "head"]), *((given, "update") for given in GIVEN)],
)
def test_an_interrupted_pass_leaves_the_cache_as_it_was(
    given: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = twins()
    ids, mask = batch(8)
    whole = ours(ids, attention_mask=mask, use_cache=False).logits
    cache: Any = DynamicCache()
    read = 0 if given == "empty" else 5
    if given == "filled by transformers":
        cache = theirs(ids[:, :5]).past_key_values
    elif read:
        cache = ours(ids[:, :5], past_key_values=None if given == "ours" else cache, use_cache=True).past_key_values

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    def interrupted_update(self: Any, keys: Tensor, values: Tensor, number: int) -> Any:
        return interrupt() if number == 1 else update(self, keys, values, number)

    update = DynamicCache.update
    with monkeypatch.context() as patch:
        patch.setattr(DynamicCache, "update", interrupted_update if place == "update" else update)
        handle = (ours.lm_head if place == "head" else ours.model.layers[1]).register_forward_pre_hook(interrupt)
        if place == "update":
            handle.remove()
        with pytest.raises(KeyboardInterrupt):
            ours(ids[:, read:], past_key_values=cache)
        handle.remove()
    assert cache.get_seq_length() == read
    for part in (slice(read, 6), slice(6, 8)):
        output = ours(ids[:, part], past_key_values=cache)
        assert_close(output.logits, whole[:, part])
