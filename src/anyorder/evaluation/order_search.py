"""Orders compared by likelihood and by success at tasks, and the order that a decoder took.

Shape suffixes: B texts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyorder.decoding.any_order.decoder import any_order_steps
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Trace, collect
from anyorder.errors import UserError
from anyorder.model.modes import Mode
from anyorder.modes import Order, entry_of, resolve
from anyorder.orders.by_name import AnyOrder

if TYPE_CHECKING:
    from anyorder.model.llama import Llama
    from anyorder.parallel import Processes


# ---- orders by likelihood ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OrderLikelihood:
    """Likelihood of texts in one order.

    Attributes:
        name: of the order.
        per_token: log-probability of a token in nats, in the mean over all tokens of all texts.
        standard_error: of that, from the differences between texts; 0 for one text.
        texts: log-probability of each text, in the mean over the draws of a random order.
        between_draws: standard deviation of a text's log-probability between draws of a random order, in the mean over
            texts; 0 where nothing is drawn.
        bound: whether the log-probabilities are lower bounds, as those of diffusion are; otherwise they are exact.
    """

    name: str
    per_token: float
    standard_error: float
    texts: tuple[float, ...]
    between_draws: float
    bound: bool = False


def by_likelihood(
    model: Llama,
    texts: Sequence[Sequence[int]],
    orders: Mapping[str, Order | Mode],
    given: Sequence[Sequence[bool]] | None = None,
    *,
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    done: Callable[[int], None] | None = None,
    processes: Processes | None = None,
) -> list[OrderLikelihood]:
    """Return likelihoods of texts in several orders, the highest first: exact, but for diffusion, a lower bound.

    Args:
        model: the network.
        texts: token ids of each text.
        orders: by name, as `anyorder.generate` takes them, or a mode of the network.
        given: which tokens are given (one group, the first) and not scored; the first of each text unless given.
        draws: of each random order, averaged.
        seed: decides random orders, with the number of the text.
        batch_size: texts to read at a time.
        done: callback, called after each batch with the number of texts that were read.
        processes: which share out the batches; each returns all likelihoods.

    Raises:
        UserError: there are no texts or no orders, or see `log_prob`.
    """
    if not texts or not orders:
        raise UserError(f"there are {len(texts)} texts and {len(orders)} orders: give at least one of each.")
    marks = [[at == 0 for at in range(len(text))] for text in texts] if given is None else given
    counts = [row.count(False) for row in map(list, marks)]
    found = []
    for name, order in orders.items():
        mode, by = (order, None) if isinstance(order, Mode) else resolve(order, model.config)
        of_draws = []
        for draw in range(draws):

            def totals_of(batch: range, mode: Mode = mode, by: Any = by, draw: int = draw) -> list[float]:
                members = [texts[number] for number in batch]
                scored = [[at for at, is_given in enumerate(marks[number]) if not is_given] for number in batch]
                bounds = entry_of(mode).log_probs(
                    model, mode, members, scored, order=by, seed=seed + draw, sample_ids=batch
                )  # fmt: skip
                if done is not None:
                    done(len(batch))
                return [bound.log_prob for bound in bounds]

            batches = [range(start, min(start + batch_size, len(texts))) for start in range(0, len(texts), batch_size)]
            totals = map(totals_of, batches) if processes is None else processes.share_out(batches, totals_of)
            of_draws.append(list(itertools.chain.from_iterable(totals)))
        found.append(dataclasses.replace(_likelihood(name, of_draws, counts), bound=entry_of(mode).bound))
    return sorted(found, key=lambda order: -order.per_token)


def _likelihood(name: str, of_draws: Sequence[Sequence[float]], counts: Sequence[int]) -> OrderLikelihood:
    of_texts = list(zip(*of_draws, strict=True))
    means = [statistics.fmean(values) for values in of_texts]
    per_token = sum(means) / sum(counts)
    # A ratio of sums: its error is that of what each text has beyond its share.
    residuals = [mean - per_token * count for mean, count in zip(means, counts, strict=True)]
    error = statistics.stdev(residuals) * math.sqrt(len(means)) / sum(counts) if len(means) > 1 else 0.0
    spread = [statistics.stdev(values) for values in of_texts] if len(of_draws) > 1 else [0.0]
    return OrderLikelihood(
        name=name, per_token=per_token, standard_error=error, texts=tuple(means),
        between_draws=statistics.fmean(spread),
    )  # fmt: skip


# ---- orders by success ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OrderSuccess:
    """Success at tasks in one order.

    Attributes:
        name: of the order.
        solved: share of the tasks whose whole solution was written.
        tokens: share of the tokens that are those of the solution.
        passes: forward passes for all tasks.
        taken: the order that was taken, for each task.
    """

    name: str
    solved: float
    tokens: float
    passes: int
    taken: tuple[OrderTaken, ...]


def by_success(
    model: Llama,
    tasks: Sequence[tuple[Sequence[int], Sequence[int]]],
    orders: Mapping[str, AnyOrder],
    *,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    batch_size: int = 16,
) -> list[OrderSuccess]:
    """Return the success of several orders at tasks, the best first.

    Args:
        model: a network that writes in any order.
        tasks: for each, a canvas and its solution, the whole text.
        orders: by name; the network's own choice, `MostConfident`, may be among them, but no plan.
        sampling: how a token is chosen.
        batch_size: tasks to write at a time.

    Raises:
        UserError: there are no tasks or no orders, a solution does not fit its canvas, or see `any_order_steps`.
    """
    if not tasks or not orders:
        raise UserError(f"there are {len(tasks)} tasks and {len(orders)} orders: give at least one of each.")
    for number, (canvas, solution) in enumerate(tasks):
        fits = len(canvas) == len(solution)
        if not fits or any(one not in (BLANK, other) for one, other in zip(canvas, solution, strict=True)):
            raise UserError(f"the solution of task {number} is another text than its canvas: give the canvas, filled.")
    found = []
    for name, order in orders.items():
        traces = []
        for start in range(0, len(tasks), batch_size):
            batch = range(start, min(start + batch_size, len(tasks)))
            canvases = [tasks[number][0] for number in batch]
            steps = any_order_steps(model, canvases, order, sampling=sampling, sample_ids=batch)
            traces.append(collect(steps, canvases, batch, ()).trace)
        trace = Trace.join(traces)
        right = Counter(
            event.sample_id for event in trace.events if tasks[event.sample_id][1][event.position] == event.token_id
        )
        blanks = [list(canvas).count(BLANK) for canvas, _ in tasks]
        found.append(
            OrderSuccess(
                name=name,
                solved=sum(right[number] == count for number, count in enumerate(blanks)) / len(tasks),
                tokens=right.total() / sum(blanks),
                passes=trace.passes,
                taken=tuple(orders_taken(trace)),
            )
        )
    return sorted(found, key=lambda order: (-order.solved, -order.tokens))


# ---- the order that was taken -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OrderTaken:
    """The order in which one text was written, beside that from left to right.

    Attributes:
        row: number of the text.
        positions: in the order of writing.
        tau: Kendall's rank correlation of step and position: 1 from left to right, -1 from right to left, 0 neither.
            Tokens of one step are tied. NaN where all are.
        neighbours: share of the tokens, but the first, that were written right behind the one written before.
        jump: mean distance, in positions, from one written token to the next; 1 from left to right.
    """

    row: int
    positions: tuple[int, ...]
    tau: float
    neighbours: float
    jump: float


def orders_taken(trace: Trace) -> list[OrderTaken]:
    """Return the order of each row of a trace; the first writing of a position counts."""
    from scipy.stats import kendalltau  # takes a while to import

    taken = []
    for row in sorted({event.sample_id for event in trace.events}):
        step_at: dict[int, int] = {}
        for event in trace.events:
            if event.sample_id == row:
                step_at.setdefault(event.position, event.step)
        positions = list(step_at)
        moves = [after - before for before, after in itertools.pairwise(positions)]
        one_step = len(set(step_at.values())) == 1
        taken.append(
            OrderTaken(
                row=row,
                positions=tuple(positions),
                tau=math.nan if one_step else float(kendalltau(list(step_at.values()), positions).statistic),
                neighbours=sum(move == 1 for move in moves) / len(moves) if moves else math.nan,
                jump=statistics.fmean(map(abs, moves)) if moves else math.nan,
            )
        )
    return taken
