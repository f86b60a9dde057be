"""Prompts that are written batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from anyorder.api.images import Images, as_tokens
from anyorder.api.output import Finished
from anyorder.api.prompts import Prompt, prompts_for
from anyorder.api.text import Continuation, detokenizer_of, stop_strings
from anyorder.decoding.trace import Generation, Recorder, Step
from anyorder.modes import Options, decoder_of
from anyorder.parallel import Processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama

Watch = Callable[[Step], None]


def in_batches(count: int, size: int | None) -> Iterator[range]:
    """Yield the sample ids from 0 to `count`, exclusive, `size` at a time; all at once where that is None."""
    size = size or max(count, 1)
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


class Batches:
    """Prompts that are checked, and their texts batch by batch.

    Args:
        model, tokenizer, prompt: as in `anyorder.generate`.
        options: how texts are written.
        gap_tokens: tokens of each gap of a text; `max_new_tokens` unless given.
        images: of the prompts; None where there are none.
        sample_ids: number of each text, which decides its draws with the seed; 0, 1, 2, ... unless given.

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
        sample_ids: Sequence[int] | None = None,
    ) -> None:
        model = model if images is None else images.model
        self._model, self._tokenizer, self._options = model, tokenizer, options
        read = prompts_for(options.order, prompt, tokenizer, model.config, options.max_new_tokens, gap_tokens, images)
        samples = options.num_samples or 1
        modes = {mode.name: (mode, order) for mode, order in read.modes}
        self._decoders = {name: decoder_of(mode, order, model, options) for name, (mode, order) in modes.items()}
        self.single = read.single
        self.rows = [ids for ids in read.rows for _ in range(samples)]
        self._sample_ids = range(len(self.rows)) if sample_ids is None else sample_ids
        self._entry_of = {sample_id: entry for entry, sample_id in enumerate(self._sample_ids)}
        self._modes = [mode.name for mode, _ in read.modes for _ in range(samples)]
        self._prompts = [text for text in read.texts for _ in range(samples)]
        self._stops = stop_strings(options.stop, tokenizer)
        self._tokens = [as_tokens(ids, model.config) for ids in self.rows]
        self._texts = (
            None if tokenizer is None else [detokenizer_of(tokenizer, ids, self._stops) for ids in self._tokens]
        )

    def write(self, watch: Watch | None = None, processes: Processes | None = None) -> Iterator[Finished]:
        """Write one batch after the other; call `watch` with each step of a decoder.

        Of several processes each writes its own batches, of equally many texts where `batch_size` allows it.
        """
        stop = self._stopped if self._stops else None
        count, size = len(self.rows), self._options.batch_size
        if processes is not None:
            size = min(size or count, -(-count // processes.mesh["data"].size()))
        batches = list(in_batches(count, size))
        for entries in batches if processes is None else processes.own(batches):
            # The texts of each mode are written at once, and then all are in the order of their prompts again.
            generations, written = [], []
            for mode, decoder in self._decoders.items():
                own = [entry for entry in entries if self._modes[entry] == mode]
                if not own:
                    continue
                prompts = [self.rows[entry] for entry in own]
                sample_ids = [self._sample_ids[entry] for entry in own]
                tokens = [self._tokens[entry] for entry in own]
                recorder = Recorder(tokens, sample_ids, self._model.config.eos_token_ids)
                for step in recorder.watch(decoder(prompts, sample_ids, stop)):
                    if watch is not None:
                        watch(step)
                generations.append(recorder.generation())
                written += own
            generation = Generation.join(generations).select([written.index(entry) for entry in entries])
            texts = None if self._texts is None else [self._texts[entry] for entry in entries]
            yield Finished.of(generation, texts, [self._prompts[entry] for entry in entries])

    def _stopped(self, sample_id: int, written: Sequence[int]) -> bool:
        assert self._tokenizer is not None, "stop strings need it"
        assert self._texts is not None
        entry = self._entry_of[sample_id]
        # Beams are alternatives, none of which reads on where another one ended.
        beams = self._options.num_beams > 1
        text = Continuation(self._tokenizer, self._tokens[entry], self._stops) if beams else self._texts[entry]
        return text.update(written)
