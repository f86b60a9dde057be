"""Writing from left to right in fewer passes, from drafts by the same network's diffusion.

Self-speculation of Nemotron-Labs-Diffusion (arXiv 2607.05722, linear form). A first pass reads the last token and
masks behind it, which see each other, and drafts the tokens in place of the masks. A second pass reads the drafts from
left to right, and a token is chosen at each row as it would be without drafts. As long as the chosen token is the
draft, the next row has read what was written, so its choice counts as well; the first other token replaces its draft,
and what is behind it is dropped. So each two passes write a token at least, and one more than stays of the drafts.
Tokens are those of writing one by one, drawn ones too: each is chosen from the same logits by the same number of the
text's generator.

Shapes: B texts, R rows of a text, E hidden size, V tokens of the vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anyorder.decoding.left_to_right.reader import CausalReader
from anyorder.decoding.left_to_right.text import CausalText
from anyorder.decoding.loop import Choose, by_sampling, by_text, decode, write_step
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Step, Stop, StopReason, Written
from anyorder.errors import UserError
from anyorder.model.modes import Mode, find_mode
from anyorder.utils.annotations import check_fields
from anyorder.utils.ragged import pad_right
from anyorder.visibility import Visibility, bidirectional, causal

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


@dataclass(frozen=True, kw_only=True)
class SelfSpeculative:
    """From left to right with drafts by diffusion: the same tokens in fewer passes.

    Attributes:
        draft: rows of a pass, of which the first is the last token and the others are masks; the tokens of a block of
            the network unless given.

    Raises:
        UserError: there is nothing to draft.
    """

    draft: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.draft is not None and self.draft < 2:
            raise UserError(f"draft is {self.draft}: give a number of rows above 1, or leave speculation out.")


def drafting_mode(modes: Sequence[Mode]) -> Mode:
    """Return the mode of a network that makes drafts.

    Raises:
        UserError: none of them diffuses.
    """
    found = [mode for mode in modes if mode.kind.diffuses]
    return found[0] if found else find_mode(modes, "blocks")


def self_speculative_steps(
    model: Llama, texts: Sequence[CausalText], order: SelfSpeculative, sampling: Sampling, stop: Stop | None
) -> Iterator[Step]:
    """Continue prompts to their end; the first step reads them, and each other one is a draft and its check.

    Args:
        model: the network, of which a mode diffuses.
        texts: incomplete, at their prompts.
        order: rows of a pass.
        sampling, stop: as in `left_to_right_steps`.

    Raises:
        UserError: the network does not diffuse, its blocks have no length and none is given, or texts are too long for
            its cache.
    """
    mode = drafting_mode(model.config.modes)
    rows = order.draft or mode.block_length
    if rows is None:
        raise UserError(f"draft is None, and the mode {mode.name!r} has no blocks: give a number of rows.")
    reader = CausalReader(model, texts)
    if reader.capacity > reader.cacheable:
        raise UserError(
            f"a text may have {reader.capacity} tokens, and from {reader.cacheable} on there is no cache, which "
            "speculation reads: give a smaller max_new_tokens, or leave speculation out."
        )
    return _steps(reader, mode, rows, sampling, stop)


@torch.no_grad()
def _steps(reader: CausalReader, mode: Mode, rows: int, sampling: Sampling, stop: Stop | None) -> Iterator[Step]:
    first = next(decode(reader.texts, reader, by_sampling(sampling), stop))
    yield first
    writing = [text for text in reader.texts if text.sample_id not in first.stopped]
    for number in itertools.count(1):
        if not writing:
            return
        step = _speculate(reader, writing, mode, rows, sampling, stop, number)
        yield step
        writing = [text for text in writing if text.sample_id not in step.stopped]


def _speculate(
    reader: CausalReader, writing: Sequence[CausalText], mode: Mode, rows: int, sampling: Sampling, stop: Stop | None,
    number: int,
) -> Step:  # fmt: skip
    """Draft what follows each text, and write what stays of it and a token more."""
    # 1. Draft: the last token, and a mask for each token that may come.
    assert mode.mask_token_id is not None, "a mode that diffuses has one"
    size = {text: min(rows, text.limit - len(text.tokens) + 1) for text in writing}
    masked = {text: [text.tokens[-1], *[mode.mask_token_id] * (size[text] - 1)] for text in writing}
    drafts = {}
    for text, logits_RV in _read(reader, masked, bidirectional()).items():
        logits_RV[:, mode.mask_token_id] = -torch.inf
        token_ids = logits_RV.argmax(-1).tolist()
        drafts[text] = [token_ids[row - int(mode.shifted)] for row in range(1, size[text])]
    # 2. Check: the last token and the drafts, from left to right.
    checked = _read(reader, {text: [text.tokens[-1], *drafts[text]] for text in writing}, causal())
    # 3. Write, row by row, as long as the chosen tokens are the drafts.
    return _write(checked, drafts, by_sampling(sampling), stop, number)


def _write(
    checked: dict[CausalText, Tensor], drafts: dict[CausalText, list[int]], choose: Choose[CausalText],
    stop: Stop | None, number: int,
) -> Step:  # fmt: skip
    """Choose a token at each row of each text until one is no draft."""
    written: list[Written] = []
    stopped: dict[int, StopReason] = {}
    accepted = 0
    for text, logits_RV in checked.items():
        for row, draft in enumerate([*drafts[text], None]):
            [(_, choices)] = by_text(choose(logits_RV[row : row + 1], {text: text.queries()}), {text: text.queries()})
            step = write_step(number, [(text, choices)], stop)
            written += step.written
            stopped |= step.stopped
            if step.stopped or choices[0].token_id != draft:
                break
            accepted += 1
    drafted = sum(map(len, drafts.values()))
    return Step(tuple(written), stopped, passes=2, drafted=drafted, accepted=accepted)


def _read(reader: CausalReader, ids: dict[CausalText, list[int]], visibility: Visibility) -> dict[CausalText, Tensor]:
    """Read rows behind what the cache holds of each text; return the logits of each row, `[R, V]`.

    Their keys take the slots of their positions, so that the next rows there replace them.

    Args:
        reader: with a cache of all but the last token of each text.
        ids: of the rows, the first being the last token.
        visibility: of the rows; all keys are of tokens before them, or theirs.
    """
    model, cache = reader.model, reader.cache
    assert cache is not None, "the prompts were read"
    fresh = [ids.get(text, []) for text in reader.texts]
    ids_BR, position_BR, valid_BR = pad_right(fresh, [len(text.tokens) - 1 for text in reader.texts], model.device)
    views = model.prepare(visibility, {"position": position_BR}, valid=valid_BR, cache=cache, slots=position_BR)
    logits_BRV = model.logits(model.hidden(ids_BR, views, cache))
    return {text: logits_BRV[b, : len(fresh[b])] for b, text in enumerate(reader.texts) if text in ids}
