"""The bodies of requests, as records that are checked when they are made.

Names and meanings are OpenAI's and llama.cpp's, where these have them; those of our own (`order`, `sampler`, `gaps`,
`phrasings`, `diffusing`, ...) stand beside them at the top level. A field that would change the answer is either heeded
or refused, never ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

from anyorder.errors import UserError
from anyorder.utils.annotations import check_fields, shown
from anyorder.utils.other_names import other_name

Record = TypeVar("Record")


Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]

WITHOUT_EFFECT = frozenset(
    {
        "user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
        "parallel_tool_calls", "cache_prompt", "id_slot", "timings_per_token", "return_tokens", "verbosity",
    }
)  # fmt: skip
"""Fields of other servers that cannot change an answer."""

MOST_ALTERNATIVES = 20
MOST_BIAS = 100.0


class FieldError(UserError):
    """A field of a body that cannot be.

    Attributes:
        field: its name.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def require(field: str, value: object, holds: bool, remedy: str) -> None:
    """Refuse a value that does not hold.

    Raises:
        FieldError: see above.
    """
    if not holds:
        raise FieldError(field, f"{field} is {shown(value)}: {remedy}.")


def read_body(record: type[Record], body: object) -> Record:
    """Make a record of a body. A field that is null counts as not given.

    Raises:
        FieldError: the body is no object, or has a field that is unknown or has a value that cannot be.
    """
    if not isinstance(body, Mapping):
        raise UserError(f"the body is {shown(body)}: give a JSON object.")
    known = {field.name: field for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    given = {name: value for name, value in body.items() if value is not None and name not in WITHOUT_EFFECT}
    for name in given:
        if name not in known:
            raise FieldError(name, f"the field {shown(name)} is unknown: {meant(name, list(known))}")
    for name, field in known.items():
        if name not in given and field.default is field.default_factory is dataclasses.MISSING:
            raise FieldError(name, f"the field {name!r} is missing: give it.")
    try:
        return record(**given)
    except FieldError:
        raise
    except UserError as error:
        first = str(error).split(" ", 1)[0]
        raise FieldError(first if first in known else "", str(error)) from None


def meant(name: str, known: Sequence[str]) -> str:
    """Ask for the known name that an unknown one is nearest to; without one, for any of them."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    ours = (other_name(name, known) or "").partition(" ")[0] or next(iter(close), "")
    return f"did you mean {ours!r}?" if ours else f"give one of {', '.join(known)}."


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """`stream_options`.

    Attributes:
        include_usage: whether a last chunk says what the request took.
        include_obfuscation: has no effect.
    """

    include_usage: bool = False
    include_obfuscation: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "stream_options.{}")


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How texts are written: what all routes that write have in common.

    Attributes:
        model: the name of the network; the one that is served unless given.
        order, temperature, top_k, top_p, min_p, repetition_penalty: as `anyorder.generate` has them.
        seed: decides the draws, with the number of the text in the request; drawn, and reported, unless given.
        sampler: of diffusion: the name of a preset, or fields of `DiffusionSampler` or of `preset`.
        n: texts for each prompt.
        max_tokens: to write at most; of a gap, exactly.
        stop: strings that end a text.
        logit_bias: added to the scores of tokens, by id.
        frequency_penalty, presence_penalty: of tokens that the text has already, where that is written from left to
            right.
        stream: whether the answer comes in chunks.
        stream_options: see `Streaming`.
        diffusing: in a stream, each chunk has the whole text, which takes the place of the one before, open positions
            as "▁"; or with "events", each chunk lists besides what was written where, and how probable it was.
    """

    model: str | None = None
    order: str | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    sampler: str | Mapping[str, Any] | None = None
    n: int = 1
    max_tokens: int | None = None
    stop: str | Sequence[str] | None = None
    logit_bias: Mapping[str, float] = dataclasses.field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stream: bool = False
    stream_options: Mapping[str, Any] | None = None
    diffusing: bool | Literal["events"] = False

    def __post_init__(self) -> None:
        check_fields(self)
        require("n", self.n, self.n > 0, "give a whole number above 0")
        require("max_tokens", self.max_tokens, (self.max_tokens or 0) >= 0, "give a whole number from 0 on")
        for name in ("frequency_penalty", "presence_penalty"):
            require(name, getattr(self, name), abs(getattr(self, name)) <= 2, "give a number from -2 to 2")
        for token_id, bias in self.logit_bias.items():
            require("logit_bias", token_id, token_id.isdecimal(), "give token ids as keys")
            require("logit_bias", bias, abs(bias) <= MOST_BIAS, f"give numbers from {-MOST_BIAS:g} to {MOST_BIAS:g}")
        require("stream_options", self.stream_options, self.stream_options is None or self.stream, "give stream, too")
        require("diffusing", self.diffusing, self.diffusing is False or self.stream, "give stream, too")
        _ = self.streaming

    @property
    def streaming(self) -> Streaming:
        """`stream_options` as a record."""
        return read_body(Streaming, self.stream_options or {})

    @property
    def alternatives(self) -> int | None:
        """Number of the most probable tokens to report for each token; None reports nothing."""
        return None


@dataclass(frozen=True, kw_only=True)
class Chat(Writing):
    """The body of `/v1/chat/completions`.

    Attributes:
        messages: with role and content.
        max_completion_tokens: another name of max_tokens.
        logprobs: whether to report log-probabilities.
        top_logprobs: of so many tokens besides.
        phrasings: the content of the last message in other words, fused with it.
        response_format: only text.
        tools, functions, prediction, audio, reasoning_effort, web_search_options: refused.
        tool_choice, modalities: only what changes nothing.
    """

    messages: Sequence[Mapping[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    phrasings: Sequence[str] = ()
    response_format: Mapping[str, Any] | None = None
    tools: Sequence[Any] = ()
    functions: Sequence[Any] = ()
    tool_choice: Any = None
    prediction: Any = None
    audio: Any = None
    modalities: Sequence[str] = ("text",)
    reasoning_effort: Any = None
    web_search_options: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require("messages", self.messages, len(self.messages) > 0, "give at least one message")
        if self.max_completion_tokens is not None:
            require("max_tokens", self.max_tokens, self.max_tokens is None, "it stands beside max_completion_tokens")
            object.__setattr__(self, "max_tokens", self.max_completion_tokens)
        count = self.top_logprobs
        require("top_logprobs", count, 0 <= (count or 0) <= MOST_ALTERNATIVES, f"give 0 to {MOST_ALTERNATIVES}")
        require("top_logprobs", count, count is None or self.logprobs, "give logprobs, too")
        plain = self.response_format is None or self.response_format.get("type") == "text"
        require("response_format", self.response_format, plain, "only text is written, so leave it out")
        for name in ("tools", "functions", "prediction", "audio", "reasoning_effort", "web_search_options"):
            require(name, getattr(self, name), not getattr(self, name), "this server has none, so leave it out")
        choice = self.tool_choice
        require("tool_choice", choice, choice in (None, "none", "auto"), "there are no tools, so leave it out")
        require("modalities", self.modalities, list(self.modalities) == ["text"], "only text is written")

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


@dataclass(frozen=True, kw_only=True)
class Completion(Writing):
    """The body of `/v1/completions`.

    Attributes:
        prompt: text, token ids, or a list of such.
        suffix: text that follows what is written.
        echo: whether the answer begins with the prompt, log-probabilities included.
        best_of: must be n.
        logprobs: how many of the most probable tokens are reported besides each token.
        gaps: whether `[...]` in the prompt, or -1 among token ids, is a gap to fill; otherwise it is text.
        gap_tokens: tokens of each gap; max_tokens unless given.
    """

    prompt: Prompt
    suffix: str | None = None
    echo: bool = False
    best_of: int | None = None
    logprobs: int | None = None
    gaps: bool = False
    gap_tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require("best_of", self.best_of, self.best_of in (None, self.n), "give n, or leave it out")
        count = self.logprobs
        require("logprobs", count, 0 <= (count or 0) <= MOST_ALTERNATIVES, f"give 0 to {MOST_ALTERNATIVES}")
        filling = self.suffix is not None or self.gaps
        require("echo", self.echo, not (self.echo and filling), "gaps are filled within a text, so leave it out")
        require("echo", self.echo, not (self.echo and self.stream), "an echo is not streamed, so leave one of them out")
        require("suffix", self.suffix, not (self.suffix is not None and self.gaps), "it stands beside gaps")
        require("gap_tokens", self.gap_tokens, self.gap_tokens is None or filling, "give gaps, too")
        require("gap_tokens", self.gap_tokens, self.gap_tokens is None or self.gap_tokens > 0, "give 1 or more")

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


@dataclass(frozen=True, kw_only=True)
class Infill(Writing):
    """The body of `/infill`, as editors send it to llama.cpp's server.

    Attributes:
        input_prefix: text before the gap.
        input_suffix: text behind it.
        input_extra: other texts, each with filename and text, which stand before the prefix.
        prompt: more of the prefix, behind it.
        n_predict: tokens of the gap.
        t_max_predict_ms, t_max_prompt_ms, samplers, n_indent: have no effect.
    """

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: Sequence[Mapping[str, Any]] = ()
    prompt: str = ""
    n_predict: int | None = None
    t_max_predict_ms: Any = None
    t_max_prompt_ms: Any = None
    samplers: Any = None
    n_indent: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_predict is not None:
            require("max_tokens", self.max_tokens, self.max_tokens is None, "it stands beside n_predict")
            require("n_predict", self.n_predict, self.n_predict > 0, "give a whole number above 0")
            object.__setattr__(self, "max_tokens", self.n_predict)
        for extra in self.input_extra:
            require("input_extra", extra, isinstance(extra.get("text"), str), "give each a filename and a text")


@dataclass(frozen=True, kw_only=True)
class Fuse(Writing):
    """The body of `/v1/fuse`; fields as `anyorder.fuse` has them."""

    phrasings: Sequence[str] | Sequence[Sequence[int]]
    prefix: str | Sequence[int] = ""
    suffix: str | Sequence[int] = ""
    separator: str | Sequence[int] = ""
    weights: Sequence[float] | None = None
    positions: str = "shared"
    correction: str = "1/N"
    method: str = "attention"


@dataclass(frozen=True, kw_only=True)
class Score:
    """The body of `/v1/score`.

    Attributes:
        model: see `Writing`.
        input: text or token ids, or a list of such.
        given: text before it that is not scored.
        order: in which it would be written; the network's default unless given.
        samples: masked copies of each text for the bound of diffusion.
        seed: decides random orders and masks.
        logprobs: whether to report each token.
    """

    input: Prompt
    model: str | None = None
    given: str = ""
    order: str | None = None
    samples: int = 128
    seed: int = 0
    logprobs: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Tokenize:
    """The body of `/tokenize`.

    Attributes:
        content: text.
        add_special: whether the tokens that begin a text stand before it.
        with_pieces: whether to spell each token.
        model, parse_special: see `Writing`; special tokens are always read.
    """

    content: str
    add_special: bool = False
    with_pieces: bool = False
    parse_special: bool = True
    model: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ApplyTemplate:
    """The body of `/apply-template`."""

    messages: Sequence[Mapping[str, Any]]
    model: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require("messages", self.messages, len(self.messages) > 0, "give at least one message")


@dataclass(frozen=True, kw_only=True)
class Detokenize:
    """The body of `/detokenize`."""

    tokens: Sequence[int]
    model: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
