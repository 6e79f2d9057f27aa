"""Write docs/api.md: what of the Tinker SDK, its command line and its routes works here, and which tests exercise it.

``python docs/make_api.py`` from anywhere; ``--check`` only compares. Methods, commands and routes are read from the
installed SDK and the application, calls from the sources of the tests; only what the rows say comes from api.toml.
"""

from __future__ import annotations

import inspect
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import tinker
from calls import Calls
from tinker.cli.__main__ import main_cli

from txlab.config import ServerSettings
from txlab.server.app import create_app
from txlab.store.store import Store

DOCS = Path(__file__).parent
ROOT = DOCS.parent
CLIENTS = (
    tinker.ServiceClient,
    tinker.TrainingClient,
    tinker.SamplingClient,
    tinker.RestClient,
    tinker.AdminClient,
    tinker.LossHandle,
)
SHOWN = 3  # tests named in a row
HEAD = f"""# What of Tinker works here

Made by `docs/make_api.py` from SDK {tinker.__version__}, the OpenAPI document and the sources of the tests. Routes \
are below `/api/v1`. A method with `(_async)` has a deprecated twin of that ending, which asks for the same.
"""


class UnclassifiedError(ValueError):
    """api.toml and what is installed disagree; the message names every difference."""


def page() -> str:
    """The whole page. Raises UnclassifiedError."""
    notes = tomllib.loads((DOCS / "api.toml").read_text())
    routes = openapi_routes()
    served = {normal(path) for _, path, _ in routes}
    found = Calls(ROOT, CLIENTS)
    parts = [HEAD]
    for client in CLIENTS:
        names, twins = public_names(client)
        rows = table_rows(client.__name__, names, notes[client.__name__], served)
        tests = [found.of_method(client.__name__, name, *twins.get(name, ())) for name in names]
        methods = [f"`{name}`" + (" (`_async`)" if name in twins else "") for name in names]
        parts.append(section(client.__name__, "Method", zip(methods, rows, tests, strict=True)))
    commands = sorted(command_names(main_cli))
    rows = table_rows("tinker", commands, notes["tinker"], served)
    tests = [found.of_command(command) for command in commands]
    parts.append(section("The command line", "`tinker …`", zip((f"`{c}`" for c in commands), rows, tests, strict=True)))
    parts.append(route_section(routes, notes["others"]))
    return "\n".join(parts)


def public_names(client: type) -> tuple[list[str], dict[str, list[str]]]:
    """Public attributes of ``client``, and the deprecated ``_async`` twin of each that has one."""
    names = sorted(name for name, _ in inspect.getmembers(client) if not name.startswith("_"))
    twins = {name: [f"{name}_async"] for name in names if f"{name}_async" in names}
    return [name for name in names if [name] not in twins.values()], twins


def command_names(group: click.Group, prefix: str = "") -> Iterator[str]:
    """Every command below ``group``, as it is typed."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from command_names(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}"


def openapi_routes() -> list[tuple[str, str, str]]:
    """Method, path and summary of every route."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        try:
            engine: Any = SimpleNamespace(base=SimpleNamespace(name="model"))
            document = create_app(engine, store, ServerSettings(api_key="tml-docs")).openapi()
        finally:
            store.close()
    return [
        (method.upper(), path, operation["summary"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


def sdk_paths() -> set[str]:
    """Paths that occur in the SDK's own sources."""
    sources = Path(tinker.__file__).parent.rglob("*.py")
    texts = (path.read_text() for path in sources if not path.name.endswith("_test.py"))
    return {normal(path) for text in texts for path in re.findall(r"/api/v1/[\w/{}.]+", text)}


def normal(path: str) -> str:
    """``path`` with nameless parameters. To the SDK a checkpoint's id is one, here it is two: kind and name."""
    return re.sub(r"{[^}]*}", "{}", path).replace("/checkpoints/{}/{}", "/checkpoints/{}")


def table_rows(title: str, names: Iterable[str], notes: dict[str, Any], served: set[str]) -> list[tuple[str, str]]:
    """What is done here, and what is asked for. Raises UnclassifiedError where ``notes`` has other names or routes."""
    names = list(names)
    wrong = [f"{title}: {name} has no entry" for name in names if name not in notes]
    wrong += [f"{title}: there is no {name}" for name in notes if name not in names]
    asked = {route for note in notes.values() for route in note.get("asks", ())}
    wrong += [f"{title}: no route {route}" for route in sorted(asked) if f"/api/v1/{route}" not in served]
    if wrong:
        raise UnclassifiedError("\n".join(wrong))
    return [_row(**notes[name]) for name in names]


def _row(here: str = "yes", asks: Iterable[str] = (), note: str = "") -> tuple[str, str]:
    return here, "; ".join(filter(None, [", ".join(f"`{route}`" for route in asks), note]))


def section(title: str, kind: str, rows: Iterable[tuple[str, tuple[str, str], list[str]]]) -> str:
    """One table of methods or commands."""
    lines = [f"## {title}\n", f"| {kind} | Here | What it asks for | Tested in |", "|-|-|-|-|"]
    lines += [f"| {name} | {here} | {asks} | {_shortened(tests)} |" for name, (here, asks), tests in rows]
    return "\n".join(lines) + "\n"


def _shortened(tests: list[str]) -> str:
    shown = ", ".join(
        Path(test).relative_to("tests").as_posix() if test.startswith("tests/") else test for test in tests[:SHOWN]
    )
    return f"{shown} and {len(tests) - SHOWN} more" if len(tests) > SHOWN else shown


def route_section(routes: list[tuple[str, str, str]], others: dict[str, str]) -> str:
    """The table of routes, and who asks for each."""
    from_sdk = sdk_paths()
    lines = ["## Routes\n", "| Route | | Asked by |", "|-|-|-|"]
    for method, path, summary in routes:
        who = "SDK" if normal(path) in from_sdk else _other(normal(path), others)
        lines.append(f"| `{method} {path}` | {summary} | {who} |")
    return "\n".join(lines) + "\n"


def _other(path: str, others: dict[str, str]) -> str:
    for start, who in others.items():
        if path.startswith(start):
            return who
    raise UnclassifiedError(f"others: who asks for {path}?")


def main(arguments: list[str]) -> int:
    """Write the page, or say whether it is as it should be."""
    file = DOCS / "api.md"
    try:
        text = page()
    except UnclassifiedError as error:
        print(f"docs/api.toml:\n{error}")
        return 1
    if "--check" not in arguments:
        file.write_text(text)
    elif not file.exists() or file.read_text() != text:
        print("docs/api.md is out of date: run python docs/make_api.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
