"""lm-evaluation-harness against the server, by its own client of completions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.likelihood.exact import left_to_right_log_prob
from anyorder.model.llama import Llama
from anyorder.orders.kinds import LeftToRight
from anyorder.orders.plan import GroupPlan
from anyorder.serving.app import Server


@pytest.mark.slow
def test_its_log_likelihoods_are_those_of_python(
    served: tuple[str, Server], network: tuple[Llama, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models import openai_completions  # here, as it takes seconds

    model, tokenizer = network
    tokenizer.save_pretrained(tmp_path)
    client: Any = openai_completions.LocalCompletionsAPI(
        base_url=f"{served[0]}/v1/completions", model="tiny", tokenizer=str(tmp_path), tokenizer_backend="huggingface",
        max_length=200, batch_size=2,
    )  # fmt: skip
    pairs = [("hello there", " you"), ("the cat", " sat on"), ("a", "b")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    found = client.loglikelihood(requests)
    for (context, continuation), (log_prob, is_greedy) in zip(pairs, found, strict=True):
        ids, begin = (tokenizer(text)["input_ids"] for text in (context + continuation, context))
        scored = [[at >= len(begin) for at in range(len(ids))]]
        plan = GroupPlan.from_masks([[not one for one in scored[0]]], scored, LeftToRight())
        assert log_prob == pytest.approx(float(left_to_right_log_prob(model, [ids], plan).total[0]), abs=1e-3)
        written: Any = anyorder.generate(model, tokenizer, context, max_new_tokens=len(continuation)).token_ids
        assert is_greedy == (written == ids[len(begin) :])
    until = {"until": ["\n"], "max_gen_toks": 8, "temperature": 0}
    [text] = client.generate_until([Instance("generate_until", {}, ("the cat", until), 0)])
    assert text == anyorder.generate(model, tokenizer, "the cat", max_new_tokens=8, stop="\n").text
