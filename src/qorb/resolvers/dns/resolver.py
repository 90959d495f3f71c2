"""DnsResolver: backends as DNS names them, now and as that changes."""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING

from qorb.errors import shown
from qorb.publishing import publisher_of
from qorb.resolver import Resolver
from qorb.resolvers.dns._journal import Journal
from qorb.resolvers.dns._knowledge import Knowledge
from qorb.resolvers.dns._names import check_name
from qorb.resolvers.dns._servers import SystemServers, read_servers
from qorb.resolvers.dns._sifting import Sieve
from qorb.resolvers.dns._watch import MAX_LEARNED, DnsWatch
from qorb.resolvers.dns.policy import DnsPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from qorb.backend import Backend
    from qorb.resolvers.dns._servers import Server

_DEFAULT_POLICY = DnsPolicy()
_MAX_PORT = 65_535


class DnsResolver(Resolver):
    """Finds backends through DNS. Needs `pip install "qorb[dns]"`. Several pools may share one.

    Follows RFC 2782 (SRV), RFC 1035, and RFC 8767 for answers that outlive a DNS that fails.
    """

    def __init__(
        self,
        service: str,
        nameservers: Sequence[str] | None = None,
        policy: DnsPolicy = _DEFAULT_POLICY,
        *,
        default_port: int | None = None,
    ) -> None:
        """Take the name of the service; ask nothing yet.

        `service` is an SRV name such as "_pg._tcp.example.com"; with `default_port`, a plain host name whose A and AAAA
        records are the backends. `nameservers`: "127.0.0.1:5353", "[::1]:53", "10.0.0.2"; None: the system's, read
        again when its configuration changes. Raises ValueError for a name or an address that is none, ImportError
        without aiodns.
        """
        self.service: str = check_name("service", service)
        _check_port(default_port)
        if not isinstance(policy, DnsPolicy):
            raise TypeError(f"policy must be a DnsPolicy, not {shown(policy)}")
        self._policy = policy
        self._default_port = default_port
        self._given = None if nameservers is None else read_servers(nameservers)
        self._system = SystemServers()
        from qorb.resolvers.dns._aiodns import AiodnsClient  # noqa: PLC0415 - optional: only who makes a resolver needs it

        sieve = Sieve(secrets.token_bytes(16), max(policy.max_backends, MAX_LEARNED))
        self._client = partial(AiodnsClient, sieve=sieve)

    async def watch(self, publish: Callable[[Iterable[Backend]], None]) -> None:
        """Publish the backends that DNS names, whenever they change, until cancelled.

        DNS that fails changes nothing before stale_limit. When this ends, no query is under way and no socket open.
        """
        await self.follow(publish, Journal(self.service, publisher_of(publish)))

    async def follow(self, publish: Callable[[Iterable[Backend]], None], journal: Journal) -> None:
        """Do what watch() does, until cancelled, and tell this journal of it."""
        knowledge = Knowledge(self.service, self._default_port, self._policy, self._policy.max_backends)
        await DnsWatch(knowledge, self._policy, self._servers, self._client, publish, journal).run()

    def _servers(self) -> Sequence[Server]:
        return self._given if self._given is not None else self._system.current()


def _check_port(port: object) -> None:
    if port is not None and not (isinstance(port, int) and not isinstance(port, bool) and 1 <= port <= _MAX_PORT):
        raise ValueError(f"default_port must be a whole number from 1 to {_MAX_PORT}, not {shown(port)}")
