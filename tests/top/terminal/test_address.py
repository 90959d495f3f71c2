import re

import pytest

from qorb.top.terminal.address import read_address


@pytest.mark.parametrize(
    ("text", "url", "shown"),
    [
        ("db:8080", "ws://db:8080/qtop/stats?update_secs=1", "ws://db:8080"),
        ("[::1]:8080", "ws://[::1]:8080/qtop/stats?update_secs=1", "ws://[::1]:8080"),
        ("http://db:8080/", "ws://db:8080/qtop/stats?update_secs=1", "ws://db:8080"),
        ("https://db/inner/pool", "wss://db/inner/pool/qtop/stats?update_secs=1", "wss://db/inner/pool"),
        ("ws://db/qtop/stats?update_secs=9", "ws://db/qtop/stats?update_secs=1", "ws://db"),
        ("wss://db?pool=a%20b", "wss://db/qtop/stats?pool=a+b&update_secs=1", "wss://db"),
        ("WS://db:80#top", "ws://db:80/qtop/stats?update_secs=1", "ws://db:80"),
    ],
)
def test_an_address_may_be_written_in_many_ways(text, url, shown):
    address = read_address(text, interval=1)
    assert (address.url, address.shown, address.token) == (url, shown, None)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("db:8080", "db", 8080), ("ws://db", "db", 80), ("https://db/x", "db", 443), ("http://[::1]:81", "::1", 81)],
)
def test_host_and_port_are_known(text, host, port):
    address = read_address(text, interval=1)
    assert (address.host, address.port) == (host, port)


def test_pool_and_interval_are_asked_for():
    assert read_address("db:1", interval=7, pool="a&b").url == "ws://db:1/qtop/stats?update_secs=7&pool=a%26b"


def test_a_token_in_the_query_is_taken_out_of_it_and_never_shown():
    address = read_address("http://db:1/?token=canary", interval=1)
    assert address.token.reveal() == "canary"
    assert "canary" not in repr(address)
    assert read_address("http://db:1/?token=canary", interval=1, token="other").token.reveal() == "other"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "give host:port"),
        ("db", "give host:port"),
        (":8080", "give host:port"),
        ("db:0", "give host:port"),
        ("ftp://db:1", "give host:port"),
        ("http://:80", "give host:port"),
        ("db:port", "cannot read 'db:port'"),
        ("db:70000", "cannot read"),
        ("http://[::1", "cannot read"),
        ("db:1\x1b[2J", "printable ASCII"),
        ("dä:1", "printable ASCII"),
        ("db :1", "without spaces"),
    ],
)
def test_what_is_no_address_is_said_in_a_sentence(text, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        read_address(text, interval=1)
    assert str(refused.value).isprintable()


def test_a_password_in_a_url_is_refused_without_being_repeated():
    with pytest.raises(ValueError, match="QORB_TOP_TOKEN") as refused:
        read_address("http://me:canary@db:1", interval=1)
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("token", ["", "a b", "a\r\nHost: b", "ä"])
def test_a_token_that_does_not_fit_into_a_header_is_refused(token):
    with pytest.raises(ValueError, match="a token consists of"):
        read_address("db:1", interval=1, token=token)
