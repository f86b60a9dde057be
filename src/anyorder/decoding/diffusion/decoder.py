"""Writing by masked diffusion: passes over a canvas with masks, each of which turns some masks into tokens.

A sampler is schedule x confidence x commit x cache, and each of them has a file of its own: `schedule` (the blocks of
a canvas and their steps), `confidence` (a token for each mask, and how sure it is), `commit` (how many are written),
`diffusion_cache` (what is read again in each pass). Here they meet.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from anyorder.decoding.canvas import blanks, check_canvases
from anyorder.decoding.diffusion.commit import Commit, PerStep
from anyorder.decoding.diffusion.confidence import Confidence, choose
from anyorder.decoding.diffusion.reader import CacheName, CachePolicy, CanvasReader
from anyorder.decoding.diffusion.row import CanvasRow, Choice
from anyorder.decoding.diffusion.schedule import Uneven, plan_blocks
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Step, Stop, StopReason, Written
from anyorder.errors import UserError
from anyorder.inspection.cache_drift import Drift, WatchedReader
from anyorder.utils.annotations import check_fields
from anyorder.utils.reprs import changed_fields
from anyorder.ways import way_named

if TYPE_CHECKING:
    from anyorder.decoding.fusion.canvases import FusedCanvases
    from anyorder.model.llama import Llama
    from anyorder.ways import Way


@dataclass(frozen=True, kw_only=True)
class DiffusionSampler:
    """How a canvas is filled; `preset` has the published ones.

    Attributes:
        way: which of the network's ways writes, "diffusion" or "blocks"; its default of the two unless given.
        steps: for the whole canvas; None writes a token a step. Rules other than `PerStep` and `Timesteps` take as
            many as they need.
        block_length: blocks of so many tokens are written from left to right; None writes all as one. A network with
            blocks has those that it was trained with unless given.
        grow: a block does not see those after it, as if the canvas grew (LLaDA's "semi-autoregressive origin"), and
            the text ends with the block that has an end token.
        uneven: "refuse" steps and lengths that do not divide, or "distribute" them.
        temperature: 0 takes the most probable token; above 0, logits are divided by it and a token is drawn.
        top_p, top_k: draw only among the most probable tokens, in this order; the lowest of equals stay.
        confidence: what ranks the candidates: the "probability" of the token (LLaDA's "low_confidence"), "random", the
            "margin" between the two most probable tokens, or the negative "entropy" of the distribution.
        tempered_confidence: confidence is that of the distribution after temperature, top-p and top-k (Dream), not of
            the network's own (LLaDA).
        commit: how many of the candidates are written in a step.
        edit: a token that was written in the block is replaced by another that is more probable than this; the only
            rule that changes a written token. None: none is.
        cfg_scale: classifier-free guidance: scores move away from those of a network that is shown no given token.
        suppress_end: end tokens are never chosen ("choice"), or are the least sure ("confidence").
        min_new_tokens: no end token is chosen at so many of the first positions to be written.
        stop_at_end: a row that is written up to an end token is complete; otherwise the whole canvas is written. Rows
            with given tokens behind a gap are written as a whole.
        cache: keys that are not computed again: see `CachePolicy`. "prefix" and "dual" are approximate, except in a
            network with blocks.
        refresh: with such a cache, steps after which a block's keys are renewed; None: when a block begins.
        may_choose_mask: the mask token may be chosen, and a position stays masked then, as in published samplers.

    Raises:
        UserError: a field has a value that cannot be.
    """

    way: str | None = None
    steps: int | None = None
    block_length: int | None = None
    grow: bool = False
    uneven: Uneven = "distribute"
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    confidence: Confidence = "probability"
    tempered_confidence: bool = False
    commit: Commit = PerStep()  # noqa: RUF009 (frozen)
    edit: float | None = None
    cfg_scale: float = 0.0
    suppress_end: Literal["no", "choice", "confidence"] = "no"
    min_new_tokens: int = 0
    stop_at_end: bool = False
    cache: CacheName = "none"
    refresh: int | None = None
    may_choose_mask: bool = False

    def __repr__(self) -> str:
        return changed_fields(self)

    def __post_init__(self) -> None:
        check_fields(self, "{} of the sampler")
        object.__setattr__(self, "way", self.way and (way_named(self.way) or self.way))
        sampling = Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        if not self.tempered_confidence:  # which filters change at temperature 0 as well
            sampling.check_filters()
        for name in ("steps", "block_length", "refresh"):
            value = getattr(self, name)
            self._require(
                name, value is None or (isinstance(value, int) and value > 0), "give a whole number above 0, or None"
            )
        for name, options in (
            ("way", (None, "diffusion", "blocks")),
            ("uneven", ("refuse", "distribute")), ("confidence", ("probability", "random", "margin", "entropy")),
            ("suppress_end", ("no", "choice", "confidence")), ("cache", ("none", "prefix", "dual")),
        ):  # fmt: skip
            self._require(name, getattr(self, name) in options, f"choose one of {', '.join(map(str, options))}")
        self._require("commit", isinstance(self.commit, Commit), "give a rule of anyorder.decoding.commit")
        self._require("edit", self.edit is None or 0 < self.edit <= 1, "give a probability above 0, or None")
        self._require(
            "cfg_scale", math.isfinite(self.cfg_scale) and self.cfg_scale >= 0, "give 0 for no guidance, or more"
        )
        self._require("min_new_tokens", self.min_new_tokens >= 0, "give a number of tokens from 0 on")
        renewed = self.refresh is None or self.cache != "none"
        self._require("refresh", renewed, 'there is no cache to renew, so leave it out, or give cache="dual"')
        ends = not self.may_choose_mask or self.commit.planned
        self._require("may_choose_mask", ends, "this rule would wait for ever for the last masks, so give False")

    def _require(self, name: str, holds: bool, remedy: str) -> None:
        if not holds:
            raise UserError(f"{name} of the sampler is {getattr(self, name)!r}: {remedy}.")

    @property
    def draws(self) -> bool:
        """Whether what is written depends on a seed."""
        return self.temperature > 0 or self.confidence == "random"

    def replace(self, **changes: Any) -> DiffusionSampler:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def preset(cls, name: str, **options: Any) -> DiffusionSampler:
        """A published sampler: see `anyorder.decoding.diffusion.presets.preset`."""
        from anyorder.decoding.diffusion.presets import preset

        return preset(name, **options)


def diffusion_steps(
    model: Llama,
    canvases: Sequence[Sequence[int]],
    sampler: DiffusionSampler,
    *,
    way: Way,
    rows: Sequence[int],
    seed: int = 0,
    stop: Stop | None = None,
    fused: FusedCanvases | None = None,
    on_drift: Callable[[Drift], None] | None = None,
) -> Iterator[Step]:
    """Fills canvases, each step as soon as it is taken; mistakes are raised at once.

    Args:
        model: the network; its configuration names the end tokens and the trained length.
        canvases: token ids with `BLANK` where a token is to be written, of any lengths.
        sampler: how.
        way: the network's "diffusion" or "blocks".
        rows: number of each canvas, which decides its random draws.
        seed: decides them too.
        stop: asked after each step, given the text up to the first mask.
        fused: where phrasings of questions stand in these canvases; None where there are none.
        on_drift: is told after each pass with an approximate cache how far its logits are from those of a pass over
            everything, which is made beside it and counts nowhere.

    Raises:
        UserError: a canvas that cannot be filled, or in which the sampler's lengths and steps do not divide.
    """
    check_canvases(model.config, canvases, rows, None if fused is None else fused.lengths)
    for row, canvas in zip(rows, canvases, strict=True):
        if way.mask_token_id in canvas:
            at = list(canvas).index(way.mask_token_id or 0)
            remedy = "give a gap where a token is to be written"
            raise UserError(f"prompt {row} has the mask token {way.mask_token_id} at position {at}: {remedy}.")
    aligned = way.name == "blocks"
    if aligned and fused is not None:
        raise UserError("blocks are counted over a whole text, but phrasings share positions: give another order.")
    if aligned and sampler.block_length is None:
        sampler = sampler.replace(block_length=way.block_length)
    writing = []
    for number, canvas, generator in zip(rows, canvases, Sampling(seed=seed).generators(rows), strict=True):
        blocks = plan_blocks(
            canvas, number, block_length=sampler.block_length, steps=sampler.steps, uneven=sampler.uneven,
            aligned=aligned,
        )  # fmt: skip
        early = frozenset(blanks(canvas)[: sampler.min_new_tokens])
        writing.append(CanvasRow(number, list(canvas), blocks, generator, early))
    return _steps(model, writing, sampler, way, stop, fused, on_drift)


@torch.no_grad()
def _steps(
    model: Llama, rows: list[CanvasRow], sampler: DiffusionSampler, way: Way, stop: Stop | None,
    fused: FusedCanvases | None, on_drift: Callable[[Drift], None] | None,
) -> Iterator[Step]:  # fmt: skip
    assert way.mask_token_id is not None, "a network that diffuses has one"
    policy = CachePolicy(name=sampler.cache, way=way, refresh=sampler.refresh)
    own = CanvasReader(model, way, rows, sampler, fused)
    reader: CanvasReader | WatchedReader = own
    if on_drift is not None and not policy.exact:
        whole = CanvasReader(model, way, rows, sampler.replace(cache="none", refresh=None), fused)
        reader = WatchedReader(own, whole, lambda b: rows[b].sight(policy, sampler.grow), on_drift)
    writing = list(range(len(rows)))
    for step in itertools.count():
        # With a cache, rows within a block go first, so that then all renew their keys in one pass.
        turn = [b for b in writing if not policy.renews(rows[b].step)] or writing
        spans = {b: rows[b].span(policy, sampler.grow) for b in turn}
        wanted = {b: rows[b].wanted(spans[b], edit=sampler.edit is not None) for b in turn}
        logits_NV = reader.logits(spans, wanted)
        columns = choose(
            logits_NV,
            sampler,
            mask_token_id=way.mask_token_id,
            end_token_ids=model.config.eos_token_ids,
            early=[position in rows[b].early for b in turn for position in wanted[b]],
            generators=[rows[b].generator for b in turn for _ in wanted[b]],
        )
        choices = zip(*(column.tolist() for column in columns), strict=True)

        written: list[Written] = []
        stopped: dict[int, StopReason] = {}
        for b in turn:
            row = rows[b]
            standing = row.commit([Choice(position, *next(choices)) for position in wanted[b]], sampler)
            row.write(standing, way.mask_token_id, sampler)
            reader.write(b, standing)
            if why := _why_complete(row, sampler, model.config.eos_token_ids, stop):
                stopped[row.number] = why
                standing += row.left_masked(way.mask_token_id)
            written += [Written(step, row.number, at, token_id, log_prob) for at, token_id, log_prob, _ in standing]
        yield Step(tuple(written), stopped)

        writing = [b for b in writing if rows[b].number not in stopped]
        if not writing:
            return


def _why_complete(
    row: CanvasRow, sampler: DiffusionSampler, end_token_ids: Sequence[int], stop: Stop | None
) -> StopReason | None:
    """Why a row is complete after this step, if it is."""
    begins_block = row.step == 0
    text = row.text
    end = next((at for at, token_id in enumerate(text) if token_id in end_token_ids), None)
    if row.continues and (sampler.edit is None or begins_block):
        if stop is not None and stop(row.number, text[:end]):
            return "stop"
        if end is not None and (sampler.stop_at_end or (sampler.grow and begins_block)):
            return "end"
    if row.blocks:
        return None
    return "end" if row.continues and end is not None else "length"
