"""Ways to group the tokens of a text, who sees whom in each, and how probable a text is in each.

    python examples/grouping_patterns.py CHECKPOINT

Any Llama will do: query rows are made for it, and nothing is trained here, so the numbers say only that each grouping
has its own.
"""

from __future__ import annotations

import sys

import torch

import anyorder
from anyorder import GroupPlan, LlamaTwoStreamForCausalLM
from anyorder.visibility import generate_grouping_masks


def drawn(mask: torch.Tensor) -> list[str]:
    """A line for each row: `#` where it sees a token."""
    return [" ".join("#" if seen else "." for seen in row) for row in mask.tolist()]


def main(checkpoint: str) -> None:
    """Walks through the groupings."""
    model = LlamaTwoStreamForCausalLM.from_pretrained(checkpoint).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    groupings = {
        "one token a group, left to right": [0, 1, 2, 3, 4, 5],
        "pairs": [0, 0, 1, 1, 2, 2],
        "halves": [0, 0, 0, 1, 1, 1],
        "right to left": [5, 4, 3, 2, 1, 0],
        "custom: the ends, then the middle, then what is between": [0, 2, 1, 1, 2, 0],
    }
    for name, group_ids in groupings.items():
        content, query, _ = generate_grouping_masks(torch.tensor(group_ids))
        print(f"\n{name}: {group_ids}")
        print("content rows   query rows")
        for left, right in zip(drawn(content), drawn(query), strict=True):
            print(f"{left}    {right}")
        model.set_grouping(group_ids)
        with torch.no_grad():
            loss = model(ids, labels=ids).loss
        exact = anyorder.log_prob(model, ids, GroupPlan.from_group_ids(group_ids))
        print(f"{len(set(group_ids))} passes to write it; {float(loss):.3f} nats a token")
        assert abs(float(loss) + float(exact.per_token)) < 1e-4
    model.reset_grouping()


if __name__ == "__main__":
    main(sys.argv[1])
