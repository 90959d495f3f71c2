"""Who is let in."""

import base64

import pytest

from qorb.credentials import Secret
from qorb.top._gate import Gate, Request, check_access

TOKEN = "correct-horse-battery"


def ask(gate, client="127.0.0.1", server="127.0.0.1", method="GET", query="", **headers):
    sent = {"host": "127.0.0.1:7672"} | {name.replace("_", "-"): value for name, value in headers.items()}
    listed = tuple((name, value) for name, value in sent.items() if value is not None)
    request = Request(method=method, path="/stats.json", query=query, headers=listed, client=client, server=server)
    answer = gate.refusal(request)
    return 200 if answer is None else int(answer.status)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:7672",
        "LOCALHOST.",
        "127.0.0.1",
        "127.0.0.1:80",
        "[::1]",
        "[::1]:7672",
        "stats.example.com",
    ],
)
def test_names_of_its_own_are_answered(host):
    assert ask(Gate(None, ["Stats.Example.com"], None), host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.com",
            "localhost.evil.com",
            "evil.com:7672",
            "127.0.0.1.evil.com",
            "10.0.0.1",
            "",
            "localhost:x",
            "[::1",
        ),
        *("[::1]x", "localhost@evil.com", "127.0.0.1 evil.com", "0.0.0.0", "::1", "*", "[fe80::1%25eth0]"),
        None,
    ],
)
def test_other_names_are_not(host):
    assert ask(Gate(None, (), None), host=host) == 403


def test_two_hosts_are_none():
    gate = Gate(None, (), None)
    headers = (("host", "localhost"), ("host", "localhost"))
    request = Request(method="GET", path="/", query="", headers=headers, client="127.0.0.1", server=None)
    assert gate.refusal(request).status == 403


def test_the_address_that_a_request_came_to_is_a_name():
    gate = Gate(TOKEN, (), ["10.0.0.0/8"])
    assert ask(gate, client="10.1.2.3", server="10.0.0.9", host="10.0.0.9:7672") == 200
    assert ask(gate, client="10.1.2.3", server="10.0.0.9", host="10.0.0.8:7672") == 403
    assert ask(gate, client="10.1.2.3", server="::ffff:10.0.0.9", host="10.0.0.9:7672") == 200


@pytest.mark.parametrize("given", ["2001:DB8:0::1", "[2001:db8::1]", "2001:db8:0:0:0:0:0:1"])
def test_an_address_among_the_hosts_may_be_written_in_any_way(given):
    gate = Gate(None, [given], None)
    assert ask(gate, host="[2001:db8::1]:7672") == 200
    assert ask(gate, host="[2001:db8:0::1]") == 200
    assert ask(gate, host="[2001:db8::2]") == 403


def test_a_star_stands_for_every_name():
    assert ask(Gate(None, ["*"], None), host="evil.com") == 200
    assert ask(Gate(None, ["*"], None), host="evil com") == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://localhost:7672", 200),
        ("https://localhost:7672", 200),
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("http://127.0.0.1:7672", 403),
        ("http://evil.com", 403),
        ("http://evil.com@localhost:7672", 403),
        ("null", 403),
        ("", 403),
        ("file://localhost:7672", 403),
        ("http://[", 403),
    ],
)
def test_only_its_own_page_is_answered(origin, status):
    assert ask(Gate(None, (), None), host="localhost:7672", origin=origin) == status


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "PUT", "DELETE", "get"])
def test_only_questions_are(method):
    assert ask(Gate(None, (), None), method=method) == 405


@pytest.mark.parametrize("client", ["10.0.0.1", "::2", None, "", "testclient", "::ffff:10.0.0.1"])
def test_without_a_token_only_this_machine_is(client):
    assert ask(Gate(None, (), None), client=client) == 403


@pytest.mark.parametrize("client", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_this_machine_is(client):
    assert ask(Gate(None, (), None), client=client) == 200


def test_with_a_token_everybody_needs_it_but_the_trusted():
    gate = Gate(TOKEN, (), ["10.0.0.0/8"])
    assert ask(gate) == 401
    assert ask(gate, client=None) == 401
    assert ask(gate, client="10.5.5.5") == 200
    assert ask(Gate(Secret(TOKEN), (), None), authorization=f"Bearer {TOKEN}") == 200


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"bearer  {TOKEN} "}, 200),
        ({"query": f"update_secs=1&token={TOKEN}"}, 200),
        ({"sec_websocket_protocol": f"qorb, qorb.token.{base64.urlsafe_b64encode(TOKEN.encode()).decode()}"}, 200),
        (
            {"sec_websocket_protocol": "qorb.token." + base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")},
            200,
        ),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": TOKEN}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": f"Bearer {TOKEN}x"}, 401),
        ({"authorization": f"Bearer {TOKEN[:-1]}"}, 401),
        ({"authorization": "Bearer \xe4\xf6\xfc"}, 401),
        ({"query": "token="}, 401),
        ({"query": "token=%FF%FE"}, 401),
        ({"query": "&".join(["token=x"] * 50) + f"&token={TOKEN}"}, 401),
        ({"sec_websocket_protocol": "qorb.token.\xff"}, 401),
        ({"sec_websocket_protocol": "qorb.token.a"}, 401),
    ],
)
def test_the_token_is_looked_for_in_three_places(given, status):
    assert ask(Gate(TOKEN, (), None), client="10.0.0.1", **given) == status


@pytest.mark.parametrize("token", ["", "short", "x" * 15, "with a space in it", "umlauts-äöü-umlauts", "x" * 20 + "\n"])
def test_a_bad_token_is_said_without_being_shown(token):
    with pytest.raises(ValueError, match="token must be at least 16 printable ASCII characters") as caught:
        Gate(token, (), None)
    assert not token or token not in str(caught.value)


def test_other_bad_settings_are_said():
    with pytest.raises(TypeError, match="a secret must be a text"):
        Gate(b"bytes-are-no-text-here", (), None)
    with pytest.raises(TypeError, match="hosts must be several names"):
        Gate(None, "localhost", None)
    with pytest.raises(TypeError, match=r"hosts must be texts, .*, not an int"):
        Gate(None, [7672], None)
    for host in ("http://stats.example.com", "stats.example.com:7672", "10.0.0.1:7672", "[2001:db8::1]:7672", "a:b:c"):
        with pytest.raises(ValueError, match="hosts must be names without scheme and port"):
            Gate(None, [host], None)
    with pytest.raises(TypeError, match="trusted must be several networks"):
        Gate(None, (), "10.0.0.0/8")
    with pytest.raises(ValueError, match="trusted must be networks"):
        Gate(None, (), ["10.0.0.1/8"])


def test_a_server_that_others_reach_must_say_whom_it_lets_in():
    for host in ("0.0.0.0", "::", "10.0.0.1"):
        with pytest.raises(ValueError, match=r"can be reached from other machines: give token="):
            check_access(host, None, None)
        check_access(host, TOKEN, None)
        check_access(host, None, ["10.0.0.0/8"])
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        check_access(host, None, None)
    for host in ("stats.example.com", "", None):
        with pytest.raises(ValueError, match="host must be an IP address or 'localhost'"):
            check_access(host, TOKEN, None)
