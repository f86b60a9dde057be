"""Tasks of lm-evaluation-harness: found by name, run on a network, and their metrics with the errors of bounds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lm_eval.api.model import LM, CachingLM
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks.manager import TaskDict
from lm_eval.utils import handle_non_serializable

from anyorder.errors import UserError
from anyorder.evaluation.harness import AnyOrderLM, Estimate
from anyorder.utils.annotations import check_fields
from anyorder.utils.numbers import check_positive

SCORING = ("loglikelihood", "loglikelihood_rolling", "multiple_choice")
"""Kinds of tasks that score given texts."""

RESAMPLES = 1000
"""Of the questions, for the standard error of metrics that are no means."""

REDRAWS = 100
"""Of the bounds, for the standard error that masks leave; it is known to 7 % of itself then."""


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """How tasks are run.

    Attributes:
        shots: questions shown with their answer in front; as each task says unless given.
        max_samples: questions of each task at most, the first ones; all unless given.
        chat: whether the tokenizer's chat template goes around the prompt.
        system: system message in front; none unless given.
        max_new_tokens: of written answers; as each task says unless given.
        seed: decides which questions are shown, and what tasks draw themselves.
    """

    shots: int | None = None
    max_samples: int | None = None
    chat: bool = False
    system: str | None = None
    max_new_tokens: int | None = None
    seed: int = 1234

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("max_samples", "max_new_tokens"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        if self.shots is not None and self.shots < 0:
            raise UserError(f"shots is {self.shots}: give 0, or a whole number above it.")


# ---- tasks by name ---------------------------------------------------------------------------------


def load_tasks(names: Sequence[str], include_path: Path | None = None, *, seed: int = 1234) -> TaskDict:
    """Find tasks and groups of tasks, and read their data.

    Args:
        names: as lm-evaluation-harness has them, patterns such as "mmlu_*", or YAML files.
        include_path: folder with YAML files of further tasks.
        seed: decides what tasks draw when they read their data.

    Raises:
        UserError: there is no such task, or it cannot be read.
    """
    if not names:
        raise UserError("tasks is empty: name at least one, such as lambada_openai.")
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"include_path is {str(include_path)!r}, which is no folder here: check the path.")
    random.seed(seed)
    np.random.seed(seed)
    included = None if include_path is None else str(include_path)
    # The index of the harness's own tasks takes many seconds to make.
    own = TaskManager(include_path=included, include_defaults=False)
    if all(name in own.all_tasks or _is_file(name) for name in names):
        try:
            return _loaded(own, names)
        except UserError as error:
            if not isinstance(error.__cause__, KeyError):  # a group of one's own may have tasks of the harness
                raise
    return _loaded(TaskManager(include_path=included), names)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _loaded(manager: TaskManager, names: Sequence[str]) -> TaskDict:
    found: dict[str, None] = {}  # in order, each once
    for name in names:
        matching = [name] if _is_file(name) else manager.match_tasks([name])
        if not matching:
            close = get_close_matches(name, manager.all_tasks, n=3, cutoff=0.6)
            meant = f"did you mean {', '.join(close)}" if close else "give the name of a task or a YAML file"
            raise UserError(f"task {name!r} is unknown: {meant}{'?' if close else '.'}")
        found |= dict.fromkeys(matching)
    try:
        return manager.load(list(found))
    except (KeyError, OSError, ValueError, TypeError, ImportError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the tasks {', '.join(found)} cannot be read ({reason}): check their files, and that their data are here "
            "or can be fetched."
        ) from error


def _check(task: Task, lm: AnyOrderLM) -> None:
    name = task.task_name
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"task {name!r} runs code that the network writes, which is not supported: leave it out.")
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"task {name!r} needs images or sound, which this network does not read: leave it out.")
    if task.OUTPUT_TYPE in SCORING and not lm.can_score:
        raise UserError(
            f"task {name!r} scores given answers, but order is {str(lm.order)!r}, which depends on what is written: "
            "give another order."
        )


# ---- running them ----------------------------------------------------------------------------------


def evaluate_tasks(
    lm: AnyOrderLM, tasks: TaskDict, settings: TaskSettings, *, cache: Path | None = None, log_samples: bool = False
) -> dict[str, Any]:
    """Run tasks on a network.

    Args:
        lm: the network.
        tasks: from `load_tasks`; their settings are changed.
        settings: how.
        cache: folder in which the harness keeps each response, for a run that goes on later or has further tasks; it
            holds pickles, so use none of other people's. Networks and settings do not share their responses.
        log_samples: whether to return the questions with their responses, too.

    Returns:
        What `lm_eval.simple_evaluate` returns, as plain data: `results` by task, `configs`, `versions`, `n-shot`, ...
        `settings` has those of this call. Beside a metric of bounds is its standard error from random masks,
        `bound_stderr`; `stderr` is that from the questions.

    Raises:
        UserError: the network or its mode cannot do a task.
    """
    for task in tasks["tasks"].values():
        _check(task, lm)
        _configure(task, settings)
    answering: LM = lm
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        answering = CachingLM(lm, str(cache / f"{_fingerprint(lm, settings)}.db"))
    with _quiet_harness():
        found: dict[str, Any] = evaluate(
            answering, tasks, limit=settings.max_samples, bootstrap_iters=RESAMPLES, log_samples=True,
            system_instruction=settings.system, apply_chat_template=settings.chat, fewshot_as_multiturn=settings.chat,
        )  # fmt: skip
    samples = found.pop("samples")
    for name, task in tasks["tasks"].items():
        found["results"][name] |= bound_errors(task, samples[name], settings.seed)
    found["settings"] = {**asdict(settings), "lm": lm.settings()}
    if log_samples:
        found["samples"] = samples
    plain: dict[str, Any] = json.loads(json.dumps(found, default=handle_non_serializable))
    return plain


def _configure(task: Task, settings: TaskSettings) -> None:
    """Give a task its settings, as `lm_eval.simple_evaluate` does: one that says 0 shots keeps to that."""
    if settings.max_new_tokens is not None and task.OUTPUT_TYPE == "generate_until":
        task.set_config(key="generation_kwargs", value={"max_gen_toks": settings.max_new_tokens}, update=True)
    own = task.get_config("num_fewshot")
    task.set_config(key="num_fewshot", value=own or 0 if settings.shots is None or own == 0 else settings.shots)
    task.set_fewshot_seed(seed=settings.seed)


@contextlib.contextmanager
def _quiet_harness() -> Iterator[None]:
    """Keep what the harness prints off standard output, and its resampling in this process, which has threads."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


@torch.no_grad()
def _fingerprint(lm: AnyOrderLM, settings: TaskSettings) -> str:
    """Return a name for all that responses depend on beside their requests."""
    sums = [
        (name, str(tensor.dtype), tensor.sum(dtype=torch.float64).item(), tensor.flatten()[:8].tolist())
        for name, tensor in lm.model.state_dict().items()
    ]
    vocabulary = sorted(lm.tokenizer.get_vocab().items())
    content = repr((lm.model.config, sums, vocabulary, lm.settings(), settings.seed))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


# ---- the error of bounds ---------------------------------------------------------------------------


def bound_errors(task: Task, samples: Sequence[dict[str, Any]], seed: int) -> dict[str, float]:
    """Compute the standard errors that random masks leave in a task's metrics.

    The metrics are computed anew from log-probabilities to each of which an error is added, drawn from a normal
    distribution of its standard error (a parametric bootstrap).

    Args:
        task: makes metrics of responses.
        samples: its questions with their responses, as the harness logs them.
        seed: decides the draws.

    Returns:
        By the names of metrics in the harness's results; nothing where all responses are exact.
    """
    if not any(_errors(sample["filtered_resps"]) for sample in samples):
        return {}
    rng = random.Random(seed)
    aggregations = task.aggregation()
    values: dict[str, list[float]] = defaultdict(list)
    for _ in range(REDRAWS):
        of_metric: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for sample in samples:
            metrics = task.process_results(sample["doc"], _redrawn(sample["filtered_resps"], rng))
            for metric, value in metrics.items():
                of_metric[metric, sample["filter"]].append(value)
        for (metric, key), found in of_metric.items():
            values[f"{metric}_bound_stderr,{key}"].append(float(aggregations.get(metric, np.mean)(found)))
    return {name: statistics.stdev(drawn) for name, drawn in values.items()}


def _errors(responses: Any) -> bool:
    if isinstance(responses, Estimate):
        return responses.standard_error > 0
    return isinstance(responses, list | tuple) and any(map(_errors, responses))


def _redrawn(responses: Any, rng: random.Random) -> Any:
    if isinstance(responses, Estimate):
        return responses + rng.gauss(0, responses.standard_error)
    return (
        type(responses)(_redrawn(one, rng) for one in responses) if isinstance(responses, list | tuple) else responses
    )
