"""A network as a model of lm-evaluation-harness: answers are scored and written in the order of one mode.

The harness gives requests and makes metrics of what comes back: the log-probability of a continuation and whether
greedy decoding writes it, the log-probability of a whole text, or a written answer. What is returned depends on the
request, the network and the seed alone, never on other requests, so that the harness's cache may keep it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from anyorder.api.batches import Batches, Finished
from anyorder.checkpoints.chat_template.dialogue import dialogue_template
from anyorder.checkpoints.chat_template.render import render
from anyorder.checkpoints.tokenizer.encoding import plain_tokens, prompt_tokens
from anyorder.decoding.any_order.speculation import Speculative
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError
from anyorder.likelihood.diffusion import Bound, MonteCarlo
from anyorder.modes import Options, Order, decoder_of, entry_of, resolve
from anyorder.orders.kinds import MostConfident
from anyorder.utils.annotations import shown
from anyorder.utils.numbers import check_positive

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama
    from anyorder.parallel import Processes

Pair = tuple[list[int], list[int]]
"""Token ids of a context, and of what continues it."""

Scored = tuple[list[int], list[Bound], list[bool]]
"""Numbers of pairs, the bound of each, and whether greedy decoding writes the continuation."""

KNOWN = (
    "until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "num_beams",
)  # fmt: skip
"""Settings of generation that a task may have."""


class Estimate(float):
    """A log-probability in nats, with what its standard error is.

    lm-evaluation-harness computes with it as with any number.

    Attributes:
        standard_error: in nats; 0 where nothing was drawn.
    """

    standard_error: float = 0.0

    @classmethod
    def total(cls, bounds: Sequence[Bound]) -> Estimate:
        """Return the sum over texts whose errors are independent."""
        total = cls(math.fsum(bound.log_prob for bound in bounds))
        total.standard_error = math.hypot(*(bound.standard_error for bound in bounds))
        return total


class AnyOrderLM(TemplateLM):
    """A network for `lm_eval.evaluate` and `simple_evaluate`.

    From left to right it agrees with the harness's own `HFLM`: tokens, truncation, windows of long texts.

    Args:
        model: the network.
        tokenizer: of the network.
        order: as in `anyorder.generate`; that of the network's default mode unless given.
        mask_samples: masked copies of each answer that the bound of a network that diffuses is estimated from.
        seed: decides random orders, masks and draws, with the text of the request.
        batch_size: texts at a time; changes speed and memory alone.
        processes: which share out the batches of the same requests, and each return what all found.

    Attributes:
        mode: that the order means.
        is_bound: whether log-probabilities are bounds, with a standard error.

    Raises:
        UserError: there is no tokenizer, no token to begin an empty text with, the network does not write in this
            order, or a number cannot be.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        order: Order | None = None,
        mask_samples: int = 128,
        seed: int = 0,
        batch_size: int = 16,
        processes: Processes | None = None,
    ) -> None:
        super().__init__()
        check_positive("batch_size", batch_size)
        group = MonteCarlo.group
        if mask_samples < 2 * group or mask_samples % group:
            raise UserError(f"mask_samples is {mask_samples}: give a multiple of {group} of at least {2 * group}.")
        if tokenizer is None:
            raise UserError("the model has no tokenizer, which tasks of text need: give it with --tokenizer.")
        begin = next((one for one in (tokenizer.bos_token_id, tokenizer.eos_token_id) if one is not None), None)
        if begin is None:
            raise UserError("the tokenizer has no token that begins or ends a text, which an empty context needs.")
        self.model, self.tokenizer, self.order, self.seed, self.batch_size = model, tokenizer, order, seed, batch_size
        self.mode, self._order = resolve(order, model.config)
        self._entry = entry_of(self.mode)
        self.is_bound = self._entry.bound
        self._method = MonteCarlo(samples=mask_samples, seed=seed)
        self._begin: int = begin
        self._processes = processes
        # From left to right the last token of a text is predicted, and never read.
        self._room = model.config.context_length + self.mode.kind.causal

    @property
    def can_score(self) -> bool:
        """Whether given texts have an order; not where it depends on what is written."""
        return not isinstance(self._order, MostConfident | Speculative)

    def settings(self) -> dict[str, Any]:
        """Return what responses depend on beside the network, as plain data."""
        return {
            "mode": self.mode.name, "order": self.mode.name if self.order is None else str(self.order),
            "log_probs": "bound" if self.is_bound else "exact",
            "mask_samples": self._method.samples if self.is_bound else None, "seed": self.seed,
        }  # fmt: skip

    # ---- what the harness reads ----

    @property
    def prefix_token_id(self) -> int:
        """The context of a text without one."""
        return self._begin

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        end = self.tokenizer.eos_token_id
        return self._begin if end is None else end

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer at most, where a task does not say."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer in the harness's own files."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of a text, begun once unless `add_special_tokens` is False."""
        encode = plain_tokens if add_special_tokens is False else prompt_tokens
        return encode(self.tokenizer, string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write messages as text; without the generation prompt, the last message is left open.

        Raises:
            UserError: the template does not write them.
        """
        text = render(
            self.tokenizer, dialogue_template(self.tokenizer), chat_history, add_generation_prompt=add_generation_prompt
        )
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    # ---- scoring ----

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[Estimate, bool]]:  # fmt: skip
        for (context, continuation), _, ids in requests:
            if not ids:
                about = f"the answer {shown(continuation)} has no tokens of its own behind {shown(context[-40:])}"
                raise UserError(f"{about}: change the task.")
        found: dict[int, tuple[Estimate, bool]] = {}
        pairs = [(context, continuation) for _, context, continuation in requests]
        with tqdm(total=len(pairs), desc="scoring", disable=True if disable_tqdm else None) as bar:
            for entries, bounds, greedy in self._scored(pairs):
                for entry, bound, is_greedy in zip(entries, bounds, greedy, strict=True):
                    found[entry] = (Estimate.total([bound]), is_greedy)
                    self.cache_hook.add_partial("loglikelihood", requests[entry][0], found[entry])
                bar.update(len(entries))
        return [found[entry] for entry in range(len(pairs))]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[Estimate]:
        """Score whole texts, a long one in windows of which each continues the one before, as far as that fits."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(
                self.tok_encode(text), prefix_token=self._begin, max_seq_len=self._room - 1, context_len=1
            )
            for window in map(make_disjoint_window, windows):
                pairs.append(window)
                owners.append(number)
        of_text: dict[int, list[Bound]] = {number: [] for number in range(len(requests))}
        waiting = Counter(owners)
        with tqdm(total=len(pairs), desc="scoring", disable=True if disable_tqdm else None) as bar:
            for entries, bounds, _ in self._scored(pairs, greedy=False):
                for entry, bound in zip(entries, bounds, strict=True):
                    number = owners[entry]
                    of_text[number].append(bound)
                    waiting[number] -= 1
                    if not waiting[number]:
                        total = Estimate.total(of_text[number])
                        self.cache_hook.add_partial("loglikelihood_rolling", requests[number].args, total)
                bar.update(len(entries))
        return [Estimate.total(bounds) for bounds in of_text.values()]

    def _scored(self, pairs: Sequence[Pair], *, greedy: bool = True) -> Iterator[Scored]:
        """Score continuations batch by batch, the longest first.

        Args:
            pairs: any number.
            greedy: whether to find out what greedy decoding writes, where that takes passes of its own.

        Yields:
            A batch after the other, of several processes when all are scored.
        """
        fitted = [self._fitted(*pair) for pair in pairs]
        order = sorted(range(len(pairs)), key=lambda entry: -sum(map(len, fitted[entry])))

        def scored(entries: list[int]) -> Scored:
            batch = [fitted[entry] for entry in entries]
            texts = [context + continuation for context, continuation in batch]
            bounds = self._entry.log_probs(
                self.model, self.mode, texts,
                [range(len(context), len(text)) for (context, _), text in zip(batch, texts, strict=True)],
                order=self._order, seed=self.seed, method=self._method,
                sample_ids=[number_of(context, continuation) for context, continuation in batch],
            )  # fmt: skip
            known = [bound.greedy for bound in bounds]
            missing = greedy and None in known
            return entries, bounds, self._greedy(batch) if missing else [bool(one) for one in known]

        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        if self._processes is None:
            yield from map(scored, batches)
        else:
            yield from self._processes.share_out(batches, scored)

    def _fitted(self, context: list[int], continuation: list[int]) -> Pair:
        """Return the pair without the first tokens of the context that do not fit."""
        room = self._room - len(continuation)
        if room < 1:
            raise UserError(
                f"an answer has {len(continuation)} tokens, and the network was trained on "
                f"{self.model.config.context_length}: leave out the task, or load a network with a longer context."
            )
        return context[-room:], continuation

    def _greedy(self, batch: Sequence[Pair]) -> list[bool]:
        """Return whether greedy decoding of the mode's plain order, a token a pass, writes each continuation.

        Decoding ends as soon as every row has a wrong token.
        """
        order: Order = self.mode.name
        if isinstance(self.order, DiffusionSampler):
            order = DiffusionSampler.preset("llada", cfg_scale=self.order.cfg_scale).replace(mode=self.mode.name)
        mode, plain = resolve(order, self.model.config)
        decoder = decoder_of(mode, plain, self.model, Options(max_new_tokens=max(len(ids) for _, ids in batch)))
        missing = [dict(enumerate(ids, start=len(context))) for context, ids in batch]
        wrong: set[int] = set()
        canvases = [context + [BLANK] * len(ids) for context, ids in batch]
        for step in decoder(canvases, range(len(batch)), None):
            for event in step.written:
                if missing[event.sample_id].pop(event.position, event.token_id) != event.token_id:
                    wrong.add(event.sample_id)
            if len(wrong) == len(batch):
                break
        return [row not in wrong and not left for row, left in enumerate(missing)]

    # ---- writing ----

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Write an answer for each request, up to a stop string, the end token or the most tokens of its task.

        Raises:
            UserError: a task has settings of generation that this mode does not have.
        """
        numbers = _numbers_of(requests)
        alike: dict[str, list[int]] = {}
        for entry, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(entry)
        texts: dict[int, str] = {}
        with tqdm(total=len(requests), desc="writing", disable=True if disable_tqdm else None) as bar:
            for of_kind in alike.values():
                options = self._options(requests[of_kind[0]].args[1])
                prompts = {entry: self._prompt(requests[entry].args[0], options.max_new_tokens) for entry in of_kind}
                entries = sorted(of_kind, key=lambda entry: -len(prompts[entry]))
                batches = Batches(
                    self.model, self.tokenizer, [prompts[entry] for entry in entries], options,
                    sample_ids=[numbers[entry] for entry in entries],
                )  # fmt: skip
                waiting = iter(entries)
                written: Iterable[Finished] = batches.write(processes=self._processes)
                if self._processes is not None:
                    written = self._processes.in_order(self._processes.shares(list(written)))
                for finished in written:
                    assert finished.texts is not None, "there is a tokenizer"
                    for text, entry in zip(finished.texts, waiting):  # noqa: B905 (the next so many)
                        texts[entry] = text
                        self.cache_hook.add_partial("generate_until", requests[entry].args, text)
                    bar.update(len(finished.texts))
        return [texts[entry] for entry in range(len(requests))]

    def _prompt(self, context: str, new_tokens: int) -> list[int]:
        """Return the last tokens of a context, as many as leave room for the answer."""
        room = self.model.config.context_length - new_tokens
        if room < 1:
            raise UserError(
                f"answers have up to {new_tokens} tokens, and the network was trained on "
                f"{self.model.config.context_length}: give fewer with max_new_tokens."
            )
        return (self.tok_encode(context) or [self._begin])[-room:]

    def _options(self, settings: Mapping[str, Any]) -> Options:
        """Return how answers are written, from a task's settings of generation."""
        given = normalize_gen_kwargs(dict(settings), self.max_gen_toks)
        if unknown := sorted(given.keys() - {*KNOWN}):
            raise UserError(
                f"a task has {unknown[0]} {shown(given[unknown[0]])} among its generation_kwargs, which is not "
                f"supported: leave it out; {', '.join(KNOWN)} are."
            )
        drawing: dict[str, Any] = {}
        if given["do_sample"] and given.get("temperature", 1.0) > 0:
            drawing = {
                "temperature": given.get("temperature", 1.0), "top_p": given.get("top_p"), "min_p": given.get("min_p"),
                "top_k": given.get("top_k") or None,
            }  # fmt: skip
        order = self.order
        if isinstance(order, DiffusionSampler) and drawing:
            order = order.replace(**{name: value for name, value in drawing.items() if name != "min_p"})
            drawing = {"min_p": drawing["min_p"]}
        sampling = Sampling(repetition_penalty=given.get("repetition_penalty", 1.0), seed=self.seed, **drawing)
        return Options(
            order=order, sampling=sampling, max_new_tokens=given["max_gen_toks"], batch_size=self.batch_size,
            stop=[text for text in given["until"] if text] or None, num_beams=given.get("num_beams", 1),
        )  # fmt: skip


def number_of(*parts: object) -> int:
    """Return the number of a request, by which it draws: its content decides it, so that a resumed run draws alike."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest(), "little")


def _numbers_of(requests: Sequence[Instance]) -> list[int]:
    """Return a number for each request; of equal requests, each has its own."""
    seen: Counter[str] = Counter()
    numbers = []
    for request in requests:
        key = json.dumps(request.args)
        numbers.append(number_of(key, seen[key]))
        seen[key] += 1
    return numbers
