"""Completion in the lines of the lab's magics: options, their choices, the adapters that live, and their curves."""

from __future__ import annotations

import re
from argparse import Action, ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher
from IPython.core.interactiveshell import InteractiveShell

from txlab.engine.adapter_history import AdapterView, metric_names
from txlab.notebook.adapters import alive
from txlab.notebook.lab import Lab
from txlab.notebook.magics import LabMagics
from txlab.notebook.samples import BASE

_MAGIC = re.compile(r"(?:^|=)\s*(?P<mark>%%?)(?P<name>\w+)\s(?P<line>.*)$")
_WORD = re.compile(r"""'[^']*'?|"[^"]*"?|\S+""")  # as IPython splits a magic's line; the last may still be open


def install(shell: InteractiveShell) -> None:
    """Complete the lines of the magics in ``shell``; a second call does nothing."""
    uninstall(shell)
    shell.Completer.custom_matchers.append(magic_line_matcher)


def uninstall(shell: InteractiveShell) -> None:
    """Take the completion out of ``shell``."""
    matchers = shell.Completer.custom_matchers
    matchers[:] = [one for one in matchers if one is not magic_line_matcher]


@context_matcher(identifier="txlab.magics")
def magic_line_matcher(context: CompletionContext) -> SimpleMatcherResult:
    """What may stand at the cursor in the line of a magic of ours; nothing anywhere else."""
    found = _MAGIC.search(context.text_until_cursor)
    parser = found and _find_parser(found["mark"], found["name"])
    if not found or parser is None or (found["mark"] == "%%" and not _starts_cell(context)):
        return SimpleMatcherResult(completions=[])
    before, current = split_line(found["line"])
    texts = candidates(parser, before, current)
    return SimpleMatcherResult(
        completions=[SimpleCompletion(text, type="option" if text.startswith("-") else "value") for text in texts],
        matched_fragment=current,
        suppress=bool(texts),  # file and variable names are no help here
        ordered=True,
    )


def split_line(line: str) -> tuple[list[str], str]:
    """The whole words of a magic's line up to the cursor, and the one at the cursor (maybe empty)."""
    words = [*_WORD.finditer(line)]
    at_cursor = bool(words) and words[-1].end() == len(line)
    texts = [word.group() for word in words]
    return (texts[:-1], texts[-1]) if at_cursor else (texts, "")


def candidates(parser: ArgumentParser, before: Sequence[str], current: str) -> list[str]:
    """What may take the place of the word ``current`` after the words ``before``."""
    actions = parser._actions  # argparse has no public way to list them
    options = {name: action for action in actions for name in action.option_strings}
    positionals = [action for action in actions if not action.option_strings]
    name, equals, value = current.partition("=")
    if before and _takes_value(options.get(before[-1])):
        return _matching(_values(options[before[-1]]), current)
    if equals and name in options:
        return [f"{name}={text}" for text in _matching(_values(options[name]), value)]
    if current.startswith("-"):
        return [option for option in options if option.startswith(current)]
    given = _count_positionals(before, options)
    values = _matching(_values(positionals[given]), current) if given < len(positionals) else []
    return values if current else [*values, *(option for option in options if option.startswith("--"))]


def _count_positionals(words: Sequence[str], options: Mapping[str, Action]) -> int:
    """How many of ``words`` are neither options nor their values."""
    after = [None, *(options.get(word) for word in words)]  # what comes before each word
    return sum(not word.startswith("-") and not _takes_value(left) for word, left in zip(words, after, strict=False))


def _takes_value(option: Action | None) -> bool:
    return option is not None and option.nargs != 0


def _values(action: Action) -> Iterable[str]:
    """What an argument may be, as far as it can be told."""
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    source = VALUES.get(action.dest)
    return source() if source else []


def _adapters() -> list[str]:
    """The names of the living adapters, the newest first, the base, and the run ids of those that share a name."""
    newest = alive(_views())[::-1]
    counts = Counter(one.name for one in newest)
    shared = (one.model_id for one in newest if counts[one.name] > 1)
    return [*dict.fromkeys([*(one.name or one.model_id for one in newest), BASE, *shared])]


def _metrics() -> list[str]:
    return metric_names(_views())


def _views() -> tuple[AdapterView, ...]:
    return () if Lab.current is None else Lab.current.status().view.adapters


def _magics() -> list[str]:
    return [name for kind in LabMagics.magics.values() for name in kind]


VALUES: Mapping[str, Callable[[], Iterable[str]]] = {  # by argument
    "adapter": _adapters,
    "metric": _metrics,
    "magic": _magics,
}


def _matching(values: Iterable[str], current: str) -> list[str]:
    """``values`` that begin with the word at the cursor, which may be quoted, quoted where they must be."""
    begun = current[1:].removesuffix(current[0]) if current[:1] in ("'", '"') else current
    return [quote(value) for value in values if value.startswith(begun)]


def quote(value: str) -> str:
    """``value`` as one word of a magic's line."""
    if value and not re.search(r"\s", value) and value[0] not in "'\"-":
        return value
    mark = '"' if "'" in value else "'"
    return f"{mark}{value}{mark}"


def _find_parser(mark: str, name: str) -> ArgumentParser | None:
    """The parser of a magic of ours."""
    method = LabMagics.magics["cell" if mark == "%%" else "line"].get(name)
    return None if method is None else getattr(LabMagics, method).parser


def _starts_cell(context: CompletionContext) -> bool:
    return not any(line.strip() for line in context.full_text.split("\n")[: context.cursor_line])
