"""What is believed of what DNS says, and for how long; which backends follow, and their names. No loop, no time."""

from __future__ import annotations

import math
import random

import pytest

from qorb import Backend
from qorb.resolvers import DnsPolicy
from qorb.resolvers.dns._knowledge import Knowledge
from qorb.resolvers.dns._values import Question, Records
from tests.resolvers.dns.fakes import NODATA, NXDOMAIN, SERVFAIL, SERVICE, srv

ASK_SRV = Question(SERVICE, "SRV")


class Story:
    """What is known of the service, told in a few words."""

    def __init__(self, *, plain=None, most=256, **policy):
        service = SERVICE if plain is None else plain
        self.knowledge = Knowledge(service, None if plain is None else 5432, DnsPolicy(**policy), most)

    def srv(self, *records, now=0.0):
        self.knowledge.take(ASK_SRV, Records(tuple(sorted(records)), 30), now)

    def says(self, target, *addresses, kind="A", now=0.0):
        self.knowledge.take(Question(target, kind), Records(addresses, 30), now)

    def replies(self, reply, target=None, *, kind="A", now=0.0):
        self.knowledge.take(ASK_SRV if target is None else Question(target, kind), reply, now)

    @property
    def names(self):
        return [one.name for one in self.knowledge.backends()]

    @property
    def named(self):
        return {one.name: f"{one.host}:{one.port}" for one in self.knowledge.backends()}


def story(*targets, **policy):
    told = Story(**policy)
    told.srv(*(srv(target) for target in targets))
    for number, target in enumerate(targets, 1):
        told.says(target, f"10.1.0.{number}")
    return told


# Backends and their names.


def test_a_backend_has_what_the_records_say():
    told = Story()
    told.srv(srv("t1.example.com", 5433, priority=7, weight=3))
    told.says("t1.example.com", "10.1.0.1")
    assert told.knowledge.backends() == (
        Backend("t1.example.com:5433", "10.1.0.1", 5433, server_name="t1.example.com", priority=7, weight=3),
    )


def test_of_a_plain_name_there_are_its_addresses_with_the_default_port_and_it_is_the_server_name():
    told = Story(plain="db.example.com")
    told.says("db.example.com", "10.1.0.1")
    assert told.knowledge.backends() == (
        Backend("db.example.com:5432", "10.1.0.1", 5432, server_name="db.example.com", priority=0, weight=1),
    )
    assert set(told.knowledge.first_questions()) == {Question("db.example.com", kind) for kind in ("A", "AAAA")}


def test_there_is_one_backend_for_each_target_address_and_port():
    told = Story()
    told.srv(srv("t1", 1), srv("t1", 2), srv("t2", 1))
    told.says("t1", "10.1.0.1", "10.1.0.2")
    told.says("t2", "2001:db8::1", kind="AAAA")
    assert told.named == {
        "10.1.0.1:1": "10.1.0.1:1",
        "10.1.0.1:2": "10.1.0.1:2",
        "10.1.0.2:1": "10.1.0.2:1",
        "10.1.0.2:2": "10.1.0.2:2",
        "t2:1": "2001:db8::1:1",
    }


def test_an_ipv6_address_stands_in_brackets_in_a_name():
    told = Story(plain="db")
    told.says("db", "2001:db8::1", "2001:db8::2", kind="AAAA")
    assert told.names == ["[2001:db8::1]:5432", "[2001:db8::2]:5432"]


def test_a_backend_keeps_its_name_while_its_target_address_and_port_stay():
    told = story("t1")
    assert told.names == ["t1:5432"]
    told.says("t1", "10.1.0.1", "10.1.0.9")
    assert told.named == {"t1:5432": "10.1.0.1:5432", "10.1.0.9:5432": "10.1.0.9:5432"}
    told.says("t1", "10.1.0.9")
    assert told.named == {"10.1.0.9:5432": "10.1.0.9:5432"}
    told.says("t1", "10.1.0.8")
    assert told.named == {"t1:5432": "10.1.0.8:5432"}


def test_a_target_whose_only_address_changes_keeps_its_name():
    told = story("t1")
    assert told.named == {"t1:5432": "10.1.0.1:5432"}
    told.says("t1", "10.1.0.2")
    assert told.named == {"t1:5432": "10.1.0.2:5432"}


@pytest.mark.parametrize(("priorities", "owner"), [((0, 0), "t1"), ((1, 0), "t2"), ((0, 1), "t1"), ((5, 5), "t1")])
def test_an_address_of_several_targets_is_one_backend_of_the_lowest_priority_then_of_the_first_target(
    priorities, owner
):
    for order in (1, -1):
        told = Story()
        told.srv(*[srv(f"t{number}", priority=priorities[number - 1]) for number in (1, 2)][::order])
        for target in ["t1", "t2"][::order]:
            told.says(target, "10.1.0.1")
        (backend,) = told.knowledge.backends()
        assert (backend.name, backend.server_name, backend.priority) == (f"{owner}:5432", owner, min(priorities))


def test_two_backends_never_have_one_name_whatever_the_targets_are_called():
    told = Story()
    told.srv(srv("10.1.0.1"), srv("t2"))
    told.says("10.1.0.1", "10.1.0.2")
    told.says("t2", "10.1.0.1", "10.1.0.3")
    assert len(set(told.names)) == 3
    chance = random.Random(1)
    for _ in range(300):
        told.srv(*(srv(f"10.1.0.{number}", priority=chance.randrange(2)) for number in range(4)))
        for number in range(4):
            told.says(f"10.1.0.{number}", *{f"10.1.0.{chance.randrange(4)}" for _ in range(chance.randrange(1, 4))})
        assert len(set(told.names)) == len(told.names) == len(set(told.named.values()))


def test_the_order_in_which_answers_come_changes_nothing():
    seen = set()
    for seed in range(20):
        told = Story()
        targets = [f"t{number}" for number in range(8)]
        told.srv(*(srv(target, priority=number % 2) for number, target in enumerate(targets)))
        random.Random(seed).shuffle(targets)
        for target in targets:
            told.says(target, f"10.1.0.{target[1:]}", "10.1.1.1")
        seen.add(told.knowledge.backends())
    assert len(seen) == 1


# At most so many.


def test_no_more_backends_than_allowed_those_of_lower_priority_values_and_one_address_of_each_target_first():
    told = Story(most=3)
    told.srv(srv("t1", priority=0), srv("t2", priority=0), srv("t3", priority=9))
    told.says("t1", "10.1.0.1", "10.1.0.2", "10.1.0.3")
    told.says("t2", "10.2.0.1", "10.2.0.2")
    told.says("t3", "10.3.0.1")
    assert sorted(told.named.values()) == ["10.1.0.1:5432", "10.1.0.2:5432", "10.2.0.1:5432"]


def test_the_choice_among_too_many_stays_while_they_stay():
    told = Story(most=4)
    told.srv(*(srv(f"t{number}") for number in range(8)))
    for number in range(8):
        told.says(f"t{number}", f"10.1.0.{number}")
    before = told.knowledge.backends()
    told.says("t7", "10.1.0.77")
    assert told.knowledge.backends() == before


def test_an_address_that_every_target_has_is_one_backend_however_many_there_are():
    told = Story()
    told.srv(*(srv(f"t{number}") for number in range(256)))
    for number in range(256):
        told.says(f"t{number}", *(f"10.1.0.{one}" for one in range(16)))
    assert len(told.knowledge.backends()) == 16


# What is believed.


@pytest.mark.parametrize("reply", [NXDOMAIN, NODATA])
def test_that_a_service_is_gone_is_believed_when_it_is_said_twice_in_a_row(reply):
    told = story("t1")
    told.replies(reply, now=100)
    assert told.names == ["t1:5432"]
    told.replies(reply, now=109)
    assert told.names == ["t1:5432"]
    told.replies(reply, now=110)
    assert told.names == []


def test_a_failed_round_between_two_denials_neither_counts_nor_resets():
    told = story("t1")
    told.replies(NXDOMAIN, now=100)
    told.replies(SERVFAIL, now=110)
    assert told.names == ["t1:5432"]
    told.replies(NXDOMAIN, now=3000)
    assert told.names == []


def test_a_good_answer_between_two_denials_resets():
    told = story("t1")
    told.replies(NXDOMAIN, now=100)
    told.srv(srv("t1"), now=110)
    told.replies(NXDOMAIN, now=120)
    assert told.names == ["t1:5432"]
    told.replies(NXDOMAIN, now=130)
    assert told.names == []


def test_the_addresses_of_a_target_follow_the_same_rule():
    told = story("t1", "t2")
    told.replies(NXDOMAIN, "t1", now=100)
    told.replies(SERVFAIL, "t1", now=105)
    assert told.names == ["t1:5432", "t2:5432"]
    told.replies(NXDOMAIN, "t1", now=110)
    assert told.names == ["t2:5432"]


def test_with_a_tiny_retry_interval_two_denials_are_still_two():
    told = story("t1", retry_interval=1e-9)
    told.replies(NXDOMAIN, now=1e6)
    assert told.names == ["t1:5432"]
    told.replies(NXDOMAIN, now=1e6 + 1)
    assert told.names == []


def test_one_family_is_gone_at_once_when_the_server_has_the_other():
    told = story("t1")
    told.says("t1", "2001:db8::1", kind="AAAA")
    told.knowledge.take(Question("t1", "AAAA"), NODATA, 10, certain=True)
    assert told.names == ["t1:5432"]
    assert told.knowledge.missing() == []


@pytest.mark.parametrize("target", [None, "t1"])
def test_a_failure_keeps_what_is_known(target):
    told = story("t1")
    for now in range(0, 100_000, 1000):
        told.replies(SERVFAIL, target, now=now)
    assert told.names == ["t1:5432"]
    assert [str(question) for question, _ in told.knowledge.missing()] == [f"{target} A" if target else str(ASK_SRV)]


def test_a_target_that_is_no_longer_named_is_gone_at_once():
    told = story("t1", "t2")
    told.srv(srv("t2"), now=10)
    assert told.names == ["t2:5432"]


@pytest.mark.parametrize("reply", [SERVFAIL, NXDOMAIN])
def test_targets_that_are_no_longer_named_stay_until_the_new_ones_have_addresses(reply):
    told = story("t1", "t2")
    told.srv(srv("t3"), now=10)
    told.replies(reply, "t3", now=10)
    told.replies(reply, "t3", kind="AAAA", now=10)
    assert told.names == ["t1:5432", "t2:5432"]
    told.says("t3", "10.1.0.3", now=11)
    assert told.names == ["t3:5432"]


def test_targets_that_are_no_longer_named_go_when_it_is_said_twice_that_the_new_ones_have_no_addresses():
    told = story("t1")
    for now in (10, 20):
        told.srv(srv("t2"), now=now)
        assert told.names == ["t1:5432"]
        told.replies(NXDOMAIN, "t2", now=now)
        told.replies(NXDOMAIN, "t2", kind="AAAA", now=now)
    assert told.names == []


def test_targets_that_are_no_longer_named_go_when_it_is_said_twice_that_there_is_no_service():
    told = story("t1")
    told.srv(srv("t2"), now=10)
    told.replies(NXDOMAIN, now=20)
    assert told.names == ["t1:5432"]
    told.replies(NXDOMAIN, now=30)
    assert told.names == []


# For how long.


def test_what_is_known_goes_when_stale_limit_has_passed_since_the_last_good_answer():
    told = story("t1", stale_limit=60)
    told.replies(SERVFAIL, now=50)
    told.replies(NXDOMAIN, now=55)
    assert told.knowledge.stale_at() == 60
    told.knowledge.expire(59.9)
    assert told.names == ["t1:5432"]
    told.knowledge.expire(60)
    assert told.names == []
    assert told.knowledge.stale_at() == math.inf


def test_stale_limit_counts_for_the_addresses_of_each_target():
    told = story("t1", "t2", stale_limit=60)
    told.srv(srv("t1"), srv("t2"), now=50)
    told.says("t2", "10.1.0.2", now=40)
    assert told.knowledge.stale_at() == 60
    told.knowledge.expire(60)
    assert told.names == ["t2:5432"]
    assert told.knowledge.stale_at() == 100


def test_stale_limit_counts_for_targets_that_are_no_longer_named():
    told = story("t1", stale_limit=60)
    told.srv(srv("t2"), now=50)
    told.knowledge.expire(60)
    assert told.names == []


def test_nothing_gets_stale_by_default():
    told = story("t1")
    told.knowledge.expire(1e9)
    assert told.names == ["t1:5432"]
    assert told.knowledge.stale_at() == math.inf


def test_a_plain_name_does_not_get_stale_itself():
    told = Story(plain="db", stale_limit=60)
    told.says("db", "10.1.0.1")
    told.knowledge.expire(60)
    assert told.names == []
    told.says("db", "10.1.0.1", now=90)
    assert told.names == ["db:5432"]
