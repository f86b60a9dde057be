"""The engine: company changes no text, and nobody waits for others to end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.serving.engine import Engine, Limits
from anyorder.serving.fields import Completion, read_body
from anyorder.serving.plans import Planner
from anyorder.serving.samples import samples_of
from anyorder.serving.tasks import BusyError, CancelledError, ClosingError, LateError, Task

Network = tuple[Llama, PreTrainedTokenizerBase]
Submit = Callable[..., Task]

ORDERS = ("left-to-right", "random", "groups:3", "confidence:2", "diffusion", "blocks:4")
PROMPTS = ("hello there", "ab", "the cat sat on the mat ")


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(Limits(running=48))
    yield engine
    engine.close(drain=False)


@pytest.fixture
def submit(network: Network, engine: Engine) -> Submit:
    model, tokenizer = network
    planner = Planner(model, tokenizer)

    def submit(on_news: Callable[[Task], None] = lambda task: None, into: Engine = engine, **body: Any) -> Task:
        plan = planner.of_completion(read_body(Completion, body))
        task = Task(size=len(plan.prompts), open=lambda: samples_of(plan, tokenizer), on_news=lambda: on_news(task))
        return into.submit(task)

    return submit


@contextmanager
def stalled(engine: Engine) -> Iterator[None]:
    """No pass runs within the block."""
    reached, go = threading.Event(), threading.Event()

    def stall() -> None:
        reached.set()
        go.wait(30)

    engine.call(stall)
    assert reached.wait(30)
    try:
        yield
    finally:
        go.set()


def alone(network: Network, body: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    out: Any = anyorder.generate(
        *network, body["prompt"], order=body["order"], seed=body["seed"], temperature=body["temperature"],
        max_new_tokens=body["max_tokens"], num_samples=body["n"] if body["temperature"] else None,
    )  # fmt: skip
    return (out.text, out.token_ids) if body["temperature"] else ([out.text], [out.token_ids])


def test_requests_of_all_modes_get_in_company_what_they_get_alone(
    network: Network, engine: Engine, submit: Submit
) -> None:
    bodies = [
        {
            "prompt": PROMPTS[number % 3], "order": ORDERS[number % 6], "seed": number,
            "temperature": float(number % 2), "max_tokens": 6 + number % 4 * 4,
            "n": 1 + number % 3 if number % 2 else 1,
        }
        for number in range(24)
    ]  # fmt: skip
    tasks = []
    for body in bodies:  # some begin together, and others while these are being written
        tasks.append(submit(**body))
        time.sleep(0.004)
    for body, task in zip(bodies, tasks, strict=True):
        outputs = task.outputs()
        assert ([out.text for out in outputs], [out.token_ids for out in outputs]) == alone(network, body), body
    assert engine.counts.passes < sum(out.passes for task in tasks for out in task.outputs())
    assert engine.running == engine.waiting == 0


def test_penalties_and_bias_are_those_of_each_request(network: Network, engine: Engine, submit: Submit) -> None:
    model, _ = network
    with stalled(engine):
        plain, bent, tired = (
            submit(prompt="ab", max_tokens=6, order="left-to-right", **others)
            for others in ({}, {"logit_bias": {"50": 100}}, {"presence_penalty": 2, "frequency_penalty": 2})
        )
    assert bent.outputs()[0].token_ids == [50] * 6
    ids = plain.samples[0].prompt
    assert plain.outputs()[0].token_ids == anyorder.generate(model, None, list(ids), max_new_tokens=6).token_ids
    written: list[int] = []
    for _ in range(len(tired.outputs()[0].token_ids)):
        scores = model(torch.tensor([[*ids, *written]])).logits[0, -1].detach()
        for token_id in set(written):
            scores[token_id] -= 2 + 2 * written.count(token_id)
        written.append(int(scores.argmax()))
    assert tired.outputs()[0].token_ids == written


@pytest.mark.parametrize("order", ORDERS)
def test_reported_probabilities_are_the_network_s_own(
    network: Network, engine: Engine, submit: Submit, order: str
) -> None:
    """Also where tokens are drawn: what is reported does not depend on the temperature."""
    task = submit(prompt="ab", max_tokens=4, order=order, temperature=0.7, seed=1, logprobs=2)
    [out] = task.outputs()
    [sample] = task.samples
    first = [alternatives for (step, _), alternatives in sample.alternatives.items() if step == 0]
    assert all(len(alternatives) == 3 for alternatives in sample.alternatives.values())
    assert len(sample.alternatives) == len({(event.step, event.position) for event in out.trace.events})
    if order == "left-to-right":
        log_probs = network[0](torch.tensor([[*sample.prompt]])).logits[0, -1].detach().log_softmax(-1)
        best = log_probs.topk(2)
        assert [one.token_id for one in first[0][1:]] == best.indices.tolist()
        assert first[0][1].log_prob == pytest.approx(float(best.values[0]), abs=1e-4)
        assert first[0][0].log_prob == pytest.approx(float(log_probs[out.token_ids[0]]), abs=1e-4)


def test_a_short_request_has_its_first_token_within_two_passes(engine: Engine, submit: Submit) -> None:
    passes: list[int] = []
    long = [submit(prompt="ab", max_tokens=200, order="left-to-right", logit_bias={"2": -100}) for _ in range(8)]
    while not all(task.samples and task.samples[0].steps for task in long):
        time.sleep(0.001)
    with stalled(engine):
        before = engine.counts.passes
        short = submit(lambda task: passes.append(engine.counts.passes), prompt="the cat", max_tokens=2)
    short.outputs()
    assert passes[0] - before <= 2
    assert not any(task.done.is_set() for task in long)


@pytest.mark.parametrize("order", ORDERS)
def test_a_cancelled_request_is_gone_before_the_next_pass(
    network: Network, engine: Engine, submit: Submit, order: str
) -> None:
    """And the others go on as if it had never been there."""
    body: dict[str, Any] = {
        "prompt": "the cat",
        "order": order,
        "seed": 0,
        "temperature": 0.0,
        "max_tokens": 24,
        "n": 1,
    }
    gone = submit(prompt="ab", max_tokens=48, order=order, logit_bias={"2": -100})
    stays = submit(**body)
    while not (gone.samples and gone.samples[0].steps):
        time.sleep(0.0005)
    with stalled(engine):
        written = len(gone.samples[0].steps)
        engine.cancel(gone)
    with pytest.raises(CancelledError, match="cancelled"):
        gone.outputs()
    assert len(gone.samples[0].steps) == written
    assert [stays.outputs()[0].text] == alone(network, body)[0]
    assert engine.running == 0


def test_what_waits_can_be_cancelled_too(engine: Engine, submit: Submit) -> None:
    with stalled(engine):
        tasks = [submit(prompt="ab", max_tokens=8) for _ in range(3)]
        engine.cancel(tasks[1])
    for task, failed in zip(tasks, (False, True, False), strict=True):
        task.done.wait(30)
        assert isinstance(task.error, CancelledError) == failed


def test_a_full_queue_refuses_and_says_when_to_return(submit: Submit) -> None:
    engine = Engine(Limits(running=2, queued=2))
    with stalled(engine):
        tasks = [submit(into=engine, prompt="ab", max_tokens=4) for _ in range(2)]
        with pytest.raises(BusyError, match="the queue is full: try again in 1 seconds") as caught:
            submit(into=engine, prompt="ab", max_tokens=4)
        assert caught.value.retry_after == 1
        with pytest.raises(UserError, match="has 3 texts to write, and at most 2 are written at a time"):
            submit(into=engine, prompt="ab", max_tokens=4, n=3, temperature=1)
    assert all(task.outputs() for task in tasks)
    engine.close()


def test_rows_beyond_the_bound_wait_in_order(submit: Submit) -> None:
    engine = Engine(Limits(running=2))
    most: list[int] = []
    ended: list[int] = []
    with stalled(engine):
        for number in range(6):

            def note(task: Task, number: int = number) -> None:
                most.append(engine.running)
                if task.done.is_set():
                    ended.append(number)

            submit(note, into=engine, prompt="ab", max_tokens=5, logit_bias={"2": -100}, order="left-to-right")
    engine.close()
    assert max(most) == 2
    assert ended == list(range(6))


def test_a_request_that_takes_too_long_ends(submit: Submit) -> None:
    engine = Engine(Limits(seconds=0.2))
    task = submit(
        into=engine, prompt="ab", max_tokens=250, logit_bias={"2": -100}, on_news=lambda task: time.sleep(0.05)
    )
    with pytest.raises(LateError, match=r"longer than 0\.2 seconds"):
        task.outputs()
    assert submit(into=engine, prompt="ab", max_tokens=1).outputs()
    engine.close()


def test_a_failure_is_that_of_its_own_request(network: Network, engine: Engine, submit: Submit) -> None:
    def fail() -> None:
        raise UserError("it is: change it.")

    with stalled(engine):
        good = submit(prompt="ab", max_tokens=6)
        bad = engine.submit(Task(size=1, open=fail))  # type: ignore[arg-type]
        nan = submit(prompt="abc", max_tokens=6, logit_bias={"50": 1})
        nan.open = _with_nan(nan.open)
    for task, message in ((bad, "it is: change it"), (nan, "the network's scores are NaN")):
        with pytest.raises(UserError, match=message):
            task.outputs()
    assert good.outputs()[0].text == anyorder.generate(*network, "ab", max_new_tokens=6).text
    assert engine.error is None


def _with_nan(begin: Callable[[], Any]) -> Callable[[], Any]:
    def begin_and_bend() -> Any:
        samples = begin()
        for sample in samples:
            object.__setattr__(sample.scores, "bias", {50: float("nan")})
        return samples

    return begin_and_bend


def test_a_broken_pass_ends_its_group_and_no_other(
    network: Network, engine: Engine, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anyorder.serving.groups.two_stream import TwoStreamGroup

    with stalled(engine):
        broken = submit(prompt="ab", max_tokens=6, order="random")
        good = submit(prompt="ab", max_tokens=6, order="left-to-right")
        monkeypatch.setattr(TwoStreamGroup, "read_on", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        broken.outputs()
    assert good.outputs()
    monkeypatch.undo()
    assert submit(prompt="ab", max_tokens=6, order="random", seed=1).outputs()


def test_close_drains_and_then_refuses(submit: Submit) -> None:
    engine = Engine(Limits(running=1))
    tasks = [submit(into=engine, prompt="ab", max_tokens=8) for _ in range(4)]
    engine.close()
    assert all(task.outputs() for task in tasks)
    with pytest.raises(ClosingError, match="shutting down"):
        submit(into=engine, prompt="ab", max_tokens=8)
    with pytest.raises(ClosingError, match="shutting down"):
        engine.call(int)
    Engine().close()  # one that never ran


def test_close_without_draining_cancels(submit: Submit) -> None:
    engine = Engine(Limits(running=1))
    tasks = [submit(into=engine, prompt="ab", max_tokens=200, logit_bias={"2": -100}) for _ in range(3)]
    engine.close(drain=False)
    assert any(isinstance(task.error, ClosingError) for task in tasks)
    assert all(task.done.is_set() for task in tasks)


def test_functions_are_called_between_passes(engine: Engine, submit: Submit) -> None:
    task = submit(prompt="ab", max_tokens=8)
    assert engine.call(lambda: threading.current_thread().name).result(30) == "engine"
    failed: Future[Any] = engine.call(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.result(30)
    assert task.outputs()


def test_a_long_function_lets_texts_be_written(engine: Engine, submit: Submit) -> None:
    """And other functions wait for its end."""
    order: list[str] = []
    task = submit(prompt="ab", max_tokens=200, order="left-to-right", logit_bias={"2": -100})

    def long() -> int:
        before = engine.counts.passes
        engine.call(lambda: order.append("next"))
        for _ in range(5):
            engine.breathe()
        order.append("long")
        return engine.counts.passes - before

    assert engine.call(long).result(30) == 5
    assert engine.call(lambda: list(order)).result(30) == ["long", "next"]
    assert task.outputs()


@pytest.mark.parametrize("name", ["running", "queued", "seconds"])
def test_limits_are_above_0(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is 0: give a number above 0"):
        Limits(**{name: 0})
