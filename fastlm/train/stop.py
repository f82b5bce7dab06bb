"""Stopping a run by a signal."""

from __future__ import annotations

import os
import signal
import threading
from typing import Self


class StopRequest:
    """Turns the first SIGINT or SIGTERM in a `with` block into a request to save and stop.

    A second SIGINT raises KeyboardInterrupt at once.
    """

    def __enter__(self) -> Self:
        self.requested = False
        self._previous = {}
        if threading.current_thread() is threading.main_thread():  # Python handles signals only there
            self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        os.write(2, b"\nstopping after this update ...\n")  # no print: the signal may have interrupted one
