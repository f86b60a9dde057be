"""Text in, text out, in any order: prompts with gaps and without, orders by name and as objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder import GroupPlan
from anyorder.api.output import Output
from anyorder.api.prompts import prompts_with_gaps
from anyorder.api.text import UNREADABLE, Continuation
from anyorder.decoding.any_order.decoder import any_order_steps
from anyorder.decoding.any_order.speculation import Speculative
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Written, collect
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, Mode, blocks, diffusion
from anyorder.model.rope import Rotary
from anyorder.orders.by_name import AnyOrder
from anyorder.orders.kinds import LeftToRight, MostConfident, Random, RightToLeft
from tests.writers import BOS, END, byte_tokenizer

TOKENIZER = byte_tokenizer()


def network(*modes: Mode, **changes: Any) -> Llama:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rotary=Rotary(theta=10_000.0),
        initializer_range=0.3,
        bos_token_id=BOS,
        eos_token_ids=(END,),
        modes=modes or (ANY_ORDER, LEFT_TO_RIGHT),
    )
    return Llama(config.replace(**changes) if changes else config).eval()


MODEL = network()


@pytest.mark.parametrize(
    ("order", "same"),
    [
        (None, LeftToRight()),
        ("any-order", LeftToRight()),
        ("random", Random()),
        ("groups:3", LeftToRight(size=3)),
        ("right-to-left", RightToLeft()),
        ("confidence", MostConfident()),
        (Random(size=2), Random(size=2)),
        (MostConfident(size=2), MostConfident(size=2)),
    ],
)
def test_orders_write_what_their_decoder_writes(order: Any, same: AnyOrder) -> None:
    ids = TOKENIZER("Once upon a")["input_ids"]
    out = anyorder.generate(MODEL, TOKENIZER, "Once upon a", order=order, max_new_tokens=6, temperature=0.9, seed=4)
    canvas = ids + [BLANK] * 6
    sampling = Sampling(temperature=0.9, seed=4)
    expected = collect(
        any_order_steps(MODEL, [canvas], same, sampling=sampling, sample_ids=range(1)), [canvas], range(1), (END,)
    )
    assert out.sequences == expected.sequences
    assert out.token_ids == expected.written[0]
    assert out.passes == expected.trace.passes
    assert out.trace.events == expected.trace.events


def test_a_batch_with_gaps_and_without_is_one_by_one() -> None:
    prompts = ["Once upon [...] time", "Once", "[...] a [...] little girl"]
    out = anyorder.generate(MODEL, TOKENIZER, prompts, order="random", max_new_tokens=5, gap_tokens=2, temperature=1.0)
    assert [len(ids) for ids in out.token_ids] == [2, 5, 4]
    assert isinstance(out.text, list)
    assert [text.count("[...]") for text in out.text] == [0, 0, 1]
    for size in (1, 2):
        again = anyorder.generate(
            MODEL, TOKENIZER, prompts, order="random", max_new_tokens=5, gap_tokens=2, temperature=1.0, batch_size=size
        )
        assert (again.text, again.sequences) == (out.text, out.sequences)
    for prompt, sequence in zip(prompts, out.sequences, strict=True):
        for part in prompt.split("[...]"):
            assert part.strip() in TOKENIZER.decode(sequence)


def test_token_ids_have_gaps_too() -> None:
    out = anyorder.generate(MODEL, None, torch.tensor([[5, -1, 6], [-1, 7, -1]]), order="random")
    assert out.sequences[0] == [5, *out.token_ids[0], 6]
    assert out.sequences[1][1] == 7
    assert out.text is None


def test_a_plan_is_taken_for_each_text_and_sample() -> None:
    plan = GroupPlan.from_order([[3, 1], [2, 3]], lengths=[4, 4])
    prompts = [[5, -1, 6, -1], [5, 6, -1, -1]]
    out = anyorder.generate(
        MODEL, None, prompts, order=plan, temperature=1.0, num_samples=2, batch_size=3, max_new_tokens=1
    )
    positions = [[event.position for event in out.trace.events if event.sample_id == row] for row in range(4)]
    assert positions == [[3, 1], [3, 1], [2, 3], [2, 3]]
    assert [len(samples) for samples in out.token_ids] == [2, 2]


def test_a_text_ends_with_its_end_token() -> None:
    """Also where tokens stand behind it that were written before."""
    ids = TOKENIZER("Once")["input_ids"]
    full = anyorder.generate(MODEL, TOKENIZER, ids, order="right-to-left", max_new_tokens=6)
    assert isinstance(full.text, str)
    end = full.token_ids[3]
    assert full.token_ids.index(end) == 3
    model = network(eos_token_ids=(end,))
    out = anyorder.generate(model, TOKENIZER, ids, order="right-to-left", max_new_tokens=6)
    assert out.token_ids == full.token_ids
    assert out.stopped == ["end"]
    text = Continuation(TOKENIZER, ids)
    text.update(out.token_ids[:3])
    assert out.text == text.text
    assert len(full.text) > len(text.text)


def test_streams_join_to_the_text() -> None:
    options: dict[str, Any] = {"order": "random", "max_new_tokens": 12, "temperature": 1.0}
    stream = anyorder.stream(MODEL, TOKENIZER, "Once upon", **options)
    text = "".join(stream)
    assert text == stream.output.text == anyorder.generate(MODEL, TOKENIZER, "Once upon", **options).text


def test_nobody_writes_beyond_the_longest_text() -> None:
    out = anyorder.generate(MODEL, None, [[5] * 60], order="random", max_new_tokens=10)
    assert len(out.sequences[0]) == 64


@pytest.mark.parametrize(
    ("model", "prompt", "options", "message"),
    [
        (MODEL, "Once", {"order": "sideways"}, r"^order is 'sideways': give one of left-to-right, any-order,"),
        (MODEL, "Once", {"order": "groups:x"}, r"^order is 'groups:x': give one of left-to-right, any-order, groups:N"),
        (MODEL, "Once", {"order": "left-to-right", "gap_tokens": 2}, r"^gap_tokens is 2, but no prompt has a gap"),
        (
            MODEL, ["Once", "[...] a"], {"order": "left-to-right"},
            r"^order is 'left-to-right', which fills no gap, and prompt 1 has one \(\[...\], or -1 among token ids\): "
            r"leave out the order, or give 'any-order'\.",
        ),
        (
            network(LEFT_TO_RIGHT), "Once [...]", {},
            r"^prompt 0 has a gap .*, and this network writes by 'left-to-right' alone, which fills none: load a ",
        ),
        (
            network(LEFT_TO_RIGHT), "Once [...]", {"order": "left-to-right", "gap_tokens": 2},
            r"^prompt 0 has a gap .*, and this network writes by 'left-to-right' alone, which fills none: load a ",
        ),
        (MODEL, ["a", "[...] a"], {"stop": ".", "gap_tokens": 2}, r"^stop is \['\.'\], but a gap is always "),
        (MODEL, "Once [...] a", {"stop": ".", "gap_tokens": [1, 2]}, r"^stop is \['\.'\], but a gap is always filled"),
        (MODEL, "Once", {"num_beams": 2}, r"^num_beams is 2, but beams are written from left to right: leave it out\."),
        (MODEL, "Once [...] a", {"gap_tokens": 99}, r"^prompt 0 has \d+ tokens with those to be written"),
        (MODEL, [5] * 64, {}, r"^prompt 0 has 64 tokens, and the network was trained on 64: shorten it"),
        (MODEL, "Once", {"order": GroupPlan.sequential(3)}, r"^the plan is for a text of 3 tokens, but prompt 0 has "),
        (network(LEFT_TO_RIGHT), "Once", {"order": "random"}, r"not by 'any-order': train it for that .*permutation"),
        (network(LEFT_TO_RIGHT), "Once", {"order": Random()}, r"not by 'any-order': train it for that .*permutation"),
        (network(diffusion(5)), "Once", {"order": "confidence"}, "writes by 'diffusion', not by 'any-order'"),
        (network(ANY_ORDER), "Once", {"order": "left-to-right"}, "has no logits for the next token"),
    ],
)  # fmt: skip
def test_mistakes_are_named(model: Llama, prompt: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        anyorder.generate(model, TOKENIZER, prompt, **options)


def test_a_gap_is_not_streamed() -> None:
    with pytest.raises(UserError, match=r"^the prompt of a stream has a gap, \[\.\.\.\], but only what goes on"):
        anyorder.stream(MODEL, TOKENIZER, "Once [...] a", order="random", max_new_tokens=3)
    with pytest.raises(UserError, match=r"^stop is \['\.'\], but a gap is always filled to its end"):
        anyorder.stream(MODEL, TOKENIZER, "Once [...] a", order="random", max_new_tokens=3, stop=".")


def test_tokenizers_are_needed_for_text() -> None:
    none: PreTrainedTokenizerBase | None = None
    with pytest.raises(UserError, match=r"^'Once' is text and tokenizer is None: give the tokenizer"):
        anyorder.generate(MODEL, none, "Once [...]", order="random")


@pytest.mark.parametrize(
    ("modes", "default", "order"),
    [
        ((LEFT_TO_RIGHT, ANY_ORDER, diffusion(5)), "left-to-right", "any-order"),
        ((LEFT_TO_RIGHT, diffusion(5)), "left-to-right", "diffusion"),
        ((LEFT_TO_RIGHT, ANY_ORDER, diffusion(5)), "diffusion", "diffusion"),
        ((LEFT_TO_RIGHT, blocks(5, 4)), "left-to-right", "blocks"),
    ],
)
def test_a_prompt_with_a_gap_takes_a_way_that_fills_it_whatever_stands_beside(
    modes: tuple[Mode, ...], default: str, order: str
) -> None:
    model = network(*modes, default_mode=default)
    prompts = ["Once upon", "Once [...] a time", [7, -1, 6], "Once"]
    options: dict[str, Any] = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3}
    filling = anyorder.generate(model, TOKENIZER, prompts, order=order, **options)
    continuing = anyorder.generate(model, TOKENIZER, ["Once upon", "a", "a", "Once"], **options)
    out = anyorder.generate(model, TOKENIZER, prompts, **options)
    expected = [
        continuing.sequences[0], filling.sequences[1], filling.sequences[2], continuing.sequences[3],
    ]  # fmt: skip
    assert out.sequences == expected
    for size in (1, 2, 3):
        assert anyorder.generate(model, TOKENIZER, prompts, batch_size=size, **options).sequences == expected
    assert {event.sample_id for event in out.trace.events} == {0, 1, 2, 3}


def test_full_texts() -> None:
    options: dict[str, Any] = {"order": "random", "max_new_tokens": 3}
    prompts = ["Once [...] a [...] time", "Once upon", "Once [...]", "Once[...] [...]a"]
    out = anyorder.generate(MODEL, TOKENIZER, prompts, **options)
    assert out.text is not None
    assert out.full_text is not None
    first, second = out.text[0].split("[...]")
    assert out.full_text[0] == f"Once{first} a{second} time"
    assert out.full_text[1:] == [
        f"Once upon{out.text[1]}", f"Once{out.text[2]}", f"Once{out.text[3]}a",
    ]  # fmt: skip
    for row in range(len(prompts)):
        assert out.full_text[row].replace(UNREADABLE, "") == spelled(out.sequences[row])
    nested = anyorder.generate(MODEL, TOKENIZER, "Once", num_samples=2, temperature=1.0, **options)
    assert nested.text is not None
    assert nested.full_text == [f"Once{text}" for text in nested.text]
    [canvas], _ = prompts_with_gaps(prompts[0], TOKENIZER, BOS, new_tokens=3)
    alone = anyorder.generate(MODEL, TOKENIZER, canvas, **options)
    assert isinstance(alone.full_text, str)
    assert alone.full_text.replace(UNREADABLE, "") == spelled(alone.sequences[0])
    stream = anyorder.stream(MODEL, TOKENIZER, "Once upon", **options)
    pieces = "".join(stream)
    assert stream.output.full_text == f"Once upon{pieces}"
    assert anyorder.generate(MODEL, None, [5], **options).full_text is None
    likely = anyorder.generate(MODEL, TOKENIZER, prompts[:1], gap_tokens=np.array([1, 2]), order="random")
    assert likely.text is not None
    first, second = likely.text[0].split("[...]")
    assert likely.full_text == [f"Once{first} a{second} time"]


def spelled(ids: list[int]) -> str:
    """As the tokenizer reads them, without bytes that are no character."""
    return str(TOKENIZER.decode(ids, skip_special_tokens=True)).replace(UNREADABLE, "")


# ---- gaps of unknown length -------------------------------------------------------------------------


def events_of(out: Output, row: int) -> list[Written]:
    return [event for event in out.trace.events if event.sample_id == row]


def test_of_several_lengths_the_most_probable_text_is_taken() -> None:
    prompts = ["Once upon [...] time", "[...] a little [...] girl", "Once"]
    options: dict[str, Any] = {"order": "random", "max_new_tokens": 3, "temperature": 0.7}
    out = anyorder.generate(MODEL, TOKENIZER, prompts, gap_tokens=[1, 2, 4], **options)
    candidates = [anyorder.generate(MODEL, TOKENIZER, prompts, gap_tokens=length, **options) for length in (1, 2, 4)]
    for row, prompt in enumerate(prompts):
        scores = []
        for candidate in candidates:
            [canvas], _ = prompts_with_gaps(prompt, TOKENIZER, BOS, new_tokens=len(candidate.token_ids[row]))
            sequence = candidate.sequences[row]
            first = canvas.index(BLANK) if BLANK in canvas else len(canvas)
            plan = GroupPlan.sequential(len(sequence), given=[first])
            scores.append(float(anyorder.log_prob(MODEL, sequence, plan).total))
        best = candidates[scores.index(max(scores))]
        assert out.sequences[row] == best.sequences[row]
        assert out.token_ids[row] == best.token_ids[row]
        assert isinstance(out.text, list)
        assert isinstance(best.text, list)
        assert out.text[row] == best.text[row]
        for event, other in zip(*(events_of(one, row) for one in (out, best)), strict=True):
            assert event[:-1] == other[:-1]
            assert event.log_prob == pytest.approx(other.log_prob, abs=1e-6)  # of another batch
    assert out.passes == sum(candidate.passes for candidate in candidates) + 3
    [alone] = [anyorder.generate(MODEL, TOKENIZER, prompts[0], gap_tokens=[1, 2, 4], **options)]
    assert isinstance(out.text, list)
    assert (alone.text, alone.sequences) == (out.text[0], out.sequences[:1])


def test_drafts_count_in_all_lengths_that_were_tried() -> None:
    options: dict[str, Any] = {"order": Speculative(order=Random(), draft=3), "temperature": 0.7}
    prompt = "Once upon [...] time"
    traces = [anyorder.generate(MODEL, TOKENIZER, prompt, gap_tokens=length, **options).trace for length in (1, 3, 6)]
    trace = anyorder.generate(MODEL, TOKENIZER, prompt, gap_tokens=[1, 3, 6], **options).trace
    assert traces[0].drafted == 0 < traces[1].drafted < traces[2].drafted
    assert trace.drafted == sum(one.drafted for one in traces)
    assert trace.accepted == sum(one.accepted for one in traces)
    assert trace.passes == sum(one.passes for one in traces) + 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gap_tokens": []}, r"^gap_tokens is \[\]: give at least one length\."),
        (
            {"gap_tokens": [1, 2], "num_samples": 2},
            r"^num_samples is given with several gap_tokens, \[1, 2\]: leave out",
        ),
        ({"gap_tokens": [1, 0]}, r"^gap_tokens is 0: give a whole number above 0\."),
    ],
)
def test_lengths_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        anyorder.generate(MODEL, TOKENIZER, "Once [...] time", temperature=1.0, **options)


def test_speculation_is_an_order() -> None:
    plan = GroupPlan.from_order([[3, 1, 2]], lengths=[4])
    for order in (LeftToRight(), plan):
        greedy = anyorder.generate(MODEL, None, [5, -1, -1, -1], order=order)
        fast = anyorder.generate(MODEL, None, [5, -1, -1, -1], order=Speculative(order=order, draft=3))
        assert fast.sequences == greedy.sequences
        assert fast.passes <= greedy.passes
        assert fast.trace.drafted > 0
