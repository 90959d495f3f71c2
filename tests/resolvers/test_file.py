"""FileResolver: on real files, which are read in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest

from qorb import Backend, NoBackendsError, Pool, ResolveError
from qorb.publishing import Publisher
from qorb.resolvers import FallbackResolver, FileResolver, FixedResolver
from qorb.resolvers.file import _understand
from qorb.testing import at_every_await, run, settle
from tests.phases import PHASES, POLICY, Stage
from tests.pools import now, opened

A = Backend("10.0.0.1:5432", "10.0.0.1", 5432)
B = Backend("10.0.0.2:5432", "10.0.0.2", 5432)
ONE, TWO = "10.0.0.1:5432\n", "10.0.0.1:5432\n10.0.0.2:5432\n"


class Heard(Publisher):
    """Notes what it is told, and when."""

    def __init__(self) -> None:
        self.sets: list[tuple[float, tuple[Backend, ...]]] = []
        self.errors: list[str] = []
        self.made_at = now()
        super().__init__(self._note)

    def _note(self, known: Any) -> None:
        self.sets.append((round(now() - self.made_at, 6), tuple(known)))

    def failed(self, error: ResolveError) -> None:
        self.errors.append(str(error))

    @property
    def last(self) -> tuple[Backend, ...]:
        return self.sets[-1][1]


@contextlib.asynccontextmanager
async def watching(path: Path, **settings: Any) -> Any:
    heard = Heard()
    task = asyncio.create_task(FileResolver(path, **settings).watch(heard))
    await settle()
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


def read_once(path: Path) -> Heard:
    """What comes of the file as it is, within three seconds."""

    async def main() -> Heard:
        async with watching(path) as heard:
            await asyncio.sleep(3)
            return heard

    return run(main)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "backends"


# What a file may say.


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ('["10.0.0.1:5432", "[::1]:1"]', [A, Backend("[::1]:1", "::1", 1)]),
        ('[{"host": "10.0.0.1", "port": 5432}, {"host": "::1", "port": 1}]', [A, Backend("[::1]:1", "::1", 1)]),
        (
            '[{"name": "x", "host": "h", "port": 1, "server_name": "s", "priority": 2, "weight": 3}, "h:2"]',
            [Backend("x", "h", 1, "s", 2, 3), Backend("h:2", "h", 2)],
        ),
        ('[{"name": "x", "host": "h", "port": 1, "server_name": null}]', [Backend("x", "h", 1)]),
        ("\ufeff \n[\n\t]\n", []),
        ("10.0.0.1:5432", [A]),
        (TWO, [A, B]),
        ("\ufeff# ours\r\n\r\n  10.0.0.1:5432  # the old one\r\n#10.0.0.9:1\r\n10.0.0.2:5432\r\n", [A, B]),
        ("[::1]:5432\n[fe80::1]:1\n", [Backend("[::1]:5432", "::1", 5432), Backend("[fe80::1]:1", "fe80::1", 1)]),
        ("  [::1]:5432\n", [Backend("[::1]:5432", "::1", 5432)]),
    ],
)
def test_a_file_is_a_json_list_or_one_backend_a_line(path, text, known):
    path.write_text(text, encoding="utf-8", newline="")
    heard = read_once(path)
    assert heard.last == tuple(known)
    assert heard.errors == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"it names no backend; write \[\] to say that there are none"),
        (" \n\n", "it names no backend"),
        ("# nothing but a comment\n", "it names no backend"),
        ("10.0.0.1:5432\n10.0.0.2\n", "line 2: '10.0.0.2' has no port"),
        ("10.0.0.1:5432\n\n10.0.0.1:5432\n", "two backends are named '10.0.0.1:5432'"),
        ("10.0.0.1:5432, 10.0.0.2:5432\n", "line 1"),
        ("postgres://me:hunter2@10.0.0.1:5432\n", "line 1: .*is a URL"),
        ("me:hunter2@10.0.0.1:5432\n", "line 1: .*names a user"),
        ('["10.0.0.1:5432", "10.0.', "it is no complete JSON"),
        ('["10.0.0.1:5432"] trailing', "it is no complete JSON"),
        ("[", "it is no complete JSON"),
        ("[[]]", r"entry 1: \[\] is neither"),
        ('["10.0.0.1:5432", null]', "entry 2: None is neither|it is no complete JSON"),
        ('{"backends": []}', "its JSON is no list"),
        ('["10.0.0.1"]', "entry 1: '10.0.0.1' has no port"),
        ('[{"host": "h", "port": 1}, {"host": "h"}]', "entry 2: it has no port"),
        ('[{"host": "h", "port": 1, "wieght": 3}]', "entry 1: a backend has no field 'wieght'"),
        ('[{"host": "h", "port": "1"}]', "entry 1: the port .*whole number"),
        ('[{"host": 7, "port": 1}]', "entry 1: the host"),
        ('[{"host": "h", "port": 1, "server_name": 7}]', "entry 1: server_name"),
        ('[{"host": "h", "port": 1, "weight": 1e999}]', "entry 1: the weight"),
        ('[{"name": "", "host": "h", "port": 1}]', "entry 1: a backend's name"),
        ('["a:1", {"name": "a:1", "host": "h", "port": 1}]', "two backends are named 'a:1'"),
        ("[" * 100_000, "nested too deeply|no complete JSON"),
        ('["a:' + "1" * 5000 + '"]', "entry 1"),
        ('[{"host": "h", "port": ' + "1" * 5000 + "}]", "digits"),
        ("a" * 1_000_001, "longer than 1,000,000 bytes"),
    ],
)
def test_a_file_that_cannot_be_understood_changes_nothing_and_the_reason_is_told(path, text, words, caplog):
    async def main():
        path.write_text(ONE)
        async with watching(path) as heard:
            await asyncio.sleep(1)
            assert heard.last == (A,)
            path.write_text(text)
            await asyncio.sleep(3)
            assert len(heard.sets) == 1
            return heard

    heard = run(main)
    assert len(heard.errors) == len(caplog.records) == 1
    assert re.search(words, heard.errors[0])
    assert "the last backends it listed stay" in caplog.records[0].getMessage()
    assert "hunter2" not in heard.errors[0] + caplog.text
    assert len(heard.errors[0]) < 1000


@pytest.mark.parametrize("raw", [b"\xff\xfe1\x000", b"10.0.0.1:5432\n\xe9:1\n", b"\x00" * 100])
def test_bytes_that_are_no_text_change_nothing(path, raw):
    path.write_bytes(raw)
    heard = read_once(path)
    assert heard.sets == []
    assert len(heard.errors) == 1


# How a file may change.


def test_a_change_is_seen_within_the_interval_and_published_once(path):
    async def main():
        path.write_text(json.dumps(["10.0.0.1:5432"]))
        async with watching(path, interval=5) as heard:
            await asyncio.sleep(7)
            path.write_text(json.dumps(["10.0.0.2:5432"]))
            await asyncio.sleep(60)
        assert [known for _, known in heard.sets] == [(A,), (B,)]
        assert 7 <= heard.sets[1][0] <= 12
        assert heard.errors == []

    run(main)


def test_a_file_that_does_not_change_is_not_read_again(path, monkeypatch):
    async def main():
        path.write_text(TWO)
        async with watching(path) as heard:
            await asyncio.sleep(3)
            monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it was opened"))
            await asyncio.sleep(1000)
            monkeypatch.undo()
        assert len(heard.sets) == 1

    run(main)


def test_a_change_that_leaves_size_and_time_as_they_were_is_seen(path):
    async def main():
        path.write_text(json.dumps(["10.0.0.1:5432"]))
        async with watching(path) as heard:
            await asyncio.sleep(10)
            before = path.stat()
            path.write_text(json.dumps(["10.0.0.2:5432"]))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert path.stat().st_mtime_ns == before.st_mtime_ns
            await asyncio.sleep(10)
            assert heard.last == (B,)

    run(main)


def test_a_second_change_within_one_tick_of_the_file_systems_clock_is_seen(path, monkeypatch):
    async def main():
        path.write_text(json.dumps(["10.0.0.1:5432"]))
        monkeypatch.setattr("qorb.resolvers.file._Version.of", lambda status: status.st_size)  # as coarse as can be
        async with watching(path) as heard:
            assert heard.last == (A,)
            path.write_text(json.dumps(["10.0.0.2:5432"]))
            await asyncio.sleep(1)
            assert heard.last == (B,)

    run(main)


def test_a_file_that_another_one_replaces_by_renaming_is_read(path):
    async def main():
        path.write_text(ONE)
        async with watching(path) as heard:
            await asyncio.sleep(3)
            other = path.with_suffix(".new")
            other.write_text(TWO)
            other.replace(path)
            await asyncio.sleep(3)
        assert [known for _, known in heard.sets] == [(A,), (A, B)]
        assert heard.errors == []

    run(main)


def test_a_symbolic_link_that_leads_elsewhere_is_a_change(tmp_path, path):
    async def main():
        for name, text in (("one", ONE), ("two", TWO)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "backends").write_text(text)
        current = tmp_path / "current"
        current.symlink_to("one")
        path.symlink_to("current/backends")
        async with watching(path) as heard:
            await asyncio.sleep(3)
            other = tmp_path / "other"
            other.symlink_to("two")
            other.replace(current)
            await asyncio.sleep(3)
        assert [known for _, known in heard.sets] == [(A,), (A, B)]

    run(main)


def test_a_file_that_comes_later_is_read_when_it_is_there(path):
    async def main():
        async with watching(path) as heard:
            await asyncio.sleep(10)
            assert heard.sets == []
            assert heard.errors == [f"{path}: there is no such file"]
            path.write_text(ONE)
            await asyncio.sleep(2)
            assert heard.last == (A,)

    run(main)


def test_a_file_that_vanishes_keeps_its_backends_and_may_come_back(path, caplog):
    caplog.set_level(logging.INFO)

    async def main():
        path.write_text(ONE)
        async with watching(path) as heard:
            await asyncio.sleep(3)
            path.unlink()
            await asyncio.sleep(10)
            assert len(heard.sets) == 1
            assert len(heard.errors) == 1
            path.write_text(ONE)
            await asyncio.sleep(3)
            assert [known for _, known in heard.sets] == [(A,), (A,)]  # the second says that the error is over

    run(main)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: there is no such file; the last backends it listed stay",
        f"{path}: it can be used again",
    ]


@pytest.mark.parametrize(
    "texts", [(json.dumps(["10.0.0.1:5432"]), json.dumps(["10.0.0.1:5432", "10.0.0.2:5432"])), (ONE, TWO)]
)
def test_a_file_that_is_being_written_is_not_believed_before_it_is_complete(path, texts, caplog):
    """Written byte by byte, with a look after each: nothing but the two complete sets is ever published."""

    async def main():
        before, after = texts
        path.write_text(before)
        async with watching(path) as heard:
            await asyncio.sleep(3)
            for end in range(len(after) + 1):
                path.write_text(after[:end])
                await asyncio.sleep(0.049)
            await asyncio.sleep(3)
        assert [known for _, known in heard.sets] == [(A,), (A, B)]
        assert heard.errors == []

    run(main)
    assert not caplog.records


def test_a_file_whose_folder_is_moved_away_and_back_is_used_again(tmp_path):
    async def main():
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "backends").write_text(ONE)
        async with watching(folder / "backends") as heard:
            await asyncio.sleep(3)
            folder.rename(tmp_path / "elsewhere")
            await asyncio.sleep(3)
            (tmp_path / "elsewhere").rename(folder)
            await asyncio.sleep(3)
        assert [known for _, known in heard.sets] == [(A,), (A,)]
        assert len(heard.errors) == 1

    run(main)


def test_a_file_that_changes_while_it_is_read_is_read_again(path, monkeypatch):
    async def main():
        path.write_text("10.0.0.1:5432\n10.0.0.9:5432\n")
        real, done = os.fstat, []

        def fstat(descriptor: int) -> os.stat_result:
            found = real(descriptor)
            if not done:
                done.append(path.write_text(TWO + "# and more\n"))
            return found

        monkeypatch.setattr(os, "fstat", fstat)
        async with watching(path) as heard:
            await asyncio.sleep(1)
        assert [known for _, known in heard.sets] == [(A, B)]

    run(main)


def test_a_failure_is_told_again_only_after_a_minute(path, caplog):
    async def main():
        path.write_text("nonsense")
        async with watching(path) as heard:
            await asyncio.sleep(59)
            assert len(heard.errors) == 1
            await asyncio.sleep(30)
            assert len(heard.errors) == 2
            await asyncio.sleep(120)
            assert len(heard.errors) == 4
            path.write_text("other nonsense")
            await asyncio.sleep(3)
            assert len(heard.errors) == 5
            path.unlink()
            await asyncio.sleep(3)
            assert len(heard.errors) == 6

    run(main)
    assert len(caplog.records) == 6
    assert {record.name for record in caplog.records} == {"qorb.file"}


def test_a_file_of_no_access_a_folder_and_a_pipe_are_told_and_never_waited_for(tmp_path):
    async def main():
        folder, pipe, behind = tmp_path / "folder", tmp_path / "pipe", tmp_path / "file" / "backends"
        folder.mkdir()
        os.mkfifo(pipe)
        (tmp_path / "file").write_text("")
        loop = tmp_path / "loop"
        loop.symlink_to("loop")
        for path, words in (
            (folder, "no regular file"),
            (pipe, "no regular file"),
            (behind, "Not a dir"),
            (loop, "symbolic"),
        ):
            async with watching(path) as heard:
                await asyncio.sleep(3)
            assert len(heard.errors) == 1
            assert words in heard.errors[0]

    run(main)


def test_a_file_that_must_not_be_read_is_told_and_read_once_it_may_be(path, monkeypatch):
    async def main():
        path.write_text(ONE)
        real = os.open

        def refuse(*_: Any) -> int:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "open", refuse)
        async with watching(path) as heard:
            await asyncio.sleep(3)
            assert heard.errors == [f"{path}: Permission denied"]
            monkeypatch.setattr(os, "open", real)
            await asyncio.sleep(3)
            assert heard.last == (A,)

    run(main)


def test_nothing_stays_open(path, monkeypatch):
    async def main():
        opened: list[int] = []
        real = os.open

        def note(*arguments: Any) -> int:
            opened.append(real(*arguments))
            return opened[-1]

        monkeypatch.setattr(os, "open", note)
        async with watching(path):
            for number in range(1, 50):
                path.write_text(f"10.0.0.{number}:1\n" * (number % 3) + "x" * 1_000_001 * (number % 2))
                await asyncio.sleep(1.5)
        assert len(opened) > 50
        for descriptor in opened:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)

    run(main)


@pytest.mark.parametrize("as_json", [False, True])
def test_others_have_their_turn_again_and_again_while_a_great_file_is_understood(as_json):
    addresses = [f"10.0.{number // 250}.{number % 250}:5432" for number in range(10_000)]
    text = json.dumps(addresses) if as_json else "\n".join(addresses)
    assert sum(1 for _ in _understand(text.encode(), settled=True).__await__()) >= 100


@pytest.mark.parametrize("line", ["", "# nothing"])
def test_others_have_their_turn_while_lines_that_say_nothing_are_passed_over(line):
    text = f"{line}\n" * 10_000 + "10.0.0.1:5432"
    assert sum(1 for _ in _understand(text.encode(), settled=True).__await__()) >= 100


# In use.


def test_a_pool_follows_its_file(path):
    async def main():
        path.write_text(ONE)
        async with opened(FileResolver(path), spares_wanted=2) as watched:
            path.write_text(json.dumps([{"name": "10.0.0.1:5432", "host": "10.0.0.7", "port": 1}, "10.0.0.2:5432"]))
            await asyncio.sleep(3)
            assert list(watched.pool.stats().backends) == ["10.0.0.1:5432", "10.0.0.2:5432"]
            async with watched.pool.claim() as one, watched.pool.claim() as other:
                assert {one.backend.host, other.backend.host} == {"10.0.0.7", "10.0.0.2"}

    run(main)


def test_a_claim_without_backends_says_what_is_wrong_with_the_file(path):
    async def main():
        async with opened(FileResolver(path), ready=False) as watched:
            with pytest.raises(NoBackendsError, match="there is no such file") as caught:
                await watched.pool.claim(timeout=1)
            assert isinstance(caught.value.__cause__, ResolveError)

    run(main)


def test_an_empty_json_list_takes_the_backends_away(path):
    async def main():
        path.write_text(ONE)
        async with FileResolver(path).monitor() as monitor:
            assert dict(await monitor.changed()) == {A.name: A}
            path.write_text("[]")
            assert dict(await monitor.changed()) == {}

    run(main)


def test_a_file_stands_in_for_dns_that_has_nothing(path):
    async def main():
        async with FallbackResolver([FileResolver(path), FixedResolver([B])]).monitor() as monitor:
            assert list(await monitor.changed()) == [B.name]
            assert round(now() % 1, 6) == 0  # the file said at once that it has nothing
            path.write_text(ONE)
            assert list(await monitor.changed()) == [A.name]

    run(main)


def test_two_pools_on_one_file_resolver_do_not_disturb_each_other(path):
    async def main():
        path.write_text(ONE)
        resolver = FileResolver(path)
        async with opened(resolver, spares_wanted=1) as first:
            async with opened(resolver, name="second", spares_wanted=1):
                pass
            path.write_text(json.dumps(["10.0.0.2:5432"]))
            await asyncio.sleep(3)
            assert list(first.pool.stats().backends) == [B.name]

    run(main)


@pytest.mark.parametrize(("interval", "latest"), [(0.01, 0.01), (7, 7), (1e300, 86_400), (float("inf"), 86_400)])
def test_any_interval_from_a_hundredth_of_a_second_on_will_do(path, interval, latest):
    async def main():
        path.write_text(ONE)
        async with watching(path, interval=interval) as heard:
            await asyncio.sleep(1)
            assert heard.last == (A,)
            path.write_text(json.dumps(["10.0.0.2:5432"]))
            await asyncio.sleep(latest + 1e-3)
            assert heard.last == (B,)

    run(main)


def test_a_relative_path_is_that_of_the_moment_when_the_resolver_was_made(path, monkeypatch):
    async def main():
        path.write_text(ONE)
        monkeypatch.chdir(path.parent)
        resolver = FileResolver(path.name)
        monkeypatch.chdir("/")
        async with resolver.monitor() as monitor:
            assert list(await monitor.changed()) == [A.name]

    run(main)


@pytest.mark.parametrize(
    ("arguments", "settings", "error"),
    [
        ((None,), {}, TypeError),
        ((3,), {}, TypeError),
        ((b"backends",), {}, TypeError),
        (("",), {}, ValueError),
        (("a\0b",), {}, ValueError),
        (("a",), {"interval": 0}, ValueError),
        (("a",), {"interval": -1}, ValueError),
        (("a",), {"interval": float("nan")}, ValueError),
        (("a",), {"interval": "1"}, TypeError),
        (("a",), {"interval": True}, TypeError),
    ],
)
def test_what_can_be_no_path_and_no_interval_is_refused_at_once(arguments, settings, error):
    with pytest.raises(error):
        FileResolver(*arguments, **settings)


# The end.


@pytest.mark.parametrize("by", ["cancel", "timeout", "anyio"])
def test_watch_that_is_cancelled_at_any_await_leaves_nothing_behind(path, by):
    async def scene(attempt):
        path.write_text(ONE)
        end = asyncio.get_running_loop().call_later(2, cancel_the_operation)
        await attempt.cancel(FileResolver(path, interval=0.5).watch(lambda _: None))
        end.cancel()
        loop: Any = asyncio.get_running_loop()
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []

    at_every_await(scene, by=by, at_least=4)


def cancel_the_operation() -> None:
    next(task for task in asyncio.all_tasks() if task.get_name() == "operation").cancel()


@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES.keys())
def test_a_pool_over_a_file_and_more_ends_in_every_phase_without_a_trace(path, phase):
    async def main():
        stage = Stage()
        path.write_text("[]")
        stage.pool = Pool("main", FallbackResolver([FileResolver(path), stage.resolver]), stage.connector, POLICY)
        try:
            await phase(stage)
            await stage.pool.terminate()
            await stage.assert_over()
        finally:
            await stage.clear()

    run(main)
