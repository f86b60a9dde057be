"""From settings to the network and the objective of a training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from anyorder import checkpoints
from anyorder.checkpoints.config_json import config_from_json
from anyorder.checkpoints.json_files import read_json
from anyorder.checkpoints.mask_token import with_mask_token
from anyorder.data import BadLines, train_tokenizer
from anyorder.data.readers import read_texts
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import KINDS, LEFT_TO_RIGHT, Mode, mode_named
from anyorder.model.rope import Rotary
from anyorder.modes import LearningOptions, entry_of
from anyorder.objectives import Antithetic, Independent, Mixture, Objective, Stratified
from anyorder.objectives.noise import Times
from anyorder.objectives.schedules import Always, Annealing, Schedule, growing
from anyorder.orders.kinds import LeftToRight, Random, Spans
from anyorder.training.longer import extended
from anyorder.training.settings import BLOCK_LENGTH, NEEDS, Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_model(run: Run) -> tuple[Llama, PreTrainedTokenizerBase]:
    """Load or make the network to start from, and its tokenizer; what its objective needs is not yet added.

    Raises:
        UserError: the checkpoint has no tokenizer, or cannot be read.
    """
    if run.init is not None:
        model, tokenizer = checkpoints.load(run.init, tokenizer=run.tokenizer, dtype="float32", device="cpu")
        if tokenizer is None:
            raise UserError(f"init is {run.init!r}, which has no tokenizer: say with tokenizer where it is.")
        model.config = with_rope_scaling(model.config, run)
        return model, tokenizer
    if run.tokenizer is not None:
        tokenizer = checkpoints.load_tokenizer(run.tokenizer)
    else:
        tokenizer = train_tokenizer(
            read_texts(run.data, BadLines(run.skip_bad_lines), documents=run.documents), run.vocab_size
        )  # fmt: skip
    end_token_id = tokenizer.eos_token_id
    torch.manual_seed(run.seed)
    token_settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id if tokenizer.bos_token_id != end_token_id else None,
        "eos_token_ids": () if end_token_id is None else (end_token_id,),
    }
    if run.shape is not None:
        return Llama(_config_from_file(run.shape, run.length, token_settings)), tokenizer
    config = ModelConfig(
        hidden_size=run.width,
        intermediate_size=-(-run.width * 8 // 3 // 16) * 16,  # as Llama: two thirds of four widths
        num_hidden_layers=run.layers,
        num_attention_heads=run.heads,
        max_position_embeddings=run.length,
        rotary=Rotary(theta=10_000.0),
        **token_settings,
    )
    return Llama(config), tokenizer


def _config_from_file(file: Path, length: int, token_settings: dict[str, Any]) -> ModelConfig:
    """The configuration in a file, of a network that writes from left to right and reads at least `length` tokens.

    Raises:
        UserError: the file cannot be read, or describes no network.
    """
    if not file.is_file():
        raise UserError(f"shape {str(file)!r} is no file here: check the path, or have anyorder configs write one.")
    try:
        config = config_from_json(read_json(file))
        reach = max(length, config.max_position_embeddings)
        return config.replace(
            modes=(LEFT_TO_RIGHT,), pad_token_id=None, max_position_embeddings=reach, **token_settings
        )
    except UserError as error:
        raise UserError(f"shape {str(file)!r}: {error}") from error


def with_rope_scaling(config: ModelConfig, run: Run) -> ModelConfig:
    """Scale the rotary embeddings of the network of `init` so that they reach over the length of a sample.

    Raises:
        UserError: they do not, and may not or cannot be scaled, or are to be scaled although they do.
    """
    trained = config.context_length
    if run.length <= trained:
        if run.rope_scaling is not None:
            raise UserError(
                f"rope_scaling is {run.rope_scaling!r}, but the network in {run.init!r} was trained on "
                f"{trained} tokens, and length is {run.length}: leave it out."
            )
        return config
    if run.rope_scaling is None:
        raise UserError(
            f"length is {run.length}, but the network in {run.init!r} was trained on {trained} tokens: give at most "
            "that, or rope_scaling yarn, by which it learns longer texts."
        )
    try:
        return extended(config, run.rope_scaling, run.length)
    except UserError as error:
        raise UserError(f"rope_scaling is {run.rope_scaling!r} for the network in {run.init!r}: {error}") from error


def with_own_mode(run: Run, config: ModelConfig) -> Run:
    """Complete the settings by what they leave to the network: objective, shifted logits, and tokens of a block.

    Raises:
        UserError: the network has several modes and no objective says which shall stay; or a setting is not of
            the objective.
    """
    objective: str | None = run.objective
    if objective is None:
        names = [mode.name for mode in config.modes]
        if len(names) > 1:
            choices = ", ".join(KINDS[name].objective for name in names)
            raise UserError(
                f"objective is not given, and the network in {run.init!r} writes by {' and '.join(names)}, of which "
                f"training keeps what it teaches: give one of {choices}, or mixture with shares of several."
            )
        objective = KINDS[config.default_mode].objective
    own = {mode.kind.objective: mode for mode in config.modes}
    trained = {objective, *run.parts}
    shifted, block_length = run.shifted, run.block_length
    shifted = shifted or any(own[name].shifted for name in trained & own.keys() if NEEDS["shifted"](own[name].kind))
    blocked = [name for name in trained if (mode := mode_named(name)) and KINDS[mode].blocks]
    if block_length is None and blocked:
        block_length = own[blocked[0]].block_length if blocked[0] in own else BLOCK_LENGTH
    changes: dict[str, Any] = {"objective": objective, "shifted": shifted, "block_length": block_length}
    return dataclasses.replace(run, **changes)


def lost_modes(run: Run, config: ModelConfig) -> list[str]:
    """Return the modes of the network of `init` that the trained one will not have."""
    trained = {run.objective, *run.parts}
    return [mode.name for mode in config.modes if run.init is not None and mode.kind.objective not in trained]


def with_mask(
    run: Run, model: Llama, tokenizer: PreTrainedTokenizerBase, *, tuning: bool
) -> tuple[Llama, int | None]:  # fmt: skip
    """Give the network a mask token where its objective needs one.

    Args:
        run: the settings, completed by `with_own_mode`.
        model: the network; its weights are shared where they can be.
        tokenizer: gets the mask token where it has none.
        tuning: train on answers alone, not on whole texts.

    Returns:
        The network, and the id of the mask token; None: its objective needs none.

    Raises:
        UserError: answers are to be padded with end tokens, and the network has none.
    """
    kinds = [KINDS[mode] for name in (run.objective, *run.parts) if name and (mode := mode_named(name))]
    padded = tuning and any(kind.diffuses and not kind.blocks for kind in kinds)
    if padded and not model.config.eos_token_ids:
        raise UserError("the network has no end token, by which answers end: name one in its config.json.")
    if not any(kind.mask_token for kind in kinds):
        return model, None
    return with_mask_token(model, tokenizer, run.mask_token, run.seed)


def build_objective(run: Run, mask_token_id: int | None, config: ModelConfig, *, tuning: bool) -> Objective:
    """Make the objective of settings whose steps are known.

    Args:
        run: the settings.
        mask_token_id: the mask token; None for objectives that need none.
        config: of the network that is trained.
        tuning: train on answers alone, not on whole texts.
    """
    assert run.objective is not None, "resolved by with_own_mode"
    if run.objective != "mixture":
        return _objective(run.objective, run, mask_token_id, config, tuning=tuning)
    parts = [_objective(name, run, mask_token_id, config, tuning=tuning) for name in run.parts]
    # Losses per sample and per token cannot be added in one step.
    addable: Literal["sample", "step"] = "sample" if len({part.unit for part in parts}) == 1 else "step"
    return Mixture(parts=parts, shares=list(run.parts.values()), by=run.mixture_by or addable)


def _objective(name: str, run: Run, mask_token_id: int | None, config: ModelConfig, *, tuning: bool) -> Objective:
    """Make the objective of this name, with the conventions and the options of the settings."""
    kind = KINDS[mode_named(name) or name]
    mode = Mode(
        name=kind.name,
        shifted=kind.causal or (run.shifted and not kind.blocks),
        mask_token_id=mask_token_id if kind.mask_token else None,
        block_length=run.block_length if kind.blocks else None,
        causal_context=any(mode.name == kind.name and mode.causal_context for mode in config.modes),
    )
    options = LearningOptions(
        tuning=tuning, schedule=_schedule(run), predicted=run.predicted, times=_times(run), eps=run.eps,
        opening_steps=run.opening_steps, random_length=run.random_length_prob, length=run.length,
        end_token_id=next(iter(config.eos_token_ids), None),
    )  # fmt: skip
    return entry_of(mode).objective(mode, options)


def _times(run: Run) -> Times:
    if run.times == "stratified":
        return Stratified(strata=run.batch_size * run.accumulation)
    return Antithetic() if run.times == "antithetic" else Independent()


def _schedule(run: Run) -> Schedule:
    steps = run.total_steps
    schedules: dict[str, Schedule] = {
        "random": Always(Random()),
        "left-to-right": Always(LeftToRight()),
        "spans": Always(Spans()),
        "growing": growing(max(1, steps // 4)),
        "random-to-left": Annealing(steps=steps),
        "left-to-random": Annealing(steps=steps, first=LeftToRight(), last=Random()),
    }
    return schedules[run.order_schedule]
