"""Stopping a run by a signal."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Self

SAVING = b"\nsaving after this update, then stopping; Ctrl-C again stops at once and loses what is not saved\n"


class StopRequest:
    """Turns the first SIGINT, SIGTERM or SIGHUP in a `with` block into a request to save and stop, and says so.

    A SIGINT after that raises KeyboardInterrupt at once. Further SIGTERM and SIGHUP change nothing: a terminal that
    closes may send several. If SIGHUP is ignored, as after `nohup`, it stays ignored.
    """

    def __enter__(self) -> Self:
        self.requested = False
        self._previous = {}
        if threading.current_thread() is threading.main_thread():  # Python handles signals only there
            numbers = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                numbers.append(signal.SIGHUP)
            self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.requested = True
        with contextlib.suppress(OSError):  # after SIGHUP there may be no terminal
            os.write(2, SAVING)  # no print: the signal may have interrupted one
