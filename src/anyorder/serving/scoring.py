"""Log-probabilities of given texts, by the order in which they would be written.

Shapes: L tokens of a text, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from anyorder.decoding.checks import check_token_ids
from anyorder.errors import UserError
from anyorder.likelihood.diffusion import MonteCarlo, diffusion_log_prob
from anyorder.likelihood.exact import left_to_right_log_prob, log_prob
from anyorder.model.modes import refuse_unless_causal
from anyorder.modes import entry_of, resolve
from anyorder.modes.any_order import AnyOrderMode
from anyorder.modes.diffusion import DiffusionMode
from anyorder.modes.left_to_right import LeftToRightMode
from anyorder.orders.kinds import LeftToRight, MostConfident
from anyorder.orders.plan import GroupPlan
from anyorder.serving.groups.sample import Alternative
from anyorder.utils.ragged import log_softmax
from anyorder.visibility import causal

if TYPE_CHECKING:
    from anyorder.model.llama import Llama

ROWS = 256
"""Positions whose scores of all tokens are held at a time."""


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """How probable the network finds a text.

    Attributes:
        log_prob: in nats; of diffusion, the estimate of a lower bound.
        standard_error: of the estimate; 0 where the number is exact.
        exact: whether it is the log-probability itself.
        tokens: that were scored.
        of_tokens: of each token of the text, None where it is given; None where tokens have no numbers of their own.
    """

    log_prob: float
    standard_error: float
    exact: bool
    tokens: int
    of_tokens: list[float | None] | None


def score_text(
    model: Llama, ids: Sequence[int], given: int, order: str | None, *, samples: int, seed: int,
    on_pass: Callable[[], None],
) -> TextScore:  # fmt: skip
    """Score the tokens of a text behind those that are given.

    Args:
        model: the network.
        ids: of the text.
        given: number of tokens at its beginning that are not scored; from left to right at least one is not.
        order: in which it would be written; the network's default unless given.
        samples: masked copies that are read for the bound of diffusion.
        seed: decides random orders and masks.
        on_pass: called after each pass, where there are several.

    Raises:
        UserError: the network does not write in this order, or nothing is left to be scored.
    """
    mode, in_order = resolve(order, model.config)
    entry = entry_of(mode)
    given = max(given, 1) if mode.kind.causal else given
    check_scored(model, ids, given)
    scored = range(given, len(ids))
    if not isinstance(entry, LeftToRightMode | AnyOrderMode):
        method = MonteCarlo(samples=samples, seed=seed)
        if isinstance(entry, DiffusionMode):
            [bound] = diffusion_log_prob(
                model, [ids], [scored], mode=mode, method=method, on_copies=lambda _: on_pass()
            )  # fmt: skip
        else:
            [bound] = entry.log_probs(model, mode, [ids], [scored], order=in_order, seed=seed, method=method)
        return TextScore(
            log_prob=bound.log_prob, standard_error=bound.standard_error, exact=bound.exact,
            tokens=bound.tokens, of_tokens=None,
        )  # fmt: skip
    if isinstance(in_order, MostConfident):
        raise UserError(f"order is {order!r}, which depends on what is written: give one that is known before.")
    is_given = [[at < given for at in range(len(ids))]]
    predicted = [[at >= given for at in range(len(ids))]]
    by_streams = isinstance(entry, AnyOrderMode)
    plan = GroupPlan.from_masks(is_given, predicted, in_order if by_streams else LeftToRight(), seed)  # type: ignore[arg-type]
    found = (log_prob if by_streams else left_to_right_log_prob)(model, [list(ids)], plan)
    of_tokens = [
        value if scored else None
        for value, scored in zip(found.token_BL[0].tolist(), found.predicted_BL[0].tolist(), strict=True)
    ]
    return TextScore(
        log_prob=float(found.total[0]), standard_error=0.0, exact=True, tokens=len(ids) - given, of_tokens=of_tokens
    )


def check_scored(model: Llama, ids: Sequence[int], given: int) -> None:
    """Refuse a text of which nothing is left to be scored, or that is too long.

    Raises:
        UserError: see above.
    """
    check_token_ids(model.config, ids, "the text")
    longest = model.config.context_length
    if len(ids) > longest:
        raise UserError(f"the text has {len(ids)} tokens, {len(ids) - longest} more than the {longest}: shorten it.")
    if len(ids) <= given:
        raise UserError(f"the text has {len(ids)} tokens, of which {given} are given: give more text to score.")


@torch.no_grad()
def echo_scores(model: Llama, ids: Sequence[int], alternatives: int) -> list[list[Alternative] | None]:
    """Return for each token of a prompt itself and the most probable tokens there, given what is before it.

    Args:
        model: a network that writes from left to right.
        ids: of the prompt.
        alternatives: number of the most probable tokens.

    Returns:
        An entry for each token; None for the first, which nothing is before.

    Raises:
        UserError: the network has no logits for the next token.
    """
    refuse_unless_causal(model.config.modes, model.config.default_mode)
    ids_1L = torch.tensor([list(ids)], device=model.device)
    position_1L = torch.arange(len(ids), device=model.device).unsqueeze(0)
    hidden_LE = model.hidden(ids_1L, model.prepare(causal(), {"position": position_1L}))[0]
    found: list[list[Alternative] | None] = [None]
    for start in range(0, len(ids) - 1, ROWS):
        targets = list(ids[start + 1 : start + 1 + ROWS])
        log_probs_MV = log_softmax(model.logits(hidden_LE[start : start + len(targets)]))
        own = log_probs_MV[range(len(targets)), targets].tolist()
        best = log_probs_MV.topk(min(max(1, alternatives), log_probs_MV.shape[1]))
        for token_id, value, values, best_ids in zip(
            targets, own, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            others = [Alternative(*pair) for pair in zip(best_ids, values, strict=True)]
            found.append([Alternative(token_id, value), *others[:alternatives]])
    return found
