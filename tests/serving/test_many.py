"""Prompts without end: each gets what it gets in a list of all, texts begin as others end, and memory is bounded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.decoding.any_order.speculation import Speculative
from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.modes import Options
from anyorder.orders.by_name import order_named
from anyorder.serving.many import AHEAD, ManyPrompts

Network = tuple[Llama, PreTrainedTokenizerBase]

WORDS = ["hello there", "ab", "the cat sat on the mat ", "a", "once upon a time", "dog", "she said"]


def placed(prompts: Any) -> Iterator[tuple[Any, str]]:
    return ((prompt, f"line {number}") for number, prompt in enumerate(prompts, start=1))


@pytest.mark.parametrize("order", ["left-to-right", "random", "groups:3", "diffusion", "blocks:4", "drafts", "fast"])
@pytest.mark.parametrize("samples", [None, 3])
def test_each_prompt_gets_what_it_gets_in_a_list(network: Network, order: Any, samples: int | None) -> None:
    if order == "drafts":
        order = Speculative(order=order_named("random"), draft=2)
    elif order == "fast":
        order = anyorder.DiffusionSampler.preset("fast-dllm", block_length=4, temperature=1.0)
    drawn = {} if isinstance(order, anyorder.DiffusionSampler) else {"temperature": 1.0}
    stop = None if order == "drafts" else "e"
    expected: Any = anyorder.generate(
        *network, WORDS, order=order, max_new_tokens=8, num_samples=samples, seed=3, stop=stop, **drawn
    )
    options = Options(
        order=order, sampling=Sampling(seed=3, **drawn), max_new_tokens=8, stop=stop, num_samples=samples, batch_size=4
    )
    outs = list(ManyPrompts(*network, options).write(placed(WORDS)))
    assert [out.text for out in outs] == (expected.text if samples else [[text] for text in expected.text])
    assert [ids for out in outs for ids in out.sequences] == expected.sequences
    assert [reason for out in outs for reason in out.stopped] == expected.stopped
    later = list(ManyPrompts(*network, options).write(placed(WORDS[5:]), first=5))
    assert [out.text for out in later] == [out.text for out in outs[5:]]
    numbers = {event.sample_id for out in later for event in out.trace.events}
    assert numbers == set(range(5 * (samples or 1), 7 * (samples or 1)))


def test_gaps_stand_beside_other_prompts(network: Network) -> None:
    prompts = ["the [...] sat", "ab", [5, -1, 6], "a [...] b [...] c"]
    expected: Any = anyorder.generate(*network, prompts, max_new_tokens=5, gap_tokens=3)
    outs = ManyPrompts(*network, Options(max_new_tokens=5), gap_tokens=3).write(placed(prompts))
    assert [out.full_text for out in outs] == [[text] for text in expected.full_text]


def test_texts_begin_as_others_end(network: Network) -> None:
    """A long text holds up no other, so there are fewer passes than in batches that wait for it."""
    prompts = [[5 + at % 90 for at in range(length)] for length in (250, 9, 250, 9, 250, 9, 250, 9)]
    many = ManyPrompts(network[0], None, Options(max_new_tokens=40, batch_size=2))
    written = [len(out.token_ids[0]) for out in many.write(placed(prompts))]
    in_batches = sum(map(max, written[::2], written[1::2]))
    assert sum(written) / 2 <= many.passes < in_batches


def test_prompts_are_read_as_they_are_needed(network: Network) -> None:
    read = 0

    def endless() -> Iterator[tuple[Any, str]]:
        nonlocal read
        for number in itertools.count(1):
            read += 1
            yield [5 + number % 7], f"line {number}"

    many = ManyPrompts(network[0], None, Options(max_new_tokens=3, batch_size=2))
    for number, _ in enumerate(itertools.islice(many.write(endless()), 60), start=1):
        assert read <= number + 2 * AHEAD + 1


def test_a_mistake_names_its_line_and_those_before_it_are_written(network: Network) -> None:
    many = ManyPrompts(*network, Options(max_new_tokens=3))
    outs = many.write(placed(["ab", "cd", "a" * 300, "ef"]))
    found = [text for out in itertools.islice(outs, 2) for text in out.text or ()]
    with pytest.raises(UserError) as caught:
        next(outs)
    assert found == anyorder.generate(*network, ["ab", "cd"], max_new_tokens=3).text
    assert str(caught.value).startswith("line 3 has 300 tokens, and the network was trained on 256: shorten it")
    for prompts, options, message in (
        ([[500]], Options(), "line 1 has the token id 500: give ids from 0"),
        (["a [...] b"], Options(order="left-to-right"), "which fills no gap, and line 1 has one"),
        ([[{"role": "user"}]], Options(), "line 1: "),
        (["the [...] sat"], Options(stop="a"), "line 1: stop is ['a'], but a gap is always filled"),
    ):
        with pytest.raises(UserError, match="line 1") as caught:
            list(ManyPrompts(*network, options).write(placed(prompts)))
        assert message in str(caught.value)


def test_options_that_cannot_be_are_refused_before_any_prompt(network: Network) -> None:
    for options, message in (
        (Options(max_new_tokens=0), "max_new_tokens is 0: give a whole number above 0."),
        (Options(sampling=Sampling(top_k=3)), "top_k is 3 at temperature 0"),
        (Options(order="sideways"), "order is 'sideways': give one of"),
        (Options(stop=""), "stop is '': give strings"),
    ):
        with pytest.raises(UserError) as caught:
            ManyPrompts(*network, options)
        assert message in str(caught.value)
