"""Tasks of lm-evaluation-harness by name, their results, and what is kept of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'anyorder[eval]'")

from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerFast

import anyorder
from anyorder.data import train_tokenizer
from anyorder.errors import UserError
from anyorder.evaluation import tasks as module
from anyorder.evaluation.harness import AnyOrderLM, Estimate
from anyorder.evaluation.tasks import TaskSettings, bound_errors, evaluate_tasks, load_tasks
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion

TEXT = "Once upon a time there was a little girl named Lily, who loved to play outside in the sun."
QUESTIONS: list[dict[str, Any]] = [
    {"text": "Once upon a", "choices": ["time there was", "girl"], "answer": 0},
    {"text": "Lily loved to", "choices": ["sun", "play outside"], "answer": 1},
    {"text": "a little", "choices": ["girl named", "upon"], "answer": 0},
]
METRIC = "metric_list:\n  - metric: {metric}\n    aggregation: {aggregation}\n"
TASKS = {
    "choose": 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"\n',
    "score": 'output_type: loglikelihood\ndoc_to_target: " {{choices[answer]}}"\n'
    + METRIC.format(metric="perplexity", aggregation="perplexity")
    + "  - metric: acc\n    aggregation: mean\n",
    "roll": "output_type: loglikelihood_rolling\n" + METRIC.format(metric="bits_per_byte", aggregation="bits_per_byte"),
    "write": "output_type: generate_until\ngeneration_kwargs:\n  until: ['.']\n  max_gen_toks: 40\n"
    + METRIC.format(metric="exact_match", aggregation="mean"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of each kind over one file of questions."""
    path = tmp_path_factory.mktemp("tasks")
    (path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, rest in TASKS.items():
        target = "" if "doc_to_target" in rest else 'doc_to_target: "{{choices[answer]}}"\n'
        (path / f"{name}.yaml").write_text(
            f"task: local_{name}\ndataset_path: json\ndataset_kwargs:\n  cache_dir: {path / 'cache'}\n  data_files:\n"
            f'    test: {path / "questions.jsonl"}\ntest_split: test\ndoc_to_text: "{{{{text}}}}"\n{target}{rest}'
        )
    (path / "group.yaml").write_text("group: local\ntask: [local_choose, local_score]\n")
    return path


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([TEXT] * 3, 320)


@pytest.fixture
def model(tiny_config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> Llama:
    return Llama(tiny_config.replace(vocab_size=len(tokenizer), modes=(LEFT_TO_RIGHT, ANY_ORDER, diffusion(3))))


@pytest.fixture
def lm_of(model: Llama, tokenizer: PreTrainedTokenizerFast) -> Callable[..., AnyOrderLM]:
    return partial(AnyOrderLM, model, tokenizer, mask_samples=32)


def log_prob(model: Llama, tokenizer: PreTrainedTokenizerFast, before: str, after: str) -> tuple[float, bool]:
    """The same without the harness, from left to right."""
    ids, given = tokenizer(before + after)["input_ids"], len(tokenizer(before)["input_ids"])
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0, given - 1 : -1].log_softmax(-1)
    answer = torch.tensor(ids[given:])
    return float(log_probs.gather(-1, answer[:, None]).sum()), bool((log_probs.argmax(-1) == answer).all())


def test_metrics_are_those_of_plain_log_probabilities(
    folder: Path, model: Llama, tokenizer: PreTrainedTokenizerFast, lm_of: Callable[..., AnyOrderLM]
) -> None:
    tasks = load_tasks(["local", "local_roll", str(folder / "write.yaml")], folder)
    settings = TaskSettings(max_new_tokens=3)
    found = evaluate_tasks(lm_of(order="left-to-right", seed=3), tasks, settings, log_samples=True)
    results = found["results"]
    scored = [[log_prob(model, tokenizer, q["text"], " " + c)[0] for c in q["choices"]] for q in QUESTIONS]
    right = [max(range(2), key=lambda at: of[at]) == q["answer"] for of, q in zip(scored, QUESTIONS, strict=True)]
    assert results["local_choose"]["acc,none"] == pytest.approx(sum(right) / 3)
    answers = [log_prob(model, tokenizer, q["text"], " " + q["choices"][q["answer"]]) for q in QUESTIONS]
    perplexity = math.exp(-sum(score for score, _ in answers) / 3)
    assert results["local_score"]["perplexity,none"] == pytest.approx(perplexity, rel=1e-4)
    assert results["local_score"]["acc,none"] == sum(greedy for _, greedy in answers) / 3
    assert results["local_score"]["perplexity_stderr,none"] > 0
    assert results["local_roll"]["bits_per_byte,none"] > 0
    for sample, question in zip(found["samples"]["local_write"], QUESTIONS, strict=True):
        ids = tokenizer(question["text"])["input_ids"]
        text = anyorder.generate(model, tokenizer, ids, order="left-to-right", max_new_tokens=3, stop=".").text
        assert sample["resps"] == [[text]]
    assert found["settings"]["lm"]["log_probs"] == "exact"
    assert not any("bound_stderr" in name for of_task in results.values() for name in of_task)
    assert json.loads(json.dumps(found)) == found


def test_bounds_have_their_error_in_every_metric(folder: Path, lm_of: Callable[..., AnyOrderLM]) -> None:
    tasks = load_tasks(["local_choose", "local_score"], folder)
    found = evaluate_tasks(lm_of(order="diffusion"), tasks, TaskSettings(max_samples=2))
    assert found["n-samples"]["local_score"]["effective"] == 2
    of_score = found["results"]["local_score"]
    assert of_score["perplexity_bound_stderr,none"] > 0
    assert of_score["acc_bound_stderr,none"] == 0  # greedy decoding draws nothing
    assert "acc_norm_bound_stderr,none" in found["results"]["local_choose"]
    assert "samples" not in found


def test_the_error_of_a_mean_is_that_of_its_terms(folder: Path) -> None:
    [task] = load_tasks(["local_roll"], folder)["tasks"].values()
    estimates = [Estimate(-30.0), Estimate(-50.0)]
    for estimate, error in zip(estimates, (3.0, 4.0), strict=True):
        estimate.standard_error = error
    samples = [
        {"doc": question, "filtered_resps": [estimate], "filter": "none"}
        for question, estimate in zip(QUESTIONS, estimates, strict=False)
    ]
    size = sum(len(question["choices"][question["answer"]]) for question in QUESTIONS[:2])
    [(name, error)] = bound_errors(task, samples, 0).items()
    assert name == "bits_per_byte_bound_stderr,none"
    assert error == pytest.approx(5.0 / size / math.log(2), rel=0.2)
    exact = [{**sample, "filtered_resps": [Estimate(-30.0)]} for sample in samples]
    assert bound_errors(task, exact, 0) == {}


def test_a_run_goes_on_with_the_responses_that_are_kept(
    folder: Path, tmp_path: Path, lm_of: Callable[..., AnyOrderLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(lm: AnyOrderLM, **settings: Any) -> dict[str, Any]:
        tasks = load_tasks(["local_choose", "local_write"], folder)
        return evaluate_tasks(lm, tasks, TaskSettings(max_new_tokens=2, **settings), cache=tmp_path / "cache")

    whole = evaluate_tasks(
        lm_of(order="diffusion"), load_tasks(["local_choose", "local_write"], folder), TaskSettings(max_new_tokens=2)
    )
    lm = lm_of(order="diffusion", batch_size=2)
    scored = lm._scored

    def interrupted(pairs: Any) -> Any:
        yield next(scored(pairs))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lm, "_scored", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(lm)
    left: list[int] = []
    with monkeypatch.context() as patch:

        def counted(pairs: Any) -> Any:
            left.append(len(pairs))
            return scored(pairs)

        patch.setattr(lm, "_scored", counted)
        assert run(lm)["results"] == whole["results"]
        assert left == [4]  # of 6, without the batch that was finished
        assert run(lm)["results"] == whole["results"]
        assert left == [4]
    assert len([*(tmp_path / "cache").iterdir()]) == 1
    run(lm_of(order="left-to-right"))
    lm.model.lm_head.weight.data.mul_(2)
    run(lm)
    assert len([*(tmp_path / "cache").iterdir()]) == 3  # other orders and weights have their own


def test_mistakes(
    folder: Path, tmp_path: Path, lm_of: Callable[..., AnyOrderLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"^tasks is empty: name at least one, such as lambada_openai\.$"):
        load_tasks([])
    with pytest.raises(UserError, match=r"^include_path is '.*none', which is no folder here: check the path\.$"):
        load_tasks(["local"], tmp_path / "none")
    (tmp_path / "lost.yaml").write_text(
        f"task: lost\ndataset_path: json\ndataset_kwargs:\n  data_files: {tmp_path / 'lost.jsonl'}\ntest_split: test\n"
    )
    with pytest.raises(UserError, match=r"^the tasks lost cannot be read \(.*lost\.jsonl.*\): check their files, and"):
        load_tasks(["lost"], tmp_path)
    # The index of the harness's own tasks takes too long for this.
    monkeypatch.setattr(module, "TaskManager", lambda include_path, **_: TaskManager(None, include_path, False))
    with pytest.raises(UserError, match=r"^task 'local_chose' is unknown: did you mean local_choose, .*\?$"):
        load_tasks(["local_score", "local_chose"], folder)
    with pytest.raises(UserError, match=r"^task 'zzz' is unknown: give the name of a task or a YAML file\.$"):
        load_tasks(["zzz"], folder)

    tasks = load_tasks(["local_*"], folder)
    assert sorted(tasks["tasks"]) == ["local_choose", "local_roll", "local_score", "local_write"]
    with pytest.raises(UserError, match=r"scores given answers, but order is 'confidence', which depends on what is w"):
        evaluate_tasks(lm_of(order="confidence"), tasks, TaskSettings())
    alone = {"tasks": {"local_write": tasks["tasks"]["local_write"]}}
    assert evaluate_tasks(lm_of(order="confidence"), alone, TaskSettings(max_new_tokens=2))["results"]
    for flag, message in (("UNSAFE_CODE", "runs code that the net"), ("MULTIMODAL", "needs images or sound, which")):
        task = load_tasks(["local_write"], folder)["tasks"]["local_write"]
        setattr(task, flag, True)
        with pytest.raises(UserError, match=rf"^task 'local_write' {message}"):
            evaluate_tasks(lm_of(), {"tasks": {"local_write": task}}, TaskSettings())
    for field, value in (("max_samples", 0), ("max_new_tokens", 0), ("shots", -1)):
        with pytest.raises(UserError, match=rf"^{field} is {value}: give "):
            TaskSettings(**{field: value})


@pytest.mark.slow
def test_tasks_of_the_harness_have_near_names() -> None:
    with pytest.raises(UserError, match=r"^task 'helaswag' is unknown: did you mean hellaswag"):
        load_tasks(["helaswag"])
