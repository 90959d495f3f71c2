"""`qorb resolve`: what it finds, what it says of it, and how it ends; against a DNS server in a thread."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time

import pytest

from qorb._resolve.notes import Notes
from qorb._resolve.picture import News, news, picture
from qorb._resolve.words import changes, harmless
from qorb.backend import Backend
from qorb.cli import main
from qorb.errors import ResolveError
from qorb.resolvers.dns import DnsPolicy, Failed, NoRecords, Question, Records, Server, Srv
from qorb.testing import run
from tests.name_server import SERVICE, name_server
from tests.words import without_slowness

NOBODY = "127.0.0.1:1"
HINT = "(for the addresses of a plain host name give --default-port)"


@pytest.fixture
def served():
    with name_server() as served:
        served.srv("10 5 7001 echo-1.demo.test.")
        served.add("echo-1.demo.test", "A", "10.0.0.1")
        yield served


@pytest.fixture
def resolve(served, capsys):
    def resolve(*arguments, name=SERVICE, nameservers=None):
        given = [f"--nameserver={one}" for one in nameservers or [served.address]]
        status = main(["resolve", name, *given, *arguments])
        return status, capsys.readouterr()

    return resolve


@pytest.fixture
def found(resolve):
    """The object that --json prints."""

    def found(*arguments, **options):
        status, said = resolve("--json", *arguments, **options)
        return {"status": status, **json.loads(said.out)}

    return found


# What it says


def test_a_backend_is_shown_with_everything_that_a_pool_is_told_and_who_answered(resolve, served):
    status, said = resolve()
    assert (status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == f"{SERVICE}: 1 backend"
    assert lines[2].split() == ["name", "address", "port", "priority", "weight", "TTL", "server_name"]
    assert lines[3].split() == ["echo-1.demo.test:7001", "10.0.0.1", "7001", "10", "5", "7", "s", "echo-1.demo.test"]
    answers = lines[lines.index("who answered") + 1 :]
    assert re.fullmatch(rf"  {served.address}  {SERVICE} SRV +[\d.]+ ms {{2,}}1 record, TTL 7 s", answers[0])
    assert re.fullmatch(rf"  {served.address}  echo-1\.demo\.test A +[\d.]+ ms {{2,}}1 record, TTL 7 s", answers[1])
    assert answers[2].endswith("no records of this kind")
    assert "warnings" not in lines


def test_json_has_it_all_in_one_object(found, served):
    said = found()
    assert said["status"] == 0
    assert said["service"] == SERVICE
    assert said["reason"] is None
    assert said["warnings"] == []
    assert said["backends"] == [
        {
            "name": "echo-1.demo.test:7001",
            "address": "10.0.0.1",
            "port": 7001,
            "priority": 10,
            "weight": 5,
            "server_name": "echo-1.demo.test",
            "ttl": 7.0,
            "nameserver": served.address,
        }
    ]
    outcomes = {(one["name"], one["kind"]): one["outcome"] for one in said["answers"]}
    assert outcomes == {
        (SERVICE, "SRV"): "records",
        ("echo-1.demo.test", "A"): "records",
        ("echo-1.demo.test", "AAAA"): "none",
    }


def test_a_plain_name_gives_its_addresses_at_the_default_port(found, served):
    served.add("db.demo.test", "A", "10.0.0.2")
    served.add("db.demo.test", "AAAA", "fd00::2")
    places = {(one["address"], one["port"]) for one in found("--default-port", "5432", name="db.demo.test")["backends"]}
    assert places == {("10.0.0.2", 5432), ("fd00::2", 5432)}
    only = found("--default-port", "5432", "--family", "ipv6", name="db.demo.test")["backends"]
    assert [one["address"] for one in only] == ["fd00::2"]


def test_servers_that_a_service_names_are_asked_for_what_the_given_ones_do_not_know(found):
    with name_server() as given, name_server() as second:
        host, _, port = second.address.rpartition(":")
        given.do(given.zone.add, "_dns._udp.demo.test", "SRV", f"0 0 {port} ns.demo.test.")
        given.add("ns.demo.test", "A", host)
        second.srv("10 5 7001 echo-1.demo.test.")
        second.add("echo-1.demo.test", "A", "10.0.0.1")
        said = found("--resolver-service", "_DNS._udp.demo.test.", nameservers=[given.address])
    assert [one["address"] for one in said["backends"]] == ["10.0.0.1"]
    assert {one["nameserver"] for one in said["answers"]} == {given.address, second.address}


def test_an_answer_too_big_for_a_datagram_comes_over_tcp(found, served):
    for number in range(2, 65):
        served.srv(f"10 5 7001 echo-{number}.demo.test.")
        served.add(f"echo-{number}.demo.test", "A", f"10.0.0.{number}")
    assert len(found()["backends"]) == 64


@pytest.mark.parametrize(
    ("records", "warning"),
    [
        (
            [(SERVICE, "SRV", "1 1 7002 gone.demo.test.")],
            "target gone.demo.test has no address: NXDOMAIN: there is no such name",
        ),
        ([(SERVICE, "SRV", "1 1 0 echo-1.demo.test.")], f"{SERVICE} SRV: left out echo-1.demo.test:0: port 0"),
        ([("echo-1.demo.test", "A", "224.0.0.1")], "echo-1.demo.test A: left out 224.0.0.1: multicast"),
        (
            [(SERVICE, "SRV", "10 5 7001 other.demo.test."), ("other.demo.test", "A", "10.0.0.1")],
            "10.0.0.1:7001 stands under echo-1.demo.test and other.demo.test: one backend",
        ),
    ],
    ids=["no address", "port 0", "multicast", "twice"],
)
def test_what_is_odd_is_warned_of(records, warning, found, served):
    for record in records:
        served.add(*record)
    assert found()["warnings"] == [warning]


def test_a_server_that_fails_is_named_beside_what_the_other_one_said(found, served):
    # The dead one is listed first, so it has failed before the other can have answered everything.
    said = found(nameservers=[NOBODY, served.address])
    assert [one["name"] for one in said["backends"]] == ["echo-1.demo.test:7001"]
    assert [one for one in said["answers"] if one["nameserver"] == NOBODY and one["outcome"] in {"failed", "pending"}]


def test_a_name_with_escapes_moves_no_cursor(resolve, served):
    served.srv(r"1 1 7001 a\027[2Jb.demo.test.")
    for arguments in ([], ["--json"]):
        _, said = resolve(*arguments)
        assert all(line.isprintable() and line.isascii() for line in said.out.splitlines())
    assert harmless("a\x1b[2Jb\r\n\x7f\x9b\N{SNOWMAN}") == r"a\x1b[2Jb\r\n\x7f\x9b\u2603"


# Where there is nothing


@pytest.mark.parametrize(
    ("name", "nameservers", "reason"),
    [
        ("_no._tcp.demo.test", None, "_no._tcp.demo.test SRV: NXDOMAIN: there is no such name"),
        (SERVICE, [NOBODY], f"{SERVICE} SRV: {NOBODY}: nobody listens there"),
        ("_x._tcp.elsewhere", None, "_x._tcp.elsewhere SRV: ADDRESS: REFUSED: the server does not want to answer"),
        (
            "demo.test",
            None,
            f"demo.test SRV: NXDOMAIN: there is no such name {HINT}",
        ),
    ],
    ids=["no such name", "no server", "refused", "plain name"],
)
def test_where_there_is_no_backend_a_sentence_says_why_and_the_status_is_1(name, nameservers, reason, resolve, served):
    status, said = resolve(name=name, nameservers=nameservers)
    reason = reason.replace("ADDRESS", served.address)
    assert (status, said.out) == (1, "")
    assert said.err == f"qorb resolve: no backend found for {name}: {reason}\n"


def test_json_says_why_there_is_nothing_too(found):
    said = found(name="_no._tcp.demo.test")
    assert (said["status"], said["backends"]) == (1, [])
    assert said["reason"] == "_no._tcp.demo.test SRV: NXDOMAIN: there is no such name"


def test_a_server_that_is_silent_is_waited_for_as_long_as_was_asked(resolve, served):
    served.server.fall_silent()
    status, said = resolve("--timeout", "0.1")
    assert status == 1
    assert f"{served.address}: no answer within 0.1" in said.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: NAME"),
        (["a b"], "service is no DNS name: 'a b'"),
        (["a", "--nameserver", "dns.example.com"], "'dns.example.com' is no DNS server; it must be an IP address"),
        (["a", "--default-port", "0"], "argument --default-port: must be a whole number from 1 to 65535, not '0'"),
        (["a", "--default-port", "9" * 5000], "argument --default-port: must be a whole number from 1 to 65535"),
        (["a", "--timeout", "nan"], "argument --timeout: must be a number of seconds, more than 0, not 'nan'"),
        (["a", "--timeout", "0"], "argument --timeout: must be a number of seconds, more than 0, not '0'"),
        (["a", "--resolver-service", "b c"], "resolver_service is no DNS name: 'b c'"),
        (["a", "--family", "ipx"], "argument --family: invalid choice: 'ipx'"),
    ],
)
def test_wrong_options_end_in_one_sentence_and_status_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["resolve", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err.splitlines()[-1]


WITHOUT_AIODNS = "import sys; sys.modules['aiodns'] = None; from qorb.cli import main; sys.exit(main(sys.argv[1:]))"


def test_without_aiodns_one_sentence_says_what_to_install():
    command = [sys.executable, "-W", "error", "-c", WITHOUT_AIODNS, "resolve", SERVICE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'qorb resolve: DnsResolver needs aiodns; run: pip install "qorb[dns]"\n'


# Watching


def watching(address, *arguments):
    command = [sys.executable, "-W", "error", "-m", "qorb.cli", "resolve", SERVICE, "--nameserver", address, "--watch"]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_until(words, program):
    for line in program.stdout:
        assert line.isprintable() or line.endswith("\n")
        if words in line:
            return line
    raise AssertionError(f"{words!r} did not come: {program.stderr.read()}")


def test_changes_are_shown_as_they_come_until_ctrl_c(served):
    served.zone.ttl = 1
    with watching(served.address) as program:
        read_until("who answered", program)
        served.srv("20 1 7002 echo-2.demo.test.")
        served.add("echo-2.demo.test", "A", "10.0.0.2")
        line = read_until("echo-2", program)
        assert re.fullmatch(
            r"\d\d:\d\d:\d\d  \+ echo-2\.demo\.test:7002  10\.0\.0\.2:7002 priority 20 weight 1 TTL 1 s\n", line
        )
        program.send_signal(signal.SIGINT)
        rest, complaints = program.communicate()
    assert (program.returncode, rest, complaints) == (130, "", "")


def test_json_is_one_object_a_line_and_says_what_is_new(served):
    served.zone.ttl = 1
    with watching(served.address, "--json") as program:
        assert [one["priority"] for one in json.loads(program.stdout.readline())["backends"]] == [10]
        served.do(served.zone.remove, SERVICE, "SRV", "10 5 7001 echo-1.demo.test.")
        served.srv("10 6 7001 echo-1.demo.test.")
        said = json.loads(program.stdout.readline())
        program.send_signal(signal.SIGINT)
        program.communicate()
    assert (said["added"], said["removed"], said["changed"]) == ([], [], ["echo-1.demo.test:7001"])
    assert [one["weight"] for one in said["backends"]] == [6]


def test_that_nothing_is_found_is_said_once_until_something_is(served):
    served.zone.ttl = 1
    served.server.fall_silent()
    with watching(served.address, "--timeout", "0.1") as program:
        read_until("no backend: ", program)
        served.do(served.server.answer_again)
        line = program.stdout.readline()
        program.send_signal(signal.SIGINT)
        program.communicate()
    assert "+ echo-1.demo.test:7001  10.0.0.1:7001" in line


def test_a_reader_that_goes_away_ends_it_quietly(served):
    served.zone.ttl = 1
    with watching(served.address) as program:
        read_until("who answered", program)
        program.stdout.close()
        # The buffer of the pipe takes nothing any more: the first change ends it.
        served.srv("20 1 7002 echo-1.demo.test.")
        complaints = without_slowness(program.stderr.read())
    assert (program.returncode, complaints) == (141, "")


def test_ctrl_c_ends_a_look_up_that_is_under_way_at_once(served):
    served.server.fall_silent()
    command = [sys.executable, "-W", "error", "-m", "qorb.cli", "resolve", SERVICE, "--nameserver", served.address]
    with subprocess.Popen(
        [*command, "--timeout", "3600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        while not served.server.unanswered:
            time.sleep(0.001)
        program.send_signal(signal.SIGINT)
        assert program.communicate() == ("", "")
    assert program.returncode == 130


# What follows from the notes


A, B = Server("10.0.0.53", 53), Server("10.0.0.54", 53)
TARGET = Question("db.example", "A")
ASKED = Question("_db._tcp.example", "SRV")
ONE = Backend("db.example:1", "10.0.0.1", 1, "db.example", 0, 1)
SRV = Records((Srv(0, 1, 1, "db.example"),), 30.0, total=1)
ADDRESS = Records(("10.0.0.1",), 20.0, total=1)


class Story:
    """Tells Notes of rounds, and looks at them."""

    def __init__(self):
        self.notes = Notes(ASKED.name)

    def round(self, *replies, backends=(ONE,), missing=()):
        for server, question, reply in replies:
            self.notes.asked(server, question)
            if reply is not None:
                self.notes.replied(server, question, reply, 0.001)
        self.notes.publish(backends)
        self.notes.round_is_over(missing, asyncio.get_running_loop().time())
        return self.look()

    def look(self):
        return picture(ASKED.name, self.notes, plain=False, max_backends=DnsPolicy().max_backends)


def test_a_ttl_is_that_of_what_expires_first():
    async def story():
        return Story().round((A, ASKED, SRV), (A, TARGET, ADDRESS))

    row = run(story).rows[0]
    assert (row.ttl, row.nameserver) == (20.0, "10.0.0.53:53")


def test_servers_that_disagree_and_aliases_are_named():
    async def story():
        alias = Records(("10.0.0.1",), 20.0, cnames=2, total=1)
        return Story().round((A, ASKED, SRV), (B, ASKED, NoRecords("no records")), (A, TARGET, alias))

    assert [one.text for one in run(story).oddities] == [
        "target db.example is an alias (2 CNAMEs): RFC 2782 wants targets that have addresses",
        "_db._tcp.example SRV: the servers disagree (10.0.0.53:53 has 1, 10.0.0.54:53 has 0)",
    ]


@pytest.mark.parametrize("asked", [False, True])
def test_a_server_that_was_not_heard_since_a_change_does_not_disagree(asked):
    async def story():
        told = Story()
        told.round((A, ASKED, SRV), (B, ASKED, SRV), (A, TARGET, ADDRESS), (B, TARGET, ADDRESS))
        other = Question("other.example", "A")
        moved = Records((Srv(0, 1, 1, other.name),), 10.0, total=1)
        late = [(B, ASKED, None), (B, other, None)] if asked else []
        backend = Backend("other.example:1", "10.0.0.1", 1, other.name, 0, 1)
        return told.round((A, ASKED, moved), (A, other, ADDRESS), *late, backends=[backend])

    now = run(story)
    assert not now.oddities
    assert [(row.ttl, row.nameserver) for row in now.rows] == [(10.0, "10.0.0.53:53")]


def test_failures_of_one_server_are_told_once():
    async def story():
        failed = Failed("SERVFAIL: the server could not answer")
        return Story().round((B, ASKED, failed), (B, TARGET, failed), (A, ASKED, SRV), (A, TARGET, ADDRESS))

    said = [one.text for one in run(story).oddities]
    assert said == ["10.0.0.54:53: SERVFAIL: the server could not answer (_db._tcp.example SRV and 1 more)"]


def test_what_dns_said_before_it_failed_still_stands():
    async def story():
        told = Story()
        left_out = Records(SRV.records, 30.0, total=2, refused=("x:0: port 0",))
        before = told.round((A, ASKED, left_out), (A, TARGET, ADDRESS))
        after = told.round((A, ASKED, Failed("no answer")), missing=[(ASKED, "10.0.0.53:53: no answer")])
        again = told.round((A, ASKED, left_out), (A, TARGET, ADDRESS))
        return before, after, again

    before, after, again = run(story)
    failing, healed = news(before, after), news(after, again)
    assert [one.text for one in failing.odd] == ["_db._tcp.example SRV: 10.0.0.53:53: no answer"]
    assert not failing.no_longer_odd
    assert after.rows == before.rows
    assert not healed.odd
    assert len(healed.no_longer_odd) == 1
    assert not news(before, again)


def test_what_was_said_of_targets_that_are_gone_is_forgotten():
    async def story():
        told = Story()
        other = Question("other.example", "A")
        two = Records((*SRV.records, Srv(0, 1, 1, "other.example")), 30.0, total=2)
        told.round((A, ASKED, two), (A, TARGET, ADDRESS), (A, other, NoRecords("no records")))
        told.round((A, ASKED, SRV), (A, TARGET, ADDRESS))
        return set(told.notes.exchanges)

    assert run(story) == {(ASKED, A), (TARGET, A)}


def test_a_server_that_has_not_answered_is_shown_with_how_long_it_has_not():
    async def story():
        told = Story()
        told.notes.asked(B, ASKED)
        await asyncio.sleep(2)
        return told.round((A, ASKED, SRV), (A, TARGET, ADDRESS))

    said = {one.nameserver: one for one in run(story).said if one.kind == "SRV"}
    assert (said["10.0.0.54:53"].outcome, said["10.0.0.54:53"].seconds) == ("pending", 2.0)


def test_why_nobody_could_be_asked_is_the_reason():
    async def story():
        told = Story()
        told.notes.could_not_ask(ResolveError("no configuration"), 0.0)
        return told.look()

    assert run(story).reason == "no configuration"


def test_a_change_says_what_was_and_what_is():
    async def story():
        told = Story()
        before = told.round((A, ASKED, SRV), (A, TARGET, ADDRESS))
        moved = Backend(ONE.name, "10.0.0.2", 1, "db.example", 5, 1)
        after = told.round((A, ASKED, SRV), (A, TARGET, ADDRESS), backends=[moved])
        gone = told.round((A, ASKED, SRV), (A, TARGET, ADDRESS), backends=[])
        return news(before, after), news(after, gone)

    moved, gone = run(story)
    assert next(changes(moved))[10:] == "~ db.example:1  address 10.0.0.1 -> 10.0.0.2, priority 0 -> 5"
    assert next(changes(gone))[10:] == "- db.example:1"
    assert not News((), (), (), (), ())
