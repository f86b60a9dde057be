"""Published samplers of masked diffusion, token for token, and those of the orders "diffusion" and "blocks:32"."""

from __future__ import annotations

from anyorder.decoding.diffusion.commit import Commit, Factor, Threshold, Timesteps
from anyorder.decoding.diffusion.confidence import Confidence
from anyorder.decoding.diffusion.decoder import DiffusionSampler
from anyorder.decoding.diffusion.reader import CacheName
from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError
from anyorder.orders.names import read_order

_LLADA = DiffusionSampler(uneven="refuse", may_choose_mask=True)
_DREAM = DiffusionSampler(uneven="refuse", may_choose_mask=True, commit=Timesteps(), tempered_confidence=True)

PRESETS: dict[str, DiffusionSampler] = {
    "llada": _LLADA,
    "llada-semi-ar": _LLADA.replace(block_length=32),
    "dream-maskgit": _DREAM,
    "dream-margin": _DREAM.replace(confidence="margin"),
    "dream-entropy": _DREAM.replace(confidence="entropy"),
    "fast-dllm": DiffusionSampler(uneven="refuse", block_length=32, cache="dual"),
}

REMASKING: dict[str, Confidence] = {
    "low_confidence": "probability",
    "random": "random",
    "maskgit_plus": "probability",
    "topk_margin": "margin",
    "entropy": "entropy",
    "probability": "probability",
    "margin": "margin",
}
"""What LLaDA calls the remasking strategy and Dream the algorithm, and our own names."""


def preset(
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
    """A published sampler; what is not given is as published, and steps are one a token.

    Args:
        name: "llada" (one block unless `block_length` is given), "llada-semi-ar" (blocks of 32), "dream-maskgit",
            "dream-margin", "dream-entropy", or "fast-dllm" (blocks of 32, dual cache).
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
    published = PRESETS[name]
    commit = _commit(published, threshold, factor, last_together=name == "fast-dllm")
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


def _commit(
    published: DiffusionSampler, threshold: float | None, factor: float | None, *, last_together: bool
) -> Commit:
    if threshold is not None and factor is not None:
        raise UserError(f"threshold is {threshold} beside factor {factor}: give one of them.")
    if threshold is not None:
        return Threshold(threshold)
    return published.commit if factor is None else Factor(factor, last_together=last_together)


def sampler_of_order(order: str | DiffusionSampler, sampling: Sampling, *, use_cache: bool = True) -> DiffusionSampler:
    """The sampler that an order stands for.

    Args:
        order: "diffusion", one block of all that is written, a token a step; "blocks:32" or "blocks", block by block
            with an exact cache until an end token; or a sampler, whose temperature and filters count.
        sampling: what else `anyorder.generate` was told.
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
        way=words.way, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
    )
    if words.kind == "diffusion":
        return sampler
    return sampler.replace(block_length=words.number, cache="prefix" if use_cache else "none", stop_at_end=True)
