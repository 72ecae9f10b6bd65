from __future__ import annotations

import json

import pytest

from fastfss.video.log import Event, EventLog


def log_of(*kinds: str) -> EventLog:
    log = EventLog()
    for kind in kinds:
        if kind == "undo":
            log.undo()
        elif kind == "redo":
            log.redo()
        else:
            log.append(log.next(kind))  # type: ignore[arg-type]
    return log


def heads(log: EventLog) -> list[int]:
    return [event.seq for event in log.counted()]


def test_events_are_only_added_and_undo_is_one_of_them() -> None:
    log = log_of("object", "annotate", "undo", "redo", "undo")
    assert [event.kind for event in log.events] == ["object", "annotate", "undo", "redo", "undo"]
    assert [event.seq for event in log.events] == [1, 2, 3, 4, 5]
    assert (log.head, heads(log)) == (1, [1])


def test_a_new_event_after_undo_begins_another_branch() -> None:
    log = log_of("object", "annotate", "undo", "commit")
    assert heads(log) == [1, 4]
    assert not log.can_redo
    assert log.counts(1) and log.counts(4) and not log.counts(2)
    assert not log.reachable(2)
    with pytest.raises(ValueError, match="redo: expected a change that was taken back, got none"):
        log.redo()


def test_undo_and_redo_go_through_the_whole_history() -> None:
    log = log_of(*["annotate"] * 5)
    for _ in range(5):
        log.undo()
    assert log.head == 0
    with pytest.raises(ValueError, match="undo: expected a change to take back, got none"):
        log.undo()
    for _ in range(5):
        log.redo()
    assert heads(log) == [1, 2, 3, 4, 5]


def test_an_event_that_was_withdrawn_was_never_there() -> None:
    log = log_of("object", "annotate", "undo")
    before = list(log.to_lines())
    log.append(log.next("commit"))
    log.withdraw()
    assert list(log.to_lines()) == before
    assert log.redo().seq == 2


def test_lines_bring_the_log_back() -> None:
    log = log_of("object", "annotate", "undo", "commit", "undo", "redo")
    log.append(log.next("annotate", frame=3, object=1, data={"marks": [1, 2]}))
    log.append(log.next("propagate", frame=0))
    log.stop(8, done=4)
    again = EventLog.from_lines(list(log.to_lines()))
    assert again.events == log.events
    assert (again.head, heads(again), again.done(8)) == (8, heads(log), 4)


def test_a_last_line_that_was_cut_off_is_left_out() -> None:
    lines = list(log_of("object", "annotate").to_lines())
    assert len(EventLog.from_lines([lines[0], lines[1][:9]])) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"seq": 3, "kind": "commit", "parent": 1}', "expected event 2 after 1, got event 3"),
        ('{"seq": 2, "kind": "commit", "parent": 0}', "expected event 2 after 1, got event 2"),
        ('{"seq": 2, "kind": "sing", "parent": 1}', "expected an event of a session"),
        ('{"seq": 2}', "expected an event of a session"),
        ("[]", "expected an event of a session"),
        ('{"seq": 2, "kind": "redo", "parent": 1}', "redo: expected a change"),
    ],
)
def test_a_line_of_something_else_is_refused(line: str, message: str) -> None:
    first = next(log_of("object").to_lines())
    with pytest.raises(ValueError, match=message):
        EventLog.from_lines([first, line, first])


def test_an_event_is_plain_json() -> None:
    event = Event(7, "annotate", 6, frame=2, object=1, data={"replace": True})
    assert Event.from_dict(json.loads(json.dumps(event.to_dict()))) == event
