"""Ask one question in several phrasings, and compare ways to make one answer of them.

python examples/fuse_phrasings.py CHECKPOINT
"""

import sys
from typing import Any

import anyorder

PHRASINGS = ["Who was the girl?", "What was the name of the girl?", "How did they call her?"]


def main(checkpoint: str) -> None:
    model, tokenizer = anyorder.load(checkpoint)
    question: dict[str, Any] = {"prefix": "There was a little girl named Lily.\nQ: ", "suffix": "\nA:", "stop": "\n"}
    for method in ("attention", "logit-mean", "vote"):
        out = anyorder.fuse(model, tokenizer, PHRASINGS, method=method, max_new_tokens=10, **question)
        print(f"{method:10} {out.text!r} in {out.passes} passes")

    out = anyorder.fuse(model, tokenizer, PHRASINGS, max_new_tokens=10, attention_share=True, **question)
    print(f"of the answer's attention went to each phrasing: {out.attention_share}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
