"""Errors as a person at the command line reads them: one sentence, in which options are called as they are typed."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Collection
from difflib import get_close_matches

from anyorder.utils.annotations import shown
from anyorder.utils.other_names import other_name

SPELT = {("compile", "True"): "always", ("compile", "False"): "never"}
"""Values that are written otherwise on the command line than in Python."""


KEYWORD = r" ?= ?('[^']*'|\"[^\"]*\"|[\w./:-]*\w)(?![\w(])"
"""Behind a name, the value that it has as a keyword."""

QUOTED = re.compile(r"(?<![\w=])('[^']* [^']*'|\"[^\"]* [^\"]*\")(?!\w)")
"""Quoted text of several words, in which names are no options."""


def as_options(message: str, options: Collection[str], flags: Collection[str] = ()) -> str:
    """Replace names of parameters in a sentence of the library by those of options.

    Args:
        message: such as "top_k is 0: give a whole number above 0, or None to keep every token."
        options: names of the command's options.
        flags: those of them that have no value.
    """
    quoted: list[str] = []

    def put_away(span: re.Match[str]) -> str:
        quoted.append(span[0])
        return f"\0{len(quoted) - 1}\0"

    message = QUOTED.sub(put_away, message)
    for name in sorted(options, key=len, reverse=True):
        word, typed = re.escape(name), functools.partial(_typed, name, flags)
        message = re.sub(rf"(?<![\w.'\"-]){word}{KEYWORD}", typed, message)
        if "_" in name:  # no word of English
            message = re.sub(rf"(?<![\w.'\"/=-]){word}(?![\w=(/]|\.\w)", f"--{name}", message)
            continue
        # Where a sentence is about it; elsewhere it may be a word like others.
        message = re.sub(rf"^{word}(?= (?:is|has|are|of the sampler is)\b)", f"--{name}", message)
        message = re.sub(rf"\b(beside|leave out|given with) {word}(?=[ ,.:])", rf"\1 --{name}", message)
    for (name, theirs), ours in SPELT.items():
        message = message.replace(f"--{name} is {theirs}", f"--{name} is {ours}")
    for name in flags:
        message = message.replace(f"--{name} is True", f"--{name} is given")
    message = message.replace(" of the sampler is ", " is ")
    message = re.sub(r",? or None\b[^:.;,]*", ", or leave it out", message)
    return re.sub(r"\0(\d+)\0", lambda number: quoted[int(number[1])], message)


def _typed(name: str, flags: Collection[str], keyword: re.Match[str]) -> str:
    plain = keyword[1].strip("'\"")
    if name in flags and plain in ("True", "False"):
        return f"--{name}" if plain == "True" else f"no --{name}"
    return f"--{name} {SPELT.get((name, plain), plain)}"


def explain(name: str, parameters: dict[str, inspect.Parameter], message: str) -> str:
    """Turn what jsonargparse says of a command line into one sentence with the remedy.

    Args:
        name: of the command.
        parameters: of the function behind it.
        message: of the exception.
    """
    see = f"see `anyorder {name} --help`"
    text = " ".join(message.split())
    if match := re.search(r"arguments are required: (.*)", text):
        lacking = [_called(argument, parameters) for argument in match[1].split(", ")]
        several = f"arguments {' and '.join(lacking)} are" if len(lacking) > 1 else f"argument {lacking[0]} is"
        return f"{several} missing: {see}."
    if match := re.search(r"unrecognized arguments: (\S+)|Option '(\w+)' is not accepted", text):
        return _unknown(match[1] or f"--{match[2]}", parameters, see)
    if match := re.search(r"argument (\S+): expected one argument", text):
        return f"{match[1]} has no value: write one behind it, or {see}."
    if match := re.search(r"argument (\S+): ignored explicit argument '?(.*?)'?$", text):
        return f"{match[1]} is given with {shown(match[2])}, but takes no value: write it alone."
    if match := re.search(r'Parser key "([^"]+)": Exceeds the limit', text):
        return f"{_called(match[1], parameters)} has thousands of digits: give a smaller number."
    if match := re.search(r'Parser key "([^"]+)": (.*?)(?:Got|Given) value: (.*)', text):
        return f"{_called(match[1], parameters)} is {shown(match[3])}: give {_wanted(match[2], match[3])}."
    return f"{text}: {see}."


def _called(name: str, parameters: dict[str, inspect.Parameter]) -> str:
    """Return a word by its name, an option as it is typed."""
    plain = name.removeprefix("--")
    is_word = plain in parameters and parameters[plain].kind is not inspect.Parameter.KEYWORD_ONLY
    return plain if is_word else f"--{plain}"


def _wanted(kinds: str, value: str) -> str:
    literals = re.findall(r"Literal\[(.*?)\]", kinds)
    choices = list(dict.fromkeys(choice.strip(" '") for literal in literals for choice in literal.split(",")))
    names = re.findall(r"<class '(?:\w+\.)*(\w+)'>", kinds.partition("Errors:")[0])
    words = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
    wanted = [f"one of {', '.join(choices)}"] if choices else []
    wanted += [words.get(kind, kind) for kind in names if kind != "NoneType"]
    close = get_close_matches(value.strip("'\""), choices, n=1, cutoff=0.6)
    if close:
        return f"{close[0]}, or another of {', '.join(choices)}"
    return " or ".join(dict.fromkeys(wanted)) or "another value"


def _unknown(word: str, parameters: dict[str, inspect.Parameter], see: str) -> str:
    option = word.partition("=")[0].removeprefix("--")
    if option in parameters and parameters[option].kind is not inspect.Parameter.KEYWORD_ONLY:
        return f"option {word} is unknown: write its value alone, as a word."
    if re.match(r"-[A-Za-z]", word):
        return f"option {word} is unknown: options are written with two dashes and their whole name, {see}."
    if not word.startswith("-") or option in parameters:
        return f"word {word!r} is one too many: put a text of several words in quotes, or {see}."
    if ours := other_name(option, parameters):
        if parameters[ours.partition(" ")[0]].kind is not inspect.Parameter.KEYWORD_ONLY:
            return f"option --{option} is unknown here: the name is {ours}, whose value stands alone, as a word."
        return f"option --{option} is unknown here: the name is --{ours}."
    close = get_close_matches(option.lower(), parameters, n=1, cutoff=0.7)
    return f"option {word} is unknown: {f'did you mean --{close[0]}?' if close else f'{see}.'}"
