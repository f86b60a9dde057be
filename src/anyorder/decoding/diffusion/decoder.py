"""Writing by masked diffusion: passes over canvases with masks, each of which turns some masks into tokens.

A sampler is schedule x confidence x commit x cache, and each of them has a file of its own: `schedule` (the blocks of
a canvas and their steps), `confidence` (a token for each mask, and how sure it is), `commit` (which are written),
`cache` (what is read again in each pass). Here they become the texts, the reader and the choice of the decoding loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from anyorder.decoding.canvas import BLANK, PLAIN, CanvasLayout, check_canvases
from anyorder.decoding.diffusion.confidence import TokenChooser
from anyorder.decoding.diffusion.reader import CanvasReader
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.decoding.diffusion.schedule import plan_blocks
from anyorder.decoding.diffusion.text import CanvasText
from anyorder.decoding.loop import decode
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Step, Stop
from anyorder.errors import UserError

if TYPE_CHECKING:
    from anyorder.model.llama import Llama
    from anyorder.model.modes import Mode


def diffusion_steps(
    model: Llama,
    canvases: Sequence[Sequence[int]],
    sampler: DiffusionSampler,
    *,
    mode: Mode,
    sample_ids: Sequence[int],
    seed: int = 0,
    stop: Stop | None = None,
    layout: CanvasLayout = PLAIN,
) -> Iterator[Step]:
    """Fill canvases; yield each step as soon as it is taken. Errors of the caller are raised at once.

    Args:
        model: the network; its configuration names the end tokens and the trained length.
        canvases: token ids with `BLANK` where a token is to be written, of any lengths.
        sampler: schedule, choice of tokens, commit rule and cache.
        mode: the network's "diffusion" or "blocks".
        sample_ids: number of each canvas, which decides its random draws.
        seed: decides them too.
        stop: called with the text up to the first mask, whenever that has changed.
        layout: of the canvases.

    Raises:
        UserError: a canvas that cannot be filled, or in which the sampler's lengths and steps do not divide.
    """
    texts, reader, choose = assemble(
        model, canvases, sampler, mode=mode, sample_ids=sample_ids, seed=seed, layout=layout
    )
    return decode(texts, reader, choose, stop)


def assemble(
    model: Llama, canvases: Sequence[Sequence[int]], sampler: DiffusionSampler, *, mode: Mode,
    sample_ids: Sequence[int], seed: int = 0, layout: CanvasLayout = PLAIN,
) -> tuple[list[CanvasText], CanvasReader, TokenChooser]:  # fmt: skip
    """Return what `decode` takes to fill canvases; the arguments are those of `diffusion_steps`."""
    check_canvases(model.config, canvases, sample_ids, layout.lengths)
    assert mode.mask_token_id is not None, "a network that diffuses has one"
    if mode.causal_context:
        _refuse_gaps(canvases, sample_ids)
        sampler = sampler.replace(may_choose_mask=False)  # a block that begins with a mask would never begin
    aligned = mode.block_length is not None and not mode.causal_context
    block_length = sampler.block_length or mode.block_length
    end_token_ids, policy = model.config.eos_token_ids, sampler.policy(mode)
    texts = []
    for sample_id, canvas, rng in zip(sample_ids, canvases, Sampling(seed=seed).generators(sample_ids), strict=True):
        if mode.mask_token_id in canvas:
            at = list(canvas).index(mode.mask_token_id)
            remedy = "give a gap where a token is to be written"
            raise UserError(f"prompt {sample_id} has the mask token {mode.mask_token_id} at position {at}: {remedy}.")
        blocks = plan_blocks(
            canvas, sample_id, block_length=block_length, steps=sampler.steps, uneven=sampler.uneven, aligned=aligned
        )
        text = CanvasText(
            sample_id, canvas, rng, end_token_ids, mode=mode, blocks=blocks, commit=sampler.commit, policy=policy,
            edit=sampler.edit, grow=sampler.grow, stop_at_end=sampler.stop_at_end,
        )  # fmt: skip
        texts.append(text)
    reader = CanvasReader(
        model, texts, mode, policy, block_length=block_length if aligned else None, guidance=sampler.cfg_scale,
        layout=layout,
    )  # fmt: skip
    return texts, reader, sampler.chooser(mode.mask_token_id, end_token_ids)


def _refuse_gaps(canvases: Sequence[Sequence[int]], sample_ids: Sequence[int]) -> None:
    """Refuse canvases that do not continue a prompt.

    Raises:
        UserError: see above.
    """
    for sample_id, canvas in zip(sample_ids, canvases, strict=True):
        first = list(canvas).index(BLANK)
        if first == 0:
            raise UserError(
                f"prompt {sample_id} is empty, but this network begins each block from what is before it: give at "
                "least one token."
            )
        if any(token_id != BLANK for token_id in canvas[first:]):
            raise UserError(
                f"prompt {sample_id} has tokens behind a gap, but this network reads what is before a block alone: "
                "give a prompt to be continued."
            )
