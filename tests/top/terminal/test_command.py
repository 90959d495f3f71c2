"""`qorb top --once` and `--json`, as scripts start them, over servers that do well and ill."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from qorb.cli import main
from tests.top.terminal.frames import FULL, counts, frame
from tests.top.terminal.server import Server, header, steady
from tests.words import without_slowness

QORB = (sys.executable, "-W", "error", "-m", "qorb.cli", "top")


def top(*arguments, environment=None):
    done = subprocess.run(
        [*QORB, *arguments],
        capture_output=True,
        text=True,
        encoding="ascii",
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
        timeout=200,
    )
    return done.returncode, done.stdout, without_slowness(done.stderr)


def after_an_interval(first, second):
    def script(connection):
        connection.send(first)
        # The client measures, so it decides when the second one is far enough.
        with Ticks(connection, second):
            connection.hold()

    return script


class Ticks:
    """Sends the same again and again: the totals stand, and no more claims come."""

    def __init__(self, connection, message):
        self._end = threading.Event()

        def send():
            while not self._end.wait(0.05):
                with contextlib.suppress(OSError):
                    connection.send(message)

        self._thread = threading.Thread(target=send)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *exc):
        self._end.set()
        self._thread.join()


def test_once_prints_one_reading_with_rates():
    with Server(after_an_interval(FULL, {**FULL, "claims": 0})) as server:
        status, out, complaints = top(server.address, "--once")
    assert (status, complaints) == (0, "")
    assert out.splitlines()[0] == "pool main, running: 2 backends, 1 online, 5 waiting, 0 claims/s"
    assert out.splitlines()[-1].split() == ["db-2:5432", "no", "1", "0", "0", "0", "0", "7", "4", "refused"]


def test_once_with_json_prints_one_object():
    with Server(after_an_interval(FULL, {**FULL, "claims": 0})) as server:
        status, out, complaints = top(f"http://{server.address}/", "--once", "--json")
    assert (status, complaints, out.count("\n")) == (0, "", 1)
    assert [one["name"] for one in json.loads(out)["backends"]] == ["db-1:5432", "db-2:5432"]
    assert json.loads(out)["claims_per_second"] == 0


def test_once_reads_the_originals_frames():
    plain = frame(0, {"tcp-1": counts(9, claimed=2)})
    with Server(after_an_interval(plain, plain)) as server:
        status, out, _ = top(server.address, "--once")
    assert status == 0
    assert out.splitlines()[0] == "pool: 1 backend, 0 claims/s"
    assert out.splitlines()[-1].split() == ["tcp-1", "0", "1", "0", "2", "0", "9"]


def test_once_without_a_second_frame_prints_the_first_one_without_rates():
    with Server(lambda connection: connection.send(FULL)) as server:
        status, out, complaints = top(server.address, "--once")
    assert (status, complaints) == (0, "")
    assert out.splitlines()[0] == "pool main, running: 2 backends, 1 online, 5 waiting"


def test_what_is_asked_for_travels_with_the_request_and_the_token_in_a_header():
    with Server(lambda connection: connection.send(FULL)) as server:
        status, out, complaints = top(
            server.address, "--once", "--interval", "7", "--pool", "b c", environment={"QORB_TOP_TOKEN": "canary"}
        )
        top(server.address, "--once", "--token", "other", environment={"QORB_TOP_TOKEN": "canary"})
    assert status == 0
    first, second = server.requests
    assert first.startswith("GET /qtop/stats?update_secs=7&pool=b+c HTTP/1.1\r\n")
    assert "\r\nauthorization: bearer canary\r\n" in first.lower()
    assert "\r\nauthorization: bearer other\r\n" in second.lower()
    assert "origin:" not in first.lower()
    assert "canary" not in out + complaints


def test_text_is_read_as_well_as_binary_frames():
    with Server(lambda connection: connection.send(FULL, opcode=1)) as server:
        assert top(server.address, "--once")[0] == 0


def test_a_proxy_of_the_environment_is_not_asked():
    with Server(lambda connection: connection.send(FULL)) as server:
        nobody = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:1")
        assert top(server.address, "--once", environment=nobody)[0] == 0


HUGE = 17 * 2**20


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (lambda connection: None, "the connection is lost"),
        (lambda connection: connection.reset(), "the connection is lost"),
        (lambda connection: connection.raw(header(2, 1000) + b'{"claims": 1'), "the connection is lost"),
        (
            lambda connection: connection.raw(b"\x88\x0a\x03\xf5too many"),
            "the server closed the connection (1013 too many)",
        ),
        (lambda connection: connection.raw(b"\xff\xff\xff\xff" * 10), "does not keep to the WebSocket protocol"),
        (lambda connection: connection.send(b"\xff\xff", opcode=1), "is no reading: it is no JSON: b'\\xff\\xff'"),
        (lambda connection: connection.send(b"nonsense"), "is no reading: it is no JSON: b'nonsense'"),
        (lambda connection: connection.send([]), "is no reading: it is no JSON object: a list"),
        (lambda connection: connection.send(frame(-1)), "not -1"),
        (lambda connection: connection.send(frame(1, {"\x1b[2J": 3})), "the entry of '\\x1b[2J' is no JSON object: 3"),
        (lambda connection: connection.send(b"[" * 2**20), "is nested too deeply"),
        (lambda connection: (connection.raw(header(2, HUGE)), connection.hold()), "more than 16 MiB at once"),
        (lambda connection: (connection.raw(header(2, 2**62)), connection.hold()), "more than 16 MiB at once"),
    ],
)
def test_a_server_that_does_ill_is_told_of_in_one_sentence(script, words):
    with Server(script) as server:
        status, out, complaints = top(server.address, "--once")
    assert (status, out) == (1, "")
    (sentence,) = complaints.splitlines()
    assert sentence.startswith(f"qorb top: ws://{server.address}: ")
    assert words in sentence
    assert sentence.isprintable()
    assert len(sentence) < 300


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n", "wants a token, or another one (401 Unauthorized)"),
        (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 10\r\n\r\nwrong\x1b[2Jx", "(403 Forbidden: wrong\\x1b[2Jx)"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 15\r\n\r\n<html>x</html>\n", "(404 Not Found); is the path right"),
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 9\r\n\r\n8 clients", "the server answered 503 Busy: 8 clients"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", "answered 302 Found"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", "the server answered 200 OK: hi"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP server"),
        (b"", "no HTTP server"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "does not speak WebSocket"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000 + b"\r\n", "no HTTP server"),
    ],
)
def test_what_is_no_statistics_server_is_told_of_in_one_sentence(answer, words):
    with Server(answer=answer) as server:
        status, out, complaints = top(server.address, "--once")
    assert (status, out) == (1, "")
    (sentence,) = complaints.splitlines()
    assert words in sentence
    assert sentence.isprintable()


def test_a_server_that_speaks_no_tls_is_told_of_in_one_sentence():
    with Server(answer=b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        server.converse = lambda wire: (wire.recv(4096), wire.sendall(server.answer))
        status, _, complaints = top(f"https://{server.address}", "--once")
    assert status == 1
    (sentence,) = complaints.splitlines()
    assert "TLS" in sentence


def test_nobody_there_is_told_of_in_one_sentence():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        said = top(f"127.0.0.1:{port}", "--once", "--json")
    assert said == (1, "", f"qorb top: ws://127.0.0.1:{port}: the connection is refused: nobody listens there\n")


def test_a_host_that_is_not_found_is_told_of_in_one_sentence():
    status, _, complaints = top("no-such-host.invalid:1", "--once")
    assert status == 1
    assert complaints.startswith("qorb top: ws://no-such-host.invalid:1: the host is not found (")
    assert complaints.count("\n") == 1


@pytest.mark.parametrize("host", ["a" * 64, "a..b"])
def test_what_can_be_no_host_is_told_of_in_one_sentence(host):
    status, _, complaints = top(f"{host}:1", "--once")
    assert status == 1
    assert complaints.startswith(f"qorb top: ws://{host}:1: the host ")
    assert complaints.count("\n") == 1


HANGING = """
import socket, sys, time
from qorb.cli import main
socket.getaddrinfo = lambda *_, **__: time.sleep(1000)
from qorb.top.terminal import following, _websockets
following.PATIENCE = _websockets.PATIENCE = 0.2
sys.exit(main(sys.argv[1:]))
"""


def test_a_look_up_that_hangs_keeps_it_from_nothing():
    done = subprocess.run(
        [sys.executable, "-c", HANGING, "top", "db:1", "--once"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 1
    assert "no answer within" in done.stderr


def test_ten_thousand_backends_are_printed():
    many = frame(0, {f"backend-{number}.example.com:5432": counts(number) for number in range(10_000)})
    with Server(lambda connection: connection.send(many)) as server:
        status, out, complaints = top(server.address, "--once")
    assert (status, complaints) == (0, "")
    assert out.count("\n") == 10_003


# Without --once


@contextlib.contextmanager
def following(server, *arguments):
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*QORB, server.address, "--json", *arguments], text=True, encoding="ascii", **streams) as one:
        try:
            yield one
        finally:
            one.kill()


def test_json_prints_a_line_at_every_frame_until_ctrl_c():
    with Server(steady()) as server, following(server) as process:
        readings = [json.loads(process.stdout.readline()) for _ in range(5)]
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        complaints = without_slowness(process.stderr.read())
    assert (process.returncode, complaints) == (130, "")
    assert [one["claims"] for one in readings] == [10] * 5


def test_json_goes_on_when_the_server_has_been_away():
    with Server(lambda connection: connection.send(frame(1))) as server, following(server) as process:
        assert json.loads(process.stdout.readline())["claims"] == 1
        assert process.stderr.readline() == f"qorb top: ws://{server.address}: the connection is lost\n"
        assert json.loads(process.stdout.readline())["claims"] == 1
        server.script = steady()
        while json.loads(process.stdout.readline())["claims"] != 10:
            pass
        process.terminate()
        process.stdout.read()
        process.stderr.read()
    assert len(server.requests) >= 3


def test_a_reader_that_goes_away_ends_it_quietly():
    with Server(steady()) as server, following(server) as process:
        process.stdout.readline()
        process.stdout.close()
        complaints = without_slowness(process.stderr.read())
        process.wait()
    assert (process.returncode, complaints) == (141, "")


# Options


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: URL"),
        (["db", "--once"], "give host:port, or a URL that begins with"),
        (["db:1", "--interval", "0"], "argument --interval: must be a whole number of seconds from 1 to 255, not '0'"),
        (["db:1", "--interval", "256"], "argument --interval: must be a whole number of seconds from 1 to 255, not"),
        (["db:1", "--interval", "1.5"], "argument --interval: must be a whole number of seconds from 1 to 255, not"),
        (["db:1", "--once", "--token", "a b"], "a token consists of printable ASCII characters"),
        (["db:1"], "the view needs a terminal; give --once or --json to print what is read"),
    ],
)
def test_wrong_options_end_in_one_sentence_and_status_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["top", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("qorb top: error: ")
    assert sentence in said.err.splitlines()[-1]


def without(package, *arguments):
    program = f"import sys; sys.modules[{package!r}] = None; from qorb.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "top", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, without_slowness(done.stderr)


def test_without_websockets_it_says_what_to_install():
    said = without("websockets", "127.0.0.1:1", "--once")
    assert said == (1, "", 'qorb top: it needs websockets; run: pip install "qorb[top]"\n')


def test_scripts_need_no_textual():
    with Server(lambda connection: connection.send(FULL)) as server:
        status, out, complaints = without("textual", server.address, "--once")
    assert (status, complaints) == (0, "")
    assert out.startswith("pool main")
