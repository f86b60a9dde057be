"""Evaluate a checkpoint with lm-evaluation-harness, on a small task that needs no download.

python examples/lm_eval_harness.py CHECKPOINT [TASK ...]

TASK is a name that the harness knows, such as lambada_openai; these it fetches from the hub.
"""

import sys
from typing import Any

from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import anyorder
from anyorder import AnyOrderForCausalLM

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


def main(checkpoint: str, *tasks: str) -> None:
    model, tokenizer = anyorder.load(checkpoint)
    # The same network, as transformers' tools want it: nothing is copied.
    face = AnyOrderForCausalLM.of(model)
    harness = HFLM(pretrained=face, tokenizer=tokenizer, backend="causal", batch_size=4)
    evaluated: Any = simple_evaluate(
        model=harness,
        tasks=list(tasks) or [own_task()],
        task_manager=TaskManager(include_defaults=bool(tasks)),  # reads its list of tasks, which takes a while
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
