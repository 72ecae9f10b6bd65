"""What each command does to a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastfss.app import protocol as P
from fastfss.app.snapshot import prompts
from fastfss.data import ImageLike
from fastfss.video import FrameResult, VideoSession
from fastfss.video.rle import decode_mask

Plain = dict[str, Any]
Handler = Callable[["Place", Any], Plain]


class Place(Protocol):
    """Where commands are carried out: the thread that a session belongs to."""

    session: VideoSession

    def changed(self, frame: int) -> Plain:
        """Tell all clients of the new masks and prompts of a frame; what the reply says of it."""

    def begin(self, frame: int, direction: Any) -> Plain:
        """Begin a propagation."""

    def end(self) -> Plain:
        """End it."""

    def look_at(self, frame: int) -> None:
        """The frame that will be clicked on next."""

    def shown_elsewhere(
        self, session: str, frame: int, object: int
    ) -> tuple[ImageLike, npt.NDArray[np.bool_], str]:
        """The image, an object's mask and the name of a frame of another session."""


def carry_out(place: Place, command: P.AnyCommand) -> Plain:
    """Do what a command says; what its reply says.

    Raises:
        ValueError, TypeError, OSError, NotImplementedError: it cannot be done; nothing changed.
    """
    return _HANDLERS[type(command)](place, command)


def frame_note(session: VideoSession, frame: int) -> Plain:
    """What is known of a frame beside its masks."""
    return {"frame": frame, "seq": session.seq, "prompts": prompts(session, frame)}


def _show(place: Place, command: P.Show) -> Plain:
    place.session.result(command.frame)  # so that an unknown frame is an error
    place.look_at(command.frame)
    return frame_note(place.session, command.frame)


def _add_object(place: Place, command: P.AddObject) -> Plain:
    return {"object": place.session.add_object(command.name)}


def _rename_object(place: Place, command: P.RenameObject) -> Plain:
    place.session.rename_object(command.object, command.name)
    return {}


def _remove_object(place: Place, command: P.RemoveObject) -> Plain:
    place.session.remove_object(command.object)
    return {}


def _clicks(place: Place, command: P.Clicks) -> Plain:
    labels = [int(command.positive)] * len(command.points)
    return _answered(
        place,
        place.session.add_clicks(command.frame, command.object, command.points, labels),
    )


def _box(place: Place, command: P.Box) -> Plain:
    return _answered(
        place, place.session.add_box(command.frame, command.object, command.box, replace=True)
    )


def _scribble(place: Place, command: P.Scribble) -> Plain:
    found = place.session.add_scribble(
        command.frame,
        command.object,
        command.path,
        positive=command.positive,
        width=command.width,
    )
    return _answered(place, found)


def _mask(place: Place, command: P.Mask) -> Plain:
    mask = decode_mask(command.runs, place.session.size)
    return _answered(place, place.session.add_mask(command.frame, {command.object: mask}))


def _clear(place: Place, command: P.Clear) -> Plain:
    place.session.clear(command.frame, command.object)
    return place.changed(command.frame)


def _commit(place: Place, command: P.Commit) -> Plain:
    return {"support": place.session.commit(command.frame)}


def _add_support(place: Place, command: P.AddSupport) -> Plain:
    shown = place.shown_elsewhere(command.session, command.frame, command.shown)
    image, mask, name = shown
    masks = {command.object: mask}
    return {"support": place.session.add_support(image, masks, name=command.name or name)}


def _forget(place: Place, command: P.Forget) -> Plain:
    place.session.forget(command.support)
    return {}


def _propagate(place: Place, command: P.Propagate) -> Plain:
    return place.begin(command.frame, command.direction)


def _cancel(place: Place, command: P.Cancel) -> Plain:
    return place.end()


def _undo(place: Place, command: P.Undo) -> Plain:
    return _moved(place, place.session.undo().frame)


def _redo(place: Place, command: P.Redo) -> Plain:
    return _moved(place, place.session.redo().frame)


def _moved(place: Place, frame: int | None) -> Plain:
    """Masks of any frame may be others now: the page asks for the one that it shows."""
    return {} if frame is None else place.changed(frame)


def _answered(place: Place, result: FrameResult) -> Plain:
    return place.changed(result.frame)


def _ping(place: Place, command: P.Ping) -> Plain:
    return {}


_HANDLERS: dict[type[P.Command], Handler] = {
    P.Show: _show,
    P.AddObject: _add_object,
    P.RenameObject: _rename_object,
    P.RemoveObject: _remove_object,
    P.Clicks: _clicks,
    P.Box: _box,
    P.Scribble: _scribble,
    P.Mask: _mask,
    P.Clear: _clear,
    P.Commit: _commit,
    P.AddSupport: _add_support,
    P.Forget: _forget,
    P.Propagate: _propagate,
    P.Cancel: _cancel,
    P.Undo: _undo,
    P.Redo: _redo,
    P.Ping: _ping,
}
