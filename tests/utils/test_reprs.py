"""How objects print."""

from __future__ import annotations

from typing import Any

import torch

import anyorder
from anyorder.api.fuse import FusedOutput
from anyorder.api.output import Output, Stream
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Trace, Written
from anyorder.likelihood.exact import LogProb

TRACE = Trace(events=tuple(Written(step, 0, 5 + step, 9, -0.1) for step in range(400)), passes=400, seconds=2.0)
COST = "400 tokens in 400 forward passes and 2.00 s (200.0 tokens/s)"


def output(text: Any, stopped: list[Any], kind: type[Output] = Output) -> Output:
    ids = list(range(400))
    several = len(stopped) > 1
    return kind(
        text=text, full_text=text, token_ids=[ids] * len(stopped) if several else ids,
        sequences=[ids] * len(stopped), stopped=stopped, trace=TRACE,
    )  # fmt: skip


def test_outputs_print_in_three_lines() -> None:
    assert repr(output("a\nb" * 99, ["length"])).split("\n") == [
        f"Output of 1 text: {COST}",
        "  text: '" + ("a\\nb" * 20) + "'...",
        "  stopped: length",
    ]
    many = repr(output([["one", "two"], ["three", "four"]], ["end", "length", "end", "end"], FusedOutput))
    assert many.split("\n") == [
        f"FusedOutput of 4 texts: {COST}", "  text: 'one' and 3 more", "  stopped: 3 by end, 1 by length"
    ]  # fmt: skip
    assert repr(output(None, ["stop", "stop"])).split("\n")[1] == "  token_ids: [0, 1, 2, 3, 4, 5, ...] and 1 more"


def test_streams_say_how_far_they_are() -> None:
    def pieces() -> Any:
        yield from ("a", "b")
        return output("ab", ["end"])

    stream = Stream(pieces())
    next(stream)
    assert repr(stream) == "Stream of 1 piece so far, not complete"
    assert [*stream] == ["b"]
    assert repr(stream) == f"Stream of 2 pieces so far, {COST}"


def test_traces_plans_and_likelihoods_print_no_tensors() -> None:
    assert repr(TRACE) == f"Trace({COST})"
    plan = anyorder.GroupPlan.from_group_ids([[0, 1, 2, 3], [0, 1]], given=[1, 1])
    assert repr(plan) == "GroupPlan of 2 texts: 2 tokens given, 4 to be written, in 1 to 3 groups"
    every_BL = torch.ones((4, 2), dtype=torch.bool)
    found = LogProb(token_BL=torch.full((4, 2), -1.0), predicted_BL=every_BL, best_BL=every_BL)
    assert repr(found) == "LogProb of 4 texts: 8 tokens, total [-2.00, -2.00, -2.00, ...] nats, perplexity 2.718"


def test_records_print_what_is_not_as_usual_and_can_be_read_back() -> None:
    assert repr(Sampling()) == "Sampling()"
    for record in (Sampling(temperature=0.5, seed=3), anyorder.DiffusionSampler(steps=8, edit=0.5)):
        assert eval(repr(record), {"Sampling": Sampling, "DiffusionSampler": anyorder.DiffusionSampler}) == record
    assert repr(anyorder.DiffusionSampler(steps=8)) == "DiffusionSampler(steps=8)"
