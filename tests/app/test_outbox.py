"""Back-pressure: what a slow client gets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastfss.app.outbox import WINDOW, Outbox


def drained(outbox: Outbox) -> list[Any]:
    """All that may go now."""
    found = iter(outbox.take, None)
    return [json.loads(one) if isinstance(one, str) else one for one in found]


def box() -> Outbox:
    return Outbox(asyncio.new_event_loop(), waiting=8)


def test_of_a_propagation_the_newest_masks_go_when_the_window_opens():
    outbox = box()
    for n in range(WINDOW):
        outbox.play(b"%d" % n)
        assert drained(outbox) == [b"%d" % n]
    for n in range(10):
        outbox.play(b"later %d" % n)
    assert drained(outbox) == []
    outbox.acknowledge(1)
    assert drained(outbox) == [b"later 9"]
    assert outbox.skipped == 9


def test_of_each_kind_the_newest_message_goes():
    outbox = box()
    for n in range(3):
        outbox.newest({"kind": "state", "n": n})
        outbox.newest({"kind": "progress", "n": n})
    assert drained(outbox) == [{"kind": "state", "n": 2}, {"kind": "progress", "n": 2}]


def test_all_replies_go_in_order_behind_their_masks():
    outbox = box()
    outbox.reply({"id": 1})
    outbox.answer(4, b"old")
    outbox.answer(4, b"new")
    outbox.reply({"id": 2})
    assert drained(outbox) == [b"new", {"id": 1}, {"id": 2}]


def test_it_is_full_while_too_many_replies_wait():
    outbox = box()
    for n in range(8):
        assert not outbox.full
        outbox.reply({"id": n})
    assert outbox.full
    drained(outbox)
    assert not outbox.full


def test_acknowledging_more_than_was_sent_changes_nothing():
    outbox = box()
    outbox.acknowledge(1000)
    for n in range(WINDOW + 1):
        outbox.answer(n, b"%d" % n)
    assert len(drained(outbox)) == WINDOW
