"""Which DNS servers are asked: the given ones, the system's, and those found through resolver_service."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from qorb.errors import ResolveError
from qorb.resolvers import DnsPolicy, DnsResolver
from qorb.resolvers.dns._servers import Server, SystemServers, read_servers
from qorb.testing import run
from tests.resolvers.dns.fakes import NXDOMAIN, SERVFAIL, SILENCE, SRV, FakeServer, Net, srv, watching

MORE = "_dns._udp.example.com"
OLD = {"t1.example.com": ["10.1.0.1"]}

# Given ones.


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("127.0.0.1:5353", "127.0.0.1", 5353, "127.0.0.1:5353"),
        ("10.0.0.2", "10.0.0.2", 53, "10.0.0.2:53"),
        ("[::1]:53", "::1", 53, "[::1]:53"),
        ("[::1]", "::1", 53, "[::1]:53"),
        ("2001:DB8::1", "2001:db8::1", 53, "[2001:db8::1]:53"),
        ("[2001:db8:0::1]:65535", "2001:db8::1", 65_535, "[2001:db8::1]:65535"),
    ],
)
def test_a_server_is_an_address_with_or_without_a_port(text, host, port, shown):
    assert read_servers([text]) == (Server(host, port, explicit=True),)
    assert str(Server(host, port)) == shown


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "dns.example.com:53", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:-1", "10.0.0.1:५३",
     "10.0.0.1:٥٣", "[::1", "[::1]53", "[::1]:", "10.0.0", "10.0.0.1:5 3", "udp://10.0.0.1",
     None, 53, ("10.0.0.1", 53)],
)  # fmt: skip
def test_what_is_no_server_is_refused(text):
    with pytest.raises(ValueError, match=r"DNS server|port"):
        DnsResolver("db", [text])


@pytest.mark.parametrize("nameservers", [[], "10.0.0.1", (), 5432, DnsPolicy()])
def test_a_list_that_names_no_server_is_refused(nameservers):
    with pytest.raises(ValueError, match="nameservers"):
        DnsResolver("db", nameservers)


def test_a_server_that_is_named_twice_is_asked_once():
    async def main():
        server = FakeServer().serves(OLD)
        net = Net(ns1=server)
        async with watching(net, net.resolver(nameservers=["10.0.0.1", "10.0.0.1:53", "10.0.0.1:53"])):
            await asyncio.sleep(1)
            assert len(server.times()) == 1

    run(main)


# The system's.


def test_the_system_configuration_is_read_again_when_it_changes(tmp_path):
    path = tmp_path / "resolv.conf"
    system = SystemServers(str(path))
    assert [str(one) for one in system.current()] == ["127.0.0.1:53"]
    path.write_text("# x\nsearch example.com\nnameserver 10.0.0.1\noptions ndots:5\n nameserver ::1 x\nnameserver\n")
    assert [str(one) for one in system.current()] == ["10.0.0.1:53", "[::1]:53"]
    path.write_text("nameserver 10.0.0.2\nnameserver ten\nnameserver 10.0.0.2\n;nameserver 10.0.0.3\n")
    assert [str(one) for one in system.current()] == ["10.0.0.2:53"]
    other = tmp_path / "other"
    other.write_text("nameserver 10.0.0.4\n")
    other.replace(path)
    assert [str(one) for one in system.current()] == ["10.0.0.4:53"]
    path.write_bytes(b"nameserver \xff\n")
    assert [str(one) for one in system.current()] == ["127.0.0.1:53"]
    path.unlink()
    assert [str(one) for one in system.current()] == ["127.0.0.1:53"]


def test_a_configuration_that_cannot_be_read_says_so(tmp_path):
    with pytest.raises(ResolveError, match="cannot be read"):
        SystemServers(str(tmp_path / ("x" * 300))).current()


def test_no_server_of_the_system_counts_as_given_explicitly(tmp_path):
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.53\n")
    (server,) = SystemServers(str(path)).current()
    assert not server.on_loopback
    assert read_servers(["127.0.0.53"])[0].on_loopback
    assert not read_servers(["10.0.0.1"])[0].on_loopback


def test_a_changed_system_configuration_is_used_from_the_next_round_on(tmp_path):
    async def main():
        path = tmp_path / "resolv.conf"
        path.write_text("nameserver 10.0.0.1\n")
        net = Net(ns1=FakeServer().serves(OLD), ns2=FakeServer().serves({"t2.example.com": ["10.2.0.1"]}))
        resolver = net.resolver(query_interval=10)
        resolver._given, resolver._system = None, SystemServers(str(path))
        async with watching(net, resolver) as seen:
            await asyncio.sleep(15)
            path.write_text("nameserver 10.0.0.2\nnameserver 10.0.0.2\n")
            await asyncio.sleep(10)
            assert seen.all_hosts == [["10.1.0.1"], ["10.2.0.1"]]

    run(main)


def test_a_configuration_that_cannot_be_read_for_a_while_costs_nothing(tmp_path):
    async def main():
        net = Net(ns1=FakeServer().serves(OLD))
        resolver = net.resolver(query_interval=10)
        good = net.resolver()._servers

        def unreadable():
            raise ResolveError("the system's DNS servers cannot be read")

        async with watching(net, resolver) as seen:
            await asyncio.sleep(5)
            resolver._servers = unreadable
            await asyncio.sleep(60)
            resolver._servers = good
            await asyncio.sleep(60)
            assert len(seen.sets) == 1
            assert net.servers["10.0.0.1:53"].times()[-1] > 65

    run(main)


def test_a_server_for_which_no_client_can_be_made_does_not_keep_the_others_from_being_asked():
    async def main():
        net = Net(ns1=FakeServer(), ns2=FakeServer().serves(OLD))
        net.broken["10.0.0.1:53"] = ResolveError("DNS server 10.0.0.1:53 cannot be asked: no descriptors")
        async with watching(net) as seen:
            await asyncio.sleep(1)
            assert seen.hosts == ["10.1.0.1"]
            assert asked(net) == {"10.0.0.2:53"}

    run(main)


def test_when_no_client_can_be_made_at_all_the_next_round_tries_again():
    async def main():
        net = Net(ns1=FakeServer().serves(OLD))
        net.broken["10.0.0.1:53"] = ResolveError("DNS server 10.0.0.1:53 cannot be asked: no descriptors")
        async with watching(net) as seen:
            await asyncio.sleep(0.5)
            assert seen.sets == []
            net.broken.clear()
            await asyncio.sleep(1)
            assert seen.hosts == ["10.1.0.1"]

    run(main)


# Found through resolver_service.


def learning(*addresses, ttl=5, port=53):
    """A server that knows the service and names further servers."""
    server = FakeServer().serves(OLD, ttl=ttl)
    server.has(f"{MORE} SRV", *(srv(f"ns{number}.example.com", port) for number in range(len(addresses))), ttl=ttl)
    for number, address in enumerate(addresses):
        server.has(f"ns{number}.example.com A", address, ttl=ttl)
    return server


def asked(net):
    return {server for _, server, _ in net.asked}


def test_servers_that_were_found_are_asked_besides_the_given_ones():
    async def main():
        net = Net(ns1=learning("10.0.0.2"), ns2=FakeServer(latency=0.02).serves({"t1.example.com": ["10.1.0.2"]}))
        async with watching(net, net.resolver(nameservers=["10.0.0.1"], resolver_service=MORE)) as seen:
            await asyncio.sleep(3)
            assert asked(net) == {"10.0.0.1:53"}
            await asyncio.sleep(4)
            assert asked(net) == {"10.0.0.1:53", "10.0.0.2:53"}
            for question in (SRV, "t1.example.com A", "t1.example.com AAAA"):
                net.servers["10.0.0.1:53"].answers(question, SILENCE)
            await asyncio.sleep(10)
            assert seen.hosts == ["10.1.0.2"]

    run(main)


@pytest.mark.parametrize("reply", [NXDOMAIN, SERVFAIL])
def test_servers_that_were_just_found_are_asked_a_second_later_while_no_backend_is_known(reply):
    async def main():
        given = learning("10.0.0.2", ttl=1000)
        given.answers(SRV, reply)
        net = Net(ns1=given, ns2=FakeServer(latency=0.02).serves({"t1.example.com": ["10.1.0.2"]}))
        async with watching(net, net.resolver(nameservers=["10.0.0.1"], resolver_service=MORE)) as seen:
            await asyncio.sleep(2)
            assert seen.hosts == ["10.1.0.2"]
            assert 1 <= seen.times[-1] < 1.1

    run(main)


def test_a_found_server_that_is_given_as_well_is_asked_once():
    async def main():
        net = Net(ns1=learning("10.0.0.1", ttl=5))
        async with watching(net, resolver_service=MORE):
            await asyncio.sleep(60)
            assert net.opened == len(net.servers["10.0.0.1:53"].times())

    run(main)


@pytest.mark.parametrize("max_backends", [1, 256])
def test_at_most_32_found_servers_are_kept_however_many_backends_are(max_backends):
    async def main():
        net = Net(ns1=learning(*(f"10.9.0.{number}" for number in range(1, 101))))
        policy = {"resolver_service": MORE, "max_concurrency": 1000, "max_backends": max_backends}
        async with watching(net, net.resolver(nameservers=["10.0.0.1"], **policy)):
            await asyncio.sleep(30)
            assert len(asked(net)) == 33

    run(main)


def test_found_servers_expire_at_stale_limit_like_everything_else():
    async def main():
        given = learning("10.0.0.2")
        net = Net(ns1=given, ns2=FakeServer(latency=0.02).serves(OLD, ttl=5))
        for question in (f"{MORE} SRV", "ns0.example.com A", "ns0.example.com AAAA"):
            net.servers["10.0.0.2:53"].answers(question, SERVFAIL)
        resolver = net.resolver(nameservers=["10.0.0.1"], resolver_service=MORE, stale_limit=60)
        async with watching(net, resolver) as seen:
            await asyncio.sleep(10)
            given.breaks(SERVFAIL)
            await asyncio.sleep(40)
            net.asked.clear()
            await asyncio.sleep(10)
            assert asked(net) == {"10.0.0.1:53", "10.0.0.2:53"}
            await asyncio.sleep(20)
            net.asked.clear()
            await asyncio.sleep(600)
            assert asked(net) == {"10.0.0.1:53"}
            # With them goes what only they had still said, when its own time is up.
            assert seen.all_hosts == [["10.1.0.1"], []]

    run(main)


def test_found_servers_go_when_it_is_said_twice_that_there_are_none():
    async def main():
        given = learning("10.0.0.2")
        net = Net(ns1=given, ns2=FakeServer(latency=0.02).serves(OLD, ttl=5))
        async with watching(net, net.resolver(nameservers=["10.0.0.1"], resolver_service=MORE)) as seen:
            await asyncio.sleep(10)
            given.answers(f"{MORE} SRV", NXDOMAIN)
            await asyncio.sleep(30)
            net.asked.clear()
            await asyncio.sleep(30)
            assert asked(net) == {"10.0.0.1:53"}
            assert len(seen.sets) == 1

    run(main)


def test_found_servers_pass_the_same_address_filter_and_do_not_count_as_given():
    async def main():
        addresses = ["127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0", "255.255.255.255", "10.9.0.1"]
        net = Net(ns1=learning(*addresses))
        async with watching(net, net.resolver(nameservers=["10.0.0.1"], resolver_service=MORE)):
            await asyncio.sleep(30)
            assert asked(net) == {"10.0.0.1:53", "10.9.0.1:53"}

    run(main)


def test_a_found_server_on_loopback_may_not_name_addresses_of_this_machine():
    async def main():
        given = FakeServer().serves(OLD, ttl=5)
        given.has(f"{MORE} SRV", srv("ns0.example.com", 54), ttl=5)
        given.has("ns0.example.com A", "127.0.0.2", ttl=5)
        found = FakeServer().serves({"t1.example.com": ["127.0.0.1", "10.1.0.2"]}, ttl=5)
        net = Net()
        net.servers = {"127.0.0.1:53": given, "127.0.0.2:54": found}
        async with watching(net, net.resolver(nameservers=["127.0.0.1"], resolver_service=MORE)) as seen:
            await asyncio.sleep(10)
            assert "127.0.0.2:54" in asked(net)
            given.answers(SRV, SERVFAIL)
            given.answers("t1.example.com A", SERVFAIL)
            await asyncio.sleep(10)
            assert seen.hosts == ["10.1.0.2"]

    run(main)


@pytest.mark.parametrize("reply", [SILENCE, SERVFAIL, NXDOMAIN])
def test_a_resolver_service_that_is_not_to_be_had_costs_the_service_nothing(reply):
    async def main():
        server = FakeServer().serves(OLD, ttl=5)
        server.answers(f"{MORE} SRV", reply)
        async with watching(Net(ns1=server), resolver_service=MORE) as seen:
            await asyncio.sleep(60)
            assert len(seen.sets) == 1
            assert seen.times[0] < 0.1
            times = server.times()
            assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 5.1

    run(main)
