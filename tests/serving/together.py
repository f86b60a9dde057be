"""What is compared in each of two processes: texts of the engines of a split network with those of the whole one."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.parallel import begin, parallelize
from anyorder.serving.engine import Engine, Limits
from anyorder.serving.fields import Completion, Fuse, read_body
from anyorder.serving.plans import Plan, Planner
from anyorder.serving.samples import samples_of
from anyorder.serving.scoring import score_text
from anyorder.serving.tasks import CancelledError, ClosingError, LateError, Task
from anyorder.serving.together import engine_of
from tests.serving.networks import END, four_modes

WAYS = ("left-to-right", "random", "confidence:2", "diffusion", "blocks:4")

LONG = {"max_tokens": 200, "logit_bias": {str(END): -100}, "order": "left-to-right"}


class Client:
    """Asks the engine of the first process."""

    def __init__(self, engine: Engine, model: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
        self.engine, self.model, self.tokenizer = engine, model, tokenizer
        self.planner = Planner(model, tokenizer)

    def submit(self, on_news: Callable[[], None] = lambda: None, **body: Any) -> Task:
        return self._submit(self.planner.of_completion(read_body(Completion, body)), on_news)

    def fuse(self, **body: Any) -> Task:
        return self._submit(self.planner.of_fuse(read_body(Fuse, body)))

    def _submit(self, plan: Plan, on_news: Callable[[], None] = lambda: None) -> Task:
        begin = partial(samples_of, plan, self.tokenizer)
        return self.engine.submit(Task(size=len(plan.prompts), open=begin, on_news=on_news))


def served() -> None:
    """Requests in all modes, some of which are cancelled, late or mistaken."""
    processes = begin(2, "cpu")
    whole, tokenizer = four_modes()
    whole = whole.double()  # rounding decides no draw
    split = parallelize(copy.deepcopy(whole), processes.tensor)
    for limits, ask in ((Limits(running=48), many), (Limits(seconds=0.3), late)):
        engine = engine_of(processes, split, tokenizer, limits)
        if processes.is_first:
            engine.start()
            ask(Client(engine, split, tokenizer), whole)
            engine.close()
        else:
            engine.run()
        assert engine.error is None
        assert engine.running == engine.waiting == 0
        counts: list[Any] = [None, None]
        dist.all_gather_object(counts, engine.counts)
        assert counts[0] == counts[1]
    broken(engine_of(processes, split, tokenizer, Limits()), is_first=processes.is_first)


def many(client: Client, whole: Llama) -> None:
    gone = client.submit(prompt="ab", **LONG)
    bodies = [
        {"prompt": prompt, "order": order, "seed": number, "temperature": float(number % 2), "max_tokens": 12}
        for number, (prompt, order) in enumerate(zip(("hello there", "ab", "the cat", "a", "b"), WAYS, strict=True))
    ]
    tasks = []
    for body in bodies:  # some begin together, and others while these are written
        tasks.append(client.submit(**body, stop="zz"))
        time.sleep(0.05)
    fused = client.fuse(phrasings=["hello", "hi there"], suffix=" you", max_tokens=8)
    scored = client.engine.call(
        partial(
            score_text, client.model, [5, 6, 7, 8], 1, "diffusion", samples=32, seed=0,
            on_pass=client.engine.breathe,
        )
    )  # fmt: skip
    dropped = client.engine.call(partial(time.sleep, 0.0))
    dropped.cancel()
    mistaken = client.engine.call(partial(score_text, client.model, [5], 1, None, samples=1, seed=0, on_pass=int))
    with pytest.raises(UserError, match=r"cannot be sent to the other processes \(.*\): serve the network in one"):
        client.engine.call(lambda: 1)
    client.engine.cancel(gone)
    with pytest.raises(CancelledError):
        gone.outputs()
    for body, task in zip(bodies, tasks, strict=True):
        expected = anyorder.generate(
            whole, client.tokenizer, body["prompt"], order=body["order"], seed=body["seed"],
            temperature=body["temperature"], max_new_tokens=12, stop="zz",
        )  # fmt: skip
        [out] = task.outputs()
        assert (out.text, out.token_ids) == (expected.text, expected.token_ids), body
    expected = anyorder.fuse(whole, client.tokenizer, ["hello", "hi there"], suffix=" you", max_new_tokens=8)
    assert fused.outputs()[0].token_ids == expected.token_ids
    alone = score_text(whole, [5, 6, 7, 8], 1, "diffusion", samples=32, seed=0, on_pass=int)
    assert scored.result(60).log_prob == pytest.approx(alone.log_prob, rel=1e-9)
    with pytest.raises(UserError, match="the text has 1 tokens, of which 1 are given"):
        mistaken.result(60)


def late(client: Client, whole: Llama) -> None:
    """The clock of the first process alone ends what takes too long."""
    task = client.submit(prompt="ab", on_news=partial(time.sleep, 0.05), **LONG)
    with pytest.raises(LateError, match=r"longer than 0\.3 seconds"):
        task.outputs()


def broken(engine: Engine, *, is_first: bool) -> None:
    """An error that may be of one process alone ends the engine, so that none waits for it in vain."""
    failed = threading.Event()
    engine.on_failure = failed.set
    if not is_first:
        with pytest.raises(ZeroDivisionError):
            engine.run()
        return
    answer = engine.call(partial(divmod, 1, 0))
    with pytest.raises(ZeroDivisionError):
        answer.result(60)
    assert failed.wait(60)
    with pytest.raises(ClosingError):
        engine.call(int)
