"""The mode "any-order": canvases are filled group by group, through query rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from anyorder.decoding.any_order.decoder import any_order_steps
from anyorder.decoding.any_order.speculation import Speculative, speculative_steps
from anyorder.decoding.canvas import PLAIN, CanvasLayout
from anyorder.decoding.trace import Step, Stop
from anyorder.errors import UserError
from anyorder.likelihood.diffusion import Bound, Method
from anyorder.likelihood.exact import log_prob
from anyorder.model.modes import KINDS, Mode
from anyorder.modes.entry import Decoder, LearningOptions, ModeEntry, Options, Order, exact_log_probs, given_and_scored
from anyorder.objectives import Permutation
from anyorder.orders.by_name import AnyOrder, order_named
from anyorder.orders.kinds import LeftToRight, MostConfident
from anyorder.orders.kinds import Order as OrderKind
from anyorder.orders.plan import GroupPlan

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


class AnyOrderMode(ModeEntry):
    """Groups of tokens in the order of a plan, or in the network's own order, with speculation or without."""

    kind = KINDS["any-order"]
    order_classes = (GroupPlan, OrderKind, MostConfident, Speculative)

    def order(self, words: str) -> AnyOrder:
        """Return the order of this name."""
        return order_named(words)

    def usual_orders(self, new_tokens: int) -> dict[str, Order]:
        """Return orders of different kinds."""
        return {name: name for name in ("any-order", "random", "groups:4", "confidence")}

    def decoder(self, model: Llama, mode: Mode, order: Any, options: Options, layout: CanvasLayout = PLAIN) -> Decoder:
        """Fill canvases; the samples of a prompt share its plan."""
        options.sampling.check_filters()
        samples = options.num_samples or 1

        def planned(order: Any, sample_ids: Sequence[int]) -> Any:
            if not isinstance(order, GroupPlan):
                return order
            return order.select([sample_id // samples for sample_id in sample_ids])

        if isinstance(order, Speculative):
            why = "speculative decoding is not supported with fused phrasings"
            self.refuse_fused(layout, why, "give the order without Speculative")

            def drafted(
                canvases: Sequence[Sequence[int]], sample_ids: Sequence[int], stop: Stop | None
            ) -> Iterator[Step]:  # fmt: skip
                fixed = dataclasses.replace(order, order=planned(order.order, sample_ids))
                return speculative_steps(
                    model, canvases, fixed, sampling=options.sampling, sample_ids=sample_ids, stop=stop,
                    use_cache=options.use_cache,
                )  # fmt: skip

            return drafted
        return lambda canvases, sample_ids, stop: any_order_steps(
            model, canvases, planned(order, sample_ids), sampling=options.sampling, sample_ids=sample_ids, stop=stop,
            use_cache=options.use_cache, layout=layout,
        )  # fmt: skip

    def log_probs(
        self, model: Llama, mode: Mode, texts: Sequence[Sequence[int]], scored: Sequence[Sequence[int]], *,
        order: Any = None, seed: int = 0, sample_ids: Sequence[int] | None = None, method: Method | None = None,
    ) -> list[Bound]:  # fmt: skip
        """Score tokens group by group, what is given being the first group.

        Raises:
            UserError: the order depends on what is written, or see `log_prob`.
        """
        if isinstance(order, MostConfident):
            raise UserError(f"order is {order}, which depends on what is written: a given text has no such order.")
        plan = GroupPlan.from_masks(*given_and_scored(texts, scored), order or LeftToRight(), seed, samples=sample_ids)
        found = log_prob(model, texts, plan)
        return exact_log_probs(found.total.tolist(), scored, found.greedy.tolist())

    def objective(self, mode: Mode, options: LearningOptions) -> Permutation:
        """Return the objective of all orders."""
        return Permutation(schedule=options.schedule, predicted=options.predicted)
