"""From the body of a request to a plan: what is written, in which mode, and how.

Everything that a user can get wrong is refused here, before a task is queued, by the checks that Python's functions
have.
"""

from __future__ import annotations

import dataclasses
import inspect
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from anyorder.api.images import Images
from anyorder.api.phrasings import read_questions
from anyorder.api.prompts import Prompts, prompt_ids, prompts_for
from anyorder.api.text import detokenizer_of, stop_strings
from anyorder.checkpoints.tokenizer.encoding import begin_tokens, continuing_tokens
from anyorder.decoding.canvas import BLANK
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.decoding.fusion.layout import Question
from anyorder.decoding.fusion.method import Fusion, check_questions
from anyorder.decoding.sampling import Sampling
from anyorder.errors import UserError
from anyorder.model.modes import Mode
from anyorder.modes import Options, Order, decoder_of, entry_of, resolve
from anyorder.modes.any_order import AnyOrderMode
from anyorder.modes.diffusion import BlocksMode, DiffusionMode
from anyorder.modes.left_to_right import LeftToRightMode
from anyorder.orders.names import read_order
from anyorder.serving.dialogue import Encoder, plain_messages
from anyorder.serving.fields import Chat, Completion, FieldError, Fuse, Infill, Score, Writing, meant, require
from anyorder.serving.groups.sample import Scores
from anyorder.utils.annotations import shown

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama

Result = TypeVar("Result")

NEW_TOKENS = 64
"""Tokens that are written at most where a request does not say, as `anyorder.generate` has it."""

MOST_IMAGES = 16
"""Of a request."""

SAMPLER_FIELDS = {field.name for field in dataclasses.fields(DiffusionSampler)} - {"commit"}
"""What a sampler may have in JSON; commit rules are objects."""

OWN_MODES = (LeftToRightMode, AnyOrderMode, DiffusionMode, BlocksMode)
"""Entries of modes whose readers serving knows; those derived from them may write otherwise."""

PRESET_OPTIONS = tuple(name for name in inspect.signature(DiffusionSampler.preset).parameters if name != "name")
"""What a sampler may have besides, as options of a preset."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a request has written; `anyorder.serving.samples` begins it.

    Attributes:
        model: the network; where prompts have images, with their rows.
        prompts: token ids or canvas of each text.
        modes: the mode of each, and its order.
        texts: each prompt as it was given, where that is text.
        sampling: how tokens are drawn.
        new_tokens: to be written to each at most.
        stops: strings that end a text.
        scores: changes and reports of scores.
        follows: whether texts are spelled while they are written.
        fused: the questions of which each text is an answer; empty where there are none.
        fusion: how they are fused.
        first_id: number of the first text, which decides its draws with the seed; the others follow.
    """

    model: Llama
    prompts: Sequence[Sequence[int]]
    modes: Sequence[tuple[Mode, Order]]
    texts: Sequence[str | None]
    sampling: Sampling
    new_tokens: int
    stops: tuple[str, ...]
    scores: Scores
    follows: bool
    fused: Sequence[Question] = ()
    fusion: Fusion = field(default_factory=Fusion)
    first_id: int = 0

    @property
    def sample_ids(self) -> range:
        """The number of each text."""
        return range(self.first_id, self.first_id + len(self.prompts))

    @property
    def options(self) -> Options:
        """The same for decoders."""
        return Options(sampling=self.sampling, max_new_tokens=self.new_tokens, compile=False)

    @property
    def prompt_tokens(self) -> list[int]:
        """Given tokens of each text."""
        return [sum(token_id != BLANK for token_id in prompt) for prompt in self.prompts]


class Planner:
    """Makes plans of bodies, for one network.

    Args:
        model: the network.
        tokenizer: of the network.
        most_tokens: that a request may have written to each text; None for what the network was trained on.
        encode: makes rows of an image, see `anyorder.api.images.Images`; as the thread that owns the network does.
    """

    def __init__(
        self, model: Llama, tokenizer: PreTrainedTokenizerBase | None, most_tokens: int | None = None,
        encode: Callable[[Llama, Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.tokenizer = tokenizer
        self._encoder = None if tokenizer is None else Encoder(tokenizer)
        self.most_tokens = most_tokens
        self._encode = encode
        self._decoding = threading.Lock()  # one image at a time, as a large one takes much memory

    @property
    def encoder(self) -> Encoder:
        """The tokenizer for text that comes in.

        Raises:
            UserError: there is none.
        """
        if self._encoder is None:
            raise UserError("this network has no tokenizer: give token ids.")
        return self._encoder

    # ---- bodies ----------------------------------------------------------------------------------------

    def of_chat(self, body: Chat) -> Plan:
        """Plan the answer to a chat."""
        messages, links = plain_messages(body.messages)
        images = self._images(links) if links else None
        if body.phrasings:
            require("phrasings", body.phrasings, images is None, "messages have images, so leave out one of them")
            before, content, behind = self.encoder.around_last(messages)
            phrasings = [content, *body.phrasings]
            questions, _ = self.encoder.call(lambda tokenizer: read_questions(phrasings, tokenizer, before, behind))
            return self._fused(body, questions, Fusion())
        return self._plan(body, [self.encoder.dialogue(messages)], [None], to_the_end=True, images=images)

    def of_completion(self, body: Completion) -> Plan:
        """Plan the continuation of prompts, or what fills their gaps."""
        if body.gaps:
            return self._plan(body, body.prompt, None, gap_tokens=body.gap_tokens)
        rows = self._ids(body.prompt)
        if body.suffix is None:
            given = [body.prompt] if isinstance(body.prompt, str) else body.prompt
            texts = [one if isinstance(one, str) else None for one in given]
            return self._plan(body, rows, texts if len(texts) == len(rows) else [None] * len(rows))
        gap = body.gap_tokens or self._new_tokens(body)
        return self._plan(body, [self._with_gap(row, body.suffix, gap) for row in rows], [None] * len(rows))

    def of_infill(self, body: Infill) -> Plan:
        """Plan what fills the gap between two texts."""
        files = [f"{extra.get('filename', '')}\n{extra['text']}\n" for extra in body.input_extra]
        [row] = self._ids("".join([*files, body.input_prefix, body.prompt]))
        return self._plan(body, [self._with_gap(row, body.input_suffix, self._new_tokens(body))], [None])

    def of_fuse(self, body: Fuse) -> Plan:
        """Plan the answer to a question in several phrasings."""
        fusion = Fusion(method=body.method, positions=body.positions, correction=body.correction)
        require("method", body.method, body.method != "vote", "an answer is written once, so choose another")
        parts = (body.prefix, body.suffix, body.separator, body.weights)
        questions, single = self.encoder.call(lambda tokenizer: read_questions(body.phrasings, tokenizer, *parts))
        require("phrasings", body.phrasings, single, "give those of one question")
        return self._fused(body, questions, fusion)

    def of_score(self, body: Score) -> tuple[list[list[int]], list[int]]:
        """Return the token ids of each text to score, and how many at its beginning are given."""
        rows = self._ids(body.input)
        if self._encoder is None:
            return rows, [0] * len(rows)
        begin = self.encoder.call(begin_tokens)
        if not body.given:
            return rows, [len(begin) if row[: len(begin)] == begin else 0 for row in rows]
        for text in [body.input] if isinstance(body.input, str) else body.input:
            require("given", body.given, isinstance(text, str), "put its token ids before those of the input")
        [given] = self._ids(body.given)
        texts = [body.input] if isinstance(body.input, str) else [str(text) for text in body.input]
        behind = self.encoder.call(lambda tokenizer: [continuing_tokens(tokenizer, text) for text in texts])
        return [[*given, *row] for row in behind], [len(given)] * len(behind)

    # ---- parts of a plan -------------------------------------------------------------------------------

    def order(self, body: Writing) -> Order | None:
        """The order of a body: a name, or a sampler."""
        if body.sampler is None:
            return body.order
        sampler = _sampler(body)
        if body.order is None:
            return sampler
        name = read_order(body.order)
        require(
            "order", body.order, name.kind in ("diffusion", "blocks"), "a sampler is for diffusion, so leave out one"
        )
        length = name.number
        require("order", body.order, length is None or sampler.block_length is None, "the sampler has a block_length")
        return sampler.replace(mode=name.mode, block_length=length or sampler.block_length)

    def _sampling(self, body: Writing, order: Order | None) -> Sampling:
        seed = random.SystemRandom().getrandbits(31) if body.seed is None else body.seed
        sampling = Sampling(
            temperature=body.temperature, top_k=body.top_k, top_p=body.top_p, min_p=body.min_p,
            repetition_penalty=body.repetition_penalty, seed=seed,
        )  # fmt: skip
        if isinstance(order, DiffusionSampler):  # which has these itself
            return replace(sampling, temperature=0.0, top_k=None, top_p=None)
        return sampling

    def _scores(self, body: Writing) -> Scores:
        size = self.model.config.vocab_size
        bias = {int(token_id): float(value) for token_id, value in body.logit_bias.items()}
        for token_id in bias:
            require("logit_bias", token_id, token_id < size, f"give ids below {size}")
        return Scores(
            bias=bias, frequency_penalty=body.frequency_penalty, presence_penalty=body.presence_penalty,
            alternatives=body.alternatives,
        )  # fmt: skip

    def _new_tokens(self, body: Writing, default: int = NEW_TOKENS) -> int:
        most = self.most_tokens
        if body.max_tokens is None:
            return default if most is None else min(default, most)
        if body.max_tokens == 0 and isinstance(body, Completion) and body.echo and body.logprobs is not None:
            return 1  # which is not written: the prompt is scored alone
        require("max_tokens", body.max_tokens, body.max_tokens > 0, "give a whole number above 0")
        within = most is None or body.max_tokens <= most
        require("max_tokens", body.max_tokens, within, f"this server writes at most {most}")
        return body.max_tokens

    def _ids(self, prompt: Any) -> list[list[int]]:
        """Token ids of prompts without gaps."""
        begin = self.model.config.bos_token_id
        if self._encoder is None:
            rows, _ = prompt_ids(prompt, None, begin)
        else:
            rows, _ = self.encoder.call(lambda tokenizer: prompt_ids(prompt, tokenizer, begin))
        for number, row in enumerate(rows):
            if BLANK in row:
                raise FieldError("prompt", f"prompt {number} has a gap ({BLANK}): give gaps: true, too.")
        return rows

    def _with_gap(self, row: Sequence[int], suffix: str, tokens: int) -> list[int]:
        behind = self.encoder.call(lambda tokenizer: continuing_tokens(tokenizer, suffix))
        return [*row, *[BLANK] * tokens, *behind]

    def _images(self, links: Sequence[str]) -> Images:
        """Read the images of a request.

        Raises:
            FieldError: the network has no vision, there are too many, or one is broken or too large.
        """
        if self.model.config.vision is None:
            raise FieldError("messages", "messages have an image, but this network reads text alone: leave it out.")
        if len(links) > MOST_IMAGES:
            raise FieldError("messages", f"messages have {len(links)} images: give at most {MOST_IMAGES}.")
        try:
            with self._decoding:
                return Images(self.model, self.tokenizer, [links], self._encode)
        except UserError as error:
            raise FieldError("messages", str(error)) from None

    def _plan(
        self, body: Writing, prompt: Any, texts: Sequence[str | None] | None, *, gap_tokens: int | None = None,
        to_the_end: bool = False, images: Images | None = None,
    ) -> Plan:  # fmt: skip
        config = self.model.config
        order = self.order(body)
        from_left = resolve(order, config)[0].kind.causal
        new_tokens = self._new_tokens(body, config.context_length if to_the_end and from_left else NEW_TOKENS)
        if images is not None:
            prompt = images.place(prompt, single=False)
        if isinstance(prompt, list) and texts is not None:
            self._check_room(prompt)

        def read_by(tokenizer: PreTrainedTokenizerBase | None) -> Prompts:
            return prompts_for(order, prompt, tokenizer, config, new_tokens, gap_tokens)

        read = read_by(None) if self._encoder is None else self._encoder.call(read_by)
        plan = Plan(
            model=self.model if images is None else images.model,
            prompts=[row for row in read.rows for _ in range(body.n)],
            modes=[mode for mode in read.modes for _ in range(body.n)],
            texts=[text for text in (texts or read.texts) for _ in range(body.n)],
            sampling=self._sampling(body, order), new_tokens=new_tokens,
            stops=stop_strings(body.stop, self.tokenizer), scores=self._scores(body),
            follows=body.stream or body.stop is not None,
        )  # fmt: skip
        self._check(body, plan)
        return plan

    def _fused(self, body: Writing, questions: Sequence[Question], fusion: Fusion) -> Plan:
        order = self.order(body)
        new_tokens = self._new_tokens(body)
        check_questions(self.model.config, questions, fusion, new_tokens, range(len(questions)))
        mode, order = resolve(order, self.model.config)
        if not mode.kind.causal:
            require("method", fusion.method, fusion.method == "attention", "others are for answers from left to right")
        layouts = [question.layout(fusion.positions).token_ids for question in questions]
        plan = Plan(
            model=self.model, prompts=[list(ids) for ids in layouts for _ in range(body.n)],
            modes=[(mode, order)] * body.n, texts=[None] * body.n,
            sampling=self._sampling(body, order), new_tokens=new_tokens,
            stops=stop_strings(body.stop, self.tokenizer), scores=self._scores(body),
            follows=body.stream or body.stop is not None,
            fused=[question for question in questions for _ in range(body.n)], fusion=fusion,
        )  # fmt: skip
        self._check(body, plan)
        return plan

    def _check_room(self, rows: Sequence[Sequence[int]]) -> None:
        longest = self.model.config.context_length
        for number, row in enumerate(rows):
            given = sum(token_id != BLANK for token_id in row)
            if given >= longest:
                raise FieldError(
                    "prompt", f"prompt {number} has {given} tokens, {given - longest + 1} more than the "
                    f"{longest - 1} that leave this network room to write: shorten it.",
                )  # fmt: skip

    def _check(self, body: Writing, plan: Plan) -> None:
        """Refuse what the modes of a plan do not know."""
        samplers = [order for _, order in plan.modes if isinstance(order, DiffusionSampler)]
        draws = body.temperature > 0 or any(sampler.draws for sampler in samplers)
        require("n", body.n, body.n == 1 or draws, "at temperature 0 all texts are the same, so give one above 0")
        for mode, order in plan.modes:
            decoder_of(mode, order, self.model, plan.options)
            penalties = ("frequency_penalty", "presence_penalty")
            for name in () if mode.kind.causal else penalties:
                value = getattr(body, name)
                require(name, value, not value, "it is for texts from left to right, so leave it out")
            if type(entry_of(mode)) in OWN_MODES and (mode.kind.causal or not plan.fused):
                continue
            for name in ("logit_bias", *penalties):
                value = getattr(body, name)
                require(name, value, not value, "scores are not changed in this mode, so leave it out")
            known = not body.alternatives
            require("logprobs", body.alternatives, known, "no others than the token's own are known in this mode")
        if self.tokenizer is not None:
            for prompt in plan.prompts if not plan.fused else ():
                detokenizer_of(self.tokenizer, prompt, plan.stops)


def _sampler(body: Writing) -> DiffusionSampler:
    """The sampler that a body describes.

    Raises:
        FieldError: a field of it is unknown or cannot be.
    """
    given: dict[str, Any] = {"preset": body.sampler} if isinstance(body.sampler, str) else dict(body.sampler or {})
    name = given.pop("preset", None)
    for option in ("temperature", "top_k", "top_p"):
        value = getattr(body, option)
        if value not in (None, 0.0):
            require(option, value, option not in given, "the sampler has it, too")
            given[option] = value
    if "commit" in given:
        raise FieldError("sampler", "commit of the sampler is no JSON: give threshold or factor, or a preset.")
    known = {*SAMPLER_FIELDS, *PRESET_OPTIONS, "preset"}
    for option in given:
        if option not in known:
            raise FieldError("sampler", f"the sampler has no {shown(option)} here: {meant(option, sorted(known))}")
    try:
        if name is None and given.keys() <= SAMPLER_FIELDS:
            return DiffusionSampler(**given)
        of_preset = {option: given.pop(option) for option in PRESET_OPTIONS if option in given}
        return DiffusionSampler.preset(name or "llada", **of_preset).replace(**given)
    except UserError as error:
        raise FieldError("sampler", str(error)) from None
