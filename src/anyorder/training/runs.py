"""A whole training: from data and a network to a folder with the trained network, its curves and its checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
from transformers import TrainerCallback

from anyorder import checkpoints
from anyorder.checkpoints.config_json import config_to_json
from anyorder.checkpoints.huggingface import CONFIG
from anyorder.checkpoints.json_files import read_json, write_json
from anyorder.data import chat_template, prepare, report_of
from anyorder.data.records import not_read
from anyorder.errors import UserError
from anyorder.huggingface import AnyOrderForCausalLM
from anyorder.model.llama import Llama
from anyorder.objectives import Mixture
from anyorder.training.curves import Log, draw_curves, with_bits_per_byte
from anyorder.training.loop import fit
from anyorder.training.recipes import network_of, prepared
from anyorder.training.settings import Run
from anyorder.whole import check_place, whole_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SETTINGS, NETWORK, CHECKPOINTS, LOG, CURVES = "settings.json", "network", "checkpoints", "log.json", "loss.png"
"""What a training leaves in its folder."""

MAY_CHANGE = ("resume", "output", "data", "validation", "cache_dir", "keep", "workers", "tensorboard", "wandb")
"""Settings that may differ where a training is resumed: they do not decide what is learnt, or the data show it."""


def run(
    settings: Run,
    *,
    tuning: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Log:
    """Trains as the settings say, and leaves in the output folder `network/`, `log.json` and `loss.png`.

    Args:
        settings: all that decides the training.
        tuning: learn the answers of prompts and dialogues, not whole texts.
        callbacks: told about each step.
        tell: told what goes on, a line at a time.

    Returns:
        The log: "loss" in nats per token (in fine-tuning by masked diffusion, the mean over samples), "eval_..." for
        validation data, with "..._bits_per_byte".

    Raises:
        UserError: something in the settings or in the data cannot be; before any step is trained.
    """
    first = int(os.environ.get("RANK", "0")) == 0  # of several processes, one speaks and writes
    if first:
        _check_output(settings)
    else:
        tell = _nothing
    model, tokenizer = network_of(settings)
    model, objective = prepared(settings, model, tokenizer, tuning=tuning)
    if tuning:  # what the network was taught is what it will be asked in
        end_token_id = next(iter(model.config.eos_token_ids), None)
        tokenizer.chat_template = settings.template or chat_template(tokenizer, end_token_id)
    prepare_rows = functools.partial(_rows, settings, model, tokenizer, tuning=tuning, tell=tell)
    rows = prepare_rows(settings.data, streaming=settings.streaming)
    parts = objective.parts if isinstance(objective, Mixture) else [objective]
    names = list(settings.parts) or [settings.objective]
    validation, bytes_per_token = {}, None
    if settings.validation is not None:
        others = prepare_rows(settings.validation)
        validation = {name: (part, others) for name, part in zip(names, parts, strict=True)}
        bytes_per_token = report_of(others).bytes_per_token
    size = sum(weight.numel() for weight in model.parameters())
    amount = "streamed data" if settings.streaming else f"{len(rows):,} rows of data"
    tell(f"{size / 1e6:.1f} million weights, {amount}, objective {settings.objective}")
    face = AnyOrderForCausalLM.of(model).train()
    adapted = _adapted(face, settings.lora_rank) if settings.lora_rank else None
    if settings.activation_checkpointing:
        face.gradient_checkpointing_enable()

    def describe(folder: Path) -> None:
        if adapted is None:  # so that a checkpoint is a network that can be loaded
            write_json(folder / CONFIG, config_to_json(model.config) | {"dtype": "float32", "torch_dtype": "float32"})
            checkpoints.write_tokenizer(tokenizer, folder)

    settings.output.mkdir(parents=True, exist_ok=True)
    if first and not settings.resume:
        write_json(settings.output / SETTINGS, json.loads(_as_json(settings)))
    log = fit(
        face, objective, rows, settings, folder=settings.output / CHECKPOINTS, resume=settings.resume,
        validation=validation, describe=describe, callbacks=callbacks,
        report_to=[name for name in ("tensorboard", "wandb") if getattr(settings, name)],
    )  # fmt: skip
    if first:
        trained = face if adapted is None else adapted.merge_and_unload()
        log = with_bits_per_byte(log, bytes_per_token)
        _leave(settings, trained, tokenizer, log)
    return log


def _nothing(line: str) -> None:
    pass


def _check_output(settings: Run) -> None:
    """Before minutes are spent: a new folder, or one whose training has these settings."""
    if not settings.resume:
        check_place(settings.output, folder=True)
        return
    file = settings.output / SETTINGS
    if not file.is_file():
        raise UserError(f"output is {str(settings.output)!r}, where no training began: leave out resume.")
    before, now = read_json(file), json.loads(_as_json(settings))
    for name in now:
        if name not in MAY_CHANGE and before.get(name) != now[name]:
            raise UserError(
                f"{name} is {now[name]!r}, but the training in {str(settings.output)!r} began with "
                f"{before.get(name)!r}: give that, or a new output."
            )


def _as_json(settings: Run) -> str:
    return json.dumps(dataclasses.asdict(settings), default=str)


def _rows(
    settings: Run, model: Llama, tokenizer: PreTrainedTokenizerBase, source: Path, *, tuning: bool,
    tell: Callable[[str], None], streaming: bool = False,
) -> Any:  # fmt: skip
    """A `datasets.Dataset`, or an iterable one."""
    masks = {way.mask_token_id for way in model.config.ways if way.mask_token_id is not None}
    dataset: Any = prepare(
        source, tokenizer, settings.length, kind="sft" if tuning else "pretrain", documents=settings.documents,
        template=settings.template, end_token_id=next(iter(model.config.eos_token_ids), None), mask_token_ids=masks,
        vocab_size=model.config.vocab_size, skip_bad_lines=settings.skip_bad_lines, cache_dir=settings.cache_dir,
        streaming=streaming, last_answer_only=settings.last_answer_only,
    )  # fmt: skip
    if not streaming:
        report = report_of(dataset)
        if report.left_out:
            tell(f"left out {len(report.left_out)} lines, the first: {report.left_out[0]}")
        for line in not_read(report.passed_over, report.unread):
            tell(line)
    return dataset


def _adapted(face: AnyOrderForCausalLM, rank: int) -> Any:
    """Low-rank adapters (arXiv 2106.09685) in all projections; query rows, which are new, are trained whole."""
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    whole = [] if face.query_rows is None else ["query_rows"]
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=projections)
    adapted = peft.get_peft_model(face, config)
    for name in whole:
        face.get_submodule(name).requires_grad_(True)
    return adapted


def _leave(settings: Run, trained: Llama, tokenizer: PreTrainedTokenizerBase, log: Log) -> None:
    """The network, the log and the curves, each whole or not at all."""
    place = settings.output / NETWORK
    shutil.rmtree(place, ignore_errors=True)  # of a training that was resumed after its end
    checkpoints.save_model(trained, place, tokenizer=tokenizer)
    for name, write in (
        (LOG, lambda file: write_json(file, {"log": log})),
        (CURVES, lambda file: draw_curves({settings.objective: log}, file)),
    ):
        with whole_file(settings.output / name, replace=True) as partial:
            write(partial)
