"""A DNS server on loopback, over UDP and TCP, whose zone changes while it runs. Needs dnspython."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from qorb._demo.servers import NoPortError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOST = "127.0.0.1"
_WITHOUT_EDNS = 512
_MOST_OVER_UDP = 1232
_MOST_OVER_TCP = 65_535
_LONGEST_QUERY = 4096
_LENGTH = 2
"""Octets before each message over TCP that say how long it is (RFC 1035, 4.2.2)."""
_ATTEMPTS = 20
_SERIAL = 1


@dataclass(slots=True)
class Zone:
    """What a name server says of the names at and below `origin`. Every change holds from the next query on."""

    origin: str
    ttl: int
    """Of every record, in seconds."""
    _records: dict[tuple[dns.name.Name, dns.rdatatype.RdataType], list[dns.rdata.Rdata]] = field(default_factory=dict)

    def add(self, name: str, kind: str, text: str) -> None:
        """Add a record; `text` is its value as zone files have it. Raises an error of dnspython for what is none."""
        rdtype = dns.rdatatype.from_text(kind)
        key = (dns.name.from_text(name), rdtype)
        self._records.setdefault(key, []).append(dns.rdata.from_text(dns.rdataclass.IN, rdtype, text))

    def remove(self, name: str, kind: str, text: str) -> None:
        """Take a record out. Raises ValueError when it is not there."""
        rdtype = dns.rdatatype.from_text(kind)
        key = (dns.name.from_text(name), rdtype)
        found = self._records.get(key, [])
        found.remove(dns.rdata.from_text(dns.rdataclass.IN, rdtype, text))
        if not found:
            del self._records[key]

    def count(self, name: str, kind: str) -> int:
        """Give how many records of that kind the name has."""
        return len(self._records.get((dns.name.from_text(name), dns.rdatatype.from_text(kind)), []))

    def answer(self, query: dns.message.Message) -> dns.message.Message:
        """Answer one query."""
        response = dns.message.make_response(query)
        if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
            response.set_rcode(dns.rcode.NOTIMP)
            return response
        question = query.question[0]
        if question.rdclass != dns.rdataclass.IN or not question.name.is_subdomain(dns.name.from_text(self.origin)):
            response.set_rcode(dns.rcode.REFUSED)
            return response
        response.flags |= dns.flags.AA
        found = self._records.get((question.name, question.rdtype))
        if found:
            response.answer.append(dns.rrset.from_rdata_list(question.name, self.ttl, found))
        else:
            response.authority.append(self._start_of_authority())
            if not any(name == question.name for name, _ in self._records):
                response.set_rcode(dns.rcode.NXDOMAIN)
        return response

    def _start_of_authority(self) -> dns.rrset.RRset:
        """Give what tells for how long it holds that there is nothing (RFC 2308)."""
        values = f"ns.{self.origin}. hostmaster.{self.origin}. {_SERIAL} 60 60 60 {self.ttl}"
        return dns.rrset.from_text(f"{self.origin}.", self.ttl, dns.rdataclass.IN, dns.rdatatype.SOA, values)


class DnsServer:
    """Answers from a zone. Verbs: start, fall_silent, answer_again, stop."""

    def __init__(self, zone: Zone) -> None:
        """Take no port yet."""
        self.zone = zone
        self.answered = 0
        """How many queries it has answered so far."""
        self.unanswered = 0
        """How many messages it has received while it was silent."""
        self.silent = False
        self._port = 0
        self._datagrams: asyncio.DatagramTransport | None = None
        self._listener: asyncio.Server | None = None
        self._conversations: dict[asyncio.Transport, None] = {}

    @property
    def address(self) -> str:
        """What a resolver is given as its name server, once it was started."""
        return f"{_HOST}:{self._port}"

    async def start(self) -> None:
        """Answer, over UDP and TCP at one port. NoPortError when there is none. Cancelled: it does not answer."""
        udp, tcp = _two_sockets()
        self._port = udp.getsockname()[1]
        loop = asyncio.get_running_loop()
        try:
            await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=udp)
            self._listener = await loop.create_server(lambda: _Conversation(self), sock=tcp)
        except BaseException:
            self.stop()
            udp.close()
            tcp.close()
            raise

    @property
    def receiving(self) -> bool:
        """Whether it has a socket open: stop() closes them in the turns of the loop that follow."""
        return self._datagrams is not None or bool(self._conversations)

    def fall_silent(self) -> None:
        """Take queries and answer none."""
        self.silent = True

    def answer_again(self) -> None:
        """Answer from now on; what was not answered is not made up for."""
        self.silent = False

    def stop(self) -> None:
        """Close the port and all connections."""
        if self._datagrams is not None:
            self._datagrams.abort()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for conversation in self._conversations:
            conversation.abort()

    def sockets(self) -> Iterator[int]:
        """Give the descriptors of all sockets that it has open."""
        listening = self._listener.sockets if self._listener is not None else ()
        yield from (one.fileno() for one in listening)
        transports = (self._datagrams, *self._conversations)
        yield from (one.get_extra_info("socket").fileno() for one in transports if one is not None)

    # The protocols call these.

    def receives(self, datagrams: asyncio.DatagramTransport | None) -> None:
        """Know where datagrams come from and go to; None: nowhere any more."""
        self._datagrams = datagrams

    def joined(self, conversation: asyncio.Transport) -> None:
        """Know of a connection."""
        self._conversations[conversation] = None

    def left(self, conversation: asyncio.Transport) -> None:
        """Forget a connection."""
        del self._conversations[conversation]

    def reply(self, wire: bytes, *, udp: bool) -> bytes | None:
        """Give what to send for a message; None: nothing, as for what is no query."""
        if self.silent:
            self.unanswered += 1
            return None
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        if query.flags & dns.flags.QR:
            return None
        self.answered += 1
        response = self.zone.answer(query)
        most = min(max(query.payload, _WITHOUT_EDNS), _MOST_OVER_UDP) if udp else _MOST_OVER_TCP
        try:
            return response.to_wire(max_size=most)
        except dns.exception.TooBig:
            response.answer.clear()
            response.flags |= dns.flags.TC
            return response.to_wire()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)
        self._server.receives(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as asyncio.DatagramProtocol has it
        self._server.receives(None)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = self._server.reply(data, udp=True)
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, addr)


class _Conversation(asyncio.Protocol):
    """Queries over one TCP connection."""

    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.joined(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as asyncio.Protocol has it
        if self._transport is not None:
            self._server.left(self._transport)
            self._transport = None

    def data_received(self, data: bytes) -> None:
        self._received += data
        while self._transport is not None and len(self._received) >= _LENGTH:
            end = _LENGTH + int.from_bytes(self._received[:_LENGTH])
            if end > _LONGEST_QUERY:
                self._transport.abort()
                return
            if len(self._received) < end:
                return
            reply = self._server.reply(bytes(self._received[_LENGTH:end]), udp=False)
            del self._received[:end]
            if reply is not None:
                self._transport.write(len(reply).to_bytes(_LENGTH) + reply)


def _two_sockets() -> tuple[socket.socket, socket.socket]:
    """Bind a UDP and a TCP socket at one port that is free for both. NoPortError when there is none."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(OSError):
            return _bind_both()
    try:
        return _bind_both()
    except OSError as error:
        raise NoPortError("dns", 0, error) from error


def _bind_both() -> tuple[socket.socket, socket.socket]:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        udp.bind((_HOST, 0))
        tcp.bind(udp.getsockname())
        udp.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        tcp.setblocking(False)  # noqa: FBT003 - as above
    except OSError:
        udp.close()
        tcp.close()
        raise
    return udp, tcp
