"""Beam search for fused answers: transformers' own, over what a `Reader` scores.

Beams of a question share what was read before the answer, so only the answers' part of a cache is reordered.

Shapes: B beams of all questions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList
from transformers.modeling_outputs import CausalLMOutputWithPast

from anyorder.decoding.fusion.decoder import fusion_reader
from anyorder.decoding.fusion.question import Fusion, Question, check_questions, fused_layouts
from anyorder.decoding.fusion.reader import Reader
from anyorder.decoding.fusion.store import SegmentStore
from anyorder.decoding.left_to_right.beams import Watch, search_config
from anyorder.decoding.trace import Generation, Step, Stop, StopReason, Written, collect
from anyorder.errors import UserError
from anyorder.huggingface import AnyOrderForCausalLM, PastKeyValues
from anyorder.huggingface.versions import CACHE_NAME

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


def write_fused_by_beam_search(
    model: Llama,
    questions: Sequence[Question],
    *,
    fusion: Fusion,
    beams: int,
    max_new_tokens: int,
    repetition_penalty: float = 1.0,
    stop: Stop | None = None,
    use_cache: bool = True,
    store: SegmentStore | None = None,
    rows: Sequence[int] | None = None,
) -> Generation:
    """Answers every question by the best of the texts that so many beams find, as `write_by_beam_search` does.

    Args:
        model, questions, fusion, max_new_tokens, use_cache, store, rows: as in `write_fused`.
        beams: texts that are followed at a time per question, above 1.
        repetition_penalty: as in `Sampling`, but on log-probabilities, as transformers' beam search has it.
        stop: asked after each token of each beam, so it must not expect that what was written grows.

    Raises:
        UserError: as `write_fused`, or the method is "vote".
    """
    if fusion.method == "vote":
        raise UserError(f"num_beams is {beams} with the method 'vote', which counts answers: leave out one.")
    rows = range(len(questions)) if rows is None else rows
    limits = check_questions(model.config, questions, fusion, max_new_tokens, rows)
    # With transformers, a batch has one limit.
    groups = [[q for q in range(len(questions)) if limits[q] == limit] for limit in sorted(set(limits))]
    steps = (
        _search(
            model, [questions[q] for q in group], [rows[q] for q in group], fusion, beams, limits[group[0]],
            repetition_penalty, stop, use_cache, store,
        )
        for group in groups
    )  # fmt: skip
    prompts = [layout.token_ids for layout in fused_layouts(questions, fusion.positions)]
    return collect(steps, prompts, rows, model.config.eos_token_ids)


@torch.no_grad()
def _search(
    model: Llama,
    questions: Sequence[Question],
    rows: Sequence[int],
    fusion: Fusion,
    beams: int,
    max_new_tokens: int,
    repetition_penalty: float,
    stop: Stop | None,
    use_cache: bool,
    store: SegmentStore | None,
) -> Step:
    """All that is written to questions with the same limit; in transformers' form they are padded on the left."""
    prompts = [layout.token_ids for layout in fused_layouts(questions, fusion.positions)]
    width = max(map(len, prompts))
    face = _Face.over(model, fusion_reader(model, questions, fusion, max_new_tokens, use_cache, store), beams)
    # A token that the question has is padding that transformers' repetition penalty, which looks at it, may see.
    padded = [[prompt[0]] * (width - len(prompt)) + [*prompt] for prompt in prompts]
    found = face.generate(
        torch.tensor(padded, device=model.device),
        cache=face.past,
        generation_config=search_config(model.config, beams, max_new_tokens, repetition_penalty=repetition_penalty),
        stopping_criteria=StoppingCriteriaList([Watch(stop, rows, width)]),
    )
    events: list[Written] = []
    stopped: dict[int, StopReason] = {}
    for row, prompt, ids, parents in zip(
        rows, prompts, found.sequences[:, width:].tolist(), found.beam_indices.tolist(), strict=True
    ):
        answer = [(token_id, beam) for token_id, beam in zip(ids, parents, strict=True) if beam >= 0]
        for step, (token_id, beam) in enumerate(answer):
            log_prob = float(face.log_probs[step][beam, token_id])
            events.append(Written(step, row, len(prompt) + step, token_id, log_prob))
        written = [token_id for token_id, _ in answer]
        if written[-1] in model.config.eos_token_ids:
            stopped[row] = "end"
        else:
            stopped[row] = "stop" if stop is not None and stop(row, written) else "length"
    return Step(tuple(sorted(events)), stopped, passes=face.reader.passes)


class _Past(PastKeyValues):
    """What transformers takes for the keys and values that its beams have read."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.columns = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.reader.reorder(beam_idx.tolist())


class _Face(AnyOrderForCausalLM):
    """The network as transformers' beam search knows networks, but a reader scores its tokens.

    Attributes:
        reader: scores the beams of all questions.
        past: stands for its cache.
        log_probs: of each pass, `[beams, vocabulary]`.
    """

    reader: Reader
    past: _Past
    log_probs: list[Tensor]

    @classmethod
    def over(cls, model: Llama, reader: Reader, beams: int) -> Any:
        """The face of a network whose reader has read as many questions as there shall be groups of beams."""
        network = AnyOrderForCausalLM.of(model)
        with torch.device("meta"):
            face = cls(network.config)
        face.model, face.lm_head = network.model, network.lm_head
        face.reader, face.past, face.log_probs = reader, _Past(reader), []
        reader.select([question for question in range(len(reader.first())) for _ in range(beams)])
        return face.eval()

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> bool:  # type: ignore[override]
        return True  # it is given

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return {"input_ids": input_ids[:, -1:], CACHE_NAME: self.past}

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        cache: _Past | None = None,
        return_dict: bool = True,
        past_key_values: _Past | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits `[beams, 1, vocabulary]` of the token after these, the last of each beam."""
        logits_BV = self.reader.next(input_ids[:, -1].tolist()) if self.log_probs else self.reader.first()
        self.log_probs.append(logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)).log_softmax(-1))
        return CausalLMOutputWithPast(None, logits_BV.unsqueeze(1), self.past)
