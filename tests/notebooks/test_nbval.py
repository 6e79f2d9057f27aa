"""The notebook tests can fail: strict comparison sees a tampered output, and forgives what the sanitizer names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

SANITIZE = Path(__file__).with_name("sanitize.cfg")
CODE = 'print("loss 0.25, ready in 3.1 s at http://127.0.0.1:8123")'
STORED = "loss 0.25, ready in 99 s at http://127.0.0.1:9\n"


def run_nbval(folder: Path, stored: str) -> subprocess.CompletedProcess[str]:
    """Test a notebook of one cell whose output is said to have been ``stored``."""
    output = nbformat.v4.new_output("stream", name="stdout", text=stored)
    cell = nbformat.v4.new_code_cell(CODE, execution_count=1, outputs=[output])
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = folder / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), path)
    options = ["--nbval", f"--nbval-sanitize-with={SANITIZE}", "-p", "no:cacheprovider", "-o", "addopts="]
    command = [sys.executable, "-m", "pytest", "-q", *options, str(path)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("stored", "passes"), [(STORED, True), (STORED.replace("0.25", "0.26"), False)])
def test_a_changed_number_fails_and_a_changed_time_does_not(tmp_path, stored, passes):
    result = run_nbval(tmp_path, stored)
    assert ("1 passed" in result.stdout) == passes, result.stdout
    assert ("1 failed" in result.stdout) != passes, result.stdout
