"""The generated pages of docs/ say what is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GENERATOR = Path(__file__).parent.parent / "docs" / "make_api.py"


def test_the_api_page_is_up_to_date_and_classifies_every_method():
    checked = subprocess.run([sys.executable, GENERATOR, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
