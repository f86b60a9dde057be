"""Draw who sees whom, for several ways of reading and writing a text.

python examples/visibility.py
"""

import torch

from anyorder.visibility import (
    Visibility,
    bidirectional,
    block_diffusion,
    causal,
    documents,
    groups,
    prefix,
    segments,
    sliding_window,
)


def show(title: str, visibility: Visibility, **labels: list[int]) -> None:
    rows = {name: torch.tensor([values]) for name, values in labels.items()}
    print(f"\n{title}\n  {visibility}\n{visibility.draw(rows, rows)}")


def main() -> None:
    print("A line is a row that looks, a column is a row that is looked at, # is 'sees'.")
    show("left to right", causal(), position=[0, 1, 2, 3, 4])
    show("masked diffusion", bidirectional(), position=[0, 1, 2, 3, 4])
    show("a prefix, then left to right", prefix(), position=[0, 1, 2, 3, 4], prefix=[1, 1, 0, 0, 0])
    show("in any order, in groups", groups(), rank=[1, 0, 2, 0, 1], stream=[0, 0, 0, 0, 0])
    show("block diffusion", block_diffusion(), block=[0, 0, 1, 1, 0, 0, 1, 1], noised=[1, 1, 1, 1, 0, 0, 0, 0])
    show(
        "two phrasings, fused",
        segments(),
        order=[0, 1, 2, 1, 2, 3],
        part=[0, 1, 1, 1, 1, 2],
        segment=[0, 1, 1, 2, 2, 0],
    )
    show(
        "packed documents, in a sliding window",
        causal() & documents() & sliding_window(2),
        position=[0, 1, 2, 0, 1],
        document=[0, 0, 0, 1, 1],
    )

    # Two streams: the text's own rows, and for each position a query row that asks for its token. The ranks tell the
    # order of writing: first the last word, then the first, then the one between.
    rank = torch.tensor([[1, 2, 0]])
    rows = {"rank": rank.repeat(1, 2), "stream": torch.tensor([[0, 0, 0, 1, 1, 1]])}
    keys = {name: label[:, :3] for name, label in rows.items()}
    print("\ntwo streams: rows 3 to 5 ask for the tokens of rows 0 to 2")
    print(groups().draw(rows, keys))
    for row in (3, 4, 5):
        print(groups().explain(row, rows, keys))


if __name__ == "__main__":
    main()
