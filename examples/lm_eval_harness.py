"""Evaluate a checkpoint with lm-evaluation-harness, on a small task that needs no download.

python examples/lm_eval_harness.py CHECKPOINT [ORDER]

ORDER is one that the network writes in, such as groups:4 or diffusion. `anyorder evaluate tasks` does the same for
tasks by their name.
"""

import sys
from typing import Any

from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

import anyorder
from anyorder.evaluation.harness import AnyOrderLM

QUESTIONS = [
    {"text": "Lily was sad because she lost her", "choices": ["toy", "loud"], "answer": 0},
    {"text": "The dog ran after the", "choices": ["because", "ball"], "answer": 1},
    {"text": "Once upon a time there", "choices": ["was", "of"], "answer": 0},
    {"text": "They were very happy and played all", "choices": ["him", "day"], "answer": 1},
]


def own_task() -> ConfigurableTask:
    """Of two words that might follow, the more probable one."""
    return ConfigurableTask(
        config={
            "task": "next_word",
            "custom_dataset": lambda **_: {"test": Dataset.from_list(QUESTIONS)},
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": "{{text}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
        }
    )


def main(checkpoint: str, order: str | None = None) -> None:
    model, tokenizer = anyorder.load(checkpoint)
    evaluated: Any = simple_evaluate(
        model=AnyOrderLM(model, tokenizer, order=order, batch_size=4),
        tasks=[own_task()],
        task_manager=TaskManager(include_defaults=False),  # the index of the harness's own tasks takes many seconds
        bootstrap_iters=0,
    )
    for task, measures in evaluated["results"].items():
        for name, value in measures.items():
            if isinstance(value, float):
                print(f"{task}: {name.removesuffix(',none')} {value:.3f}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
