"""The lab's own session: there when it is needed, silent when it is not any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from txlab.notebook.lab import Lab, serve
from txlab.notebook.own_client import OwnClient


@pytest.fixture
def lab(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("TXLAB_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    running = serve(str(tiny_llama))
    yield running
    running.stop()


def test_a_session_begins_with_the_first_model(lab: Lab) -> None:
    served = lab._serving()
    OwnClient(lab.url, lab.api_key).close()  # nothing to close
    own = served.own_client
    assert own.training_client("somebody:train:0") is None
    assert served.store.records.session_ids(10, 0) == []
    session_id, first = own.next_model()
    assert own.next_model() == (session_id, first + 1)
    session = served.store.records.session(session_id)
    assert session is not None
    assert session.display_name == "lab"
    assert own.training_client("somebody:train:0") is None
    assert own._service is not None
    holder = own._service.holder
    lab.stop()
    assert holder._closed
