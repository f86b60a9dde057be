"""One question in several phrasings, text in, text out: where tokenizer and fusion meet."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.api.dispatch import Order, decoder_of, resolve
from anyorder.api.images import Images, as_tokens
from anyorder.api.output import Finished, Output, Stream, pieces
from anyorder.api.phrasings import Part, Phrasings, read_questions
from anyorder.api.text import Continuation, stop_strings
from anyorder.decoding.fusion.attention_share import segment_shares
from anyorder.decoding.fusion.canvases import FusedCanvases
from anyorder.decoding.fusion.decoder import fusion_steps
from anyorder.decoding.fusion.ensembles import MEMBER
from anyorder.decoding.fusion.question import UNWEIGHED, Fusion, Question, check_questions
from anyorder.decoding.fusion.scores import best, weigh
from anyorder.decoding.fusion.store import SegmentStore
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, Recorder, Step, Stop, collect
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.modes import LEFT_TO_RIGHT
from anyorder.utils.annotations import checked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.decoding.fusion.weighting import Correction


@dataclass(frozen=True, repr=False)
class FusedOutput(Output):
    """What `fuse` wrote.

    Attributes:
        attention_share: for each phrasing the share of the answer's attention that it got, the mean over tokens, layers
            and heads; what is missing to 1 went to prefix, suffix and the answer itself. A list of such lists for
            several questions, None unless wanted.
    """

    attention_share: list[float] | list[list[float]] | None = None


Weights = str | Sequence[float] | Sequence[Sequence[float]]


@checked("phrasings", "prefix", "suffix", "separator", "weights", "correction", "order", "stop", "images")
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
    images: Sequence[Any] | None = None,
) -> FusedOutput:
    """Answer a question in several phrasings, or each of a list of such questions.

    Every phrasing is read by itself, behind the prefix; suffix and answer see all of them. Text is made token
    ids part by part, each as text that goes on: let words begin with their space, such as the suffix " A:".

    Args:
        model: the network.
        tokenizer: of the network; may be None where all parts are token ids.
        phrasings: of one question, a list of strings or of lists of token ids; a list of such lists for several
            questions, with any numbers of phrasings of any lengths. Nothing is added to token ids.
        prefix: text before each phrasing, such as examples; one for all questions, or a list of one for each.
        suffix: text behind all of them, such as " A:"; likewise. Without it no token sees all phrasings before
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
        store: a folder that keeps the keys of prefixes and phrasings, which are then not read again.
        attention_share: whether to measure how much attention each phrasing got, which takes a pass more.
        use_cache: False reads the whole masked sequence again for each token (slow reference path).
        order: the mode, as `generate` takes it: from left to right, in any order, or by masked diffusion,
            where the whole answer sees all phrasings while it is written; the network's default unless given. Methods
            other than "attention", beams, stored parts and scores of phrasings are for writing from left to right.
        images: of the prefix, which all phrasings ask about, as `generate` takes those of a prompt; for several
            questions, a list for each.

    Returns:
        As `generate`, with an entry for each question instead of each prompt. `sequences` hold prefix, all
        phrasings that were used, suffix and answer.

    Raises:
        UserError: phrasings or an option that cannot be, in a sentence that names the remedy.
    """
    for name, value in (("num_beams", num_beams), ("batch_size", 1 if batch_size is None else batch_size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name} is {value!r}: give a whole number above 0.")
    if num_beams > 1 and temperature != 0:
        raise UserError(
            f"temperature is {temperature} beside num_beams {num_beams}, but beams draw nothing: leave out one."
        )
    if attention_share and method != "attention":
        raise UserError(f"attention_share is True with the method {method!r}: leave it out, or take 'attention'.")
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed
    )
    fuser = _Fuser(
        model, tokenizer, read_questions(phrasings, tokenizer, prefix, suffix, separator, weights),
        Fusion(method=method, positions=positions, correction=correction), sampling, order=order,
        max_new_tokens=max_new_tokens, stop=stop, weights=weights, store=store, use_cache=use_cache, images=images,
    )  # fmt: skip
    fuser.refuse_unless_causal({f"num_beams {num_beams}": num_beams != 1, "attention_share": attention_share})
    shares: list[list[float]] = []

    def write(rows: range) -> Generation:
        questions, kept = fuser.weighed(rows, keep)
        prompts, steps = fuser.steps(questions, rows, fuser.condition(questions, rows, num_beams > 1), num_beams)
        generation = collect(steps, prompts, rows, model.config.eos_token_ids)
        if attention_share:
            of_kept = segment_shares(fuser.model, questions, fuser.fusion, generation.written)
            for row, indices, of_question in zip(rows, kept, of_kept, strict=True):
                share_of = dict(zip(indices, of_question, strict=True))
                shares.append([share_of.get(index, 0.0) for index in range(len(fuser.questions[row].segments))])
        return generation

    total = len(fuser.questions)
    starts = range(0, total, batch_size or total)
    generation = Generation.join([write(range(start, min(start + starts.step, total))) for start in starts])
    texts = None if tokenizer is None else [fuser.text(question) for question in fuser.questions]
    output = Finished.of(generation, texts).output(single=fuser.single)
    of_output = None if not attention_share else shares[0] if fuser.single else shares
    return FusedOutput(**vars(output), attention_share=of_output)


@checked("phrasings", "prefix", "suffix", "separator", "weights", "correction", "order", "stop", "images")
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
    images: Sequence[Any] | None = None,
) -> Stream:
    """Answer a single question as `fuse` does, and yield the answer piece by piece while it is written.

    The arguments are those of `fuse`. Votes and beam search, which only know at the end, are for `fuse` alone.

    Raises:
        UserError: what `fuse` refuses, or what cannot be streamed; at once, not with the first piece.
    """
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed
    )
    fuser = _Fuser(
        model, tokenizer, read_questions(phrasings, tokenizer, prefix, suffix, separator, weights),
        Fusion(method=method, positions=positions, correction=correction), sampling, order=order,
        max_new_tokens=max_new_tokens, stop=stop, weights=weights, store=store, use_cache=use_cache, images=images,
    )  # fmt: skip
    if method == "vote":
        raise UserError("method is 'vote', but only whole answers can be counted: use fuse, or another method.")
    if tokenizer is None:
        raise UserError("tokenizer is None: give the tokenizer, which makes the text to be streamed, or use fuse.")
    if not fuser.single:
        raise UserError(f"phrasings are of {len(fuser.questions)} questions: give those of one, or use fuse.")
    questions, _ = fuser.weighed(range(1), keep)
    text = Continuation(tokenizer, as_tokens(questions[0].layout(positions).token_ids, model.config), fuser.stops)
    prompts, steps = fuser.steps(questions, range(1), lambda _, written: text.read(written))
    return Stream(pieces(steps, Recorder(prompts, range(1), model.config.eos_token_ids), text))


class _Fuser:
    """Answers questions in the way that one call names; arguments as in `fuse`."""

    def __init__(
        self,
        model: Llama,
        tokenizer: PreTrainedTokenizerBase | None,
        questions: tuple[list[Question], bool],
        fusion: Fusion,
        sampling: Sampling,
        *,
        order: Order | None,
        max_new_tokens: int,
        stop: str | Sequence[str] | None,
        weights: Weights | None,
        store: str | Path | None,
        use_cache: bool,
        images: Sequence[Any] | None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.questions, self.single = questions
        if images is not None:
            if store is not None:
                raise UserError(
                    f"store {str(store)!r} is given beside images, whose keys no store keeps: leave it out."
                )
            seen = Images(model, tokenizer, images)
            prefixes = seen.place(
                [question.prefix for question in self.questions], self.single, "the prefix of question"
            )
            self.model = seen.model
            self.questions = [
                replace(question, prefix=tuple(prefix))
                for question, prefix in zip(self.questions, prefixes, strict=True)
            ]
        self.fusion, self.sampling = fusion, sampling
        self.mode, self.order = resolve(order, model.config)
        self.max_new_tokens, self.use_cache = max_new_tokens, use_cache
        if self.mode.name == LEFT_TO_RIGHT.name:
            sampling.check_filters()
        self.stops = stop_strings(stop, tokenizer)
        self.score = weights if isinstance(weights, str) else None
        self.limits = check_questions(model.config, self.questions, fusion, max_new_tokens, range(len(self.questions)))
        self.refuse_unless_causal(
            {
                f"method {fusion.method!r}": fusion.method != "attention", f"store {str(store)!r}": store is not None,
                f"weights {self.score!r}": self.score is not None,
            }
        )  # fmt: skip
        self.store = None if store is None else SegmentStore(store, model)

    def refuse_unless_causal(self, given: Mapping[str, bool]) -> None:
        """Refuse the options, by name, that are given although only answers from left to right have them."""
        for name in (name for name, is_given in given.items() if is_given and self.mode.name != LEFT_TO_RIGHT.name):
            raise UserError(
                f"{name} is for answers from left to right, but this is one by {self.mode.name!r}: leave it out."
            )

    def weighed(self, rows: range, keep: int | None) -> tuple[list[Question], list[list[int]]]:
        """These questions with their weights and the phrasings that are kept, and the indices of those."""
        questions = [self.questions[row] for row in rows]
        if self.score is not None:
            questions = weigh(self.model, questions, self.score)
        kept = [list(range(len(question.segments))) for question in questions]
        if keep is not None:
            kept = [best(question, keep) for question in questions]
            questions = [question.only(indices) for question, indices in zip(questions, kept, strict=True)]
            if self.fusion.method in UNWEIGHED:
                questions = [replace(question, weights=None) for question in questions]
        return questions, kept

    def steps(
        self, questions: Sequence[Question], rows: range, stop: Stop | None, beams: int = 1
    ) -> tuple[Sequence[Sequence[int]], Iterator[Step]]:
        """The tokens of the prompts or canvases of these questions, and the steps that write their answers."""
        if self.mode.name == LEFT_TO_RIGHT.name:
            steps = fusion_steps(
                self.model, questions, fusion=self.fusion, max_new_tokens=self.max_new_tokens, sampling=self.sampling,
                stop=stop, rows=rows, beams=beams, use_cache=self.use_cache, store=self.store,
                same_answer=self.same_answer,
            )  # fmt: skip
            prompts = [question.layout(self.fusion.positions).token_ids for question in questions]
            return [as_tokens(prompt, self.model.config) for prompt in prompts], steps
        fused = FusedCanvases(questions, self.fusion, [self.limits[row] for row in rows], self.model.device)
        decoder = decoder_of(
            self.mode, self.order, self.model, sampling=self.sampling, max_new_tokens=self.max_new_tokens,
            use_cache=self.use_cache, compile="auto", fused=fused,
        )  # fmt: skip
        tokens = [as_tokens(canvas, self.model.config) for canvas in fused.canvases]
        return tokens, decoder(fused.canvases, rows, stop)

    def condition(self, questions: Sequence[Question], rows: range, beams: bool) -> Stop | None:
        """Whether an answer has come to a stop string; None where there is none."""
        if not self.stops:
            return None
        texts: dict[int, Continuation] = {}

        def stopped(row: int, written: Sequence[int]) -> bool:
            # Members of a vote have numbers of their own. Beams are alternatives, none of which reads on where another
            # one ended.
            if row not in texts or beams:
                texts[row] = self.text(questions[row % MEMBER - rows.start])
            return texts[row].read(written)

        return stopped

    def same_answer(self, written: Sequence[int]) -> Hashable:
        """The key of an answer: answers that a person calls the same have the same."""
        ends = self.model.config.eos_token_ids
        ids = written[:-1] if written[-1] in ends else written
        if self.tokenizer is None:
            return tuple(ids)
        text = Continuation(self.tokenizer, (), self.stops)
        text.read(ids)
        return text.text.strip()

    def text(self, question: Question) -> Continuation:
        """The text of the answer to a question, of which nothing is read yet."""
        assert self.tokenizer is not None, "texts need it"
        before = question.suffix or question.segments[-1]
        return Continuation(self.tokenizer, as_tokens((*question.prefix, *before), self.model.config), self.stops)
