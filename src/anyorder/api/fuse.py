"""One question in several phrasings, text in, text out: where tokenizer and fusion meet."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.api.batches import in_batches
from anyorder.api.images import Images, as_tokens
from anyorder.api.output import Finished, Output, Stream, pieces
from anyorder.api.phrasings import Part, Phrasings, read_questions
from anyorder.api.text import Continuation, stop_strings
from anyorder.decoding.fusion.attention_share import segment_shares
from anyorder.decoding.fusion.canvases import FusedCanvases
from anyorder.decoding.fusion.decoder import fusion_steps
from anyorder.decoding.fusion.ensembles import MEMBER
from anyorder.decoding.fusion.layout import Question
from anyorder.decoding.fusion.method import UNWEIGHED, Fusion, check_questions
from anyorder.decoding.fusion.scores import best, weigh
from anyorder.decoding.fusion.store import SegmentStore
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, Recorder, Step, Stop, collect
from anyorder.errors import UserError
from anyorder.model.compiled import with_packages
from anyorder.model.llama import Llama
from anyorder.modes import Options, Order, decoder_of, resolve
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
        seed: of the random draws, together with the number of the question in the list; batches play no part.
        num_beams: above 1, beam search with this many beams, as in `generate`.
        batch_size: questions to answer at a time; all unless given.
        separator: what each phrasing ends with, such as a newline; it belongs to the phrasing.
        weights: how much each phrasing counts: numbers, a list of such for each question, "confidence" (of its own
            answer) or "likelihood" (of the phrasing); all the same unless given.
        keep: use only this many phrasings of the highest weights; all unless given.
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
    if attention_share and method != "attention":
        raise UserError(f"attention_share is True with the method {method!r}: leave it out, or take 'attention'.")
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed
    )
    options = Options(
        order=order, sampling=sampling, max_new_tokens=max_new_tokens, stop=stop, num_beams=num_beams,
        batch_size=batch_size, use_cache=use_cache,
    )  # fmt: skip
    questions, single = read_questions(phrasings, tokenizer, prefix, suffix, separator, weights)
    if images is not None:
        model, questions = _with_images(model, tokenizer, questions, images, single, store)
    fusion = Fusion(method=method, positions=positions, correction=correction)
    answers = _Answers(
        with_packages(model, making=False), tokenizer, questions, fusion, options, weights, keep, store, attention_share
    )
    generation, shares = answers.write()
    texts = None if tokenizer is None else [answers.detokenizer_of(question) for question in questions]
    output = Finished.of(generation, texts).output(single=single)
    return FusedOutput(**vars(output), attention_share=(shares[0] if single else shares) if attention_share else None)


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
    options = Options(order=order, sampling=sampling, max_new_tokens=max_new_tokens, stop=stop, use_cache=use_cache)
    questions, single = read_questions(phrasings, tokenizer, prefix, suffix, separator, weights)
    if images is not None:
        model, questions = _with_images(model, tokenizer, questions, images, single, store)
    fusion = Fusion(method=method, positions=positions, correction=correction)
    model = with_packages(model, making=False)
    answers = _Answers(model, tokenizer, questions, fusion, options, weights, keep, store)
    if method == "vote":
        raise UserError("method is 'vote', but only whole answers can be counted: use fuse, or another method.")
    if tokenizer is None:
        raise UserError("tokenizer is None: give the tokenizer, which makes the text to be streamed, or use fuse.")
    if not single:
        raise UserError(f"phrasings are of {len(questions)} questions: give those of one, or use fuse.")
    text = answers.detokenizer_of(questions[0])
    kept, _ = answers.weighed(range(1))
    prompts, steps = answers.steps(kept, range(1), lambda _, written: text.update(written))
    return Stream(pieces(steps, Recorder(prompts, range(1), model.config.eos_token_ids), text))


@dataclass
class _Answers:
    """The answers to the questions of one call; see `fuse`.

    Raises:
        UserError: a question or an option that cannot be.
    """

    model: Llama
    tokenizer: PreTrainedTokenizerBase | None
    questions: Sequence[Question]
    fusion: Fusion
    options: Options
    weights: Weights | None
    keep: int | None
    store: str | Path | None
    attention_share: bool = False

    def __post_init__(self) -> None:
        config, sample_ids = self.model.config, range(len(self.questions))
        self.mode, self.order = resolve(self.options.order, config)
        self.stops = stop_strings(self.options.stop, self.tokenizer)
        self.limits = check_questions(config, self.questions, self.fusion, self.options.max_new_tokens, sample_ids)
        self.score = self.weights if isinstance(self.weights, str) else None
        self._check_mode()
        self.segments = None if self.store is None else SegmentStore(self.store, self.model)

    def _check_mode(self) -> None:
        """Refuse what the mode of the answers cannot do."""
        if self.mode.kind.causal:
            self.options.sampling.check_filters()
            return
        causal_only = {
            f"method {self.fusion.method!r}": self.fusion.method != "attention",
            f"num_beams {self.options.num_beams}": self.options.num_beams > 1,
            f"weights {self.score!r}": self.score is not None,
            f"store {str(self.store)!r}": self.store is not None,
            "attention_share": self.attention_share,
        }
        for option in (option for option, is_given in causal_only.items() if is_given):
            raise UserError(
                f"{option} is for answers from left to right, but this is one by {self.mode.name!r}: leave it out."
            )

    def write(self) -> tuple[Generation, list[list[float]]]:
        """Write all answers, batch by batch; return them, and `FusedOutput.attention_share` where it is measured."""
        generations: list[Generation] = []
        shares: list[list[float]] = []
        for sample_ids in in_batches(len(self.questions), self.options.batch_size):
            questions, kept = self.weighed(sample_ids)
            prompts, steps = self.steps(questions, sample_ids, self._condition())
            generations.append(collect(steps, prompts, sample_ids, self.model.config.eos_token_ids))
            if self.attention_share:
                of_kept = segment_shares(self.model, questions, self.fusion, generations[-1].written)
                for sample_id, indices, of_question in zip(sample_ids, kept, of_kept, strict=True):
                    share_of = dict(zip(indices, of_question, strict=True))
                    count = len(self.questions[sample_id].segments)
                    shares.append([share_of.get(index, 0.0) for index in range(count)])
        return Generation.join(generations), shares

    def weighed(self, sample_ids: range) -> tuple[list[Question], list[list[int]]]:
        """Return these questions with their weights and the phrasings that are kept, and the indices of those."""
        questions = list(self.questions[sample_ids.start : sample_ids.stop])
        scored = questions if self.score is None else weigh(self.model, questions, self.score)
        if self.keep is None:
            return scored, [list(range(len(question.segments))) for question in questions]
        kept = [best(question, self.keep) for question in scored]
        asked = questions if self.fusion.method in UNWEIGHED else scored
        return [question.only(indices) for question, indices in zip(asked, kept, strict=True)], kept

    def steps(
        self, questions: Sequence[Question], sample_ids: range, stop: Stop | None
    ) -> tuple[Sequence[Sequence[int]], Iterator[Step]]:
        """Return the tokens of the prompts or canvases of these questions, and the steps that write their answers."""
        options = self.options
        if self.mode.kind.causal:
            steps = fusion_steps(
                self.model, questions, fusion=self.fusion, max_new_tokens=options.max_new_tokens,
                sampling=options.sampling, stop=stop, sample_ids=sample_ids, beams=options.num_beams,
                use_cache=options.use_cache, store=self.segments, same_answer=self._same_answer,
            )  # fmt: skip
            prompts = [question.layout(self.fusion.positions).token_ids for question in questions]
            return [as_tokens(prompt, self.model.config) for prompt in prompts], steps
        limits = self.limits[sample_ids.start : sample_ids.stop]
        fused = FusedCanvases(questions, self.fusion, limits, self.model.device)
        decoder = decoder_of(self.mode, self.order, self.model, options, fused)
        tokens = [as_tokens(canvas, self.model.config) for canvas in fused.canvases]
        return tokens, decoder(fused.canvases, sample_ids, stop)

    def _condition(self) -> Stop | None:
        """Return the stop condition of answers; None without stop strings."""

        def new_text(sample_id: int) -> Continuation:
            # Members of a vote have sample ids of their own.
            return self.detokenizer_of(self.questions[sample_id % MEMBER])

        # Beams are alternatives, none of which reads on where another one ended.
        text = new_text if self.options.num_beams > 1 else functools.cache(new_text)
        return (lambda sample_id, written: text(sample_id).update(written)) if self.stops else None

    def _same_answer(self, written: Sequence[int]) -> Hashable:
        """Return the key of an answer: its text up to end and stop, without white space around it."""
        ids = written[:-1] if written[-1] in self.model.config.eos_token_ids else written
        if self.tokenizer is None:
            return tuple(ids)
        text = Continuation(self.tokenizer, (), self.stops)
        text.update(ids)
        return text.text.strip()

    def detokenizer_of(self, question: Question) -> Continuation:
        """Return the incremental detokenizer of the answer to a question."""
        assert self.tokenizer is not None, "texts need it"
        before = question.suffix or question.segments[-1]
        return Continuation(self.tokenizer, as_tokens((*question.prefix, *before), self.model.config), self.stops)


def _with_images(
    model: Llama, tokenizer: PreTrainedTokenizerBase | None, questions: Sequence[Question], images: Sequence[Any],
    single: bool, store: str | Path | None,
) -> tuple[Llama, list[Question]]:  # fmt: skip
    """Return the network with the rows of images, and the questions with these in their prefixes."""
    if store is not None:
        raise UserError(f"store {str(store)!r} is given beside images, whose keys no store keeps: leave it out.")
    read = Images(model, tokenizer, images)
    prefixes = read.place([question.prefix for question in questions], single, "the prefix of question")
    pairs = zip(questions, prefixes, strict=True)
    return read.model, [replace(question, prefix=tuple(prefix)) for question, prefix in pairs]
