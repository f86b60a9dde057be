"""`anyorder evaluate tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anyorder.cli._options import DiffusionOptions, ModelOptions, ProcessOptions, SamplingOptions
from anyorder.cli._order_options import chosen_order
from anyorder.cli._processes import is_first, number_of_processes
from anyorder.cli.evaluate._options import TaskOptions
from anyorder.errors import UserError


def command(
    model: str,
    *,
    asking: TaskOptions,
    order: str | None = None,
    mask_samples: int = 128,
    diffusion: DiffusionOptions,
    batch_size: int = 16,
    loading: ModelOptions,
    splitting: ProcessOptions,
    use_cache: Path | None = None,
    log_samples: bool = False,
    output: Path | None = None,
) -> None:
    """Run tasks of lm-evaluation-harness, in any order that the model has.

    Log-probabilities are exact; those of diffusion are bounds, from random masks, and metrics have their error.

    Args:
        model: Hugging Face or Meta folder, llama2.c or GGUF file, hub id (org/name), or stories, which is shipped.
        asking: which tasks are run, and how questions are written.
        order: Order in which answers are scored and written, such as left-to-right, random, groups:4 or diffusion; that
            of the model unless given.
        mask_samples: Masked copies of each answer that a bound is estimated from, a multiple of 16.
        diffusion: how diffusion samples.
        batch_size: Answers at a time; changes speed and memory.
        loading: how the model is read.
        splitting: what several processes do together.
        use_cache: Folder in which each response is kept, so that the same command goes on where it was.
        log_samples: Keep questions with their responses in the output, too.
        output: New JSON file for the results and all settings.
    """
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("tasks need the package lm-eval, which is not installed: pip install 'anyorder[eval]'.")
    if log_samples and output is None:
        raise UserError("log_samples is given without output, the file that has them: add --output FILE.")
    if use_cache is not None and number_of_processes() > 1:
        raise UserError(
            "use_cache is given, but several processes were started, which keep no responses: leave it out, or start "
            "one without torchrun."
        )
    writing = chosen_order(order, diffusion, SamplingOptions())

    from anyorder.cli._console import PlainConsole
    from anyorder.evaluation.harness import AnyOrderLM
    from anyorder.evaluation.tasks import evaluate_tasks, load_tasks
    from anyorder.utils.files import whole_file
    from anyorder.utils.json_text import json_text

    settings = asking.to_settings()
    notes = PlainConsole(stderr=True)
    with notes.status("reading tasks"):  # before a large model is read, so that mistakes are found at once
        tasks = load_tasks(asking.tasks, asking.include_path, seed=asking.seed)
    processes = splitting.begin(loading.device)
    loaded, tokenizer = loading.load(model, notes, processes)
    lm = AnyOrderLM(
        loaded, tokenizer, order=writing, mask_samples=mask_samples, seed=asking.seed, batch_size=batch_size,
        processes=processes,
    )  # fmt: skip
    results = evaluate_tasks(lm, tasks, settings, cache=use_cache, log_samples=log_samples)
    results["settings"] |= {"model": model, "revision": loading.revision, "dtype": loading.dtype}
    if output is not None and is_first():
        with whole_file(output) as partial:
            partial.write_text(json_text(results, indent=2) + "\n", encoding="utf-8")
    _print(results)
    if lm.is_bound:
        about = "log-probabilities are bounds, estimated by masking at random"
        notes.print(f"{about}; ± masks is what that leaves open", style="dim", soft_wrap=True)


def _print(results: dict[str, Any]) -> None:
    """Print a table of all metrics: of a row each, with the errors that there are."""
    from rich.table import Table

    from anyorder.cli._console import PlainConsole

    table = Table(box=None, pad_edge=False)
    for name in ("task", "metric"):
        table.add_column(name)
    for name in ("value", "± questions", "± masks"):
        table.add_column(name, justify="right", no_wrap=True)
    for task, measures in results["results"].items():
        for key, value in measures.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            errors = [measures.get(f"{metric}_{name},{kind}") for name in ("stderr", "bound_stderr")]
            label = metric if kind == "none" else f"{metric} ({kind})"
            table.add_row(task, label, _number(value), *map(_number, errors))
    PlainConsole().print(table)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10_000 else f"{value:.4g}"
    return "" if value in (None, "N/A") else str(value)
