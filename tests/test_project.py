"""What the project's files promise each other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_environment_and_pyproject_agree():
    lines = (ROOT / "environment.yml").read_text().splitlines()
    listed = [line.strip().removeprefix("- ") for line in lines if line.strip().startswith("- ")]
    pip = listed[listed.index("pip:") + 1 :]
    assert f"python{PROJECT['requires-python']}" in listed
    assert pip == [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"], "-e ."]


def test_torch_is_needed_for_parity_only():
    extras = PROJECT["optional-dependencies"]
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["dependencies"] + extras["test"]]
    assert "torch" not in names
    assert any(requirement.startswith("torch") for requirement in extras["parity"])


def test_every_dependency_says_what_it_is_for():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    requirements = [line for line in lines if re.match(r'    "[\w-]+[><=]', line)]
    assert len(requirements) > 20
    assert [line for line in requirements if not re.search(r"#\s+\w.{3,}", line)] == []


def test_importing_txlab_does_no_work():
    code = "import sys, txlab; sys.exit(bool({'jax', 'fastapi', 'IPython', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_imports_go_down_the_house_only():
    result = subprocess.run(["lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


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
    assert 'pip install -e ".[test]" && txlab lab' in readme
    assert 'pip install -e ".[test]" && pytest' in readme
    for target in re.findall(r"\]\(([^)#:]+)\)|src(?:set)?=\"([^\":]+)\"", readme):
        path = target[0] or target[1]
        assert (ROOT / path).exists(), path
