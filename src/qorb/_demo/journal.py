"""What was said during the demo, in order: its own steps, what the pool noticed, and log records."""

from __future__ import annotations

import asyncio
import enum
import logging
from dataclasses import dataclass
from typing import Self

from qorb._demo.servers import server_name
from qorb.events import (
    Event,
    HealthCheckFailed,
    ResolverFailed,
    ResolverQueryDone,
    ResolverUpdated,
    SlotSetOffline,
    SlotSetOnline,
)

_LOGGERS = ("qorb", "asyncio")
_OF_THE_RESOLVER = "qorb.dns"
_MOST_NAMES = 4
_GIVEN_UP = "given up"


class Kind(enum.Enum):
    """Who says it."""

    STEP = "step"
    """The demo, of what it is doing."""
    LOOK = "look"
    """The demo, of what to look at."""
    DONE = "done"
    """The demo, of what a step has come to."""
    POOL = "pool"
    """The pool, through its observer."""
    LOG = "log"
    """A logger of qorb or asyncio."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal."""

    at: float
    """Seconds since the demo began."""
    kind: Kind
    text: str


class Journal(logging.Handler):
    """Collects entries until they are taken.

    The pool calls its observer in the middle of things, and logging may come from anywhere: nothing is written there
    and then, least of all to a terminal that a live table owns. Within the `with`, the loggers of qorb and asyncio
    write here and nowhere else.
    """

    def __init__(self, pools: int = 1) -> None:
        """Begin now, by the time of the running loop. With several pools each line says which one it is of."""
        super().__init__()
        self._several = pools > 1
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._stepped = self._began
        self._entries: list[Entry] = []
        self._checks_failed: set[tuple[str, str]] = set()
        self._dns_fails = False
        self._propagated: dict[str, bool] = {}
        self.logged_errors: list[str] = []
        """Records of level ERROR or worse: none is expected."""

    def __enter__(self) -> Self:
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            self._propagated[name] = logger.propagate
            logger.propagate = False
            logger.addHandler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        for name, propagated in self._propagated.items():
            logger = logging.getLogger(name)
            logger.removeHandler(self)
            logger.propagate = propagated

    @property
    def elapsed(self) -> float:
        """Seconds since the demo began."""
        return self._loop.time() - self._began

    def begin(self) -> None:
        """Count seconds from now on: what came before was only to get ready."""
        self._began = self._loop.time()

    def step(self, say: str, look: str) -> None:
        """Note that a step is taken now: what is happening, and what to look at."""
        self._stepped = self._loop.time()
        self._checks_failed.clear()
        self._note(Kind.STEP, say)
        self._note(Kind.LOOK, look)

    def done(self, what: str) -> None:
        """Note what the step that is under way has come to."""
        self._note(Kind.DONE, self._since(what))

    def observe(self, event: Event) -> None:
        """Note an event of the pool, if it tells something that a person wants to know."""
        self.observe_servers(event)
        self._observe_resolver(event)

    def observe_servers(self, event: Event) -> None:
        """Note no event of the resolver: for a further pool that shares one."""
        lead = f"{event.pool}: " if self._several else ""
        match event:
            case SlotSetOnline(backend=name):
                self._notice(f"{lead}{server_name(name)} is online")
            case SlotSetOffline(backend=name):
                self._notice(f"{lead}{server_name(name)} is offline")
            case HealthCheckFailed(reason=reason) if reason.startswith(_GIVEN_UP):
                pass  # for a slot that is surplus: it says nothing of the server
            case HealthCheckFailed(pool=pool, backend=name, reason=reason) if (pool, name) not in self._checks_failed:
                # One failed check has all idle connections of that backend checked: one line is enough.
                self._checks_failed.add((pool, name))
                self._notice(f"{lead}{server_name(name)} failed a health check ({reason.partition(':')[0]})")
            case _:
                pass

    def _observe_resolver(self, event: Event) -> None:
        match event:
            case ResolverUpdated(added=added, removed=removed):
                changes = {"added": added, "removed": removed}
                told = [f"{_listed(names)} {change}" for change, names in changes.items() if names]
                self._notice(f"DNS: {'; '.join(told)}")
            case ResolverFailed(reason=reason) if not self._dns_fails:
                self._dns_fails = True
                self._notice(f"{reason.rpartition(': ')[2]} from DNS; what is known stays")
            case ResolverQueryDone() if self._dns_fails:
                self._dns_fails = False
                self._notice("DNS has answered again")
            case _:
                pass

    def emit(self, record: logging.LogRecord) -> None:
        """Note a log record; but what the resolver warns of is in its events, too."""
        if record.name == _OF_THE_RESOLVER and record.levelno < logging.ERROR:
            return
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        self._note(Kind.LOG, text)
        if record.levelno >= logging.ERROR:
            self.logged_errors.append(text)

    def take(self) -> list[Entry]:
        """Give what was noted since the last call."""
        taken, self._entries = self._entries, []
        return taken

    def _notice(self, text: str) -> None:
        self._note(Kind.POOL, self._since(text))

    def _since(self, text: str) -> str:
        return f"{text}, after {1000 * (self._loop.time() - self._stepped):.0f} ms"

    def _note(self, kind: Kind, text: str) -> None:
        self._entries.append(Entry(self.elapsed, kind, printable(text)))


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(map(server_name, names[:_MOST_NAMES])) + more


def printable(text: str) -> str:
    """Replace what could move a terminal's cursor or break a line: errors quote what servers send."""
    return "".join(character if character.isprintable() else " " for character in text)
