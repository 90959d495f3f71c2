import socket

import pytest

from qorb.top.terminal.dialling import dial


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_the_first_address_that_answers_is_taken(run_real, listener, monkeypatch):
    port = listener.getsockname()[1]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = closed.getsockname()
        entries = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", one) for one in (dead, ("127.0.0.1", port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
        with run_real(lambda: dial("db", 1, 60)) as sock:
            assert sock.getpeername() == ("127.0.0.1", port)


def test_nobody_there_raises_what_the_last_address_said(run_real):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            run_real(lambda: dial("127.0.0.1", closed.getsockname()[1], 60))


def test_an_address_that_never_answers_has_its_share_of_the_time(run_real, listener, monkeypatch):
    # A queue that is full answers no more.
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    queued = []
    for _ in range(4):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(full.getsockname())
        queued.append(one)
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", one.getsockname()) for one in (full, listener)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
    with run_real(lambda: dial("db", 1, 2)) as sock:
        assert sock.getpeername() == listener.getsockname()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries[:1])
    with pytest.raises(TimeoutError):
        run_real(lambda: dial("db", 1, 0.1))
    for one in (*queued, full):
        one.close()


def test_a_host_without_an_address_is_an_error(run_real, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    with pytest.raises(OSError, match="no address"):
        run_real(lambda: dial("db", 1, 60))
