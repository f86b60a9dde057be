"""Prompts without end, through the engine: texts begin as others end, and come out in the order of their prompts."""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anyorder.api.images import images_of_messages, seen
from anyorder.api.output import Finished, Output
from anyorder.api.prompts import Prompts, prompts_for
from anyorder.api.text import GAP, stop_strings
from anyorder.errors import UserError
from anyorder.model.compiled import with_packages
from anyorder.modes import Options, decoder_of, resolve
from anyorder.serving.dialogue import Encoder
from anyorder.serving.engine import Engine, Limits
from anyorder.serving.groups.sample import Scores
from anyorder.serving.plans import Plan
from anyorder.serving.samples import samples_of
from anyorder.serving.tasks import Task
from anyorder.utils.numbers import check_positive

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.llama import Llama

AHEAD = 4
"""So many times the texts that are written at a time are read ahead, or wait for one before them to end."""

UNLIMITED = 1e9
"""Seconds of a prompt: thirty years."""

NUMBERED = re.compile(r"\bprompt (\d+)\b")
"""What messages call a prompt of a list."""


class ManyPrompts:
    """Writes prompts as they come, each as `anyorder.generate` would write it in a list of all.

    Args:
        model, tokenizer: the network and its tokenizer.
        options: how texts are written; `batch_size` is the number of texts that are written at a time.
        gap_tokens: tokens of each gap of a text; `max_new_tokens` unless given.
        images: that each prompt has; None where there are none, or messages have their own.

    Attributes:
        passes: forward passes so far.

    Raises:
        UserError: options that cannot be.
    """

    def __init__(
        self, model: Llama, tokenizer: PreTrainedTokenizerBase | None, options: Options, *,
        gap_tokens: int | None = None, images: Sequence[Any] | None = None,
    ) -> None:  # fmt: skip
        check_positive("max_new_tokens", options.max_new_tokens)
        if gap_tokens is not None:
            check_positive("gap_tokens", gap_tokens)
        self._model = model if options.compile is False else with_packages(model, making=False)
        self._tokenizer, self._options = tokenizer, options
        self._gap_tokens, self._images = gap_tokens, images
        self._encoder = None if tokenizer is None else Encoder(tokenizer)
        self._stops = stop_strings(options.stop, tokenizer)
        decoder_of(*resolve(options.order, model.config), model, options)
        self._samples = options.num_samples or 1
        running = max(options.batch_size or 1, self._samples)
        self._ahead = AHEAD * running
        self._engine = Engine(Limits(running=running, queued=self._ahead, seconds=UNLIMITED))

    @property
    def passes(self) -> int:
        """See above."""
        return self._engine.counts.passes

    def write(self, prompts: Iterable[tuple[Any, str]], first: int = 0) -> Generator[Output]:
        """Yield the texts of each prompt, in order, as soon as those before them are complete. To be called once.

        Args:
            prompts: each with its place, such as "line 3 of 'prompts.txt'", which messages name.
            first: number of the first prompt, which decides its draws with the seed.

        Raises:
            UserError: a prompt that cannot be, once all before it are complete.
        """
        tasks: deque[tuple[str, Task]] = deque()
        mistake: UserError | None = None
        try:
            for number, (prompt, place) in enumerate(prompts, start=first):
                try:
                    with named([place]):
                        plan = self._plan(number, prompt)
                except UserError as error:
                    mistake = error
                    break
                if len(tasks) == self._ahead:
                    yield _output(*tasks.popleft())
                tasks.append((place, self._submit(plan)))
                while tasks and tasks[0][1].done.is_set():
                    yield _output(*tasks.popleft())
            while tasks:
                yield _output(*tasks.popleft())
        finally:
            self._engine.close(drain=False)
        if mistake is not None:
            raise mistake

    def _submit(self, plan: Plan) -> Task:
        return self._engine.submit(Task(size=len(plan.prompts), open=lambda: samples_of(plan, self._tokenizer)))

    def _plan(self, number: int, prompt: Any) -> Plan:
        options, config = self._options, self._model.config
        prompts, images, of_each = [prompt], None, None if self._images is None else [self._images]
        if of_each is not None or images_of_messages(prompts) is not None:
            encode = functools.partial(seen, self._model, self._tokenizer, prompts, of_each)
            prompts, images = self._engine.call(encode).result()
        model = self._model if images is None else images.model
        gap_tokens = self._gap_tokens if isinstance(prompt, str) and GAP in prompt else None

        def read_by(tokenizer: PreTrainedTokenizerBase | None) -> Prompts:
            return prompts_for(options.order, prompts, tokenizer, config, options.max_new_tokens, gap_tokens, images)

        read = read_by(None) if self._encoder is None else self._encoder.call(read_by)
        [(mode, order)] = read.modes
        decoder_of(mode, order, model, options)
        return Plan(
            model=model, prompts=list(read.rows) * self._samples, modes=list(read.modes) * self._samples,
            texts=list(read.texts) * self._samples, sampling=options.sampling, new_tokens=options.max_new_tokens,
            stops=self._stops, scores=Scores(), follows=bool(self._stops), first_id=number * self._samples,
        )  # fmt: skip


def _output(place: str, task: Task) -> Output:
    """Wait for the texts of a prompt."""
    with named([place]):
        return Finished.join(task.finished()).output(single=False)


@contextmanager
def named(places: Sequence[str]) -> Iterator[None]:
    """In the messages of mistakes within the context, call the prompts of a list by their places."""
    try:
        yield
    except UserError as error:
        numbered = [number for number in map(int, NUMBERED.findall(str(error))) if number < len(places)]
        if not numbered:
            raise UserError(f"{' to '.join(dict.fromkeys((places[0], places[-1])))}: {error}") from None
        at = dict(zip(map(str, range(len(places))), places, strict=True))
        raise UserError(NUMBERED.sub(lambda found: at.get(found[1], found[0]), str(error))) from None
