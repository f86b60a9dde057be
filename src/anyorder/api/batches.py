"""Prompts that are written batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from anyorder.api.output import Finished
from anyorder.api.prompts import Prompt, prompts_for
from anyorder.api.text import Continuation, stop_strings, text_of
from anyorder.decoding.trace import Generation, Recorder, Step
from anyorder.modes import Options, decoder_of
from anyorder.parallel import Processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama

Watch = Callable[[Step], None]


class Batches:
    """Prompts that are checked, and their texts batch by batch.

    Args:
        model, tokenizer, prompt: as in `anyorder.generate`.
        options: how.
        gap_tokens: tokens of each gap of a text; `max_new_tokens` unless given.

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
    ) -> None:
        self._model, self._tokenizer, self._options = model, tokenizer, options
        read = prompts_for(options.order, prompt, tokenizer, model.config, options.max_new_tokens, gap_tokens)
        samples = options.num_samples or 1
        modes = {mode.name: (mode, order) for mode, order in read.modes}
        self._decoders = {name: decoder_of(mode, order, model, options) for name, (mode, order) in modes.items()}
        self.single = read.single
        self.rows = [ids for ids in read.rows for _ in range(samples)]
        self._modes = [mode.name for mode, _ in read.modes for _ in range(samples)]
        self._prompts = [text for text in read.texts for _ in range(samples)]
        self._stops = stop_strings(options.stop, tokenizer)
        self._texts = None if tokenizer is None else [text_of(tokenizer, ids, self._stops) for ids in self.rows]

    def write(self, watch: Watch | None = None, processes: Processes | None = None) -> Iterator[Finished]:
        """Write one batch after the other; call `watch` with each step of a decoder.

        Of several processes each writes its own batches, of equally many texts where `batch_size` allows it.
        """
        size = self._options.batch_size or len(self.rows)
        starts: Iterable[int] = range(0, len(self.rows), size)
        if processes is not None:
            size = min(size, -(-len(self.rows) // processes.mesh["data"].size()))
            starts = processes.own(range(0, len(self.rows), size))
        stop = self._stopped if self._stops else None
        for start in starts:
            sample_ids = range(start, min(start + size, len(self.rows)))
            # The texts of each mode are written at once, and then all are in the order of their prompts again.
            generations, written = [], []
            for mode, decoder in self._decoders.items():
                own = [sample_id for sample_id in sample_ids if self._modes[sample_id] == mode]
                if not own:
                    continue
                prompts = [self.rows[sample_id] for sample_id in own]
                recorder = Recorder(prompts, own, self._model.config.eos_token_ids)
                for step in recorder.watch(decoder(prompts, own, stop)):
                    if watch is not None:
                        watch(step)
                generations.append(recorder.generation())
                written += own
            generation = Generation.join(generations).select([written.index(sample_id) for sample_id in sample_ids])
            texts = None if self._texts is None else [self._texts[sample_id] for sample_id in sample_ids]
            yield Finished.of(generation, texts, [self._prompts[sample_id] for sample_id in sample_ids])

    def _stopped(self, sample_id: int, written: Sequence[int]) -> bool:
        assert self._tokenizer is not None, "stop strings need it"
        assert self._texts is not None
        # Beams are alternatives, none of which reads on where another one ended.
        beams = self._options.num_beams > 1
        text = Continuation(self._tokenizer, self.rows[sample_id], self._stops) if beams else self._texts[sample_id]
        return text.read(written)
