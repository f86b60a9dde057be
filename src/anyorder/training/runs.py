"""A whole training: from data and a network to a folder with the trained network, its curves and its checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
from transformers import TrainerCallback

from anyorder import checkpoints
from anyorder.checkpoints.adapt import adapt
from anyorder.checkpoints.chat_template.render import chat_template, given_template
from anyorder.checkpoints.config_json import config_of_our_tensors
from anyorder.checkpoints.huggingface import CONFIG
from anyorder.checkpoints.json_files import read_json, write_json
from anyorder.data import DataConfig, prepare, report_of
from anyorder.data.chat import Chat
from anyorder.data.records import not_read
from anyorder.errors import UserError
from anyorder.huggingface import AnyOrderForCausalLM
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.objectives import Mixture
from anyorder.parallel import Processes, gathered, is_split
from anyorder.parallel.processes import launched
from anyorder.training.announce import first_line, summary
from anyorder.training.build import build_model, build_objective, lost_modes, with_mask, with_own_mode
from anyorder.training.curves import Log, draw_curves, with_bits_per_byte
from anyorder.training.disk_space import check_disk_space, rescue
from anyorder.training.engine import whole_checkpoints
from anyorder.training.folder import CHECKPOINTS, CURVES, LOG, SETTINGS, nothing_trained, write_network
from anyorder.training.loop import check_machine, fit, is_first_process, together
from anyorder.training.settings import Run
from anyorder.utils.annotations import checked
from anyorder.utils.files import DiskError, check_place, claimed, whole_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAY_CHANGE = (
    "resume", "output", "data", "validation", "cache_dir", "keep", "workers", "tensorboard", "wandb",
    "batch_size", "accumulation", "tensor_parallel", "fsdp", "activation_checkpointing",
)  # fmt: skip
"""Settings that may differ where a training is resumed: they do not decide what is trained on, or something else shows
it, such as the number of samples in a step."""

SAMPLES_PER_STEP = "samples_per_step"
"""Beside the settings: of all processes."""


@checked()
def run(
    settings: Run,
    *,
    tuning: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    report: Callable[[str], None] = lambda line: None,
) -> Log:
    """Train, and leave the network in the output folder, with `log.json` and `loss.png`.

    Args:
        settings: the settings.
        tuning: train on the answers of prompts and dialogues, not on whole texts.
        callbacks: called at each step.
        report: callback, called with each line that is to be shown.

    Returns:
        The log: "loss" in nats per token (in fine-tuning by masked diffusion, the mean over samples), "eval_..." for
        validation data, with "..._bits_per_byte".

    Raises:
        UserError: there is no network to tune, something in the settings or in the data cannot be, or another process
            trains into the same folder; before any step is trained. Or the disk is full; then the message says where
            the weights are.
        Interrupted: SIGINT or SIGTERM came; the output folder has a checkpoint.
    """
    settings = settings.completed(tuning=tuning)
    check_machine(settings, _reports(settings))
    processes = together(settings)
    go_on = functools.partial(_run, settings, processes=processes, tuning=tuning, callbacks=callbacks)
    if not is_first_process():
        return go_on(report=lambda line: None)
    with claimed(settings.output):
        _check_output(settings, _samples_per_step(settings, processes))
        report(first_line(settings, tuning=tuning, processes=launched()))
        return go_on(report=report)


def _samples_per_step(settings: Run, processes: Processes | None) -> int:
    return settings.batch_size * settings.accumulation * _groups(processes)


def _groups(processes: Processes | None) -> int:
    return 1 if processes is None else processes.groups


def _reports(settings: Run) -> list[str]:
    """The packages that log the training, too."""
    return [name for name in ("tensorboard", "wandb") if getattr(settings, name)]


def _run(
    settings: Run, *, processes: Processes | None, tuning: bool, callbacks: Sequence[TrainerCallback],
    report: Callable[[str], None],
) -> Log:  # fmt: skip
    given = settings
    model, tokenizer = build_model(settings)
    settings = with_own_mode(settings, model.config)
    if lost := lost_modes(settings, model.config):
        report(f"the trained network will no longer write by {' and '.join(lost)}: a mixture keeps what it teaches")
    if tuning:
        _set_chat_template(settings, model, tokenizer)
    model, mask_token_id = with_mask(settings, model, tokenizer, tuning=tuning)
    prepare_rows = functools.partial(
        _rows, settings, model.config, tokenizer, mask_token_id=mask_token_id, tuning=tuning, report=report
    )
    rows = prepare_rows(settings.data, streaming=settings.streaming)
    if settings.steps is None:
        settings = settings.in_steps(len(rows), _groups(processes))
    objective = build_objective(settings, mask_token_id, model.config, tuning=tuning)
    model = adapt(model, objective.modes, seed=settings.seed)
    if processes is not None:
        processes.split(model.config)  # or refused before anything is written
    validation, bytes_per_token = {}, None
    if settings.validation is not None:
        others = prepare_rows(settings.validation)
        parts = objective.parts if isinstance(objective, Mixture) else [objective]
        names = list(settings.parts) or [str(settings.objective)]
        validation = {name: (part, others) for name, part in zip(names, parts, strict=True)}
        bytes_per_token = report_of(others).bytes_per_token
    report(summary(settings, model, None if settings.streaming else len(rows), groups=_groups(processes)))
    hf_model = AnyOrderForCausalLM.of(model).train()
    adapted = _with_lora(hf_model, settings.lora_rank, settings.seed) if settings.lora_rank else None
    if settings.activation_checkpointing:
        hf_model.gradient_checkpointing_enable()

    def describe(folder: Path) -> None:
        if adapted is None:  # so that a checkpoint is a network that can be loaded
            write_json(
                folder / CONFIG, config_of_our_tensors(model.config) | {"dtype": "float32", "torch_dtype": "float32"}
            )
            checkpoints.write_tokenizer(tokenizer, folder)

    place = settings.output / CHECKPOINTS
    # A training that was killed before its first checkpoint begins again.
    resume = settings.resume and bool(whole_checkpoints(place))
    first = is_first_process()
    if first:
        check_disk_space(settings, hf_model)
        settings.output.mkdir(parents=True, exist_ok=True)
        if not resume:
            record = json.loads(_as_json(given)) | {SAMPLES_PER_STEP: _samples_per_step(given, processes)}
            _write(settings.output / SETTINGS, lambda file: write_json(file, record))

    @functools.cache
    def trained() -> Llama:
        merged: Llama = hf_model if adapted is None else adapted.merge_and_unload()
        return merged

    try:
        log = fit(
            hf_model, objective, rows, settings, folder=place, resume=resume, validation=validation,
            describe=describe, callbacks=callbacks, report_to=_reports(settings),
        )  # fmt: skip
        log = with_bits_per_byte(log, bytes_per_token)
        network = gathered(trained()) if is_split(trained()) else trained()
        if first:
            _write_results(settings, network, tokenizer, log)
    except DiskError as error:
        if first and not is_split(trained()):
            raise rescue(settings, error, trained(), tokenizer) from error
        raise
    return log


def _set_chat_template(settings: Run, model: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer the template that is trained on, and the network the token by which its answers end, first."""
    ends = model.config.eos_token_ids
    end_token_id = next(iter(ends), None)
    if settings.template is None:
        template = chat_template(tokenizer, end_token_id)
    else:
        template = given_template(tokenizer, settings.template)
    if settings.template is not None or not tokenizer.chat_template:  # several by name stay
        tokenizer.chat_template = template
    end = Chat(tokenizer, template, end_token_id).end_token_id
    if end is not None and end != end_token_id:
        model.config = model.config.replace(eos_token_ids=(end, *(each for each in ends if each != end)))


def _check_output(settings: Run, samples_per_step: int) -> None:
    """Check that the folder is new, or that its training has these settings, before minutes are spent."""
    if not settings.resume:
        if nothing_trained(settings.output):
            shutil.rmtree(settings.output)
        check_place(settings.output, folder=True)
        return
    file = settings.output / SETTINGS
    if not file.is_file():
        raise UserError(f"output is {str(settings.output)!r}, where no training began: leave out resume.")
    # Settings that an earlier version did not have were as by default.
    defaults = {
        field.name: field.default for field in dataclasses.fields(Run) if field.default is not dataclasses.MISSING
    }
    before, now = defaults | read_json(file), json.loads(_as_json(settings))
    began_with = before.get(SAMPLES_PER_STEP, before["batch_size"] * before["accumulation"])
    if samples_per_step != began_with:
        raise UserError(
            f"batch_size is {settings.batch_size}, which makes {samples_per_step} samples in a step, but the training "
            f"in {str(settings.output)!r} began with {began_with}: give batch_size and accumulation for as many."
        )
    changed = [name for name in now if name not in MAY_CHANGE and before.get(name) != now[name]]
    # What the training began with comes first: to give it again may be all that lacks.
    for name in sorted(changed, key=lambda name: not _is_given(before.get(name))):
        given = f"is {now[name]!r}" if _is_given(now[name]) else "is not given"
        began, remedy = "without it", "leave it out, or give a new output"
        if _is_given(before.get(name)):
            began, remedy = f"with {before[name]!r}", "give that, or a new output"
        raise UserError(f"{name} {given}, but the training in {str(settings.output)!r} began {began}: {remedy}.")


def _is_given(value: Any) -> bool:
    """Whether a setting says more than that it was left out; a number does, also 0."""
    return value is not None and value is not False and value != []


def _as_json(settings: Run) -> str:
    return json.dumps(dataclasses.asdict(settings), default=str)


def _rows(
    settings: Run, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, source: Path, *, mask_token_id: int | None,
    tuning: bool, report: Callable[[str], None], streaming: bool = False,
) -> Any:  # fmt: skip
    """Prepare a `datasets.Dataset`, or an iterable one."""
    data = DataConfig(
        length=settings.length, kind="sft" if tuning else "pretrain", documents=settings.documents,
        template=settings.template, end_token_id=next(iter(config.eos_token_ids), None),
        mask_token_ids=() if mask_token_id is None else (mask_token_id,), vocab_size=config.vocab_size,
        skip_bad_lines=settings.skip_bad_lines, last_answer_only=settings.last_answer_only,
    )  # fmt: skip
    dataset: Any = prepare(source, tokenizer, data, cache_dir=settings.cache_dir, streaming=streaming)
    if not streaming:
        found = report_of(dataset)
        if found.left_out:
            report(f"left out {len(found.left_out)} lines, the first: {found.left_out[0]}")
        for line in not_read(found.passed_over, found.unread):
            report(line)
    return dataset


def _with_lora(model: AnyOrderForCausalLM, rank: int, seed: int) -> Any:
    """Add low-rank adapters (arXiv 2106.09685) to all projections; query rows, which are new, are trained whole."""
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=projections)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # PEFT draws the first weights
        adapted = peft.get_peft_model(model, config)
    if model.query_rows is not None:
        model.query_rows.requires_grad_(True)
    return adapted


def _write_results(settings: Run, trained: Llama, tokenizer: PreTrainedTokenizerBase, log: Log) -> None:
    """Write the network, the log and the curves, each whole or not at all."""
    write_network(trained, tokenizer, settings.output)
    _write(settings.output / LOG, lambda file: write_json(file, {"log": log}))
    _write(settings.output / CURVES, lambda file: draw_curves({str(settings.objective): log}, file))


def _write(file: Path, write: Callable[[Path], None]) -> None:
    with whole_file(file, replace=True) as partial:
        write(partial)
