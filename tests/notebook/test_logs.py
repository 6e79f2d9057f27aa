"""The ring buffer of log records."""

from __future__ import annotations

import logging

import pytest

from txlab.notebook.logs import LogBuffer, Logs


def test_records_go_to_the_buffer_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    logger, buffer = logging.getLogger("txlab.engine"), LogBuffer(limit=3)
    with buffer.capture():
        for i in range(5):
            logger.warning("record %d", i)
    logger.warning("afterwards")
    assert [line.rsplit(" ", 1)[1] for line in buffer.tail(10).splitlines()] == ["2", "3", "4"]
    assert buffer.tail(1).endswith("record 4")
    assert buffer.tail(0) == ""
    assert caplog.messages == ["afterwards"]


def test_they_show_themselves_with_what_went_wrong_in_colour() -> None:
    logs = Logs("12:00:00 INFO    txlab: <b>\n12:00:01 ERROR   txlab: no\n12:00:02 INFO    uvicorn: ERROR said")
    assert repr(logs) == logs
    html = logs._repr_html_()
    assert "12:00:00 INFO    txlab: &lt;b&gt;\n<span" in html
    assert html.count("<span") == 1
    assert 'tabindex="0"' in html, "what scrolls can be scrolled by keys"
