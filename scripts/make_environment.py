"""Write environment.yml from pyproject.toml: ``python scripts/make_environment.py``; ``--check`` only compares."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAD = """\
# Made by scripts/make_environment.py from pyproject.toml: edit that, and run it.
# conda env create -f environment.yml && conda activate txlab
# Python comes from conda, all else from PyPI: tinker is only there, and two resolvers in one environment break it.
name: txlab
channels:
  - conda-forge
dependencies:
"""


def environment(project: dict) -> str:
    """The file's text, from the table ``project`` of pyproject.toml: what txlab needs, and what its tests need."""
    conda = [f"python{project['requires-python']}", "pip", "pip:"]
    pip = [*project["dependencies"], *project["optional-dependencies"]["test"], "-e ."]
    return HEAD + "".join(f"  - {one}\n" for one in conda) + "".join(f"    - {one}\n" for one in pip)


def main(arguments: list[str]) -> int:
    """Write the file, or say whether it is as it should be."""
    file = ROOT / "environment.yml"
    text = environment(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])
    if "--check" not in arguments:
        file.write_text(text)
    elif not file.exists() or file.read_text() != text:
        print("environment.yml is out of date: run python scripts/make_environment.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
