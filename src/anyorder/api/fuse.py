"""One question in several phrasings, text in, text out: where tokenizer and fusion meet."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.api.dispatch import Order, decoder_of, resolve
from anyorder.api.generate import Output, Stream, _output, _pieces
from anyorder.api.phrasings import Part, Phrasings, read_questions
from anyorder.api.text import Continuation, stop_strings
from anyorder.decoding.fusion.attention_share import segment_shares
from anyorder.decoding.fusion.canvases import FusedCanvases
from anyorder.decoding.fusion.decoder import MEMBER, fusion_steps, write_fused
from anyorder.decoding.fusion.question import UNWEIGHED, Fusion, Question, check_questions
from anyorder.decoding.fusion.scores import best, weigh
from anyorder.decoding.fusion.store import SegmentStore
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, Recorder, Stop, collect
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.utils.annotations import checked
from anyorder.ways import LEFT_TO_RIGHT, Way

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.decoding.fusion.weighting import Correction


@dataclass(frozen=True)
class FusedOutput(Output):
    """What `fuse` wrote.

    Attributes:
        attention_share: for each phrasing the share of the answer's attention that it got, the mean over tokens, layers
            and heads; what is missing to 1 went to prefix, suffix and the answer itself. A list of such lists for
            several questions, None unless asked for.
    """

    attention_share: list[float] | list[list[float]] | None = None


Weights = str | Sequence[float] | Sequence[Sequence[float]]


@checked("phrasings", "prefix", "suffix", "separator", "weights", "correction", "order", "stop")
def fuse(
    model: Llama,
    tokenizer: PreTrainedTokenizerBase | None,
    phrasings: Phrasings,
    prefix: Part | Sequence[Part] = "",
    suffix: Part | Sequence[Part] = "",
    positions: str = "shared",
    correction: Correction = "1/N",
    method: str = "attention",
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] | None = None,
    seed: int = 0,
    num_beams: int = 1,
    batch_size: int | None = None,
    separator: Part = "",
    weights: Weights | None = None,
    keep: int | None = None,
    store: str | Path | None = None,
    attention_share: bool = False,
    use_cache: bool = True,
    order: Order | None = None,
) -> FusedOutput:
    """Answers a question that is asked in several phrasings, or each of a list of such questions.

    Every phrasing is read by itself, behind the prefix; the suffix and the answer look at all of them. Text is made
    token ids part by part, each as text that goes on: let words begin with their space, such as the suffix " A:".

    Args:
        model: the network.
        tokenizer: of the network; may be None where all parts are token ids.
        phrasings: of one question, a list of strings or of lists of token ids; a list of such lists for several
            questions, with any numbers of phrasings of any lengths. Nothing is added to token ids.
        prefix: what stands before each phrasing, such as examples; one for all questions, or a list of one for each.
        suffix: what stands behind all of them, such as " A:"; likewise. Without it no token sees all phrasings before
            the first token of the answer, which is then chosen by the mean of the phrasings' own scores.
        positions: where phrasings are read: "shared", "running", "right" or "spread".
        correction: "1/N", "none", "length", "ape:T,S" or an `APE`. Beside "1/N", "right" did better than the default
            "shared" where it was measured: see docs/fusion.md.
        method: "attention", which reads all phrasings at once, or a way to make one answer of several runs:
            "logit-mean", "probability-mean", "max", "lowest-entropy", "contrast", "vote", or "attention+logit-mean".
        max_new_tokens: tokens to write per answer at most.
        temperature: 0 takes the most probable token each time; above 0, tokens are drawn.
        top_k, top_p, min_p, repetition_penalty: see `Sampling`.
        stop: strings that end the answer; they are no part of `text`.
        seed: decides the draws, with the number of the question in the list: batches play no part.
        num_beams: above 1, beam search with so many beams, as `generate` has it.
        batch_size: questions to answer at a time; all unless given.
        separator: what each phrasing ends with, such as a newline; it belongs to the phrasing.
        weights: how much each phrasing counts: numbers, a list of such for each question, "confidence" (of its own
            answer) or "likelihood" (of the phrasing); all the same unless given.
        keep: only so many phrasings of the highest weights are used; all unless given.
        store: a folder where what is read of prefixes and phrasings is kept, and recalled when it is asked again.
        attention_share: whether to tell how much attention each phrasing got, which takes a pass more.
        use_cache: False computes one masked sequence again for each token, for those who doubt the cache.
        order: the way of writing, as `generate` takes it: from left to right, in any order, or by masked diffusion,
            where the whole answer sees all phrasings while it is written; the network's default unless given. Methods
            other than "attention", beams, stored parts and scores of phrasings are for writing from left to right.

    Returns:
        As `generate`, with an entry for each question instead of each prompt. In `sequences` stand prefix, all
        phrasings that were used, suffix and answer.

    Raises:
        UserError: phrasings or an option that cannot be, in a sentence that names the remedy.
    """
    way, order = resolve(order, model.config)
    asked = _Asked(model, tokenizer, phrasings, prefix, suffix, separator, weights, keep, stop)
    fusion = Fusion(method=method, positions=positions, correction=correction)
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed
    )
    for name, value in (("num_beams", num_beams), ("batch_size", 1 if batch_size is None else batch_size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name} is {value!r}: give a whole number above 0.")
    if num_beams > 1 and temperature != 0:
        raise UserError(
            f"temperature is {temperature} beside num_beams {num_beams}, but beams draw nothing: leave out one."
        )
    if attention_share and fusion.method != "attention":
        raise UserError(f"attention_share is True with the method {method!r}: leave it out, or take 'attention'.")
    kept_parts = None if store is None else SegmentStore(store, model)
    shares: list[list[float]] = []
    total = len(asked.questions)
    limits = check_questions(model.config, asked.questions, fusion, max_new_tokens, range(total))
    causal = way.name == LEFT_TO_RIGHT.name
    beside = {f"num_beams {num_beams}": num_beams != 1, "attention_share": attention_share}
    asked.refuse_unless_causal(way, method, store, beside)

    def write(rows: range) -> Generation:
        questions, kept = asked.weighed(rows, fusion)
        generation = answer(questions, rows)
        if attention_share:
            of_kept = segment_shares(model, questions, fusion, generation.written)
            for row, indices, of_question in zip(rows, kept, of_kept, strict=True):
                share_of = dict(zip(indices, of_question, strict=True))
                shares.append([share_of.get(index, 0.0) for index in range(len(asked.questions[row].segments))])
        return generation

    def answer(questions: Sequence[Question], rows: range) -> Generation:
        if not causal:
            fused = asked.canvases(questions, fusion, [limits[row] for row in rows])
            steps = decoder_of(
                way, order, model, sampling=sampling, max_new_tokens=max_new_tokens, use_cache=use_cache,
                compile="auto", fused=fused,
            )(fused.canvases, rows, asked.condition(questions, rows))  # fmt: skip
            return collect(steps, fused.canvases, rows, model.config.eos_token_ids)
        return write_fused(
            model, questions, fusion=fusion, max_new_tokens=max_new_tokens, sampling=sampling, beams=num_beams,
            stop=asked.condition(questions, rows, beams=num_beams > 1), use_cache=use_cache, store=kept_parts,
            rows=rows, same_answer=asked.same_answer,
        )  # fmt: skip

    size = batch_size or total
    starts = range(0, total, size)
    generation = Generation.join([write(range(start, min(start + size, total))) for start in starts])
    output = _output(generation, asked.texts(), single=asked.single)
    told = None if not attention_share else shares[0] if asked.single else shares
    return FusedOutput(**vars(output), attention_share=told)


@checked("phrasings", "prefix", "suffix", "separator", "weights", "correction", "order", "stop")
def stream_fused(
    model: Llama,
    tokenizer: PreTrainedTokenizerBase | None,
    phrasings: Phrasings,
    prefix: Part = "",
    suffix: Part = "",
    positions: str = "shared",
    correction: Correction = "1/N",
    method: str = "attention",
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] | None = None,
    seed: int = 0,
    separator: Part = "",
    weights: Weights | None = None,
    keep: int | None = None,
    store: str | Path | None = None,
    use_cache: bool = True,
    order: Order | None = None,
) -> Stream:
    """Answers a single question as `fuse` does, and gives the answer piece by piece while it is written.

    The arguments are those of `fuse`. Votes and beam search, which only know at the end, are for `fuse` alone.

    Raises:
        UserError: what `fuse` refuses, or what cannot be streamed; at once, not with the first piece.
    """
    way, order = resolve(order, model.config)
    asked = _Asked(model, tokenizer, phrasings, prefix, suffix, separator, weights, keep, stop)
    fusion = Fusion(method=method, positions=positions, correction=correction)
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed
    )
    if fusion.method == "vote":
        raise UserError("method is 'vote', but only whole answers can be counted: use fuse, or another method.")
    if tokenizer is None:
        raise UserError("tokenizer is None: give the tokenizer, which makes the text to be streamed, or use fuse.")
    if not asked.single:
        raise UserError(f"phrasings are of {len(asked.questions)} questions: give those of one, or use fuse.")
    limits = check_questions(model.config, asked.questions, fusion, max_new_tokens, range(1))
    asked.refuse_unless_causal(way, method, store)
    questions, _ = asked.weighed(range(1), fusion)
    layout = questions[0].layout(fusion.positions)
    text = Continuation(tokenizer, layout.token_ids, asked.stops)
    begins: Sequence[Sequence[int]] = [layout.token_ids]

    def stopped(_: int, written: Sequence[int]) -> bool:
        return text.read(written)

    if way.name == LEFT_TO_RIGHT.name:
        steps = fusion_steps(
            model, questions, fusion=fusion, max_new_tokens=max_new_tokens, sampling=sampling, stop=stopped,
            use_cache=use_cache, rows=range(1), store=None if store is None else SegmentStore(store, model),
        )  # fmt: skip
    else:
        fused = asked.canvases(questions, fusion, limits)
        begins = fused.canvases
        steps = decoder_of(
            way, order, model, sampling=sampling, max_new_tokens=max_new_tokens, use_cache=use_cache, compile="auto",
            fused=fused,
        )(begins, range(1), stopped)  # fmt: skip
    return Stream(_pieces(steps, Recorder(begins, range(1), model.config.eos_token_ids), text))


class _Asked:
    """What was asked: the questions, their weights, and the texts of their answers; arguments as in `fuse`."""

    def __init__(
        self,
        model: Llama,
        tokenizer: PreTrainedTokenizerBase | None,
        phrasings: Phrasings,
        prefix: Part | Sequence[Part],
        suffix: Part | Sequence[Part],
        separator: Part,
        weights: Weights | None,
        keep: int | None,
        stop: str | Sequence[str] | None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.stops = stop_strings(stop, tokenizer)
        self.by = weights if isinstance(weights, str) else None
        self.keep = keep
        numbers = None if isinstance(weights, str) else weights
        self.questions, self.single = read_questions(
            phrasings, tokenizer, prefix=prefix, suffix=suffix, separator=separator, weights=numbers
        )

    def refuse_unless_causal(
        self, way: Way, method: str, store: str | Path | None, beside: Mapping[str, bool] | None = None
    ) -> None:
        """Refuses what only answers from left to right have, among it what is true in `beside`, by name."""
        given = {
            f"method {method!r}": method != "attention", f"store {str(store)!r}": store is not None,
            f"weights {self.by!r}": self.by is not None, **(beside or {}),
        }  # fmt: skip
        for name in (name for name, holds in given.items() if holds and way.name != LEFT_TO_RIGHT.name):
            raise UserError(f"{name} is for answers from left to right, but this is one by {way.name!r}: leave it out.")

    def canvases(self, questions: Sequence[Question], fusion: Fusion, room: Sequence[int]) -> FusedCanvases:
        """The questions with so many places to be written behind each."""
        return FusedCanvases(questions, fusion, room, self.model.device)

    def weighed(self, rows: range, fusion: Fusion) -> tuple[list[Question], list[list[int]]]:
        """These questions with their weights and the phrasings that are kept, and which those are."""
        questions = [self.questions[row] for row in rows]
        if self.by is not None:
            questions = weigh(self.model, questions, self.by)
        kept = [list(range(len(question.segments))) for question in questions]
        if self.keep is not None:
            kept = [best(question, self.keep) for question in questions]
            questions = [question.only(indices) for question, indices in zip(questions, kept, strict=True)]
            if fusion.method in UNWEIGHED:
                questions = [replace(question, weights=None) for question in questions]
        return questions, kept

    def condition(self, questions: Sequence[Question], rows: range, *, beams: bool = False) -> Stop | None:
        """Whether an answer has come to a stop string; None where there is none."""
        if not self.stops:
            return None
        texts: dict[int, Continuation] = {}

        def stopped(row: int, written: Sequence[int]) -> bool:
            # Phrasings that are asked alone have numbers of their own. Beams are alternatives, none of which reads on
            # where another one ended.
            if row not in texts or beams:
                texts[row] = self._text(questions[row % MEMBER - rows.start])
            return texts[row].read(written)

        return stopped

    def same_answer(self, written: Sequence[int]) -> Hashable:
        """What is the same for answers that a person calls the same."""
        ends = self.model.config.eos_token_ids
        ids = written[:-1] if written[-1] in ends else written
        if self.tokenizer is None:
            return tuple(ids)
        text = Continuation(self.tokenizer, (), self.stops)
        text.read(ids)
        return text.text.strip()

    def texts(self) -> list[Continuation] | None:
        """The texts of the answers, not read yet."""
        if self.tokenizer is None:
            return None
        return [self._text(question) for question in self.questions]

    def _text(self, question: Question) -> Continuation:
        assert self.tokenizer is not None, "texts need it"
        before = question.suffix or question.segments[-1]
        return Continuation(self.tokenizer, (*question.prefix, *before), self.stops)
