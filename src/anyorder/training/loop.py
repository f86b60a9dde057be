"""From settings to a trained network."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from anyorder.errors import UserError
from anyorder.modes import LearningOptions, entry_of
from anyorder.objectives import Objective
from anyorder.parallel import Processes, begin
from anyorder.parallel.processes import launched
from anyorder.training.balance import check_balance
from anyorder.training.curves import Log
from anyorder.training.engine import PARTIAL, ObjectiveTrainer, check_checkpoint, whole_checkpoints
from anyorder.training.interruption import Interrupted, Interruption
from anyorder.training.samples import Collator, Row, Rows, Samples, StreamedSamples
from anyorder.training.settings import LEARNING_RATES, Training
from anyorder.utils.annotations import checked, shown
from anyorder.utils.files import DiskError, claimed

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


@checked()
def fit(
    model: Llama,
    objective: Objective | str,
    rows: Rows | Iterable[Row],
    training: Training,
    *,
    folder: Path | None = None,
    resume: bool = False,
    validation: Mapping[str, tuple[Objective, Rows]] | None = None,
    describe: Callable[[Path], None] = lambda folder: None,
    callbacks: Sequence[TrainerCallback] = (),
    report_to: Sequence[str] = (),
) -> Log:
    """Train a network in place, on the device that accelerate chooses, and leave it ready to write.

    AdamW with beta 0.9 and 0.95, and gradients of at most `training.clip`. In several processes each has the same whole
    network at first; with `fsdp` or `tensor_parallel` each is left with its part, see `anyorder.parallel.gathered`.

    Args:
        model: the network, whose trainable weights change.
        objective: makes the training inputs; or the name of a mode of the network, for that mode's objective with
            its usual options.
        rows: prepared data; those that have no length are taken as they come, not shuffled.
        training: steps, batches, optimizer and checkpoints.
        folder: where checkpoints go; None makes none.
        resume: resume from the latest checkpoint in the folder, as if nothing had happened: on a CPU bit for bit.
        validation: for each name an objective and rows, on which the loss is computed without training.
        describe: callback, called with the folder of a checkpoint; writes there what loading it needs beside weights.
        callbacks: called at each step and each entry of the log.
        report_to: further places for the log, such as "tensorboard".

    Returns:
        The log, that of the training that was resumed included.

    Raises:
        Interrupted: SIGINT or SIGTERM came; a checkpoint of the last whole step is in `folder`.
        DiskError: a checkpoint cannot be written.
        UserError: there is no row, epochs are given for rows that have no length, accelerate is not installed, another
            process trains into `folder`, there is nothing to resume or it is damaged, or processes differ.
    """
    check_machine(training, report_to)
    processes = together(training)
    check_balance(training, model.config)
    if isinstance(objective, str):
        mode = model.config.mode(objective)
        objective = entry_of(mode).objective(mode, LearningOptions())
    if isinstance(rows, Sized) and len(rows) == 0:
        raise UserError("the data have 0 rows: give more text, or a shorter length.")
    if training.epochs is not None and not isinstance(rows, Sized):
        raise UserError(f"epochs is {training.epochs:g}, but the rows have no length: give steps instead.")
    groups = 1 if processes is None else processes.groups
    training = training.in_steps(len(rows) if isinstance(rows, Sized) else 0, groups)
    if training.evaluate_every and not validation:
        raise UserError(
            f"evaluate_every is {training.evaluate_every} without validation data: give some, or leave it out."
        )
    with _output(folder) as output:
        latest = whole_checkpoints(output)[-1:]
        if resume and not latest:
            raise UserError(f"folder {str(output)!r} has no checkpoint to resume from: leave out resume.")
        if resume:
            check_checkpoint(latest[0])
        if processes is not None:
            _split(model, processes, training)
        arguments = _arguments(
            training, output, saves=folder is not None, report_to=report_to,
            find_unused=model.query_rows is not None or model.vision_model is not None,
        )  # fmt: skip
        per_step = training.batch_size * training.accumulation * groups
        trainer = ObjectiveTrainer(
            model,
            _samples(rows, training.total_steps * per_step, training.seed),
            Collator(objective=objective, seed=training.seed, samples_per_step=per_step),
            validation={
                # Its own draws, the same at every evaluation.
                name: (
                    Samples(others, len(others), training.seed, shuffle=False),
                    Collator(objective=target, seed=training.seed + 1, samples_per_step=len(others)),
                )
                for name, (target, others) in (validation or {}).items()
            },
            describe=describe,
            keep=training.keep,
            training=training,
            interruption=None if folder is None else Interruption(alone=arguments.world_size == 1),
            processes=processes,
            args=arguments,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        _train(trainer, latest[0] if resume else None)
        if validation:
            trainer.evaluate()
    model.eval()
    return list(trainer.state.log_history)


def together(training: Training) -> Processes | None:
    """Join the processes that train together; None where this one is alone.

    Raises:
        UserError: they cannot reach each other, have other settings than the first one, or are not as many as a split
            network needs.
    """
    if launched() == 1 and training.tensor_parallel == 1:
        return None
    processes = begin(training.tensor_parallel)
    for number, name, found, expected in processes.differences(training):
        raise UserError(
            f"{name} is {shown(found)} in process {number}, and {shown(expected)} in process 0: give all processes the "
            "same settings."
        )
    if processes.groups > 1 and training.tensor_parallel > 1 and not training.fsdp:
        raise UserError(
            f"fsdp is False, but {processes.groups} groups of processes train parts of one network: give fsdp, by "
            f"which they share its weights, or start {training.tensor_parallel} processes."
        )
    return processes


def _split(model: Llama, processes: Processes, training: Training) -> None:
    """Leave each process its part of a network."""
    from anyorder.parallel import parallelize, shard  # which take a second to import

    processes.split(model.config)
    parallelize(model, processes.tensor, gather_logits=False)
    if training.tensor_parallel > 1:
        model.to(processes.device)
    if training.fsdp and processes.groups > 1:
        shard(model, processes.mesh["data"])


def check_machine(training: Training, report_to: Sequence[str] = ()) -> None:
    """Check that this machine has what a training needs; nothing is written.

    Raises:
        UserError: a package is missing, there is no GPU for float16, or accelerate is to shard the network itself.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise UserError("training needs the package accelerate, which is not installed: pip install 'anyorder[train]'.")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserError("accelerate launch was given --use_fsdp, which our checkpoints do not know: give fsdp instead.")
    for name in report_to:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder of that name here, such as one with logs, is no package
            raise UserError(f"{name} is True, but its package is not installed: pip install {name}, or leave it out.")
    if training.precision == "float16" and not torch.accelerator.is_available():
        raise UserError("precision is 'float16', which needs a GPU: give bfloat16 or float32.")


@contextmanager
def _output(folder: Path | None) -> Iterator[Path]:
    """The folder of the checkpoints, closed to other trainings; one that is thrown away unless given."""
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    if not is_first_process():
        yield folder
        return
    with claimed(folder):
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)  # of a process that was killed
        yield folder


def _train(trainer: ObjectiveTrainer, checkpoint: Path | None) -> None:
    """Train to the end, or to a signal or an exception, where the last whole step is kept."""
    interruption = trainer.interruption
    if interruption is None:
        trainer.train()
        return
    with interruption.heeded():
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except DiskError:
            raise
        except Exception:
            trainer.save_last_step()
            if interruption.signal is None:  # a signal to all processes of a group ends workers first
                raise
            interruption.agreed = True
    if interruption.agreed:
        raise Interrupted(interruption.signal or signal.SIGTERM)


def is_first_process() -> bool:
    """Whether this process is the one that writes files."""
    return int(os.environ.get("RANK", "0")) == 0


def _samples(rows: Rows | Iterable[Row], total: int, seed: int) -> Samples | StreamedSamples:
    if isinstance(rows, Sized):
        return Samples(rows, total, seed)
    return StreamedSamples(rows, total)


def _arguments(
    training: Training, output: Path, *, saves: bool, report_to: Sequence[str], find_unused: bool
) -> TrainingArguments:  # fmt: skip
    """`Trainer`'s form of the settings."""
    strategies: dict[str, Any] = {
        "save_strategy": "steps" if saves and training.save_every else "no",
        "save_steps": training.save_every or 1,
        "eval_strategy": "steps" if training.evaluate_every else "no",
        "eval_steps": training.evaluate_every or None,
    }
    return TrainingArguments(
        output_dir=str(output),
        max_steps=training.total_steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=training.learning_rate or LEARNING_RATES["from scratch"],
        weight_decay=training.weight_decay,
        adam_beta2=0.95,
        max_grad_norm=training.clip,
        lr_scheduler_type="constant_with_warmup" if training.schedule == "constant" else training.schedule,
        warmup_steps=training.warmup,  # below 1: a share of the steps
        bf16=training.precision == "bfloat16",
        fp16=training.precision == "float16",  # with a gradient scaler
        logging_steps=min(training.log_every, training.total_steps),
        logging_nan_inf_filter=False,
        report_to=list(report_to),
        seed=training.seed,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        dataloader_num_workers=training.workers,
        remove_unused_columns=False,
        accelerator_config={"dispatch_batches": False},  # each process makes its own training inputs
        ddp_find_unused_parameters=find_unused,  # query rows take no part in other objectives
        use_cpu=not torch.accelerator.is_available(),  # or several processes on CPUs would not see each other
        **strategies,
    )
