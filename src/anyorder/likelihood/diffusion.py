"""How probable a network that writes by masked diffusion finds a text: a bound, estimated or enumerated.

Such a network has no probability of a text that could be computed, but a lower bound of its logarithm: with n tokens
to be scored, mask m of them, m drawn from 1 to n and the m tokens drawn among the n; the sum of the log-probabilities
of the masked tokens, times n / m, is the bound on average. The same number is the mean, over all orders of the n
tokens, of the log-probability of writing them one by one in that order.

For networks that write block by block, each block has such a bound given the blocks before it, and the bound of the
text is their sum; blocks of one token give the log-probability itself.

Shape suffixes: B copies of a batch, R rows, E hidden size, N masked tokens of the batch, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from anyorder.decoding.checks import check_token_ids
from anyorder.decoding.diffusion.guidance import guided
from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError
from anyorder.model.modes import masked_diffusion_mode
from anyorder.utils.annotations import check_fields
from anyorder.utils.ragged import log_probs_of, pad_right
from anyorder.utils.token_lists import Ids, token_lists
from anyorder.visibility import bidirectional, block_diffusion

if TYPE_CHECKING:
    from anyorder.model.llama import Llama
    from anyorder.model.modes import Mode

Draws = Literal["independent", "stratified", "antithetic", "published"]

Weights = list[float]
"""For each scored token of a copy: 0 where it is not masked, and where it is the factor of its log-probability."""

# ------------------------------------------------------------------------------------------- what is masked


@dataclass(frozen=True, kw_only=True)
class MonteCarlo:
    """The bound from random masks, with its standard error.

    Attributes:
        samples: masked copies of each text that are read.
        draws: how the number of masked tokens is drawn, of n.
            "independent": from 1 to n each time;
            "stratified": spread evenly over 1 to n within each group;
            "antithetic": in pairs, m and n + 1 - m, the masks taken from the two ends of one random order;
            "published": as LLaDA's evaluation, whose rounding prefers even numbers, so that its mean is not quite the
            bound; the other three are right on average.
        group: copies that are drawn together; the groups are independent of each other, and the standard error is
            that of their mean. Antithetic groups are pairs and independent ones single copies, whatever is given.
        seed: with the number of the text, decides the draws.

    Raises:
        UserError: the samples are no whole number of groups, or fewer than two, which have no standard error.
    """

    samples: int = 128
    draws: Draws = "stratified"
    group: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        known = {"independent": 1, "stratified": self.group, "antithetic": 2, "published": self.group}
        if self.draws not in known:
            raise UserError(f"draws is {self.draws!r}: give one of {', '.join(map(repr, known))}.")
        object.__setattr__(self, "group", known[self.draws])
        if self.group < 1 or self.samples < 2 * self.group or self.samples % self.group:
            size = f"groups of {self.group}" if self.group != 1 else "single copies"
            raise UserError(
                f"samples is {self.samples} in {size}: give a multiple of {max(self.group, 1)} of at least "
                f"{2 * max(self.group, 1)}, since the differences between groups tell the error."
            )

    def replace(self, **changes: Any) -> MonteCarlo:
        """Return a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def groups(self, sizes: Sequence[int], generator: torch.Generator) -> Iterator[list[Weights]]:
        """Yield groups of masked copies: the weighted log-probabilities of a group add up to an estimate.

        Args:
            sizes: scored tokens of each block; a block is masked on its own.
            generator: source of the random draws.
        """
        for _ in range(self.samples // self.group):
            blocks = [self._block(size, generator) for size in sizes]
            yield _joined(blocks)

    def _block(self, n: int, generator: torch.Generator) -> list[Weights]:
        masked: list[Weights] = []
        order: list[int] = []
        for index, count in enumerate(self._counts(n, generator)):
            mirrored = self.draws == "antithetic" and index % 2
            order = order[::-1] if mirrored else torch.randperm(n, generator=generator).tolist()
            chosen = set(order[:count])
            masked.append([n / count / self.group if token in chosen else 0.0 for token in range(n)])
        return masked

    def _counts(self, n: int, generator: torch.Generator) -> list[int]:
        u = torch.rand((), dtype=torch.float64, generator=generator).item()
        first = 1 + int(u * n)
        if self.draws == "antithetic":
            return [first, n + 1 - first]
        if self.draws == "published":
            last = first + (self.group - 1) * n / self.group
            spread = torch.linspace(first, last, self.group).round().long()  # halves to even numbers
            return ((spread - 1) % n + 1).tolist()
        return [1 + int((u + index) / self.group * n) for index in range(self.group)]


PUBLISHED = MonteCarlo(draws="published")
"""What LLaDA's evaluation does: 128 copies in groups of 16."""


@dataclass(frozen=True, kw_only=True)
class Enumeration:
    """The bound itself: every set of masked tokens, 2^n - 1 of them for n tokens in a block.

    Attributes:
        limit: tokens in a block at most.
    """

    limit: int = 12

    def groups(self, sizes: Sequence[int], generator: torch.Generator) -> Iterator[list[Weights]]:
        """Yield one group, with every set; see `MonteCarlo.groups`.

        Raises:
            UserError: a block has too many tokens.
        """
        if max(sizes) > self.limit:
            raise UserError(
                f"{max(sizes)} tokens are scored together, which are {2 ** max(sizes) - 1} sets of masks: give at most "
                f"{self.limit}, raise the limit of Enumeration, or use MonteCarlo."
            )
        blocks = [[_subset(n, number) for number in range(1, 2**n)] for n in sizes]
        longest = max(map(len, blocks))
        shown = [[[0.0] * n] * (longest - len(copies)) for n, copies in zip(sizes, blocks, strict=True)]
        yield _joined([copies + rest for copies, rest in zip(blocks, shown, strict=True)])


def _joined(blocks: Sequence[list[Weights]]) -> list[Weights]:
    """Return copies of the whole text from as many copies of each block."""
    return [list(itertools.chain(*of_copy)) for of_copy in zip(*blocks, strict=True)]


def _subset(n: int, number: int) -> Weights:
    # The chance of this set, 1 / n for its size m and then 1 / binomial(n, m), times n / m.
    chosen = [bool(number >> token & 1) for token in range(n)]
    count = sum(chosen)
    return [1 / (count * math.comb(n, count)) if token else 0.0 for token in chosen]


Method = MonteCarlo | Enumeration


# ------------------------------------------------------------------------------------------- the bound


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A lower bound of a log-probability.

    Attributes:
        log_prob: the bound, or its estimate, in nats.
        standard_error: of the estimate, in nats; 0 where nothing was drawn.
        tokens: that were scored.
        copies: of the text that were read.
        exact: nothing was drawn.
        greedy: whether greedy decoding in the same order writes the tokens; None where scoring does not tell.
    """

    log_prob: float
    standard_error: float
    tokens: int
    copies: int
    exact: bool
    greedy: bool | None = None

    @property
    def perplexity(self) -> float:
        """An upper bound of it."""
        return math.exp(-self.log_prob / self.tokens)


def diffusion_log_prob(
    model: Llama,
    sequences: Ids,
    scored: Sequence[Sequence[int]],
    *,
    mode: Mode | None = None,
    method: Method = MonteCarlo(),
    guidance: float = 0.0,
    cache: str = "none",
    sample_ids: Sequence[int] | None = None,
    batch_size: int = 16,
    on_copies: Callable[[int], None] | None = None,
) -> list[Bound]:
    """Bound the log-probability of the tokens at some positions of each text, given its other tokens.

    Args:
        model: the network.
        sequences: token ids of each text, of any lengths, or what a tokenizer returns for them.
        scored: positions of the tokens that are scored, in rising order, not counting padding; rows of
            images never are.
        mode: the mode that writes: masked diffusion, or diffusion block by block, whose blocks are counted from
            position 0; the network's default if that is one of these, or else its masked diffusion, unless given.
        method: estimate or enumeration. Where every block has a single scored token, nothing is drawn.
        guidance: `s` of classifier-free guidance: logits are `u + (s + 1) (c - u)`, u with every token masked that is
            not scored. What they give is no bound any more.
        cache: "none", or what a sampler calls its cache: those that are approximate are refused.
        sample_ids: number of each text, which decides its draws; 0, 1, 2, ... unless given.
        batch_size: copies to read at a time; changes speed and memory alone.
        on_copies: called with the number of copies that were read, after each batch.

    Raises:
        UserError: texts, positions and mode do not fit each other, or the cache is approximate.
    """
    mode = _default_mode(model) if mode is None else mode
    sequences = token_lists(sequences)
    _check(model, sequences, scored, mode, guidance, cache)
    words = model.config.vocab_size  # behind which ids are rows of images
    scored = [[at for at in of_text if ids[at] < words] for ids, of_text in zip(sequences, scored, strict=True)]
    generators = Sampling(seed=getattr(method, "seed", 0)).generators(
        range(len(sequences)) if sample_ids is None else sample_ids
    )
    copies: list[_Copy] = []
    groups: list[list[int]] = []  # of each text, the number of copies in each group
    for ids, positions, generator in zip(sequences, scored, generators, strict=True):
        length = mode.block_length or len(ids)
        sizes = list(Counter(position // length for position in positions).values())
        chosen: Method = Enumeration() if max(sizes) == 1 else method
        groups.append([])
        for group in chosen.groups(sizes, generator):
            groups[-1].append(len(group))
            copies += [_Copy(ids, positions, weights) for weights in group]
    values: list[float] = []
    for start in range(0, len(copies), batch_size):
        batch = copies[start : start + batch_size]
        values += _read(model, mode, batch, guidance)
        if on_copies is not None:
            on_copies(len(batch))
    of_copy = iter(values)
    return [
        _bound([list(itertools.islice(of_copy, size)) for size in sizes], len(positions))
        for sizes, positions in zip(groups, scored, strict=True)
    ]


def answer_log_prob(model: Llama, prompts: Ids, answers: Ids, **options: object) -> list[Bound]:
    """Bound the log-probability of each answer given its prompt; `options` are those of `diffusion_log_prob`.

    Raises:
        UserError: see there.
    """
    prompts, answers = token_lists(prompts), token_lists(answers)
    if len(prompts) != len(answers):
        raise UserError(f"there are {len(prompts)} prompts and {len(answers)} answers: give one answer for each.")
    sequences = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    scored = [range(len(prompt), len(ids)) for prompt, ids in zip(prompts, sequences, strict=True)]
    return diffusion_log_prob(model, sequences, scored, **options)  # type: ignore[arg-type]


def _bound(groups: Sequence[Sequence[float]], tokens: int) -> Bound:
    """Return the bound from the values of the copies of each group."""
    estimates = torch.tensor([math.fsum(group) for group in groups], dtype=torch.float64)
    exact = len(groups) == 1
    error = 0.0 if exact else (estimates.std() / math.sqrt(len(groups))).item()
    copies = sum(map(len, groups))
    return Bound(log_prob=estimates.mean().item(), standard_error=error, tokens=tokens, copies=copies, exact=exact)


def _default_mode(model: Llama) -> Mode:
    default = model.config.mode(model.config.default_mode)
    if default.kind.diffuses:
        return default
    return masked_diffusion_mode(model.config.modes, default.name)


def _check(
    model: Llama, sequences: Sequence[Sequence[int]], scored: Sequence[Sequence[int]], mode: Mode, guidance: float,
    cache: str,
) -> None:  # fmt: skip
    if not mode.kind.diffuses:
        raise UserError(
            f"the mode is {mode.name!r}, which has no mask token: give one of diffusion, or ask for the "
            "log-probability itself (anyorder.log_prob)."
        )
    if cache != "none":
        raise UserError(
            f"cache is {cache!r}, which keeps keys that other tokens have outdated, but a likelihood must be that of "
            "the network: give 'none'."
        )
    if guidance and mode.block_length is not None:
        raise UserError(f"guidance is {guidance} with blocks of {mode.block_length}: leave it out.")
    if len(sequences) != len(scored):
        raise UserError(f"there are {len(sequences)} texts and positions for {len(scored)}: give positions for each.")
    for row, (ids, positions) in enumerate(zip(sequences, scored, strict=True)):
        rising = all(before < after for before, after in itertools.pairwise(positions))
        if not len(positions) or not rising or positions[0] < 0 or positions[-1] >= len(ids):
            remedy = f"give rising positions from 0 to {len(ids) - 1}, at least one"
            raise UserError(f"the scored positions of text {row} are {list(positions)!r}: {remedy}.")
        check_token_ids(model.config, ids, f"text {row}")
        if any(ids[position] == mode.mask_token_id for position in positions):
            raise UserError(f"text {row} has the mask token {mode.mask_token_id} among those scored: write it first.")


# ------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Copy:
    """A text of which some scored tokens are masked."""

    ids: Sequence[int]
    positions: Sequence[int]
    weights: Weights

    @property
    def masked(self) -> dict[int, float]:
        """Masked positions with the weight of each."""
        return {at: weight for at, weight in zip(self.positions, self.weights, strict=True) if weight}

    def noised(self, mask: int, *, without_given: bool = False) -> list[int]:
        """Return the text with its masks; `without_given` masks every token that is not scored, too."""
        hidden = set(self.masked) | (set(range(len(self.ids))) - set(self.positions) if without_given else set())
        return [mask if at in hidden else token_id for at, token_id in enumerate(self.ids)]


@torch.no_grad()
def _read(model: Llama, mode: Mode, batch: Sequence[_Copy], guidance: float) -> list[float]:
    """Return the weighted sum of the log-probabilities of each copy's masked tokens."""
    assert mode.mask_token_id is not None, "a network that diffuses has one"
    masked = [
        (index, at, copy.ids[at], weight) for index, copy in enumerate(batch) for at, weight in copy.masked.items()
    ]
    owner_N, at_N, target_N = (torch.tensor(column) for column in list(zip(*masked, strict=True))[:3])
    weight_N = torch.tensor([weight for *_, weight in masked], dtype=torch.float64)
    logits_NV = _logits(model, mode, batch, [copy.noised(mode.mask_token_id) for copy in batch], owner_N, at_N)
    if guidance:
        without_given = [copy.noised(mode.mask_token_id, without_given=True) for copy in batch]
        logits_NV = guided(logits_NV, _logits(model, mode, batch, without_given, owner_N, at_N), guidance)
    log_prob_N = log_probs_of(logits_NV, target_N.to(logits_NV.device))
    sums = torch.zeros(len(batch), dtype=torch.float64)
    return sums.index_add(0, owner_N, weight_N * log_prob_N.to("cpu", torch.float64)).tolist()


def _logits(
    model: Llama, mode: Mode, batch: Sequence[_Copy], noised: Sequence[list[int]], owner_N: Tensor, at_N: Tensor
) -> Tensor:
    """Return the logits of the tokens at these positions, `[N, vocabulary]`.

    The rows are `[noised ; clean]`: the blocks that are scored, with masks, and all that is before the last of them,
    without. Where a network sees texts as a whole, that is one noised block.
    """
    rows, positions, is_noised, place = [], [], [], []
    for copy, ids in zip(batch, noised, strict=True):
        length = mode.block_length or len(ids)
        blocks = {at // length for at in copy.positions}
        shown = [at for at in range(len(ids)) if at // length in blocks]
        clean = range(max(blocks) * length)
        rows.append([*(ids[at] for at in shown), *(copy.ids[at] for at in clean)])
        positions.append([*shown, *clean])
        is_noised.append([1] * len(shown) + [0] * len(clean))
        place.append({at: index for index, at in enumerate(shown)})
    starts, device = [0] * len(rows), model.device
    ids_BR, _, valid_BR = pad_right(rows, starts, device)
    position_BR, noised_BR = (pad_right(columns, starts, device)[0] for columns in (positions, is_noised))
    if mode.block_length is None:
        views = model.prepare(bidirectional(), {"position": position_BR}, valid=valid_BR)
        return model.logits(model.hidden(ids_BR, views)[owner_N, mode.row(at_N)])
    block_length = mode.block_length
    labels = {"position": position_BR, "block": position_BR // block_length, "noised": noised_BR}
    hidden_BRE = model.hidden(ids_BR, model.prepare(block_diffusion(mode.causal_context), labels, valid=valid_BR))

    def row(owner: int, at: int) -> int:
        position = mode.row(at)
        # The row before the first of a block is the clean one that ends the block before.
        same_block = position // block_length == at // block_length
        return place[owner][position] if same_block else len(place[owner]) + position

    row_N = torch.tensor([row(owner, at) for owner, at in zip(owner_N.tolist(), at_N.tolist(), strict=True)])
    return model.logits(hidden_BRE[owner_N, row_N])
