"""Questions and answers in fields of their own, as public data sets name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anyorder.data import BadLines, read_records
from anyorder.errors import UserError
from tests.data.test_readers import assistant, only, said, user, write

LONG = "a context that is too long to stand in a prompt by chance"


@pytest.mark.parametrize(
    ("record", "question", "answer"),
    [
        ({"instruction": "i", "context": "c", "response": "r", "category": "qa"}, "i\nc", "r"),  # Dolly
        ({"query": "q", "response": "r", "type": "GSM"}, "q", "r"),  # MetaMath
        ({"problem": "p", "solution": "s", "answer": "4"}, "p", "s"),  # NuminaMath
        ({"instruction": "i", "input": "n", "output": "o", "text": "Below: i\nn\nResponse: o"}, "i\nn", "o"),  # Alpaca
        ({"instruction": "i", "input": "n", "output": "o", "prompt": "Below:  i\nn\nOutput: o"}, "i\nn", "o"),  # Python
        ({"instruction": "i", "prompt": "Below: i", "output": "yes"}, "i\nBelow: i", "yes"),  # not the whole record
        ({"question": "1+1", "prompt": "1+1 = 2", "answer": 2}, "1+1", "2"),
        ({"question": "q", "prompt": "Say: q", "choices": ["x"], "label": 0}, "Say: q\nq\nA. x", "A. x"),
        ({"inputs": "q", "targets": "a", "language": "en"}, "q", "a"),  # Aya, FLAN
        ({"Instruction": "i", "Input": "", "Response": "r"}, "i", "r"),
        ({"input": "n", "target": "t", "kind": "k"}, "n", "t"),  # Firefly
        ({"prompt": "p", "query": "q", "response": "r"}, "p\nq", "r"),
        ({"prompt": "p", "input": "n", "output": "o"}, "p\nn", "o"),
        ({"instruction": "i", "question": "q", "answer": "a"}, "i\nq", "a"),
        ({"question": "q", "context": ["c", "d"], "answer": "a"}, "c\nd\nq", "a"),
        ({"prompt": f"{LONG}. q?", "context": LONG, "response": "r"}, f"{LONG}. q?", "r"),  # filled in already
        ({"prompt": "q", "question": "q", "answer": "a"}, "q", "a"),
        ({"text": "c", "question": "q", "answer": "a"}, "c\nq", "a"),
        ({"id": "1", "title": "t", "context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [0]}},
         "c\nq", "a"),  # SQuAD
        ({"url": "u", "question": "q", "answers": ["a"]}, "q", "a"),
        ({"question": "1 + 1", "answer": 2}, "1 + 1", "2"),
        ({"question": "q", "complex_cot": "t", "response": "r"}, "q", "<think>\nt\n</think>\n\nr"),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "p", "c"),
        ({"instruction": "i", "input": "", "output": ["c", "r"]}, "i", "c"),
        ({"prompt": "p", "completion": "c", "label": True}, "p", "c"),  # KTO
        # multiple choice
        ({"question": "q", "subject": "s", "choices": ["x", "y"], "answer": 1}, "q\nA. x\nB. y", "B. y"),  # MMLU
        ({"question": "q", "choices": ["x", "y"], "answer": "y"}, "q\nA. x\nB. y", "y"),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
         "q\n1. x\n2. y", "2. y"),  # ARC
        ({"question": "q", "options": {"A": "x", "B": "y", "C": None}, "answer_idx": "B"}, "q\nA. x\nB. y", "B. y"),
        ({"question": "q", "choices": [{"label": "A", "text": "x"}], "answerKey": "A"}, "q\nA. x", "A. x"),
        ({"question": "q", "choices": ["3", "4"], "label": "0"}, "q\nA. 3\nB. 4", "A. 3"),
        ({"question_stem": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
         "q\nA. x\nB. y", "B. y"),  # OpenBookQA
        ({"ctx": "c", "endings": ["x", "y"], "label": "1"}, "c\nA. x\nB. y", "B. y"),  # HellaSwag
    ],
)  # fmt: skip
def test_public_names(tmp_path: Path, record: dict[str, Any], question: str, answer: str) -> None:
    assert said(only(tmp_path, record)) == [("user", question), ("assistant", answer)]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"system_prompt": "s", "question": "q", "response": "r"}, "system s, user q, assistant r"),  # OpenOrca
        ({"prompt": [user("q")], "completion": [assistant("r")]}, "user q, assistant r"),  # TRL
        ({"instruction": "i", "output": "o", "history": '[["p", "q"]]'}, "user p, assistant q, user i, assistant o"),
        ({"prompt": "q", "completion": [assistant("r")]}, "user q, assistant r"),
        ({"prompt": [user("q")], "chosen": [assistant("r")], "rejected": [assistant("n")]}, "user q, assistant r"),
        ({"prompt": "q", "chosen": [user("q"), assistant("r")], "rejected": [user("q"), assistant("n")]},
         "user q, assistant r"),  # UltraFeedback
        ({"chosen": [user("q"), assistant("r")], "rejected": [user("q"), assistant("n")]}, "user q, assistant r"),
        ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "r"}},
         "user q, assistant r"),  # LLaMA-Factory
        ({"messages": [user("q"), assistant("r")], "chosen": [user("q"), assistant("r")]}, "user q, assistant r"),
        ({"input": [user("q")], "output": "r", "system_prompt": "s"}, "system s, user q, assistant r"),  # Nemotron
        ({"prompt": "q", "response": "r", "history": [["a", "b"]]}, "user a, assistant b, user q, assistant r"),
        ({"prompt": "q", "response": "r", "history": [user("a"), assistant("b")]},
         "user a, assistant b, user q, assistant r"),
    ],
)  # fmt: skip
def test_pairs_that_become_dialogues(tmp_path: Path, record: dict[str, Any], expected: str) -> None:
    assert ", ".join(" ".join(message) for message in said(only(tmp_path, record))) == expected


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"prompt": "p", "response": "r", "answer": "a"}, "has two answers, `answer` and `response`: leave in the one"),
        ({"prompt": "p", "completion": "c", "label": False}, "has an answer that is not wanted (`label` is False)"),
        ({"prompt": "p", "completion": "c", "kto_tag": 0}, "has an answer that is not wanted (`kto_tag` is 0)"),
        ({"question": "q", "answers": {"text": [], "answer_start": []}}, "`answers` is empty: write something there"),
        ({"question": "q", "passage": "p", "answer": True}, "`answer` is True: give text"),
        ({"question": "q", "context": {"a": 1}, "answer": "a"}, "`context` is {'a': 1}: give text"),
        ({"question": {"stem": "q"}, "answer": "a"}, "`question` is {'stem': 'q'}: give text"),
        ({"question": "q", "choices": ["x"], "answer": 1}, "`answer` is 1 and there are 1 choices"),
        ({"question": "q", "choices": 5, "answer": 1}, "`choices` is 5: give a list of texts"),
        ({"question": "q", "choices": ["x"]}, "lacks the fields that say what it is"),
        ({"prompt": [user("q")], "context": "c", "completion": "r"}, "has messages in `prompt`, and `context` beside"),
        ({"prompt": "p", "response": "r", "images": ["a.png"]}, "has `images`, and only text is trained on"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, "has no prompt beside `chosen`"),
        ({"instruction": "i", "prompt": "i Answer yes or no.", "output": "no"},
         "has a `prompt` with `instruction` and the answer in it, which does not end in the answer: take out `prompt`, "
         "or `instruction` if the answer is there by chance"),
        ({"question_id": 81, "turns": ["a", "b"]}, "(it has `question_id`, `turns`)"),  # MT-bench has no answers
    ],
)  # fmt: skip
def test_pairs_that_cannot_be_read(tmp_path: Path, record: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as error:
        only(tmp_path, record)
    assert problem in str(error.value)


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    lines = [
        {"question": "q", "answers": ["a", "b"], "title": "t"},
        {"prompt": "p", "chosen": "c", "rejected": "r", "id": 1, "score_chosen": 0.5},
        {"query": "q", "response": "r", "original_question": "o", "answer_type": "number"},
    ]
    bad_lines = BadLines()
    assert len(list(read_records(write(tmp_path / "a.jsonl", *lines), bad_lines))) == 3
    assert bad_lines.unread == {"answers but the first": 1, "title": 1, "rejected": 1, "original_question": 1}
