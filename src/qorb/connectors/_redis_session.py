"""What a Redis server keeps for a connection, known from the commands that were sent and the replies that were read."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

_Effect: TypeAlias = Literal["none", "multi", "exec", "watch", "unwatch", "reset", "close"]
"""What a command leaves behind: a transaction begun or ended, something that RESET undoes, or what nothing undoes."""

_EFFECTS: dict[str, _Effect] = {
    "MULTI": "multi",
    "EXEC": "exec",
    "DISCARD": "exec",
    "WATCH": "watch",
    "UNWATCH": "unwatch",
    **dict.fromkeys(("SELECT", "AUTH", "READONLY", "READWRITE", "ASKING"), "reset"),
    # Their replies come as messages, or not one for one; or they change what all others look like.
    **dict.fromkeys(("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"), "close"),
    **dict.fromkeys(("MONITOR", "SYNC", "PSYNC", "REPLCONF", "QUIT", "HELLO", "RESET", "HIMPORT"), "close"),
    "SCRIPT DEBUG": "close",
    "CLIENT": "close",  # those that are not named here: CLIENT REPLY above all
    **dict.fromkeys((f"CLIENT {word}" for word in ("SETNAME", "TRACKING", "CACHING", "NO-EVICT", "NO-TOUCH")), "reset"),
    **dict.fromkeys((f"CLIENT {word}" for word in ("ID", "INFO", "LIST", "GETNAME", "KILL", "PAUSE")), "none"),
    **dict.fromkeys((f"CLIENT {word}" for word in ("UNPAUSE", "UNBLOCK", "GETREDIR", "TRACKINGINFO", "HELP")), "none"),
}
_IN_TWO_WORDS = {"CLIENT", "SCRIPT"}


class Session:
    """Follows one connection from its handshake on. Decides everything without I/O.

    `fault` is why the connection must not be used again, None as long as it may. Replies that were not read are one.
    """

    __slots__ = ("_changed", "_fault", "_in_play", "_multi", "_watch", "pending")

    def __init__(self) -> None:
        """Begin right after a handshake: nothing asked, nothing kept."""
        self.pending = 0
        """Commands that were sent and whose replies were not read."""
        self._fault: str | None = None
        self._changed = False
        self._multi = False
        self._watch = False
        self._in_play = False

    @property
    def fault(self) -> str | None:
        """Why the connection must not be used again; None: it is in step."""
        if self._fault is None and self.pending:
            return f"{self.pending} replies were not read, so the connection is out of step"
        return self._fault

    @property
    def is_changed(self) -> bool:
        """Whether the server keeps something that RESET takes away: another database, WATCH, an open MULTI, ..."""
        return self._changed or self._multi or self._watch

    def spoil(self, why: str) -> None:
        """Note that the connection must not be used again; the first reason stays."""
        self._fault = self._fault or why

    def sent(self, command: Sequence[object]) -> None:
        """Note that a command is being sent, given by its first words."""
        self.pending += 1
        effect = _effect_of(command)
        if effect == "none":
            return
        if effect == "close":
            self.spoil(f"{_shown(command)} was sent, after which a connection is not used again")
        elif effect == "reset":
            self._changed = True
        else:
            self._transact(effect)

    def answered(self, *, error: bool) -> None:
        """Note that a reply was read."""
        self.pending -= 1
        if self.pending < 0:
            self.spoil("a reply came that nobody had asked for")
        if not self._in_play:
            return
        if error:  # a MULTI or EXEC that was refused had not the effect that sent() has noted
            self._changed = True
        elif not (self.pending or self._multi or self._watch):
            self._in_play = False

    def _transact(self, effect: _Effect) -> None:
        self._in_play = True
        if effect == "multi":
            self._multi = True
        elif effect == "watch":
            self._watch = True
        elif effect == "exec":
            if self._multi:
                self._multi = self._watch = False
        elif not self._multi:  # within MULTI it only comes with EXEC
            self._watch = False


def _effect_of(command: Sequence[object]) -> _Effect:
    word, rest = _split(command[0])
    if word in _IN_TWO_WORDS:
        second = rest or (_split(command[1])[0] if len(command) > 1 else "")
        return _EFFECTS.get(f"{word} {second}", _EFFECTS.get(word, "none"))
    return _EFFECTS.get(word, "none")


def _split(name: object) -> tuple[str, str]:
    """Give the first two words of a command's name in capitals; redis-py takes "CLIENT LIST" for two words."""
    return _split_text(name) if isinstance(name, str | bytes) else ("", "")


@functools.lru_cache(maxsize=1024)
def _split_text(name: str | bytes) -> tuple[str, str]:
    words = (name if isinstance(name, str) else name.decode("utf-8", "replace")).upper().split()
    first, second, *_ = *words, "", ""
    return first, second


def _shown(command: Sequence[object]) -> str:
    word, rest = _split(command[0])
    return f"{word} {rest}".rstrip()
