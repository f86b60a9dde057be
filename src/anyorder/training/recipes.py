"""From settings to objectives, and to the network that is to learn them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from anyorder import checkpoints
from anyorder.checkpoints.adapt import adapt
from anyorder.checkpoints.config_json import config_from_json
from anyorder.checkpoints.json_files import read_json
from anyorder.checkpoints.mask_token import with_mask_token
from anyorder.data import BadLines, train_tokenizer
from anyorder.data.readers import read_texts
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import LEFT_TO_RIGHT, TRAINED_BY
from anyorder.model.rope import Rotary
from anyorder.objectives import (
    Antithetic,
    Autoregressive,
    BlockDiffusion,
    Independent,
    MaskedDiffusion,
    MaskedDiffusionTuning,
    Mixture,
    Objective,
    Permutation,
    Stratified,
)
from anyorder.objectives.noise import Times
from anyorder.objectives.schedules import Always, Annealing, Schedule, growing
from anyorder.orders.kinds import LeftToRight, Random, Spans
from anyorder.training.longer import extended
from anyorder.training.settings import BLOCK_LENGTH, DIFFUSION, Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def network_of(run: Run) -> tuple[Llama, PreTrainedTokenizerBase]:
    """The network to start from, and its tokenizer, without the conventions of what it is to learn.

    Raises:
        UserError: the checkpoint has no tokenizer, or cannot be read.
    """
    if run.init is not None:
        model, tokenizer = checkpoints.load(run.init, tokenizer=run.tokenizer, dtype="float32", device="cpu")
        if tokenizer is None:
            raise UserError(f"init is {run.init!r}, which has no tokenizer: say with tokenizer where it is.")
        model.config = reaching(model.config, run)
        return model, tokenizer
    if run.tokenizer is not None:
        tokenizer = checkpoints.load_tokenizer(run.tokenizer)
    else:
        tokenizer = train_tokenizer(
            read_texts(run.data, BadLines(run.skip_bad_lines), documents=run.documents), run.vocab_size
        )  # fmt: skip
    end_token_id = tokenizer.eos_token_id
    torch.manual_seed(run.seed)
    of_words: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id if tokenizer.bos_token_id != end_token_id else None,
        "eos_token_ids": () if end_token_id is None else (end_token_id,),
    }
    if run.shape is not None:
        return Llama(_shaped(run.shape, run.length, of_words)), tokenizer
    config = ModelConfig(
        hidden_size=run.width,
        intermediate_size=-(-run.width * 8 // 3 // 16) * 16,  # as Llama: two thirds of four widths
        num_hidden_layers=run.layers,
        num_attention_heads=run.heads,
        max_position_embeddings=run.length,
        rotary=Rotary(theta=10_000.0),
        **of_words,
    )
    return Llama(config), tokenizer


def _shaped(file: Path, length: int, of_words: dict[str, Any]) -> ModelConfig:
    """The configuration in a file, of a network that writes from left to right and reads at least `length` tokens.

    Raises:
        UserError: the file cannot be read, or describes no network.
    """
    if not file.is_file():
        raise UserError(f"shape {str(file)!r} is no file here: check the path, or have anyorder configs write one.")
    try:
        config = config_from_json(read_json(file))
        reach = max(length, config.max_position_embeddings)
        return config.replace(modes=(LEFT_TO_RIGHT,), pad_token_id=None, max_position_embeddings=reach, **of_words)
    except UserError as error:
        raise UserError(f"shape {str(file)!r}: {error}") from error


def reaching(config: ModelConfig, run: Run) -> ModelConfig:
    """The configuration of the network of `init`, with rotary embeddings that reach over the length of a sample.

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
    """The settings with what they leave to the network: its objective, shifted logits, and tokens of a block.

    Raises:
        UserError: the network writes several times and no objective says which shall stay; or a setting is not of
            the objective.
    """
    objective: str | None = run.objective
    if objective is None:
        names = [mode.name for mode in config.modes]
        if len(names) > 1:
            choices = ", ".join(TRAINED_BY[name] for name in names)
            raise UserError(
                f"objective is not given, and the network in {run.init!r} writes by {' and '.join(names)}, of which "
                f"training keeps what it teaches: give one of {choices}, or mixture with shares of several."
            )
        objective = TRAINED_BY[config.default_mode]
    own = {TRAINED_BY[mode.name]: mode for mode in config.modes}
    learnt = {objective, *run.parts}
    shifted, block_length = run.shifted, run.block_length
    if "masked-diffusion" in own and "masked-diffusion" in learnt:
        shifted = shifted or own["masked-diffusion"].shifted
    if block_length is None and "block-diffusion" in learnt:
        block_length = own["block-diffusion"].block_length if "block-diffusion" in own else BLOCK_LENGTH
    changes: dict[str, Any] = {"objective": objective, "shifted": shifted, "block_length": block_length}
    return dataclasses.replace(run, **changes)


def lost_modes(run: Run, config: ModelConfig) -> list[str]:
    """The ways in which the network of `init` writes, and the trained one will not."""
    learnt = {run.objective, *run.parts}
    return [mode.name for mode in config.modes if run.init is not None and TRAINED_BY[mode.name] not in learnt]


def prepared(
    run: Run, model: Llama, tokenizer: PreTrainedTokenizerBase, *, tuning: bool
) -> tuple[Llama, Objective]:  # fmt: skip
    """The network with all that its objective needs (mask token, query rows, modes), and the objective.

    Args:
        run: the settings.
        model: the network; its weights are shared where they can be.
        tokenizer: gets a mask token where one is needed and there is none.
        tuning: learn answers alone, not whole texts.
    """
    mask_token_id = -1
    if DIFFUSION & {run.objective, *run.parts}:
        model, mask_token_id = with_mask_token(model, tokenizer, run.mask_token, run.seed)
    objective = objective_of(run, mask_token_id, model.config, tuning=tuning)
    return adapt(model, objective.modes, seed=run.seed), objective


def objective_of(run: Run, mask_token_id: int, config: ModelConfig, *, tuning: bool) -> Objective:
    """What the settings say is to be learnt."""
    assert run.objective is not None, "resolved by with_own_way"
    if run.objective != "mixture":
        return _objective(run.objective, run, mask_token_id, config, tuning=tuning)
    parts = [_objective(name, run, mask_token_id, config, tuning=tuning) for name in run.parts]
    # Losses per sample and per token cannot be added in one step.
    by: Literal["sample", "step"] = "sample" if len({part.unit for part in parts}) == 1 else "step"
    return Mixture(parts=parts, shares=list(run.parts.values()), by=by)


def _objective(name: str, run: Run, mask_token_id: int, config: ModelConfig, *, tuning: bool) -> Objective:
    times = _times(run)
    match name:
        case "autoregressive":
            return Autoregressive()
        case "permutation":
            return Permutation(schedule=_schedule(run), predicted=run.predicted)
        case "masked-diffusion" if tuning:
            if run.random_length_prob != Run.random_length_prob:
                given = f"random_length_prob is {run.random_length_prob}, but answers are not cropped"
                raise UserError(f"{given}: leave it out, or give whole texts to pretrain.")
            if not config.eos_token_ids:
                raise UserError("the network has no end token, by which answers end: name one in its config.json.")
            return MaskedDiffusionTuning(
                mask_token_id=mask_token_id, shifted=run.shifted, eps=run.eps, times=times,
                opening_steps=run.opening_steps, length=run.length, end_token_id=config.eos_token_ids[0],
            )  # fmt: skip
        case "masked-diffusion":
            return MaskedDiffusion(
                mask_token_id=mask_token_id, shifted=run.shifted, eps=run.eps, times=times,
                opening_steps=run.opening_steps, random_length=run.random_length_prob,
            )  # fmt: skip
    assert name == "block-diffusion", "no other objective is named"
    assert run.block_length is not None, "resolved by with_own_way"
    return BlockDiffusion(mask_token_id=mask_token_id, block_length=run.block_length, eps=run.eps, times=times)


def _times(run: Run) -> Times:
    if run.times == "stratified":
        return Stratified(strata=run.batch_size * run.accumulation)
    return Antithetic() if run.times == "antithetic" else Independent()


def _schedule(run: Run) -> Schedule:
    steps = run.steps or 1  # of epochs: unknown until the rows are counted
    schedules: dict[str, Schedule] = {
        "random": Always(Random()),
        "left-to-right": Always(LeftToRight()),
        "spans": Always(Spans()),
        "growing": growing(max(1, steps // 4)),
        "random-to-left": Annealing(steps=steps),
        "left-to-random": Annealing(steps=steps, first=LeftToRight(), last=Random()),
    }
    return schedules[run.order_schedule]
