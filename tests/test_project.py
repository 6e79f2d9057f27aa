"""What the project's files promise each other."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import metadata
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parent.parent
HERE = "tests/test_project.py"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEST_COMMAND = 'pip install -e ".[test]" && pytest'
EXTRAS = PROJECT["optional-dependencies"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def names(requirements: list[str]) -> set[str]:
    """The packages of requirements, without versions and extras."""
    return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}


def imports(source: str) -> set[str]:
    """The top-level packages that a source imports, wherever it does."""
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_environment_and_pyproject_agree():
    lines = (ROOT / "environment.yml").read_text().splitlines()
    listed = [line.strip().removeprefix("- ") for line in lines if line.strip().startswith("- ")]
    pip = listed[listed.index("pip:") + 1 :]
    assert f"python{PROJECT['requires-python']}" in listed
    assert pip == [*PROJECT["dependencies"], *EXTRAS["test"], "-e ."]


def test_environment_yml_is_what_its_script_makes_of_pyproject():
    command = [sys.executable, ROOT / "scripts" / "make_environment.py", "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_torch_is_needed_for_parity_only():
    assert "torch" not in names(PROJECT["dependencies"] + EXTRAS["test"])
    assert "torch" in names(EXTRAS["parity"])


def test_a_user_gets_no_test_tools():
    """What the tests bring is neither asked for nor imported by what a user runs."""
    tools = names(EXTRAS["test"])
    assert {"pytest", "playwright", "ruff"} <= tools
    assert not tools & names(PROJECT["dependencies"])
    imported = set[str]()
    for file in (ROOT / "txlab").rglob("*.py"):
        imported |= imports(file.read_text())
    for file in NOTEBOOKS:
        cells = [cell["source"] for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
        imported |= imports("\n".join(TransformerManager().transform_cell("".join(cell)) for cell in cells))
    assert {"jax", "tinker", "IPython"} <= imported
    assert not {name.replace("-", "_") for name in tools} & imported


def test_accelerators_are_extras_that_jax_has():
    has = set(metadata("jax").get_all("Provides-Extra"))
    for extra in ("cuda12", "tpu"):
        (requirement,) = EXTRAS[extra]
        assert requirement.startswith(f"jax[{extra}]>=")
        assert extra in has


def test_every_dependency_says_what_it_is_for():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    requirements = [line for line in lines if re.match(r'    "[\w-]+[\[><=]', line)]
    assert len(requirements) > 20
    assert [line for line in requirements if not re.search(r"#\s+\w.{3,}", line)] == []


def test_the_wheel_has_its_licence_its_types_and_the_notebooks(tmp_path):
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as files:
        inside = set(files.namelist())
        info = next(name.partition("/")[0] for name in inside if ".dist-info/" in name)
        told = files.read(f"{info}/METADATA").decode()
        licence = files.read(f"{info}/licenses/LICENSE").decode()
    assert "License-Expression: Apache-2.0" in told
    assert "License-File: LICENSE" in told
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert {"txlab/py.typed", *(f"txlab/notebooks/{path.name}" for path in NOTEBOOKS)} <= inside


def test_fast_is_much_of_the_tests_and_none_that_takes_long():
    command = ["scripts/test", "fast", "--collect-only", "-q", "-n", "0", "-p", "no:cacheprovider"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert listed.returncode == 0, listed.stdout[-2000:] + listed.stderr
    fast = [line for line in listed.stdout.splitlines() if "::" in line]
    count = re.search(r"(\d+)/(\d+) tests collected", listed.stdout)
    assert len(fast) == int(count[1])
    assert len(fast) > int(count[2]) / 3
    tests = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    long = {path for path, text in tests.items() if "browser_page" in text or "open_kernel" in text} - {HERE}
    assert len(long) > 5
    assert not long & {test.partition("::")[0] for test in fast}
    for word in ("notebooks/", "smollm2", "readers_colours", "transformers_agrees", "[torch]"):
        assert [test for test in fast if word in test] == []


def test_imports_go_down_the_house_only():
    result = subprocess.run(["lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("part", "said"), [("parity", 'pip install -e ".[test,parity]"'), ("browser", "no Chromium on this machine")]
)
def test_a_part_that_lacks_what_it_needs_says_so(part, said, tmp_path):
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")  # has no package
    python.chmod(0o755)
    command, env = [ROOT / "scripts" / "test", part], {"PATH": str(tmp_path)}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert said in run.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_executed_and_without_widget_state(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert "widgets" not in notebook["metadata"]
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    pictures = [
        o["data"]["image/svg+xml"] for cell in code for o in cell["outputs"] if "image/svg+xml" in o.get("data", {})
    ]
    assert pictures, "the curves are to be seen on a static page"


def test_the_readme_commands_and_links_exist():
    readme = (ROOT / "README.md").read_text()
    assert "pip install -e . && txlab lab" in readme
    assert TEST_COMMAND in readme
    assert TEST_COMMAND in (ROOT / ".ci" / "run").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)|src(?:set)?=\"([^\":]+)\"", readme):
        path = target[0] or target[1]
        assert (ROOT / path).exists(), path


def test_what_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = re.findall(r"`([\w.-]*/[\w./-]+)`", text)
    assert len(files) > 20
    assert [file for file in files if not (ROOT / file).exists()] == []
    sources = "\n".join(file.read_text() for place in ("txlab", "tests") for file in (ROOT / place).rglob("*.py"))
    how_to = text.partition("## To add")[2]
    symbols = set(re.findall(r"`@?([A-Z]\w+|_?[a-z]+_\w+|server\.\w+)`", how_to))
    assert len(symbols) > 20
    assert [name for name in symbols if name not in sources] == []
