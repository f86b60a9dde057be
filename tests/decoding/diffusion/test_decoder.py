"""Writing by diffusion: the tokens of the published algorithms, and batches that equal one by one."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyorder.decoding.canvas import BLANK, continuation
from anyorder.decoding.diffusion.commit import EntropyBound, Factor, Threshold, Timesteps
from anyorder.decoding.diffusion.confidence import TokenChooser
from anyorder.decoding.diffusion.decoder import assemble, diffusion_steps
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, collect
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import Mode, blocks, diffusion
from anyorder.model.rope import Rotary
from anyorder.model.self_attention import ATTENTIONS, SelfAttention
from anyorder.visibility import not_after
from tests.decoding import literal_diffusion as literal

MASK, END = 39, 7
PROMPTS = [[1, 2, 3], [4], [5, 6, 8, 9, 10, 11, 12], [13, 14]]
DIFFUSION = diffusion(MASK)


@functools.cache
def network(dtype: torch.dtype = torch.float32, ends: tuple[int, ...] = (END,)) -> Llama:
    """Random weights, wide enough that the most probable tokens differ clearly."""
    config = ModelConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rotary=Rotary(theta=10_000.0),
        initializer_range=0.3,
        eos_token_ids=ends,
    )
    torch.manual_seed(1)
    return Llama(config, backend="eager").to(dtype)


def write(
    canvases: Sequence[Sequence[int]], sampler: DiffusionSampler, *, model: Llama | None = None, mode: Mode = DIFFUSION,
    **options: Any,
) -> Generation:  # fmt: skip
    model = model or network()
    sample_ids = options.pop("sample_ids", range(len(canvases)))
    steps = diffusion_steps(model, canvases, sampler, mode=mode, sample_ids=sample_ids, **options)
    return collect(steps, canvases, sample_ids, model.config.eos_token_ids)


def masked(canvas: Sequence[int]) -> list[int]:
    return [MASK if token == BLANK else token for token in canvas]


@pytest.mark.parametrize("block_length", [None, 8, 4])
@pytest.mark.parametrize("steps", [4, 8, 12, 16])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_llada_token_for_token(block_length: int | None, steps: int, cfg_scale: float) -> None:
    sampler = DiffusionSampler.preset("llada", steps=steps, block_length=block_length, cfg_scale=cfg_scale)
    canvases = [continuation(prompt, 16) for prompt in PROMPTS]
    generation = write(canvases, sampler)
    for prompt, canvas, sequence in zip(PROMPTS, canvases, generation.sequences, strict=True):
        for pads in (0, 5):
            scores = literal.Network(network()).padded(pads)
            expected = literal.llada(
                scores, masked(canvas), len(prompt), MASK, steps=steps, block_length=block_length or 16,
                cfg_scale=cfg_scale,
            )  # fmt: skip
            assert sequence == expected


def test_llada_leaves_a_position_masked_where_the_mask_token_is_chosen() -> None:
    model, mask = network(), 19  # a token that this network chooses
    canvas = continuation([1, 2, 3], 16)
    expected = literal.llada(
        literal.Network(model),
        [mask if token == BLANK else token for token in canvas],
        3,
        mask,
        steps=8,
        block_length=8,
    )
    assert mask in expected[3:]
    generation = write([canvas], DiffusionSampler.preset("llada", steps=8, block_length=8), mode=diffusion(mask))
    assert generation.sequences == [expected]
    never = write([canvas], DiffusionSampler(steps=8, block_length=8), mode=diffusion(mask))
    assert mask not in never.sequences[0]


@pytest.mark.parametrize("suppressed", ["choice", "confidence"])
def test_llada_suppresses_end_tokens(suppressed: Any) -> None:
    model = network(ends=(8, 18, 20, 30))
    canvas = continuation([1, 2, 3], 16)
    ends = {"no_end" if suppressed == "choice" else "unsure_end": model.config.eos_token_ids}
    expected = literal.llada(literal.Network(model), masked(canvas), 3, MASK, steps=8, block_length=8, **ends)
    sampler = DiffusionSampler.preset("llada", steps=8, block_length=8)
    assert expected != write([canvas], sampler, model=model).sequences[0]
    assert expected == write([canvas], sampler.replace(suppress_end=suppressed), model=model).sequences[0]


def test_llada_random_remasking_draws_one_number_per_candidate() -> None:
    sampler = DiffusionSampler.preset("llada", steps=6, block_length=4, remasking="random")
    canvases = [continuation(prompt, 12) for prompt in PROMPTS]
    generation = write(canvases, sampler, seed=3)
    for row, (prompt, canvas) in enumerate(zip(PROMPTS, canvases, strict=True)):
        [generator] = Sampling(seed=3).generators([row])
        uniform = functools.partial(torch.rand, 1, dtype=torch.float64, generator=generator)
        expected = literal.llada(
            literal.Network(network()), masked(canvas), len(prompt), MASK, steps=6, block_length=4,
            uniform=uniform,
        )  # fmt: skip
        assert generation.sequences[row] == expected


@pytest.mark.parametrize("mode", [DIFFUSION, diffusion(MASK, shifted=True)], ids=["aligned", "shifted"])
@pytest.mark.parametrize("steps", [5, 8, 16])
@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("dream-maskgit", "maskgit_plus"), ("dream-margin", "topk_margin"), ("dream-entropy", "entropy")],
)
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.8}, {"top_k": 3}, {"top_p": 0.9, "top_k": 4}])
def test_dream_token_for_token(name: str, algorithm: str, steps: int, mode: Mode, filters: dict[str, Any]) -> None:
    sampler = DiffusionSampler.preset(name, steps=steps).replace(**filters)
    canvases = [continuation(prompt, 16) for prompt in PROMPTS]
    generation = write(canvases, sampler, mode=mode)
    scores = literal.Network(network(), shifted=mode.shifted)
    for canvas, sequence in zip(canvases, generation.sequences, strict=True):
        expected = literal.dream(scores, masked(canvas), MASK, steps=steps, algorithm=algorithm, **filters)
        assert sequence == expected


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize(
    "rule",
    [{"steps": 8}, {"threshold": 0.3}, {"threshold": 0.9}, {"factor": 0.8}, {"factor": 1.3}, {"factor": 1.9}],
    ids=str,
)
def test_fast_dllm_token_for_token(cache: Any, rule: dict[str, Any]) -> None:
    sampler = DiffusionSampler.preset("fast-dllm", block_length=4, cache=cache, **rule)
    canvases = [continuation(prompt, 16) for prompt in PROMPTS]
    generation = write(canvases, sampler)
    for prompt, canvas, sequence in zip(PROMPTS, canvases, generation.sequences, strict=True):
        expected = literal.fast_dllm(
            literal.Network(network()), masked(canvas), len(prompt), MASK, block_length=4, cache=cache, **rule
        )
        assert sequence == expected


GAPS = [
    [1, 2, 3, *[BLANK] * 12],
    [BLANK, BLANK, 5, BLANK, 6, 8, *[BLANK] * 5],
    [4, *[BLANK] * 20],
    [5, 6, 8, 9, 10, 11, 12, BLANK, 30],
]
SAMPLERS = {
    "fixed": DiffusionSampler(steps=6),
    "blocks": DiffusionSampler(steps=12, block_length=4),
    "grow": DiffusionSampler(block_length=4, grow=True),
    "random": DiffusionSampler(confidence="random", temperature=0.7),
    "margin": DiffusionSampler(confidence="margin", temperature=0.5, top_p=0.9),
    "entropy": DiffusionSampler(confidence="entropy", tempered_confidence=True, temperature=1.5, top_k=5),
    "timesteps": DiffusionSampler(commit=Timesteps(), steps=7),
    "threshold": DiffusionSampler(commit=Threshold(0.3), block_length=5),
    "factor": DiffusionSampler(commit=Factor(1.2), block_length=5, temperature=0.8),
    "entropy bound": DiffusionSampler(confidence="entropy", commit=EntropyBound(0.8)),
    "edit": DiffusionSampler(commit=Threshold(0.2), edit=0.25, block_length=6),
    "guidance": DiffusionSampler(cfg_scale=1.2, steps=6, temperature=0.3),
    "prefix": DiffusionSampler(cache="prefix", block_length=4),
    "dual": DiffusionSampler(cache="dual", block_length=4, commit=Threshold(0.3)),
    "dual, renewed": DiffusionSampler(cache="dual", block_length=6, refresh=2, temperature=1.0, cfg_scale=0.5),
    "stop at end": DiffusionSampler(stop_at_end=True, min_new_tokens=3, temperature=2.0),
    "sure of ends last": DiffusionSampler(suppress_end="confidence", confidence="margin"),
}
MODES = {
    "diffusion": DIFFUSION,
    "shifted": diffusion(MASK, shifted=True),
    "blocks": blocks(MASK, 4),
    "shifted blocks": blocks(MASK, 4, shifted=True),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_row_of_a_ragged_batch_is_what_it_is_alone(name: str, mode: str) -> None:
    model, sampler = network(torch.float64), SAMPLERS[name]
    batch = write(GAPS, sampler, model=model, mode=MODES[mode], seed=5)
    for row, canvas in enumerate(GAPS):
        alone = write([canvas], sampler, model=model, mode=MODES[mode], sample_ids=[row], seed=5)
        assert alone.sequences == [batch.sequences[row]]
        assert alone.stopped == [batch.stopped[row]]
        theirs = [event for event in batch.trace.events if event.sample_id == row]
        assert [event[2:4] for event in alone.trace.events] == [event[2:4] for event in theirs]
        for one, other in zip(alone.trace.events, theirs, strict=True):
            assert abs(one.log_prob - other.log_prob) < 1e-9


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_given_tokens_stay_and_gaps_are_filled(name: str, mode: str) -> None:
    sampler = SAMPLERS[name]
    generation = write(GAPS, sampler, mode=MODES[mode])
    for canvas, sequence in zip(GAPS, generation.sequences, strict=True):
        assert len(sequence) == len(canvas) or sampler.grow or sampler.stop_at_end
        assert all(given in (BLANK, token) for given, token in zip(canvas, sequence, strict=False))
        assert not {BLANK, MASK} & set(sequence)
    once = [(event.sample_id, event.position) for event in generation.trace.events]
    assert sampler.edit is not None or len(set(once)) == len(once)


@settings(deadline=None, max_examples=30)
@given(
    canvases=st.lists(
        st.lists(st.integers(BLANK, MASK - 1), max_size=12).map(lambda ids: [1, *ids, BLANK, BLANK]),
        min_size=1,
        max_size=4,
    ),
    name=st.sampled_from(sorted(SAMPLERS)),
)
def test_ragged_gaps(canvases: list[list[int]], name: str) -> None:
    sampler, model = SAMPLERS[name].replace(steps=None), network(torch.float64)
    batch = write(canvases, sampler, model=model)
    for row, canvas in enumerate(canvases):
        assert write([canvas], sampler, model=model, sample_ids=[row]).sequences == [batch.sequences[row]]


@pytest.mark.parametrize("block_length", [8, 4])
def test_llada_fills_gaps_as_its_script_would(block_length: int) -> None:
    canvas = [1, 2, *[BLANK] * 5, 9, 10, *[BLANK] * 4, 11, 12, 13, *[BLANK] * 2]  # 16 positions from the first gap on
    expected = literal.llada(literal.Network(network()), masked(canvas), 2, MASK, steps=8, block_length=block_length)
    sampler = DiffusionSampler.preset("llada", steps=8, block_length=block_length)
    assert write([canvas], sampler).sequences == [expected]


@pytest.mark.parametrize("mode", ["diffusion", "shifted"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_that_is_renewed_in_each_step_is_none(cache: Any, mode: str) -> None:
    sampler, model = DiffusionSampler(block_length=4, cfg_scale=0.7, commit=Threshold(0.4)), network(torch.float64)
    cached = sampler.replace(cache=cache, refresh=1)
    same(
        write(GAPS, sampler, model=model, mode=MODES[mode]), write(GAPS, cached, model=model, mode=MODES[mode])
    )  # of rows that wait for each other the steps differ


def same(left: Generation, right: Generation) -> None:
    """The same tokens in the same order within each row, and log-probabilities to 1e-9."""
    assert left.sequences == right.sequences
    order = [sorted(generation.trace.events, key=lambda event: event[1:2]) for generation in (left, right)]
    for one, other in zip(*order, strict=True):
        assert one[1:4] == other[1:4]
        assert abs(one.log_prob - other.log_prob) < 1e-9


@pytest.mark.parametrize("mode", ["blocks", "shifted blocks"])
@pytest.mark.parametrize("name", ["blocks", "random", "threshold", "edit", "guidance", "stop at end"])
def test_the_cache_of_a_network_with_blocks_is_exact(name: str, mode: str) -> None:
    sampler, model = SAMPLERS[name], network(torch.float64)
    plain = write(GAPS, sampler, model=model, mode=MODES[mode])
    for cache in ("prefix", "dual"):
        same(plain, write(GAPS, sampler.replace(cache=cache), model=model, mode=MODES[mode]))


@torch.no_grad()
def test_a_block_sees_clean_blocks_before_it_and_none_after() -> None:
    """The first choice of each block is the one of a pass over the whole canvas under the rule of its objective."""
    model, mode = network(torch.float64), MODES["blocks"]
    canvas = continuation([1, 2, 3, 4, 5, 6], 10)
    generation = write([canvas], DiffusionSampler(cache="prefix"), model=model, mode=mode)
    position_BL = torch.arange(16).unsqueeze(0)
    for start, stop in ((6, 8), (8, 12), (12, 16)):
        ids = [*generation.sequences[0][:start], *[MASK] * (16 - start)]
        views = model.prepare(not_after("block"), {"position": position_BL, "block": position_BL // 4})
        scores_LV = model.logits(model.hidden(torch.tensor([ids]), views))[0, :, :MASK].log_softmax(-1)
        best = max(range(start, stop), key=lambda at: float(scores_LV[at].max()))
        first = next(event for event in generation.trace.events if start <= event.position < stop)
        assert (first.position, first.token_id) == (best, int(scores_LV[best].argmax()))


def widths(model: Llama, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    """How many rows each pass reads, and how many logits it makes; filled while the model writes."""
    read, wanted = [], []
    run, project = model.hidden, model.logits

    def hidden(ids_BR: Tensor, *views: Any) -> Tensor:
        read.append(ids_BR.shape[1])
        return run(ids_BR, *views)

    def logits(hidden: Tensor) -> Tensor:
        wanted.append(len(hidden))
        return project(hidden)

    monkeypatch.setattr(model, "hidden", hidden)
    monkeypatch.setattr(model, "logits", logits)
    return read, wanted


@pytest.mark.parametrize(
    ("mode", "cache", "expected"),
    [
        ("diffusion", "none", [11, 11, 11, 11, 11, 11, 11, 11]),
        ("diffusion", "prefix", [11, 8, 8, 8, 11, 4, 4, 4]),
        ("diffusion", "dual", [11, 4, 4, 4, 11, 4, 4, 4]),
        ("shifted", "dual", [11, 5, 5, 5, 11, 5, 5, 5]),
        ("blocks", "none", [4, 8, 8, 8, 8, 11, 11, 11]),
        ("blocks", "prefix", [4, 8, 4, 4, 4, 7, 3, 3]),
    ],
)
def test_what_is_read_in_each_pass(
    mode: str, cache: Any, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    model = network()
    read, wanted = widths(model, monkeypatch)
    write([continuation([1, 2, 3], 8)], DiffusionSampler(cache=cache, block_length=4), model=model, mode=MODES[mode])
    assert read == expected
    assert wanted == ([1, 4, 3, 2, 1, 3, 2, 1] if "blocks" in mode else [4, 3, 2, 1, 4, 3, 2, 1])


def test_an_attention_from_outside_need_not_leave_rows_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes all rows of the last layer, of which those of the queries are taken."""
    widths: list[int] = []

    class Outside(SelfAttention):
        def forward(self, rows_BRE: Tensor, *arguments: Any) -> Tensor:
            out_BRE = super().forward(rows_BRE, *arguments)
            assert out_BRE.shape == rows_BRE.shape
            widths.append(out_BRE.shape[1])
            return out_BRE

    monkeypatch.setitem(ATTENTIONS, "outside", Outside)
    model = Llama(network().config.replace(attention="outside"), backend="eager")
    model.load_state_dict(network().state_dict())
    canvases = [continuation(prompt, 8) for prompt in PROMPTS]
    sampler = DiffusionSampler(cache="dual", block_length=4)
    assert write(canvases, sampler, model=model).sequences == write(canvases, sampler).sequences
    assert set(widths) == {15, 4}


def test_rows_of_a_batch_renew_their_keys_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    read, _ = widths(model, monkeypatch)
    sampler = DiffusionSampler(cache="dual", block_length=4, commit=Threshold(0.3))
    generation = write([continuation(prompt, 12) for prompt in PROMPTS], sampler, model=model)
    assert read.count(19) == 3
    assert set(read) == {19, 4}
    assert generation.trace.passes == len(read)


def test_growing_sees_no_block_to_come_and_ends_with_the_block_of_an_end_token() -> None:
    model, prompt = network(ends=(END,)), [1, 2, 3]
    expected = list(prompt)
    while END not in expected[3:] and len(expected) < 3 + 24:
        grown = [*expected, *[MASK] * 4]
        expected = literal.llada(literal.Network(model), grown, len(expected), MASK, steps=4, block_length=4)
    assert 4 < len(expected) < 3 + 24
    generation = write([continuation(prompt, 24)], DiffusionSampler(grow=True, block_length=4), model=model)
    assert generation.sequences == [expected]
    assert generation.stopped == ["end"]


def test_stopping_at_the_end_token() -> None:
    model, canvas = network(), continuation([1, 2, 3], 24)
    whole = write([canvas], DiffusionSampler(block_length=6), model=model)
    end = whole.written[0].index(END)
    assert 0 < end < 16
    assert len(whole.written[0]) == 24
    assert whole.stopped == ["end"]
    early = write([canvas], DiffusionSampler(block_length=6, stop_at_end=True), model=model)
    assert early.stopped == ["end"]
    assert early.written[0] == whole.written[0][: len(early.written[0])]
    assert early.written[0][end] == END
    assert early.trace.passes < whole.trace.passes
    assert early.trace.tokens == whole.trace.tokens == end


def test_length_is_kept_up() -> None:
    canvas, ends = continuation([1, 2, 3], 12), (7, 18, 21, 33)
    model = network(ends=ends)

    def first_end(**options: Any) -> int:
        written = write([canvas], DiffusionSampler(**options), model=model).written[0]
        return next((at for at, token in enumerate(written) if token in ends), len(written))

    assert first_end() < 5
    assert 5 <= first_end(min_new_tokens=5) < 12
    assert first_end(suppress_end="choice") == 12


def test_the_stop_condition_reads_what_stands_before_the_first_mask() -> None:
    seen: list[list[int]] = []

    def stop(row: int, text: Sequence[int]) -> bool:
        assert row == 6
        seen.append(list(text))
        return len(text) >= 5

    generation = write(
        [continuation([1, 2, 3], 16)], DiffusionSampler(), model=network(ends=()), sample_ids=[6], stop=stop
    )
    assert generation.stopped == ["stop"]
    assert generation.written == [seen[-1]]
    assert [len(text) for text in seen] == sorted(len(text) for text in seen)


@pytest.mark.parametrize("edit", [0.2, 0.3, 0.4])
@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_only_editing_changes_a_written_token(threshold: float, edit: float) -> None:
    model, canvas = network(), [1, 2, 3, BLANK, BLANK, 9, *[BLANK] * 9]
    sampler = DiffusionSampler(commit=Threshold(threshold), edit=edit, block_length=6)
    generation = write([canvas], sampler, model=model)
    positions = [event.position for event in generation.trace.events]
    assert len(positions) > len(set(positions)) == 11
    scores = literal.Network(model)
    expected = literal.edited(scores, masked(canvas), 3, MASK, block_length=6, threshold=threshold, edit=edit)
    assert generation.sequences == [expected]
    assert expected != write([canvas], sampler.replace(edit=None), model=model).sequences[0]


def test_one_step_draws_from_the_softmax_of_the_logits_over_the_temperature() -> None:
    """Chi-square over 20,000 draws of one position: a true sampler fails one seed in 10,000."""
    model, temperature, draws = network(), 0.7, 20_000
    canvas = [1, 2, 3, BLANK]
    logits_V = literal.Network(model)(masked(canvas))[3]
    logits_V[MASK] = -torch.inf
    expected = (draws * (logits_V.double() / temperature).softmax(-1))[:MASK]
    sampler, counts = DiffusionSampler(temperature=temperature), torch.zeros(MASK)
    for seed in range(draws // 500):
        generation = write([canvas] * 500, sampler, model=model, seed=seed)
        for event in generation.trace.events:
            counts[event.token_id] += 1
            assert math.exp(event.log_prob) == pytest.approx(float(expected[event.token_id]) / draws, rel=1e-4)
    common = expected >= 5
    pooled = [torch.cat((column[common], column[~common].sum()[None])) for column in (counts.double(), expected)]
    statistic = float(((pooled[0] - pooled[1]) ** 2 / pooled[1]).sum())
    assert scipy.stats.chi2.sf(statistic, len(pooled[0]) - 1) > 1e-4


def test_large_logits_do_not_overflow() -> None:
    choose = TokenChooser(mask_token_id=2, end_token_ids=(), temperature=0.5)
    logits_NV = torch.tensor([[3e4, 1e4, -3e4], [900.0, 899.0, 0.0]])
    texts, _, _ = assemble(network(), [[BLANK], [BLANK]], DiffusionSampler(), mode=DIFFUSION, sample_ids=range(2))
    for _ in range(50):
        choices = choose(logits_NV.clone(), {text: [0] for text in texts})
        assert choices.token_ids[0] == 0
        assert all(bool(column.isfinite().all()) for column in choices)


@pytest.mark.parametrize(
    ("canvas", "options", "message"),
    [
        (
            continuation([1, 2], 10),
            {"block_length": 4, "uneven": "refuse"},
            "block_length is 4 and prompt 0 has 10 positions from the first gap on: give a divisor, or "
            'uneven="distribute", which makes the last block shorter.',
        ),
        (
            continuation([1, 2], 12),
            {"block_length": 4, "steps": 8, "uneven": "refuse"},
            "steps is 8 and prompt 0 has 3 blocks: give a multiple, or "
            'uneven="distribute", which gives the first blocks one step more.',
        ),
        (
            continuation([1, 2], 12),
            {"block_length": 4, "steps": 2},
            "steps is 2 and prompt 0 has 3 blocks: give at least one step a block.",
        ),
        (
            continuation([1, MASK], 12),
            {},
            "prompt 0 has the mask token 39 at position 1: give a gap where a token is to be written.",
        ),
        (
            continuation([1], 64),
            {},
            "prompt 0 has 65 tokens with those to be written, and the network was trained on 64: shorten it, or write "
            "fewer.",
        ),
        ([1, 2], {}, "prompt 0 leaves nothing to write: give max_new_tokens, or a gap in it."),
    ],
)
def test_canvases_that_cannot_be_filled_are_refused_at_once(
    canvas: list[int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        diffusion_steps(network(), [canvas], DiffusionSampler(**options), mode=DIFFUSION, sample_ids=[0])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1: give 0 for the most probable token, or a number above 0 to sample."),
        ({"steps": 0}, "steps of the sampler is 0: give a whole number above 0, or None."),
        (
            {"confidence": "low"},
            "confidence of the sampler is 'low': give one of probability, random, margin, entropy or a function.",
        ),
        (
            {"cache": "all"},
            "cache of the sampler is 'all': give one of none, prefix, dual or an object of the class CachePolicy.",
        ),
        ({"edit": 1.5}, "edit of the sampler is 1.5: give a probability above 0, or None."),
        ({"cfg_scale": -0.5}, "cfg_scale of the sampler is -0.5: give 0 for no guidance, or more."),
        ({"min_new_tokens": -1}, "min_new_tokens of the sampler is -1: give a number of tokens from 0 on."),
        ({"commit": 0.9}, "commit of the sampler is 0.9: give an object of the class Commit."),
        (
            {"refresh": 4},
            'refresh of the sampler is 4: there is no cache to renew, so leave it out, or give cache="dual".',
        ),
        (
            {"may_choose_mask": True, "commit": Threshold(0.5)},
            "may_choose_mask of the sampler is True: this rule would wait for ever for the last masks, so give False.",
        ),
    ],
)
def test_samplers_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        DiffusionSampler(**options)
    assert str(caught.value) == message


def test_scores_that_are_not_numbers_are_named() -> None:
    model = Llama(network().config, backend="eager")
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(UserError) as caught:
        write([[1, BLANK]], DiffusionSampler(), model=model)
    assert str(caught.value) == "the network's scores for row 0 are NaN: check its weights, or load it in float32."
