"""The record of a sampler of masked diffusion; published samplers, token for token; those of orders by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anyorder.decoding.diffusion.cache import CACHES, CacheName, CachePolicy, CompleteBlocks
from anyorder.decoding.diffusion.commit import Commit, Factor, PerStep, Threshold, Timesteps
from anyorder.decoding.diffusion.confidence import CONFIDENCES, Confidence, ConfidenceName, TokenChooser, is_random
from anyorder.decoding.diffusion.schedule import Uneven
from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError
from anyorder.model.modes import KINDS, Mode, mode_named
from anyorder.orders.names import read_order
from anyorder.utils.annotations import check_fields, requirement
from anyorder.utils.reprs import changed_fields


@dataclass(frozen=True, kw_only=True)
class DiffusionSampler:
    """How a canvas is filled; `preset` has the published ones.

    Attributes:
        mode: which of the network's modes writes, "diffusion", "blocks" or a registered one that diffuses; its default
            of these unless given.
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
            "margin" between the two most probable tokens, or the negative "entropy" of the distribution; or a function
            of one's own, see `Confidence`.
        tempered_confidence: confidence is that of the distribution after temperature, top-p and top-k (Dream), not of
            the network's own (LLaDA).
        commit: which of the candidates are written in a step: see `Commit`.
        edit: a token that was written in the block is replaced by another that is more probable than this; the only
            rule that changes a written token. None: none is.
        cfg_scale: classifier-free guidance: scores move away from those without the given tokens.
        suppress_end: end tokens are never chosen ("choice"), or are the least sure ("confidence").
        min_new_tokens: no end token is chosen at so many of the first positions to be written.
        stop_at_end: a text that is written up to an end token is complete; otherwise the whole canvas is written. Texts
            with given tokens behind a gap are written as a whole.
        cache: keys that are not computed again: "none", "prefix" or "dual", of which the last two are approximate,
            except in a network with blocks; or a policy of one's own, see `CachePolicy`.
        refresh: with such a cache, steps after which a block's keys are renewed; None: when a block begins.
        may_choose_mask: the mask token may be chosen, and a position stays masked then, as in published samplers.

    Raises:
        UserError: a field has a value that cannot be.
    """

    mode: str | None = None
    steps: int | None = None
    block_length: int | None = None
    grow: bool = False
    uneven: Uneven = "distribute"
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    confidence: ConfidenceName | Confidence = "probability"
    tempered_confidence: bool = False
    commit: Commit = PerStep()  # noqa: RUF009 (frozen)
    edit: float | None = None
    cfg_scale: float = 0.0
    suppress_end: Literal["no", "choice", "confidence"] = "no"
    min_new_tokens: int = 0
    stop_at_end: bool = False
    cache: CacheName | CachePolicy = "none"
    refresh: int | None = None
    may_choose_mask: bool = False

    def __repr__(self) -> str:
        return changed_fields(self)

    def __post_init__(self) -> None:
        check_fields(self, "{} of the sampler")
        require = requirement(self, "{} of the sampler")
        object.__setattr__(self, "mode", self.mode and (mode_named(self.mode) or self.mode))
        sampling = Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        if not self.tempered_confidence:  # which filters change at temperature 0 as well
            sampling.check_filters()
        for name in ("steps", "block_length", "refresh"):
            value = getattr(self, name)
            require(name, value is None or value > 0, "give a whole number above 0, or None")
        diffusing = [name for name, kind in KINDS.items() if kind.diffuses]
        require("mode", self.mode in (None, *diffusing), f"choose one of None, {', '.join(diffusing)}")
        require("edit", self.edit is None or 0 < self.edit <= 1, "give a probability above 0, or None")
        require("cfg_scale", math.isfinite(self.cfg_scale) and self.cfg_scale >= 0, "give 0 for no guidance, or more")
        require("min_new_tokens", self.min_new_tokens >= 0, "give a number of tokens from 0 on")
        renewed = self.refresh is None or self.cache in ("prefix", "dual")
        require("refresh", renewed, 'there is no cache to renew, so leave it out, or give cache="dual"')
        ends = not self.may_choose_mask or self.commit.planned
        require("may_choose_mask", ends, "this rule would wait for ever for the last masks, so give False")

    @property
    def draws(self) -> bool:
        """Whether what is written depends on a seed."""
        return self.temperature > 0 or is_random(self._ranking)

    @property
    def _ranking(self) -> Confidence:
        return self.confidence if callable(self.confidence) else CONFIDENCES[self.confidence]

    def chooser(self, mask_token_id: int, end_token_ids: Sequence[int]) -> TokenChooser:
        """Return what chooses tokens, for a network with these special tokens."""
        return TokenChooser(
            mask_token_id=mask_token_id, end_token_ids=end_token_ids, confidence=self._ranking,
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, suppress_end=self.suppress_end,
            min_new_tokens=self.min_new_tokens, tempered_confidence=self.tempered_confidence,
            may_choose_mask=self.may_choose_mask,
        )  # fmt: skip

    def policy(self, mode: Mode) -> CachePolicy:
        """Return the cache policy for a network's mode; in a network with blocks, "prefix" and "dual" are one."""
        if isinstance(self.cache, CachePolicy):
            return self.cache
        if mode.block_length is not None and self.cache != "none":
            return CompleteBlocks()
        policy: Any = CACHES[self.cache]
        return (
            policy if self.refresh is None else dataclasses.replace(policy, refresh=self.refresh)
        )  # of a `BlockCache`

    def replace(self, **changes: Any) -> DiffusionSampler:
        """Return a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def preset(
        cls,
        name: str,
        *,
        steps: int | None = None,
        block_length: int | None = None,
        temperature: float = 0.0,
        cfg_scale: float = 0.0,
        remasking: str | None = None,
        cache: CacheName | None = None,
        threshold: float | None = None,
        factor: float | None = None,
    ) -> DiffusionSampler:
        """Return a published sampler; what is not given is as published, and steps are one a token.

        Args:
            name: "llada" (one block unless `block_length` is given), "llada-semi-ar" (blocks of 32), "dream-maskgit",
                "dream-margin", "dream-entropy", "fast-dllm" (blocks of 32, dual cache), or of networks with blocks,
                "sdar", "llada2", "llada2.1", which edits what it has written, and "nemotron".
            steps: for the whole text.
            block_length: blocks of so many tokens, from left to right.
            temperature: 0 takes the most probable token.
            cfg_scale: classifier-free guidance.
            remasking: what is written first, by LLaDA's or Dream's name or ours: "low_confidence", "random",
                "maskgit_plus", "topk_margin" or "entropy".
            cache: "none", "prefix" or "dual".
            threshold: writes all that are surer than this, at least one, instead of so many a step.
            factor: writes the n-th surest if it is as sure as 1 - factor / (n + 1), instead of so many a step.

        Raises:
            UserError: there is no such sampler, or an option cannot be.
        """
        if name not in PRESETS:
            raise UserError(f"preset is {name!r}: choose one of {', '.join(PRESETS)}.")
        if remasking is not None and remasking not in REMASKING:
            raise UserError(f"remasking is {remasking!r}: choose one of {', '.join(REMASKING)}.")
        if threshold is not None and factor is not None:
            raise UserError(f"threshold is {threshold} beside factor {factor}: give one of them.")
        published = PRESETS[name]
        commit = published.commit
        if threshold is not None:
            commit = Threshold(threshold)
        elif factor is not None:
            commit = Factor(factor, last_together=name == "fast-dllm")
        return published.replace(
            steps=steps,
            block_length=block_length or published.block_length,
            temperature=temperature,
            cfg_scale=cfg_scale,
            confidence=published.confidence if remasking is None else REMASKING[remasking],
            cache=cache or published.cache,
            commit=commit,
            may_choose_mask=published.may_choose_mask and commit.planned,
        )


_LLADA = DiffusionSampler(uneven="refuse", may_choose_mask=True)
_DREAM = DiffusionSampler(uneven="refuse", may_choose_mask=True, commit=Timesteps(), tempered_confidence=True)

PRESETS: dict[str, DiffusionSampler] = {
    "llada": _LLADA,
    "llada-semi-ar": _LLADA.replace(block_length=32),
    "dream-maskgit": _DREAM,
    "dream-margin": _DREAM.replace(confidence="margin"),
    "dream-entropy": _DREAM.replace(confidence="entropy"),
    "fast-dllm": DiffusionSampler(uneven="refuse", block_length=32, cache="dual"),
    "sdar": DiffusionSampler(commit=Threshold(0.85), cache="prefix", stop_at_end=True),
    "llada2": DiffusionSampler(commit=Threshold(0.95), cache="prefix", stop_at_end=True),
    "llada2.1": DiffusionSampler(commit=Threshold(0.95), edit=0.9, cache="prefix", stop_at_end=True),
    "nemotron": DiffusionSampler(commit=Threshold(0.9), cache="prefix", stop_at_end=True),
}

REMASKING: dict[str, ConfidenceName] = {
    "low_confidence": "probability",
    "random": "random",
    "maskgit_plus": "probability",
    "topk_margin": "margin",
    "entropy": "entropy",
    "probability": "probability",
    "margin": "margin",
}
"""What LLaDA calls the remasking strategy and Dream the algorithm, and our own names."""


def sampler_of_order(order: str | DiffusionSampler, sampling: Sampling, *, use_cache: bool = True) -> DiffusionSampler:
    """Return the sampler of an order.

    Args:
        order: "diffusion", one block of all that is written, a token a step; "blocks:32" or "blocks", block by block
            with an exact cache until an end token; the name of another mode that diffuses, likewise; or a sampler,
            whose temperature and filters count.
        sampling: of `anyorder.generate`.
        use_cache: False does without the exact cache of "blocks".

    Raises:
        UserError: an option cannot be.
    """
    for name, none in (("min_p", None), ("repetition_penalty", 1.0)):
        if getattr(sampling, name) != none:
            value = getattr(sampling, name)
            raise UserError(
                f"{name} is {value!r}, which diffusion does not know: leave it out, or give top_k or top_p."
            )
    if isinstance(order, DiffusionSampler):
        for name in ("temperature", "top_k", "top_p"):
            if getattr(sampling, name) != getattr(Sampling(), name):
                value = getattr(sampling, name)
                raise UserError(f"{name} is {value!r} beside a sampler: give it in the DiffusionSampler.")
        return order
    words = read_order(order)
    sampler = DiffusionSampler(
        mode=words.mode, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
    )
    if not KINDS[words.mode].blocks:
        return sampler
    return sampler.replace(block_length=words.number, cache="prefix" if use_cache else "none", stop_at_end=True)
