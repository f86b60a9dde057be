"""What an entry of the table of modes says: how a mode writes, scores and learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from anyorder.decoding.any_order.speculation import Speculative
from anyorder.decoding.canvas import PLAIN, CanvasLayout
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.decoding.left_to_right.self_speculation import SelfSpeculative
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Step, Stop
from anyorder.errors import UserError
from anyorder.likelihood.diffusion import Bound, Method
from anyorder.model.modes import Mode, ModeKind
from anyorder.objectives import Independent, Objective
from anyorder.objectives.noise import Times
from anyorder.objectives.schedules import Always, Schedule
from anyorder.orders.by_name import AnyOrder

if TYPE_CHECKING:
    from anyorder.model.llama import Llama

Order = str | AnyOrder | Speculative | SelfSpeculative | DiffusionSampler
"""What `anyorder.generate` takes as an order."""

Decoder = Callable[[Sequence[Sequence[int]], Sequence[int], Stop | None], Iterator[Step]]
"""From prompts or canvases, their sample ids and a stop condition to the steps that write them."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How texts are written; the fields are those of `anyorder.generate`.

    Raises:
        UserError: a number that cannot be, or options that exclude each other.
    """

    order: Order | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 64
    stop: str | Sequence[str] | None = None
    num_samples: int | None = None
    num_beams: int = 1
    batch_size: int | None = None
    use_cache: bool = True
    compile: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        for name, remedy in (
            ("num_samples", ", or None for a text each"), ("num_beams", "; 1 is no beam search"),
            ("batch_size", ", or None for all texts at once"),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is None and name != "num_beams":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name} is {value!r}: give a whole number above 0{remedy}.")
        for name, value, given, why in (
            ("temperature", self.sampling.temperature, self.sampling.temperature != 0, "draws nothing"),
            ("num_samples", self.num_samples, self.num_samples is not None, "finds one text"),
            ("compile", self.compile, self.compile is True, "is not compiled"),
        ):
            if self.num_beams > 1 and given:
                raise UserError(
                    f"{name} is {value!r} beside num_beams {self.num_beams}, but beam search {why}: leave out one."
                )


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """How an objective learns, as far as the mode does not say; an objective reads those that it has.

    Attributes:
        tuning: answers alone are learnt, not whole texts.
        schedule, predicted: see `Permutation`.
        times, eps, opening_steps, random_length: see `MaskedDiffusion`.
        length: tokens of a sample; see `MaskedDiffusionTuning`.
        end_token_id: closes an answer; likewise.
    """

    tuning: bool = False
    schedule: Schedule = field(default_factory=Always)
    predicted: float = 1.0
    times: Times = field(default_factory=Independent)
    eps: float = 1e-3
    opening_steps: int = 0
    random_length: float = 0.01
    length: int | None = None
    end_token_id: int | None = None


class ModeEntry(ABC):
    """An entry of the table of modes: everything that the package knows of one mode.

    Attributes:
        kind: names, conventions, and who sees whom.
        order_classes: of objects that `order=` takes for this mode, besides its names. Where several modes take a
            class, an attribute `mode` of the object names the one that writes; without it, or where it is None, that
            is the network's default mode if it takes the class, else the first of the table that the network has.
        options: fields of `Options` that not every mode has, and this one has: "num_beams", "compile".
        bound: its log-probabilities are lower bounds; otherwise they are exact.
    """

    kind: ClassVar[ModeKind]
    order_classes: ClassVar[tuple[type, ...]] = ()
    options: ClassVar[frozenset[str]] = frozenset()
    bound: ClassVar[bool] = False

    def order(self, words: str) -> Any:
        """Make what `decoder` takes of the name of an order; the name itself unless overridden."""
        return words

    def usual_orders(self, new_tokens: int) -> dict[str, Order]:
        """Return the orders, by name, that are compared unless others are given.

        Args:
            new_tokens: tokens to write per text.
        """
        return {self.kind.name: self.kind.name}

    def draws(self, order: Any, sampling: Sampling) -> bool:
        """Whether tokens are drawn, so that samples of one prompt differ."""
        return sampling.temperature > 0

    def refuse_fused(self, layout: CanvasLayout, why: str = "", remedy: str = "give another order") -> None:
        """Refuse fused questions, for decoders that would let phrasings see each other.

        Args:
            layout: of the canvases.
            why: replaces the reason that an error gives.
            remedy: what an error recommends.

        Raises:
            UserError: there are any.
        """
        if layout is not PLAIN:
            raise UserError(f"{why or f'the mode {self.kind.name!r} does not keep phrasings apart'}: {remedy}.")

    @abstractmethod
    def decoder(self, model: Llama, mode: Mode, order: Any, options: Options, layout: CanvasLayout = PLAIN) -> Decoder:
        """Return what writes texts.

        Args:
            model: the network.
            mode: its conventions.
            order: from `order`, or an object of `order_classes`.
            options: how texts are written.
            layout: of the canvases, which narrows the visibility where phrasings of questions are among the tokens. A
                decoder that does not call `layout.narrow` refuses those (`refuse_fused`).

        Raises:
            UserError: options or an order that this mode does not have.
        """

    @abstractmethod
    def log_probs(
        self, model: Llama, mode: Mode, texts: Sequence[Sequence[int]], scored: Sequence[Sequence[int]], *,
        order: Any = None, seed: int = 0, sample_ids: Sequence[int] | None = None, method: Method | None = None,
    ) -> list[Bound]:  # fmt: skip
        """Score tokens of texts, given the other tokens.

        Args:
            model, mode: as in `decoder`.
            texts: token ids of each text, of any lengths.
            scored: positions of the tokens to score, in rising order.
            order: in which they are written; the plainest one of the mode unless given.
            seed: decides random orders and masks, with the sample ids.
            sample_ids: number of each text; 0, 1, 2, ... unless given.
            method: how a bound is found; read where `bound` is True.

        Raises:
            UserError: texts that cannot be scored like this.
        """

    @abstractmethod
    def objective(self, mode: Mode, options: LearningOptions) -> Objective:
        """Return the objective that teaches the mode.

        Args:
            mode: the conventions that the network has, or is to have.
            options: how the objective learns.

        Raises:
            UserError: options that the objective cannot have.
        """


def exact_log_probs(
    totals: Sequence[float], scored: Sequence[Sequence[int]], greedy: Sequence[bool] | None = None
) -> list[Bound]:  # fmt: skip
    """Return the log-probabilities of texts as bounds that are exact.

    Args:
        totals: of each text, in nats.
        scored: positions of the scored tokens of each text.
        greedy: whether greedy decoding writes those, if that is known.
    """
    known = [None] * len(totals) if greedy is None else greedy
    return [
        Bound(log_prob=total, standard_error=0.0, tokens=len(positions), copies=1, exact=True, greedy=is_greedy)
        for total, positions, is_greedy in zip(totals, scored, known, strict=True)
    ]


def given_and_scored(
    texts: Sequence[Sequence[int]], scored: Sequence[Sequence[int]]
) -> tuple[list[list[bool]], list[list[bool]]]:
    """Return which tokens of each text are given, and which are scored."""
    predicted = []
    for text, positions in zip(texts, scored, strict=True):
        chosen = set(positions)
        predicted.append([at in chosen for at in range(len(text))])
    return [[not is_scored for is_scored in row] for row in predicted], predicted
