"""The modes "diffusion" and "blocks": masks on a canvas become tokens, everywhere at once or block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anyorder.decoding.canvas import PLAIN, CanvasLayout
from anyorder.decoding.diffusion.decoder import diffusion_steps
from anyorder.decoding.diffusion.sampler import DiffusionSampler, sampler_of_order
from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError
from anyorder.likelihood.diffusion import Bound, Method, MonteCarlo, diffusion_log_prob
from anyorder.model.modes import KINDS, Mode
from anyorder.modes.entry import Decoder, LearningOptions, ModeEntry, Options, Order
from anyorder.objectives import BlockDiffusion, MaskedDiffusion, MaskedDiffusionTuning, Objective

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


class DiffusionMode(ModeEntry):
    """Masked diffusion by a sampler."""

    kind = KINDS["diffusion"]
    order_classes = (DiffusionSampler,)
    bound = True

    def usual_orders(self, new_tokens: int) -> dict[str, Order]:
        """Return published samplers, with numbers of steps and tokens that divide."""
        block = next(length for length in (32, 16, 8, 4, 2, 1) if new_tokens % length == 0)
        quick = max(step for step in range(1, new_tokens // 4 + 2) if new_tokens % step == 0)
        preset = DiffusionSampler.preset
        return {
            "llada": preset("llada"),
            f"llada,steps={quick}": preset("llada", steps=quick),
            f"llada-semi-ar,block_length={block}": preset("llada-semi-ar", block_length=block),
            "dream-entropy": preset("dream-entropy"),
            f"fast-dllm,block_length={block},threshold=0.9": preset("fast-dllm", block_length=block, threshold=0.9),
        }

    def draws(self, order: Any, sampling: Sampling) -> bool:
        """A sampler says for itself whether it draws."""
        return order.draws if isinstance(order, DiffusionSampler) else super().draws(order, sampling)

    def decoder(self, model: Llama, mode: Mode, order: Any, options: Options, layout: CanvasLayout = PLAIN) -> Decoder:
        """Fill canvases by the sampler, or by that of the order's name."""
        sampler = sampler_of_order(order, options.sampling, use_cache=options.use_cache)
        return lambda canvases, sample_ids, stop: diffusion_steps(
            model, canvases, sampler, mode=mode, sample_ids=sample_ids, seed=options.sampling.seed, stop=stop,
            layout=layout,
        )  # fmt: skip

    def log_probs(
        self, model: Llama, mode: Mode, texts: Sequence[Sequence[int]], scored: Sequence[Sequence[int]], *,
        order: Any = None, seed: int = 0, sample_ids: Sequence[int] | None = None, method: Method | None = None,
    ) -> list[Bound]:  # fmt: skip
        """Return a bound from random masks; under the guidance of a sampler, the same sum, which is no bound."""
        method = MonteCarlo(samples=64, seed=seed) if method is None else method
        guidance = order.cfg_scale if isinstance(order, DiffusionSampler) else 0.0
        return diffusion_log_prob(
            model, texts, scored, mode=mode, method=method, guidance=guidance, sample_ids=sample_ids
        )

    def objective(self, mode: Mode, options: LearningOptions) -> Objective:
        """Return masked diffusion of whole texts, or of answers.

        Raises:
            UserError: answers are to be learnt, and there is no end token.
        """
        assert mode.mask_token_id is not None, "checked where the mode is made"
        shared: dict[str, Any] = {
            "mask_token_id": mode.mask_token_id, "shifted": mode.shifted, "eps": options.eps, "times": options.times,
            "opening_steps": options.opening_steps, "mode_name": mode.name,
        }  # fmt: skip
        if not options.tuning:
            return MaskedDiffusion(**shared, random_length=options.random_length)
        if options.end_token_id is None:
            raise UserError("the network has no end token, by which answers end: name one in its config.json.")
        return MaskedDiffusionTuning(**shared, length=options.length, end_token_id=options.end_token_id)


class BlocksMode(DiffusionMode):
    """Blocks from left to right, each by masked diffusion after clean ones."""

    kind = KINDS["blocks"]

    def decoder(self, model: Llama, mode: Mode, order: Any, options: Options, layout: CanvasLayout = PLAIN) -> Decoder:
        """Fill canvases block by block."""
        self.refuse_fused(layout, "blocks are counted over a whole text, but phrasings share positions")
        return super().decoder(model, mode, order, options)

    def usual_orders(self, new_tokens: int) -> dict[str, Order]:
        """Return the network's own blocks."""
        return {self.kind.name: self.kind.name}

    def objective(self, mode: Mode, options: LearningOptions) -> BlockDiffusion:
        """Return block diffusion, of whole texts and of answers."""
        assert mode.mask_token_id is not None, "checked where the mode is made"
        assert mode.block_length is not None, "likewise"
        return BlockDiffusion(
            mask_token_id=mode.mask_token_id, block_length=mode.block_length, eps=options.eps, times=options.times,
            causal_context=mode.causal_context, mode_name=mode.name,
        )  # fmt: skip
