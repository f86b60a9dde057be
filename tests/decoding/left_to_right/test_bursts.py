"""Several tokens in one call are those of one token a call; compiled in tests/model/test_compiled.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyorder.decoding.left_to_right import bursts, decoder
from anyorder.decoding.left_to_right.decoder import left_to_right_steps
from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.rope import DynamicRotary
from tests.decoding.left_to_right.test_decoder import PROMPTS, network, same, with_ends
from tests.writers import write_left_to_right


def uncompiled(function: Any, model: Llama) -> Any:
    return function


@pytest.fixture(autouse=True, scope="module")
def _uncompiled() -> Any:
    """Functions that would be compiled run as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "compiled", uncompiled)
        patch.setattr(bursts, "compiled", uncompiled)
        patch.setattr(decoder, "with_packages", lambda model, making: model)
        yield


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of each call."""
    steps: list[int] = []
    plain = bursts.burst

    def counted(*arguments: Any) -> Any:
        columns = plain(*arguments)
        steps.append(len(columns))
        return columns

    monkeypatch.setattr(bursts, "burst", counted)
    return steps


def one_by_one(model: Llama, prompts: Sequence[Sequence[int]], new_tokens: int, **options: Any) -> Any:
    return write_left_to_right(model, prompts, max_new_tokens=new_tokens, compile=False, **options)


@settings(deadline=None, max_examples=40)
@given(
    prompts=st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=31), min_size=1, max_size=4),
    new_tokens=st.integers(1, 40),
    ends=st.sets(st.integers(0, 39), max_size=12),
)
def test_they_are_those_of_one_token_a_call(prompts: list[list[int]], new_tokens: int, ends: set[int]) -> None:
    """Rows end at end tokens, at the limit and at the trained length, each in its own step."""
    model = with_ends(*ends)
    several = write_left_to_right(model, prompts, max_new_tokens=new_tokens, compile=True)
    same(several, one_by_one(model, prompts, new_tokens))
    assert several.trace.passes == max(map(len, several.written))


def test_as_few_calls_as_can_be(calls: list[int]) -> None:
    write_left_to_right(with_ends(), PROMPTS[:1], max_new_tokens=1 + 16 + 5, compile=True)
    assert calls == [16, 5]  # after the pass over the prompt


def test_nothing_is_computed_after_the_end(calls: list[int]) -> None:
    written = one_by_one(with_ends(), [[1, 2]], 10).written[0]
    assert written.index(written[4]) == 4
    write_left_to_right(with_ends(written[4]), [[1, 2]], max_new_tokens=10, compile=True)
    assert calls == [4]


@pytest.mark.parametrize("kinds", ["NoPE", "window", "chunk"])
def test_layers_of_other_kinds(kinds: str) -> None:
    model = network(kinds)
    same(write_left_to_right(model, PROMPTS, max_new_tokens=20, compile=True), one_by_one(model, PROMPTS, 20))


def test_dynamic_rotary_is_read_anew_beyond_the_trained_length(calls: list[int]) -> None:
    rotary = DynamicRotary(theta=100.0, factor=2.0, original_max_position_embeddings=10)
    model = Llama(network().config.replace(rotary=rotary, eos_token_ids=()), backend="eager").double()
    model.load_state_dict(network().state_dict())
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    same(write_left_to_right(model, prompts, max_new_tokens=14, compile=True), one_by_one(model, prompts, 14))
    assert calls == [5]  # texts of 6 to 10 tokens are read from the cache


def test_only_where_all_is_known_beforehand(calls: list[int]) -> None:
    """A stop condition, draws and a repetition penalty need one token a call."""
    for options in (
        {"stop": lambda row, written: len(written) > 3},
        {"sampling": Sampling(temperature=0.7)},
        {"sampling": Sampling(repetition_penalty=1.5)},
    ):
        several = write_left_to_right(network(), PROMPTS, max_new_tokens=6, compile=True, **options)
        same(several, one_by_one(network(), PROMPTS, 6, **options))
    assert calls == []


def test_not_for_a_large_network(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """There a token takes long, so that each is yielded as it is written."""
    monkeypatch.setattr("anyorder.model.compiled.SMALL", 0)
    write_left_to_right(network(), PROMPTS, max_new_tokens=6, compile=True)
    assert calls == []


def test_a_reader_who_leaves_early_has_seen_the_same() -> None:
    steps = left_to_right_steps(
        with_ends(),
        [[1, 2]],
        max_new_tokens=30,
        sampling=Sampling(),
        stop=None,
        use_cache=True,
        sample_ids=[0],
        compile=True,
    )
    seen = [next(steps).written[0].token_id for _ in range(5)]
    assert seen == one_by_one(with_ends(), [[1, 2]], 5).written[0]


def test_weights_that_are_not_numbers() -> None:
    model = with_ends()
    with torch.no_grad():
        model.model.embed_tokens.weight[3] = torch.nan
    with pytest.raises(UserError, match=r"scores for row 0 are NaN"):
        write_left_to_right(model, [[3]], max_new_tokens=20, compile=True)
