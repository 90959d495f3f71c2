"""SIGINT, SIGTERM and SIGHUP, as something that a coroutine can wait for."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any, Self

_PATIENCE_WITH_SIGNALS = 3
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Interruption:
    """Turns SIGINT, SIGTERM and SIGHUP into something that can be waited for, within its `with`.

    Who sends them again and again wants out at any price: after the third they do what they did before. Outside the
    main thread, where Python delivers no signals, none ever comes.
    """

    def __init__(self) -> None:
        """Listen to nothing yet."""
        self.signal: int | None = None
        """The first signal that came."""
        self._loop = asyncio.get_running_loop()
        self._came: asyncio.Future[None] = self._loop.create_future()
        self._previous: dict[int, Any] = {}
        self._count = 0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                signum = getattr(signal, name, None)  # there is no SIGHUP on Windows
                # A program that is to outlive its terminal (nohup) has SIGHUP ignored.
                if signum is not None and (name != "SIGHUP" or signal.getsignal(signum) != signal.SIG_IGN):
                    self._previous[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *exc: object) -> None:
        self._let_go()

    async def wait(self, seconds: float) -> None:
        """Wait for the first signal, at most so long. Returns at once when it has come already. May be cancelled."""
        await asyncio.wait([self._came], timeout=seconds)

    def _receive(self, signum: int, frame: object) -> None:  # noqa: ARG002 - as the signal module calls it
        # Between any two instructions of the main thread: the loop only learns that something came.
        self._loop.call_soon_threadsafe(self._note, signum)
        self._count += 1
        if self._count == _PATIENCE_WITH_SIGNALS:
            self._let_go()

    def _let_go(self) -> None:
        while self._previous:
            signum, handler = self._previous.popitem()
            signal.signal(signum, handler)

    def _note(self, signum: int) -> None:
        if self.signal is None:
            self.signal = signum
            self._came.set_result(None)
