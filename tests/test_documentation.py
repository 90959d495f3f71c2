"""The documentation: its code runs, and what it says of the code is so."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import math
import re
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qorb import Policy, events
from qorb._core.states import diagram
from qorb.resolvers import DnsPolicy
from qorb.stats import BackendStats, Histogram, Ledger, PoolStats, Timings
from tests.name_server import name_server
from tests.words import without_slowness

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
PACKAGES = ("qorb", "qorb.connectors", "qorb.observers", "qorb.resolvers", "qorb.testing")
TESTED_ELSEWHERE = {"docs/testing-your-application.md"}
PLACEHOLDERS = ("127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003")
DNS_PLACEHOLDER = "127.0.0.1:5353"


class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        with contextlib.suppress(ConnectionError):
            while line := self.rfile.readline():
                self.wfile.write(line)


@pytest.fixture
def echo_servers():
    servers = [socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) for _ in PLACEHOLDERS]
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    yield [f"127.0.0.1:{server.server_address[1]}" for server in servers]
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def dns_server(echo_servers):
    with name_server() as server:
        for number, address in enumerate(echo_servers):
            server.srv(f"0 1 {address.rpartition(':')[2]} echo-{number}.demo.test.")
            server.add(f"echo-{number}.demo.test", "A", "127.0.0.1")
        yield server.address


def code_of(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("page", [page for page in PAGES if page not in TESTED_ELSEWHERE and code_of(page)])
def test_the_code_of_a_page_is_a_program_that_runs_without_a_warning(page, echo_servers, dns_server, tmp_path):
    code = code_of(page).replace(DNS_PLACEHOLDER, dns_server)
    for placeholder, address in zip(PLACEHOLDERS, echo_servers, strict=True):
        code = code.replace(placeholder, address)
    program = tmp_path / "program.py"
    program.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, without_slowness(done.stderr)) == (0, "")


def test_the_tutorial_ends_with_nothing_left(echo_servers, tmp_path):
    program = tmp_path / "tutorial.py"
    program.write_text(code_of("docs/tutorial.md"), encoding="utf-8")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.endswith("left of the pool: nothing\n")


def test_the_state_diagram_is_drawn_from_the_table():
    text = (ROOT / "docs/how-it-works.md").read_text(encoding="utf-8")
    drawn = text.partition("<!-- states:start -->\n")[2].partition("<!-- states:end -->")[0]
    assert drawn == f"```mermaid\n{diagram()}```\n", 'run "make diagram"'


def test_the_policy_page_has_every_field_with_its_default():
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", (ROOT / "docs/policy.md").read_text(encoding="utf-8"), re.MULTILINE)
    said = {name: math.inf if default == "inf" else float(default) for name, default in rows}
    assert said == {field.name: field.default for field in dataclasses.fields(Policy)}


def test_the_dns_page_has_every_field_of_its_policy_with_its_default():
    text = (ROOT / "docs/dns.md").read_text(encoding="utf-8").partition("| field | default |")[2].partition("\n\n")[0]
    said = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", text, re.MULTILINE))
    assert said == {field.name: str(field.default) for field in dataclasses.fields(DnsPolicy)}


def test_the_observing_page_has_every_event_with_its_fields():
    text = (ROOT / "docs/observing.md").read_text(encoding="utf-8").partition("| event |")[2]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", text, re.MULTILINE)
    said = {name: re.findall(r"`(\w+)`", listed) for name, listed in rows}
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)]
    public = [kind for kind in kinds if kind is not events.Event and not kind.__name__.startswith("_")]
    assert said == {kind.__name__: [field.name for field in dataclasses.fields(kind)[1:]] for kind in public}


def public_coroutines():
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            thing = getattr(module, name)
            members = vars(thing).items() if isinstance(thing, type) else [("", thing)]
            public = [(key, value) for key, value in members if not key.startswith("_") or key.endswith("__")]
            yield from (pytest.param(v, id=f"{name}.{k}") for k, v in public if inspect.iscoroutinefunction(v))


@pytest.mark.parametrize("coroutine", list(public_coroutines()))
def test_the_docstring_of_every_public_coroutine_says_what_a_cancellation_does(coroutine):
    assert re.search(r"\bcancel|\bnever suspends|\bwithout suspending", coroutine.__doc__, re.IGNORECASE)


@pytest.mark.parametrize("kind", [PoolStats, BackendStats, Ledger, Timings, Histogram])
def test_the_observing_page_has_every_field_of_a_snapshot(kind):
    text = (ROOT / "docs/observing.md").read_text(encoding="utf-8")
    table = text.partition(f"| `{kind.__name__}` | |\n")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize("page", [*PAGES, "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_within_the_project_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    assert not [target for target in targets if not ((ROOT / page).parent / target).exists()]


def test_the_observing_page_shows_every_picture_that_is_taken():
    text = (ROOT / "docs/observing.md").read_text(encoding="utf-8")
    pictures = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs/pictures").iterdir()}
    assert pictures == set(re.findall(r"pictures/[\w.-]+", text))


def test_the_architecture_names_every_module():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    modules = {path.name for path in (ROOT / "src/qorb").glob("*.py")}
    assert not {name for name in modules if name not in text}
