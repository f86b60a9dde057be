"""Beam search, left to right: transformers' own, on this network.

Shapes: B rows of the batch, R tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from anyorder.decoding.checks import check_max_new_tokens, check_prompts
from anyorder.decoding.trace import Generation, Step, Stop, StopReason, Written, collect
from anyorder.huggingface import AnyOrderForCausalLM
from anyorder.utils.ragged import pad_right
from anyorder.visibility import causal

if TYPE_CHECKING:
    from anyorder.model.config import ModelConfig
    from anyorder.model.llama import Llama


def write_by_beam_search(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    max_new_tokens: int,
    repetition_penalty: float = 1.0,
    stop: Stop | None = None,
    use_cache: bool = True,
    rows: Sequence[int] | None = None,
) -> Generation:
    """Continues every prompt by the best of the texts that so many beams find.

    The best is that with the highest log-probability per token. In the trace, a token's log-probability is the
    network's own, and the pass that computes it is counted.

    Args:
        model: the network; its configuration names the end tokens and the longest text.
        prompts: token ids, one sequence per prompt, of any lengths.
        beams: texts that are followed at a time per prompt, above 1.
        max_new_tokens: tokens to write per prompt at most; nobody writes beyond the longest text either.
        repetition_penalty: as in `Sampling`, but on log-probabilities, as transformers' beam search has it.
        stop: asked after each token of each beam, so it must not expect that what was written grows.
        use_cache: False computes all rows again for each token.
        rows: number of each prompt; 0, 1, 2, ... unless given.

    Raises:
        UserError: as `write_left_to_right`.
    """
    rows = range(len(prompts)) if rows is None else rows
    check_prompts(model.config, prompts, rows)
    check_max_new_tokens(max_new_tokens)
    # With transformers, a batch has one limit.
    limits = [min(max_new_tokens, model.config.context_length - len(prompt)) for prompt in prompts]
    groups = [[b for b in range(len(prompts)) if limits[b] == limit] for limit in sorted(set(limits))]
    steps = (
        _search(
            model, [prompts[b] for b in group], [rows[b] for b in group], beams, limits[group[0]], repetition_penalty,
            stop, use_cache,
        )
        for group in groups
    )  # fmt: skip
    return collect(steps, prompts, rows, model.config.eos_token_ids)


@torch.no_grad()
def _search(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
    beams: int,
    max_new_tokens: int,
    repetition_penalty: float,
    stop: Stop | None,
    use_cache: bool,
) -> Step:
    """All that is written after prompts with the same limit; in transformers' form they are padded on the left."""
    width = max(map(len, prompts))
    pads = [width - len(prompt) for prompt in prompts]
    watch = Watch(stop, rows, width)
    device = model.device
    face: Any = AnyOrderForCausalLM.of(model)
    found = face.generate(
        # A token that the prompt has is padding that transformers' repetition penalty, which looks at it, may see.
        torch.tensor([[prompt[0]] * pad + [*prompt] for prompt, pad in zip(prompts, pads, strict=True)]).to(device),
        attention_mask=torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads]).to(device),
        generation_config=search_config(
            model.config, beams, max_new_tokens, repetition_penalty=repetition_penalty, use_cache=use_cache
        ),
        stopping_criteria=StoppingCriteriaList([watch]),
    )
    lengths = (found.beam_indices >= 0).sum(dim=1).tolist()
    written = [ids[width : width + length] for ids, length in zip(found.sequences.tolist(), lengths, strict=True)]
    log_probs = _log_probs(model, prompts, written)
    events: list[Written] = []
    stopped: dict[int, StopReason] = {}
    for row, prompt, ids, of_ids in zip(rows, prompts, written, log_probs, strict=True):
        for step, (token_id, log_prob) in enumerate(zip(ids, of_ids, strict=True)):
            events.append(Written(step, row, len(prompt) + step, token_id, log_prob))
        if ids[-1] in model.config.eos_token_ids:
            stopped[row] = "end"
        else:
            stopped[row] = "stop" if stop is not None and stop(row, ids) else "length"
    return Step(tuple(sorted(events)), stopped, passes=watch.passes + 1)


def search_config(
    config: ModelConfig, beams: int, max_new_tokens: int, *, repetition_penalty: float, use_cache: bool = True
) -> GenerationConfig:  # fmt: skip
    """What transformers' loop is told: the mean log-probability per token decides, and nobody stops early."""
    return GenerationConfig(
        num_beams=beams,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        repetition_penalty=float(repetition_penalty),
        length_penalty=1.0,
        early_stopping=False,
        eos_token_id=list(config.eos_token_ids) or None,
        pad_token_id=0,
        use_cache=use_cache,
        return_dict_in_generate=True,
    )


class Watch(StoppingCriteria):
    """Is asked once in each pass, which it counts, whether beams are complete.

    Args:
        stop: the caller's condition, or None.
        rows: the number of each prompt.
        width: tokens of each prompt, padding included.
    """

    def __init__(self, stop: Stop | None, rows: Sequence[int], width: int) -> None:
        self.stop = stop
        self.rows = rows
        self.width = width
        self.passes = 0

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """For each beam `[rows * beams, tokens]`, boolean."""
        self.passes += 1
        complete = [False] * len(input_ids)
        if self.stop is not None:
            beams = len(input_ids) // len(self.rows)
            written = input_ids[:, self.width :].tolist()
            complete = [self.stop(self.rows[index // beams], ids) for index, ids in enumerate(written)]
        return torch.tensor(complete, device=input_ids.device)


def _log_probs(
    model: Llama, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]
) -> Iterator[list[float]]:
    """The network's log-probability of each token that was written, given all before it: one list per prompt."""
    fed = [[*prompt, *ids[:-1]] for prompt, ids in zip(prompts, written, strict=True)]
    ids_BR, position_BR, valid_BR = pad_right(fed, [0] * len(fed), model.device)
    hidden_BRE = model.hidden(ids_BR, model.prepare(causal(), {"position": position_BR}, valid=valid_BR))
    for b, (prompt, ids) in enumerate(zip(prompts, written, strict=True)):
        logits_RV = model.logits(hidden_BRE[b, len(prompt) - 1 : len(fed[b])])
        log_probs_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32)).log_softmax(-1)
        yield log_probs_RV.gather(-1, torch.tensor(ids, device=model.device)[:, None])[:, 0].tolist()
