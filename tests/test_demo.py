"""The demo: its servers on real sockets, its pure parts by themselves, and the program that people start."""

import asyncio
import codecs
import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import urllib.request

import dns.asyncquery
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest
from rich.cells import cell_len

from qorb import Backend, BackendStats, Ledger, Policy, Pool, PoolState, PoolStats
from qorb._demo import dns as demo_dns
from qorb._demo import servers
from qorb._demo._rich import LiveView
from qorb._demo.clients import EchoClients, Tally
from qorb._demo.connector import EchoConnector
from qorb._demo.demo import DemoOptions, demo_policy
from qorb._demo.dns import DnsServer, Zone
from qorb._demo.frame import WINDOW, Meter, percentile
from qorb._demo.interruption import Interruption
from qorb._demo.journal import Entry, Journal, Kind, printable
from qorb._demo.plain import PlainView
from qorb._demo.report import Census, Counter, Report
from qorb._demo.scenario import Stage, scenario
from qorb._demo.servers import EchoServer, Health, server_name
from qorb.cli import main
from qorb.events import HealthCheckFailed, ResolverFailed, ResolverQueryDone, ResolverUpdated, SlotSetOffline
from qorb.resolvers import ManualResolver
from tests.words import without_slowness

NOTHING = Ledger(tasks=(), timers=0, connections=0, waiters=0, threads=0)


async def until(condition):
    """Wait for what nobody announces."""
    while not condition():  # noqa: ASYNC110 - see above
        await asyncio.sleep(0.001)


# The servers


@contextlib.asynccontextmanager
async def running_server():
    server = EchoServer("echo-1")
    await server.start()
    try:
        yield server
    finally:
        server.stop()
        await server.deserted()


async def connect(server):
    return await asyncio.open_connection(*server.backend.address)


async def hang_up(writer):
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def test_a_server_echoes_lines_and_single_bytes(run_real):
    async def main():
        async with running_server() as server:
            reader, writer = await connect(server)
            for sent in (b"a line\n", b"\n"):
                writer.write(sent)
                assert await reader.readexactly(len(sent)) == sent
            assert server.connections == 1
            await hang_up(writer)

    run_real(main)


def test_a_killed_server_drops_its_connections_and_refuses_new_ones_until_it_is_revived_on_the_same_port(run_real):
    async def main():
        async with running_server() as server:
            port = server.backend.port
            reader, writer = await connect(server)
            writer.write(b"\n")
            await reader.readexactly(1)
            server.kill()
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            with pytest.raises(ConnectionRefusedError):
                await connect(server)
            await hang_up(writer)
            await server.revive()
            assert server.backend.port == port
            reader, writer = await connect(server)
            writer.write(b"back\n")
            assert await reader.readline() == b"back\n"
            await hang_up(writer)

    run_real(main)


def test_a_server_that_hangs_accepts_and_answers_only_when_it_is_healed_what_it_owes(run_real):
    async def main():
        async with running_server() as server, running_server() as well:
            server.hang()
            reader, writer = await connect(server)
            writer.write(b"anybody\n")
            answer = asyncio.create_task(reader.readline())
            # In the time that a whole conversation with another server takes, this one could have answered.
            other_reader, other_writer = await connect(well)
            other_writer.write(b"anybody\n")
            assert await other_reader.readline() == b"anybody\n"
            assert not answer.done()
            server.heal()
            assert await answer == b"anybody\n"
            await hang_up(writer)
            await hang_up(other_writer)

    run_real(main)


def test_a_server_remembers_since_when_it_has_been_well(run_real):
    async def main():
        async with running_server() as server:
            now = asyncio.get_running_loop().time()
            assert server.was_well_since(now)
            server.hang()
            assert not server.was_well_since(now)
            server.heal()
            assert not server.was_well_since(now - 1)
            server.kill()
            assert server.health is Health.KILLED
            assert not server.was_well_since(asyncio.get_running_loop().time())

    run_real(main)


# The DNS server


@contextlib.asynccontextmanager
async def running_dns():
    server = DnsServer(Zone("demo.test", 1))
    server.zone.add("_echo._tcp.demo.test", "SRV", "1 2 7001 echo-1.demo.test.")
    server.zone.add("echo-1.demo.test", "A", "127.0.0.1")
    server.zone.add("echo-1.demo.test", "AAAA", "::1")
    await server.start()
    try:
        yield server
    finally:
        server.stop()
        await until(lambda: not server.receiving)


async def ask(server, name, kind, tcp=False):
    """Ask as a client does that is not ours. Return the code, and the answers as zone files have them."""
    query = dns.message.make_query(name, kind)
    host, _, port = server.address.rpartition(":")
    how = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    reply = await how(query, host, port=int(port), timeout=60)
    values = [item.to_text() for rrset in reply.answer for item in rrset]
    return dns.rcode.to_text(reply.rcode()), sorted(values)


@pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
def test_the_dns_server_says_what_is_in_its_zone_and_what_is_not(tcp, run_real):
    async def main():
        async with running_dns() as server:
            assert await ask(server, "_echo._tcp.demo.test", "SRV", tcp) == ("NOERROR", ["1 2 7001 echo-1.demo.test."])
            assert await ask(server, "ECHO-1.Demo.Test", "A", tcp) == ("NOERROR", ["127.0.0.1"])
            assert await ask(server, "echo-1.demo.test", "AAAA", tcp) == ("NOERROR", ["::1"])
            assert await ask(server, "echo-1.demo.test", "TXT", tcp) == ("NOERROR", [])
            assert await ask(server, "echo-2.demo.test", "A", tcp) == ("NXDOMAIN", [])
            assert await ask(server, "example.com", "A", tcp) == ("REFUSED", [])
            assert server.answered == 6

    run_real(main)


def test_a_change_of_the_zone_holds_from_the_next_query_on(run_real):
    async def main():
        async with running_dns() as server:
            server.zone.add("echo-1.demo.test", "A", "127.0.0.2")
            assert await ask(server, "echo-1.demo.test", "A") == ("NOERROR", ["127.0.0.1", "127.0.0.2"])
            server.zone.remove("echo-1.demo.test", "A", "127.0.0.1")
            assert await ask(server, "echo-1.demo.test", "A") == ("NOERROR", ["127.0.0.2"])
            server.zone.remove("echo-1.demo.test", "A", "127.0.0.2")
            server.zone.remove("echo-1.demo.test", "AAAA", "::1")
            assert await ask(server, "echo-1.demo.test", "A") == ("NXDOMAIN", [])
            with pytest.raises(ValueError, match="not in list"):
                server.zone.remove("echo-1.demo.test", "A", "127.0.0.1")

    run_real(main)


def test_what_is_too_long_for_a_datagram_is_truncated_and_comes_over_tcp(run_real):
    async def main():
        async with running_dns() as server:
            for number in range(100):
                server.zone.add("many.demo.test", "A", f"127.0.1.{number}")
            reply = dns.message.from_wire(
                server.reply(dns.message.make_query("many.demo.test", "A").to_wire(), udp=True)
            )
            assert reply.flags & dns.flags.TC
            assert not reply.answer
            assert len((await ask(server, "many.demo.test", "A", tcp=True))[1]) == 100

    run_real(main)


def test_what_is_no_query_gets_no_answer_and_harms_nothing(run_real):
    async def main():
        async with running_dns() as server:
            answer = dns.message.make_response(dns.message.make_query("demo.test", "A")).to_wire()
            for wire in (b"", b"\0" * 5, b"\xff" * 100, answer):
                assert server.reply(wire, udp=True) is None
            notify = dns.message.make_query("demo.test", "A")
            notify.set_opcode(dns.opcode.NOTIFY)
            assert dns.message.from_wire(server.reply(notify.to_wire(), udp=True)).rcode() == dns.rcode.NOTIMP
            host, _, port = server.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"\xff\xff")  # the length of a query that nobody needs
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            await hang_up(writer)
            assert await ask(server, "echo-1.demo.test", "A") == ("NOERROR", ["127.0.0.1"])

    run_real(main)


def test_a_silent_dns_server_answers_nothing_until_it_answers_again():
    server = DnsServer(Zone("demo.test", 1))
    query = dns.message.make_query("demo.test", "A").to_wire()
    server.fall_silent()
    assert server.reply(query, udp=True) is None
    server.answer_again()
    assert server.reply(query, udp=True) is not None
    assert server.answered == 1


def test_the_backends_of_the_stage_are_those_that_its_dns_server_names(run_real):
    async def main():
        async with Stage(2) as stage, stage.resolver().monitor() as monitor:
            assert sorted(map(server_name, await monitor.changed())) == ["echo-1", "echo-2"]
            assert {backend.address for backend in monitor.backends.values()} == {
                server.backend.address for server in stage.servers.values()
            }
            await stage.remove("echo-1")
            assert list(map(server_name, await monitor.changed())) == ["echo-2"]
            assert stage.condition_of_dns().startswith("DNS answers, 1 SRV records, TTL 1 s, ")
            await stage.silence()
            assert stage.condition_of_dns().startswith("DNS silent, ")
            await stage.add("echo-3")
            assert sorted(map(server_name, await monitor.changed())) == ["echo-2", "echo-3"]
        await stage.deserted(60)
        await until(lambda: not stage.dns.receiving)

    run_real(main)


# The clients


def test_echoes_that_belong_to_somebody_else_are_counted_as_wrong(run_real):
    async def swap(reader, writer):
        while line := await reader.readline():
            writer.write(line if line == b"\n" else b"client 0 line 0\n")
        writer.close()

    async def main():
        async with running_server() as listed:
            liar = await asyncio.start_server(swap, "127.0.0.1", 0)
            backend = Backend(listed.name, *liar.sockets[0].getsockname())
            pool = Pool("demo", ManualResolver([backend]), EchoConnector(), demo_policy(DemoOptions()))
            async with EchoClients(pool, {listed.name: listed}, count=3, seed=1) as clients, pool:
                clients.start()
                await until(lambda: clients.tally.wrong >= 3)
            assert clients.tally.right == 0
            assert any("client 0 line 0" in surprise for surprise in clients.tally.surprises)
            liar.close()
            await liar.wait_closed()
            await until(lambda: len(asyncio.all_tasks()) == 1)  # asyncio's own, one for each connection

    run_real(main)


def test_a_claim_that_fails_is_a_surprise(run_real):
    async def main():
        pool = Pool("demo", ManualResolver(), EchoConnector(), Policy(claim_timeout=0.001))
        async with EchoClients(pool, {}, count=1, seed=1) as clients, pool:
            clients.start()
            await until(lambda: clients.tally.surprises)
        assert "NoBackendsError" in clients.tally.surprises[0]
        assert clients.tally.failed_claims == len(clients.tally.surprises)
        assert clients.tally.turned_away == 1

    run_real(main)


# The scenario


@pytest.mark.parametrize("backends", [2, 3, 4, 64])
def test_one_backend_that_is_well_is_published_at_every_moment(backends, run_real):
    async def main():
        async with Stage(backends) as stage:
            for step in scenario(backends):
                await step.act(stage)
                assert "well" in {stage.condition(name) for name in stage.servers}, step.title
            conditions = [stage.condition(name) for name in stage.servers]
            assert conditions.count("removed") == 1
            assert conditions.count("well") == backends

    run_real(main)


def test_the_backends_with_a_part_in_the_scenario_are_first_in_the_table_and_the_new_one_is_last():
    names = sorted(Stage(9).servers)
    titles = [step.title for step in scenario(9)]
    assert titles[:5:2] == [f"kill {names[0]}", f"hang {names[1]}", f"remove {names[2]}"]
    assert scenario(9)[-1].title.removeprefix("add ") > names[-1]


def test_the_steps_are_in_order_and_leave_time_for_the_last_one():
    moments = [step.at for step in scenario(3)]
    assert moments == sorted(moments)
    assert moments[-1] < 0.9


# The journal


def test_what_is_logged_goes_to_the_journal_and_nowhere_else(run_real, capsys):
    async def main():
        with Journal() as journal:
            logging.getLogger("qorb.pool").warning("a claim is held for %d s", 60)
            logging.getLogger("qorb").error("worse\n\x1b[2J")
            entries = journal.take()
        assert [entry.text for entry in entries] == [
            "warning: a claim is held for 60 s",
            "error: worse  [2J",
        ]
        assert {entry.kind for entry in entries} == {Kind.LOG}
        assert journal.logged_errors == ["error: worse\n\x1b[2J"]
        assert journal.take() == []

    run_real(main)
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger("qorb").propagate


def test_checks_that_fail_together_are_told_once_and_again_after_the_next_step(run_real):
    async def main():
        journal = Journal()
        failed = HealthCheckFailed("demo", 1, "echo-2", "TimeoutError")
        journal.observe(failed)
        journal.observe(failed)
        journal.step("echo-2 hangs", "it goes offline")
        journal.observe(failed)
        journal.observe(SlotSetOffline("demo", "echo-2", has_unclaimed_slots=False))
        told = [entry.text.partition(",")[0] for entry in journal.take() if entry.kind is Kind.POOL]
        failure = "echo-2 failed a health check (TimeoutError)"
        assert told == [failure, failure, "echo-2 is offline"]

    run_real(main)


def test_what_the_resolver_finds_is_told_once_while_it_goes_on(run_real):
    async def main():
        with Journal() as journal:
            failed = ResolverFailed("demo", "DNS: _echo._tcp.demo.test SRV: 127.0.0.1:5353: no answer within 1.5 s")
            answered = ResolverQueryDone("demo", "127.0.0.1:5353", "_echo._tcp.demo.test SRV", 2, 1.0)
            for event in (answered, failed, failed, answered, answered):
                journal.observe(event)
            journal.observe(ResolverUpdated("demo", tuple(f"echo-{n}.demo.test:1" for n in range(6)), (), ()))
            logging.getLogger("qorb.dns").warning("no answer within 1.5 s")
            logging.getLogger("qorb.dns").error("a mistake")
            told = [entry.text.rpartition(", after")[0] or entry.text for entry in journal.take()]
        assert told == [
            "no answer within 1.5 s from DNS; what is known stays",
            "DNS has answered again",
            "DNS: echo-0, echo-1, echo-2, echo-3 and 2 more added",
            "error: a mistake",
        ]

    run_real(main)


def test_text_from_elsewhere_moves_no_cursor():
    assert printable("a\x1b[31mb\r\nc\x07") == "a [31mb  c "


# What is shown


def stats(claims=0, waiting=0, **backends):
    return PoolStats("demo", PoolState.RUNNING, claims, waiting, backends)


def backend_stats(name="echo-1", *, total_claims=0, online=True, last_error=None, claimed=1):
    return BackendStats(
        backend=Backend(name, "127.0.0.1", 1),
        online=online,
        connecting_slots=0,
        unclaimed_slots=2,
        checking_slots=0,
        claimed_slots=claimed,
        total_claims=total_claims,
        failures=0,
        last_error=last_error,
    )


def frame_of(rows):
    return Meter(30.0).frame(0.0, 0.0, stats(**{row.backend.name: row for row in rows}), Tally(), lambda name: "well")


def test_rates_are_taken_over_the_last_seconds_only():
    meter = Meter(30.0)
    tally = Tally()

    def at(now, claims):
        row = backend_stats(total_claims=claims)
        return meter.frame(now, now, stats(claims=claims, one=row), tally, lambda name: "well")

    assert at(0.0, 1000).claims_per_second == 0
    assert at(WINDOW / 2, 1100).claims_per_second == 100 / (WINDOW / 2)
    assert at(WINDOW, 1400).rows[0].claims_per_second == 400 / WINDOW
    assert at(10 * WINDOW, 1400).claims_per_second == 0


def test_a_backend_that_left_and_came_back_counts_from_zero():
    meter = Meter(30.0)
    meter.frame(0.0, 0.0, stats(one=backend_stats(total_claims=500)), Tally(), lambda name: "well")
    frame = meter.frame(1.0, 1.0, stats(one=backend_stats(total_claims=30)), Tally(), lambda name: "well")
    assert frame.rows[0].claims_per_second == 30


def test_latencies_are_those_of_the_last_seconds():
    tally = Tally()
    tally.waits.extend([(0.0, 9.0), (10.0, 0.001), (10.0, 0.002)])
    frame = Meter(30.0).frame(10.0, 10.0, stats(), tally, lambda name: "well")
    assert (frame.latency_p50, frame.latency_p99) == (0.001, 0.002)


@pytest.mark.parametrize(
    ("values", "share", "expected"), [([], 0.5, None), ([1], 0.99, 1), ([1, 2], 0.5, 1), (range(1, 201), 0.99, 198)]
)
def test_percentiles_are_values_that_occurred(values, share, expected):
    assert percentile(values, share) == expected


def test_plain_lines_come_once_a_second_and_are_plain(capsys):
    view = PlainView()
    meter = Meter(30.0)
    row = backend_stats(online=False, last_error="ConnectError: \x1b[2Jno\n \N{SNOWMAN}")
    for tenth in range(25):
        view.show(meter.frame(tenth / 10, tenth / 10, stats(**{"echo-1": row}), Tally(), lambda name: "killed"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "echo-1 DOWN 0/2/0/1 0/s killed ( [2Jno  \\u2603)" in lines[0]
    assert all(line.isascii() and line.isprintable() for line in lines)


def test_both_views_say_how_the_pool_explains_that_claims_wait(capsys):
    view, waiting = PlainView(), dataclasses.replace(stats(), waiting=3)
    meter = Meter(30.0)
    frames = [
        meter.frame(now, now, numbers, Tally(), lambda name: "well", verdict="all 16 connections are in use\n")
        for now, numbers in ((1.0, stats()), (2.0, waiting))
    ]
    for frame in frames:
        view.show(frame)
    lines = capsys.readouterr().out.splitlines()
    assert ["explain: all 16 connections are in use" in line for line in lines] == [False, True]
    live = [line.plain for line in live_view(3).lines(frames[1], 80, 24)]
    assert any(line.startswith("explain(): all 16 connections are in use") for line in live)


def live_view(backends):
    view = LiveView()
    view.open(["one", "two", "three"])
    for number, step in enumerate(scenario(backends)):
        view.tell(Entry(number, Kind.STEP, step.say))
        view.tell(Entry(number, Kind.LOOK, step.look))
        view.tell(Entry(number, Kind.POOL, "echo-64 is offline, after 1000 ms"))
    return view


@pytest.mark.parametrize("backends", [2, 3, 64])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 10)])
def test_the_live_table_fits_the_terminal(backends, width, height):
    rows = [backend_stats(f"echo-{number}", last_error="TimeoutError") for number in range(1, backends + 1)]
    lines = live_view(backends).lines(frame_of(rows), width, height)
    assert len(lines) <= height
    assert max(cell_len(line.plain) for line in lines) <= width


def test_the_live_table_says_how_many_backends_it_leaves_out():
    lines = live_view(64).lines(frame_of([backend_stats(f"echo-{number}") for number in range(64)]), 80, 24)
    shown = sum(line.plain.startswith("echo-") for line in lines)
    assert f"and {64 - shown} more backends" in [line.plain for line in lines]


def test_the_live_table_leaves_out_those_that_nothing_has_happened_to():
    view = live_view(64)
    names = [f"echo-{number:02}" for number in range(1, 64)]
    view.lines(frame_of([backend_stats(name) for name in names]), 80, 24)
    changed = [backend_stats(name, online=name != "echo-40") for name in names]
    view.lines(frame_of(changed), 80, 24)
    for _ in range(3):
        lines = view.lines(frame_of([*changed, backend_stats("echo-64")]), 80, 24)
    shown = [line.plain.partition(" ")[0] for line in lines if line.plain.startswith("echo-")]
    assert shown[-2:] == ["echo-40", "echo-64"]
    assert shown == sorted(shown)


def test_no_step_is_cut_off_at_80_columns():
    for step in scenario(64):
        view = LiveView()
        view.open(["one"])
        view.tell(Entry(100.0, Kind.STEP, step.say))
        view.tell(Entry(100.0, Kind.LOOK, step.look))
        assert max(cell_len(line.plain) for line in view.lines(frame_of([]), 80, 24)) <= 80, step.title


# The report


def report(**changes):
    values = {
        "before": Census(Ledger(tasks=("slot",), timers=1, connections=1, waiters=0, threads=0), 1, 1),
        "after": Census(NOTHING, 0, 0),
        "claims_out": 1,
        "took": 0.05,
        "tally": Tally(right=10),
        "logged_errors": (),
        "failure": None,
    }
    return Report(**{**values, **changes})


def test_a_good_report_says_that_nothing_is_left():
    assert report().good
    assert "left: nothing" in report().lines()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"after": Census(Ledger(("slot 7",), 0, 0, 0, 0), 0, 0)}, "left: something; see above (tasks: slot 7)"),
        ({"after": Census(NOTHING, 1, 0)}, "left: something; see above"),
        ({"after": Census(NOTHING, 0, 1)}, "left: something; see above"),
        ({"after": Census(NOTHING, 0, 0, sockets=1)}, "left: something; see above"),
        ({"after": Census(NOTHING, 0, 0, threads=1)}, "left: something; see above"),
        ({"failure": "1 task is still there"}, "It failed: 1 task is still there"),
        ({"tally": Tally(wrong=1)}, "Echoes that were right: 0, wrong: 1, cut short by what the demo did: 0"),
        ({"tally": Tally(surprises=["claim failed"])}, "  claim failed"),
        ({"logged_errors": ("error: a slot died",)}, "  error: a slot died"),
    ],
)
def test_a_report_is_not_good_when_anything_is_left_or_went_wrong(changes, said):
    assert not report(**changes).good
    assert said in report(**changes).lines()


def test_the_report_fits_80_columns():
    assert max(map(len, report().lines())) <= 80


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells of sockets and threads in /proc")
def test_sockets_and_threads_that_nobody_owns_up_to_are_counted(run_real):
    async def main():
        async with Stage(2) as stage:
            counter = Counter([Pool("demo", ManualResolver(), EchoConnector())], stage)
            server = stage.servers["echo-1"]
            server.kill()
            await server.revive()
            assert (await counter.census()).sockets == 0
            client = socket.create_connection(server.backend.address)
            await until(lambda: server.connections)
            end = threading.Event()
            thread = threading.Thread(target=end.wait)
            thread.start()
            counted = await counter.census()
            assert (counted.sockets, counted.threads, counted.empty) == (1, 1, False)
            assert (await counter.settled(0.001)).sockets == 1
            end.set()
            thread.join()
            client.close()
            assert (await counter.settled(60)).empty
        await until(lambda: not stage.dns.receiving)

    run_real(main)


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells of sockets and threads in /proc")
def test_what_a_resolver_has_open_while_it_asks_is_counted_and_its_idle_thread_is_not(run_real):
    async def main():
        async with Stage(2) as stage:
            counter = Counter([Pool("demo", ManualResolver(), EchoConnector())], stage)
            await stage.silence()
            async with stage.resolver().monitor():
                while not (await counter.census()).sockets:  # noqa: ASYNC110 - nobody announces it
                    await asyncio.sleep(0.001)
            assert (await counter.settled(60)).empty
            assert any("shutdown" in thread.name for thread in threading.enumerate())
        await until(lambda: not stage.dns.receiving)

    run_real(main)


# Signals


def test_signals_are_only_noted_until_the_third(run_real):
    async def main():
        before = signal.getsignal(signal.SIGTERM)
        with Interruption() as interruption:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            await interruption.wait(60)
            assert interruption.signal == signal.SIGTERM
            assert signal.getsignal(signal.SIGTERM) != before
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0)
            assert signal.getsignal(signal.SIGTERM) == before
        assert signal.getsignal(signal.SIGTERM) == before

    run_real(main)


# The program


QORB = (sys.executable, "-W", "error", "-m", "qorb.cli")


@contextlib.contextmanager
def started(*arguments, command=QORB, **options):
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen([*command, *arguments], text=True, encoding="ascii", **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_demo_that_is_piped_writes_plain_lines_and_leaves_nothing():
    with started("demo", "--seconds", "3") as demo:
        said, complaints = demo.communicate()
    assert complaints == ""
    assert demo.returncode == 0, said
    lines = said.splitlines()
    assert all(line.isprintable() for line in lines)
    for step in scenario(3):
        assert any(line.endswith(f"==> {step.say}") for line in lines), step.title
        assert any(line.endswith(f"look: {step.look}") for line in lines), step.title
    assert len([line for line in lines if re.match(r" +\d+\.\d+ s  \d+ claims/s, ", line)]) in {2, 3}
    assert "left: nothing" in lines
    assert "Failed claims and other unexpected failures: 0" in lines
    assert any(re.match(r"Echoes that were right: [1-9]\d*, wrong: 0, ", line) for line in lines)
    before = {label.strip(): int(count) for label, count in re.findall(r"^  (\S.*?) +(\d+) +0$", said, re.MULTILINE)}
    assert len(before) == 9
    assert before["open connections, by the servers"] > 0
    assert before["tasks with a pool's name, by asyncio"] > 0
    assert before["sockets but the servers', by the system"] > 0 or sys.platform != "linux"


def test_its_statistics_can_be_looked_at_meanwhile():
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with started("demo", "--seconds", "3") as demo:
        url = next(re.search(r"Statistics: (http://\S+)", line)[1] for line in demo.stdout if "Statistics:" in line)
        with opener.open(f"{url}stats.json", timeout=60) as answer:
            pools = json.load(answer)["pools"]
        said, complaints = demo.communicate()
    assert [(pool["name"], pool["state"]) for pool in pools] == [("demo", "running")]
    assert complaints == ""
    assert demo.returncode == 0, said
    assert "left: nothing" in said.splitlines()


@pytest.mark.parametrize("backends", ["2", "5"])
def test_other_numbers_of_backends_and_clients_do_as_well(backends):
    with started("demo", "--seconds", "3", "--backends", backends, "--clients", "3", "--seed", "7") as demo:
        said, complaints = demo.communicate()
    assert complaints == ""
    assert demo.returncode == 0, said


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", ["qorb demo:", "servers are up", "hangs"])
def test_a_signal_at_any_moment_ends_it_cleanly(signum, status, moment):
    with started("demo", "--seconds", "3") as demo:
        for line in demo.stdout:
            if moment in line:
                break
        demo.send_signal(signum)
        said, complaints = demo.communicate()
    assert complaints == ""
    assert "left: nothing" in said.splitlines()
    assert demo.returncode == status


def test_a_reader_that_goes_away_ends_it_quietly():
    with started("demo", "--seconds", "3600") as demo:
        demo.stdout.readline()
        demo.stdout.close()
        complaints = without_slowness(demo.stderr.read())
        demo.wait()
    assert complaints == ""
    assert demo.returncode == 141


# The program on a terminal


class Terminal:
    """A pseudo-terminal of 80 columns and 24 lines, seen from the side of who looks at it."""

    def __init__(self):
        self._seen, self.inside = pty.openpty()
        termios.tcsetwinsize(self.inside, (24, 80))
        self.settings = termios.tcgetattr(self.inside)
        self.screen = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode

    def read_until(self, words, program):
        while words not in self.screen:
            ended = program.poll() is not None
            if select.select([self._seen], [], [], 0 if ended else 1)[0]:
                self.screen += self._decode(os.read(self._seen, 65536))
            else:
                assert not ended, f"{words!r} did not come:\n{self.screen}"

    def type(self, text):
        os.write(self._seen, text.encode())

    def close(self):
        os.close(self._seen)
        os.close(self.inside)


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.close()


def take_the_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def on_terminal(terminal, *arguments, command=QORB, term="xterm-256color", environment=os.environ):
    return started(
        *arguments,
        command=command,
        stdin=terminal.inside,
        stdout=terminal.inside,
        start_new_session=True,
        preexec_fn=take_the_terminal,
        env={**environment, "TERM": term},
    )


def left_on_the_screen(terminal):
    """What stands there after the alternate screen was left; fails when it was not, or the cursor is hidden."""
    assert termios.tcgetattr(terminal.inside) == terminal.settings
    _, entered, rest = terminal.screen.partition("\x1b[?1049h")
    assert entered
    _, left, after = rest.rpartition("\x1b[?1049l")
    assert left
    assert terminal.screen.rfind("\x1b[?25h") > terminal.screen.rfind("\x1b[?25l") >= 0
    return after


def test_a_terminal_gets_a_live_table_and_is_given_back_as_it_was(terminal):
    with on_terminal(terminal, "demo", "--seconds", "3") as demo:
        terminal.read_until("other unexpected failures: 0\r\n", demo)
        complaints = without_slowness(demo.stderr.read())
    assert demo.returncode == 0
    assert complaints == ""
    assert "connecting unclaimed checking claimed claims/s failures" in terminal.screen
    after = left_on_the_screen(terminal)
    assert "left: nothing" in after
    assert scenario(3)[0].say in re.sub(r"\x1b\[[\d;]*m", "", after)


def test_ctrl_c_on_the_terminal_gives_it_back_and_says_what_is_left(terminal):
    with on_terminal(terminal, "demo", "--seconds", "30") as demo:
        terminal.read_until("claims/s", demo)
        terminal.type("\x03")
        terminal.read_until("left: nothing", demo)
        complaints = without_slowness(demo.stderr.read())
    assert demo.wait() == 130
    assert complaints == ""
    assert "left: nothing" in left_on_the_screen(terminal)


def test_sigterm_gives_the_terminal_back(terminal):
    with on_terminal(terminal, "demo", "--seconds", "30") as demo:
        terminal.read_until("claims/s", demo)
        demo.terminate()
        terminal.read_until("left: nothing", demo)
        complaints = without_slowness(demo.stderr.read())
    assert demo.wait() == 143
    assert complaints == ""
    assert "left: nothing" in left_on_the_screen(terminal)


WITHOUT_RICH = "import sys; sys.modules['rich'] = None; from qorb.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("arguments", "command", "term", "first_line"),
    [
        (
            [],
            (sys.executable, "-W", "error", "-c", WITHOUT_RICH),
            "xterm",
            'The live table needs rich: pip install "qorb',
        ),
        (["--plain"], QORB, "xterm", "qorb demo: 20 clients"),
        ([], QORB, "dumb", "qorb demo: 20 clients"),
    ],
    ids=["without rich", "asked for plain lines", "dumb terminal"],
)
def test_a_terminal_gets_plain_lines_when_there_can_be_no_table(terminal, arguments, command, term, first_line):
    with on_terminal(terminal, "demo", *arguments, command=command, term=term) as demo:
        terminal.read_until("servers are up", demo)
        demo.send_signal(signal.SIGINT)
        terminal.read_until("left: nothing", demo)
        complaints = without_slowness(demo.stderr.read())
    assert complaints == ""
    assert terminal.screen.startswith(first_line)
    assert "\x1b" not in terminal.screen


WITHOUT = "import sys; sys.modules[{!r}] = None; from qorb.cli import main; sys.exit(main(['demo']))"


@pytest.mark.parametrize("package", ["aiodns", "pycares", "dns"])
def test_without_the_packages_that_it_needs_one_sentence_says_what_to_install(package):
    command = [sys.executable, "-W", "error", "-c", WITHOUT.format(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'qorb demo: it needs aiodns and dnspython; run: pip install "qorb[demo]"\n'


# No port


def test_a_demo_whose_dns_server_gets_no_port_says_so_too(monkeypatch, capsys):
    def refuse():
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(demo_dns, "_bind_both", refuse)
    assert main(["demo", "--plain", "--seconds", "3"]) == 1
    told = capsys.readouterr()
    assert "the server dns did not get a free port on 127.0.0.1: Address already in use. Nothing is left" in told.err
    assert "Traceback" not in told.out + told.err


@pytest.mark.parametrize("served", [0, 1, 3])
def test_a_demo_whose_server_gets_no_port_says_so_in_a_sentence_and_ends_with_status_1(served, monkeypatch, capsys):
    reserved = []

    def reserve(port):
        if len(reserved) >= served:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        reserved.append(really_reserve(port))
        return reserved[-1]

    really_reserve = servers._reserve
    monkeypatch.setattr(servers, "_reserve", reserve)
    # With three ports they all begin, and the first one that is killed does not get its port back.
    assert main(["demo", "--plain", "--backends", "3", "--seconds", "3"]) == 1
    told = capsys.readouterr()
    port = "a free port" if served < 3 else r"port \d+"
    assert re.fullmatch(
        rf"qorb demo: the server echo-\d did not get {port} on 127\.0\.0\.1: Cannot assign requested address\. "
        r"Nothing is left running; try again, or with fewer --backends\.\n",
        told.err,
    )
    assert "Traceback" not in told.out + told.err
    assert all(one.fileno() == -1 for one in reserved)
