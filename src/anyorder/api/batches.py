"""Prompts that are written batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from anyorder.api.dispatch import Order, decoder_of, prompts_for, text_of
from anyorder.api.images import Images, as_tokens
from anyorder.api.output import Finished
from anyorder.api.text import Continuation, Prompt, stop_strings
from anyorder.decoding.beams import write_by_beam_search
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import Generation, Recorder, Step
from anyorder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama

Watch = Callable[[Step], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How texts are written; see `anyorder.generate`.

    Raises:
        UserError: a number that cannot be, or options that exclude each other.
    """

    order: Order | None
    sampling: Sampling
    max_new_tokens: int
    stop: str | Sequence[str] | None
    num_samples: int | None
    num_beams: int
    batch_size: int | None
    use_cache: bool
    compile: bool | Literal["auto"]

    def __post_init__(self) -> None:
        if self.num_samples is not None and not _is_count(self.num_samples):
            raise UserError(
                f"num_samples is {self.num_samples!r}: give a whole number above 0, or None for a text each."
            )
        if not _is_count(self.num_beams):
            raise UserError(f"num_beams is {self.num_beams!r}: give a whole number above 0; 1 is no beam search.")
        if self.batch_size is not None and not _is_count(self.batch_size):
            size = f"batch_size is {self.batch_size!r}"
            raise UserError(f"{size}: give a whole number above 0, or None for all texts at once.")
        draws = self.order.draws if isinstance(self.order, DiffusionSampler) else self.sampling.temperature > 0
        if self.num_samples not in (None, 1) and not draws and self.num_beams == 1:
            same = f"num_samples is {self.num_samples} at temperature 0, where all samples are the same"
            raise UserError(f"{same}: give a temperature above 0, or leave out num_samples.")
        for name, value, given, why in (
            ("temperature", self.sampling.temperature, self.sampling.temperature != 0, "draws nothing"),
            ("num_samples", self.num_samples, self.num_samples is not None, "finds one text"),
            ("compile", self.compile, self.compile is True, "is not compiled"),
        ):
            if self.num_beams > 1 and given:
                raise UserError(
                    f"{name} is {value!r} beside num_beams {self.num_beams}, but beam search {why}: leave out one."
                )


class Batches:
    """Prompts that are checked, and their texts batch by batch.

    Args:
        model, tokenizer, prompt: as in `anyorder.generate`.
        options: how.
        gap_tokens: tokens of each gap of a text; `max_new_tokens` unless given.
        images: of the prompts; None where there are none.

    Attributes:
        rows: what decoders are given for each text; samples of one prompt follow each other.
        single: whether a single prompt was given, not a list of them.

    Raises:
        UserError: a prompt or an option that cannot be.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: PreTrainedTokenizerBase | None,
        prompt: Prompt,
        options: Options,
        gap_tokens: int | None = None,
        images: Images | None = None,
    ) -> None:
        model = model if images is None else images.model
        self._model, self._tokenizer, self._options = model, tokenizer, options
        read = prompts_for(options.order, prompt, tokenizer, model.config, options.max_new_tokens, gap_tokens, images)
        samples = options.num_samples or 1
        self._decoders = {
            mode.name: decoder_of(
                mode, order, model, sampling=options.sampling, max_new_tokens=options.max_new_tokens,
                use_cache=options.use_cache, compile=options.compile, num_beams=options.num_beams, num_samples=samples,
            )
            for mode, order in {mode.name: (mode, order) for mode, order in read.modes}.values()
        }  # fmt: skip
        self.single = read.single
        self.rows = [ids for ids in read.rows for _ in range(samples)]
        self._modes = [mode.name for mode, _ in read.modes for _ in range(samples)]
        self._prompts = [text for text in read.texts for _ in range(samples)]
        self._stops = stop_strings(options.stop, tokenizer)
        self._tokens = [as_tokens(ids, model.config) for ids in self.rows]
        self._texts = None if tokenizer is None else [text_of(tokenizer, ids, self._stops) for ids in self._tokens]

    def write(self, watch: Watch | None = None) -> Iterator[Finished]:
        """Write one batch after the other; `watch` is called with each step of a decoder."""
        size = self._options.batch_size or len(self.rows)
        for start in range(0, len(self.rows), size):
            rows = range(start, min(start + size, len(self.rows)))
            texts = None if self._texts is None else [self._texts[row] for row in rows]
            yield Finished.of(self._generation(rows, watch), texts, [self._prompts[row] for row in rows])

    def _generation(self, rows: range, watch: Watch | None) -> Generation:
        """The rows of each mode at once, and then in their order again."""
        by_mode = {name: [row for row in rows if self._modes[row] == name] for name in self._decoders}
        parts = [self._written(name, of_mode, watch) for name, of_mode in by_mode.items() if of_mode]
        places = [row for of_mode in by_mode.values() for row in of_mode]
        return Generation.join(parts).select([places.index(row) for row in rows])

    def _written(self, mode: str, rows: Sequence[int], watch: Watch | None) -> Generation:
        prompts = [self.rows[row] for row in rows]
        condition = self._stopped if self._stops else None
        if self._options.num_beams == 1:
            recorder = Recorder([self._tokens[row] for row in rows], rows, self._model.config.eos_token_ids)
            for step in recorder.watch(self._decoders[mode](prompts, rows, condition)):
                if watch is not None:
                    watch(step)
            return recorder.generation()
        generation = write_by_beam_search(
            self._model, prompts, beams=self._options.num_beams, max_new_tokens=self._options.max_new_tokens,
            repetition_penalty=self._options.sampling.repetition_penalty, stop=condition,
            use_cache=self._options.use_cache, rows=rows,
        )  # fmt: skip
        return replace(generation, sequences=[as_tokens(ids, self._model.config) for ids in generation.sequences])

    def _stopped(self, row: int, written: Sequence[int]) -> bool:
        assert self._tokenizer is not None, "stop strings need it"
        assert self._texts is not None
        # Beams are alternatives, none of which reads on where another one ended.
        beams = self._options.num_beams > 1
        text = Continuation(self._tokenizer, self._tokens[row], self._stops) if beams else self._texts[row]
        return text.read(written)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
