"""The mode "left-to-right": prompts are continued token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anyorder.decoding.canvas import PLAIN, CanvasLayout
from anyorder.decoding.left_to_right.decoder import left_to_right_steps
from anyorder.decoding.left_to_right.self_speculation import SelfSpeculative
from anyorder.likelihood.diffusion import Bound, Method
from anyorder.likelihood.exact import left_to_right_log_prob
from anyorder.model.modes import KINDS, Mode
from anyorder.modes.entry import Decoder, LearningOptions, ModeEntry, Options, exact_log_probs, given_and_scored
from anyorder.objectives import Autoregressive
from anyorder.orders.plan import GroupPlan

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


class LeftToRightMode(ModeEntry):
    """One token after another, with a cache, compiled where that pays; by beam search; or with drafts."""

    kind = KINDS["left-to-right"]
    options = frozenset({"num_beams", "compile"})
    order_classes = (SelfSpeculative,)

    def decoder(self, model: Llama, mode: Mode, order: Any, options: Options, layout: CanvasLayout = PLAIN) -> Decoder:
        """Continue prompts; fused questions have decoders of their own (`fusion_steps`)."""
        self.refuse_fused(layout)
        options.sampling.check_filters()

        return lambda prompts, sample_ids, stop: left_to_right_steps(
            model, prompts, sample_ids=sample_ids, max_new_tokens=options.max_new_tokens, sampling=options.sampling,
            num_beams=options.num_beams, stop=stop, use_cache=options.use_cache, compile=options.compile,
            speculation=order if isinstance(order, SelfSpeculative) else None,
        )  # fmt: skip

    def log_probs(
        self, model: Llama, mode: Mode, texts: Sequence[Sequence[int]], scored: Sequence[Sequence[int]], *,
        order: Any = None, seed: int = 0, sample_ids: Sequence[int] | None = None, method: Method | None = None,
    ) -> list[Bound]:  # fmt: skip
        """Score each token given all before it, and none behind it."""
        found = left_to_right_log_prob(model, texts, GroupPlan.from_masks(*given_and_scored(texts, scored)))
        return exact_log_probs(found.total.tolist(), scored, found.greedy.tolist())

    def objective(self, mode: Mode, options: LearningOptions) -> Autoregressive:
        """Return the objective of the next token."""
        return Autoregressive()
