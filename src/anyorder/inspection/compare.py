"""Samplers side by side: the same prompts, what each writes, what it costs, and how probable the network finds it."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyorder.api.generate import generate
from anyorder.api.output import Output
from anyorder.api.prompts import Prompt, prompts_with_gaps
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.diffusion.sampler import PRESETS, DiffusionSampler
from anyorder.errors import UserError
from anyorder.inspection.drift import cache_drift
from anyorder.likelihood.diffusion import Method, MonteCarlo
from anyorder.modes import Order, entry_of, resolve
from anyorder.orders.names import read_order
from anyorder.utils.numbers import check_positive

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama
    from anyorder.model.modes import Mode


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What one way of sampling made of the prompts.

    Attributes:
        name: of the sampler.
        texts: what was written for each prompt; None without a tokenizer.
        full_texts: the same with the prompt, its gaps filled.
        token_ids: that were written for each prompt.
        passes: forward passes for all prompts.
        tokens: written before the first end token of each text.
        seconds: for all prompts, the median of the runs.
        log_prob: of all that was written up to the first end tokens, given the prompts, in nats.
        bound: whether `log_prob` is a lower bound, as that of masked diffusion is; otherwise it is exact.
        standard_error: of `log_prob`.
        scored: tokens that `log_prob` is about.
        drift: of an approximate cache: how far its distributions are from those of passes over everything
            (Kullback-Leibler, the mean in nats); None unless it was measured, and where no cache is approximate.
        changed: share of those distributions whose most probable token is another one; likewise.
    """

    name: str
    texts: tuple[str, ...] | None
    full_texts: tuple[str, ...] | None
    token_ids: tuple[tuple[int, ...], ...]
    passes: int
    tokens: int
    seconds: float
    log_prob: float
    bound: bool
    standard_error: float
    scored: int
    drift: float | None = None
    changed: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """Of `tokens`."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Of `tokens`: those of all prompts, which share a pass."""
        return self.tokens / self.passes if self.passes else 0.0

    @property
    def nats_per_token(self) -> float:
        """Negative log-probability per scored token: the lower, the more the text is what the network expects."""
        return -self.log_prob / self.scored if self.scored else 0.0


def usual_methods(model: Llama, max_new_tokens: int) -> dict[str, Order]:
    """Return samplers that suit the network, by the words of `method_named`."""
    return {
        name: order
        for mode in model.config.modes
        for name, order in entry_of(mode).usual_orders(max_new_tokens).items()
    }  # fmt: skip


def method_named(words: str) -> Order:
    """Read the words of the command line: an order, or a preset of diffusion with options.

    Args:
        words: such as "left-to-right", "groups:4", "llada" or "fast-dllm,block_length=8,threshold=0.9".

    Raises:
        UserError: there is no such order or preset, an option has no value, or the preset does not know it.
    """
    name, *options = words.split(",")
    if name not in PRESETS:
        read_order(words, "method", others=PRESETS)
        return words
    values: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"method {words!r} has the option {option!r}: write it as name=value.")
        try:
            values[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            values[key.strip()] = value.strip()
    try:
        return DiffusionSampler.preset(name, **values)
    except TypeError as error:
        raise UserError(
            f"method {words!r} has an option that presets do not have ({error}): see `anyorder generate`."
        ) from error


def compare_sampling_methods(
    model: Llama,
    prompt: Prompt,
    methods: Mapping[str, Order] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    repeats: int = 1,
    likelihood: Method = MonteCarlo(samples=64),  # noqa: B008 (frozen)
    drift: bool = False,
    on_method: Callable[[str], None] | None = None,
) -> list[Compared]:
    """Write the same prompts by several samplers.

    Args:
        model: the network.
        prompt: a text or token ids, or a list of such, as for `anyorder.generate`.
        methods: what `generate` takes as `order`, by name; `usual_methods` unless given.
        tokenizer: of the network; not needed where the prompts are token ids.
        max_new_tokens: tokens to write per text.
        seed: decides what is drawn.
        repeats: runs of each, taking turns; their median time counts.
        likelihood: how the bound of masked diffusion is found.
        drift: whether to measure the drift of approximate caches, which takes a run more, of more passes.
        on_method: called with the name of each before it writes.

    Raises:
        UserError: there is no method or no run, or one cannot write this.
    """
    if methods is None:
        rows, _ = prompts_with_gaps(prompt, tokenizer, model.config.bos_token_id, new_tokens=max_new_tokens)
        gaps = any(BLANK in row for row in rows)
        usual = usual_methods(model, max_new_tokens)
        methods = {
            name: order for name, order in usual.items() if not (gaps and resolve(order, model.config)[0].kind.causal)
        }
    if not methods:
        raise UserError("methods is empty: give at least one, such as 'llada'.")
    check_positive("repeats", repeats)
    for order in methods.values():
        resolve(order, model.config)  # refuses before anything is written
    runs: dict[str, list[Output]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, order in methods.items():
            if on_method is not None:
                on_method(name)
            runs[name].append(generate(model, tokenizer, prompt, order=order, max_new_tokens=max_new_tokens, seed=seed))
    compared = []
    for name, outputs in runs.items():
        one = _compared(model, name, outputs, likelihood)
        of_cache = cache_drift(model, tokenizer, prompt, methods[name], max_new_tokens, seed) if drift else None
        if of_cache is not None:
            one = dataclasses.replace(one, drift=of_cache.divergence, changed=of_cache.changed)
        compared.append(one)
    return compared


def _compared(model: Llama, name: str, outputs: Sequence[Output], likelihood: Method) -> Compared:
    output = outputs[0]
    single = not output.token_ids or isinstance(output.token_ids[0], int)
    written = [output.token_ids] if single else output.token_ids
    texts, full_texts = (
        None if column is None else tuple([str(column)] if single else map(str, column))
        for column in (output.text, output.full_text)
    )
    total, error, scored = _log_prob(model, output, likelihood)
    return Compared(
        name=name,
        texts=texts,
        full_texts=full_texts,
        token_ids=tuple(map(tuple, written)),
        passes=output.passes,
        tokens=output.trace.tokens,
        seconds=statistics.median(run.trace.seconds for run in outputs),
        log_prob=total,
        bound=entry_of(_default(model)).bound,
        standard_error=error,
        scored=scored,
    )


def _log_prob(model: Llama, output: Output, likelihood: Method) -> tuple[float, float, int]:
    """Return log-probability, its error, and tokens of what was written up to the first end token of each text."""
    default = _default(model)
    texts, scored = [], []
    for row, ids in enumerate(output.sequences):
        places = sorted({event.position for event in output.trace.events if event.sample_id == row})
        ends = [at for at in places if at < len(ids) and ids[at] in model.config.eos_token_ids]
        end = min(ends, default=len(ids) - 1)
        # A mask that was left in the text is no token that has a probability.
        kept = [at for at in places if at <= end and ids[at] != default.mask_token_id]
        if kept:
            texts.append(ids[: end + 1])
            scored.append(kept)
    if not texts:
        return 0.0, 0.0, 0
    bounds = entry_of(default).log_probs(model, default, texts, scored, method=likelihood)
    error = math.sqrt(sum(bound.standard_error**2 for bound in bounds))
    return sum(bound.log_prob for bound in bounds), error, sum(bound.tokens for bound in bounds)


def _default(model: Llama) -> Mode:
    """Return the mode by which texts are scored."""
    return model.config.mode(model.config.default_mode)
