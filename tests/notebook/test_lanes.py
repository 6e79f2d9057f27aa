"""Calls of one lane are in order, those of others do not wait, and idle lanes have no thread."""

from __future__ import annotations

import threading

from txlab.notebook.lanes import Lanes


def test_calls_of_a_lane_are_in_order_and_hold_up_nobody_else():
    lanes, done = Lanes("test-lane"), []
    hold, other, last = threading.Event(), threading.Event(), threading.Event()
    lanes.put("slow", lambda: (hold.wait(20), done.append("first")))
    lanes.put("slow", lambda: done.append("second"))
    lanes.put("slow", lambda: (done.append("third"), last.set()))
    lanes.put("quick", other.set)
    assert other.wait(20)
    assert done == []
    hold.set()
    assert last.wait(20)
    assert done == ["first", "second", "third"]


def test_a_lane_that_was_idle_works_again_and_no_thread_stays():
    lanes, threads = Lanes("test-lane-again"), set()
    for _ in range(20):
        ran = threading.Event()
        lanes.put("one", lambda ran=ran: (threads.add(threading.current_thread()), ran.set()))
        assert ran.wait(20)
    for thread in threads:
        assert thread.name == "test-lane-again"
        thread.join(20)
        assert not thread.is_alive()
