"""Credentials that show themselves nowhere, and errors that are told without them."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import math
import pickle
import traceback

import pytest

from qorb import ConnectError
from qorb.credentials import Login, Secret, checked, connect_error, revealed, summed_up, without
from qorb.testing import run

CANARY = "c4n4ry-in-the-mine"


def test_a_secret_shows_itself_nowhere_and_gives_itself_when_it_is_asked():
    secret = Secret(CANARY)
    shown = [repr(secret), str(secret), f"{secret:>20}", "%s" % secret, repr([secret]), repr({"a": secret})]  # noqa: UP031
    assert all(CANARY not in text and "***" in text for text in shown)
    assert CANARY.encode() not in pickle.dumps(secret)
    assert copy.copy(secret).reveal() == "***"
    with pytest.raises(TypeError):
        json.dumps(secret)
    assert not hasattr(secret, "__dict__")
    assert secret.reveal() == CANARY


def test_secrets_compare_by_what_they_hide():
    assert Secret("a") == Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1
    assert Secret("a") != "a"


def test_what_is_no_text_is_no_secret_and_is_not_shown():
    with pytest.raises(TypeError, match="not something of the class bytes") as caught:
        Secret(CANARY.encode())
    assert CANARY not in str(caught.value)
    with pytest.raises(
        TypeError, match="password must be a text, a Secret or a function, not something of the class int"
    ):
        checked("password", 5)


def test_a_bare_text_is_not_kept():
    assert isinstance(checked("password", CANARY), Secret)
    assert checked("password", None) is None


async def coming():
    await asyncio.sleep(0.1)
    return CANARY


@pytest.mark.parametrize("given", [CANARY, Secret(CANARY), lambda: CANARY, lambda: Secret(CANARY), coming])
def test_a_credential_is_a_value_or_is_asked_for(given):
    async def main():
        found = await revealed("password", checked("password", given))
        assert found.reveal() == CANARY

    run(main)


@pytest.mark.parametrize("answer", [None, 5, b"x", lambda: "x"])
def test_a_function_that_gives_no_credential_is_named(answer):
    async def main():
        with pytest.raises(TypeError, match="the function given as password must return a text or a Secret, not a"):
            await revealed("password", lambda: answer)

    run(main)


def test_none_stays_none():
    async def main():
        assert await revealed("password", None) is None

    run(main)


def test_texts_are_told_without_secrets_but_for_those_so_short_that_everything_holds_them():
    assert without(f"a {CANARY} b {CANARY}", [Secret(CANARY), None]) == "a *** b ***"
    assert without("a cat", [Secret("a")]) == "a cat"


def broken(text, chained=None):
    try:
        try:
            if chained is not None:
                raise ValueError(chained)
        except ValueError as error:
            raise OSError(text) from error
        raise OSError(text)
    except OSError as error:
        return error


def test_an_error_without_secrets_is_chained_and_keeps_what_it_was_given():
    error = connect_error("connecting", broken("no route"), "b0", [Secret(CANARY)], min_backoff=5.0, max_backoff=9.0)
    assert isinstance(error, ConnectError)
    assert str(error) == "connecting: OSError: no route"
    assert isinstance(error.__cause__, OSError)
    assert (error.backend, error.min_backoff, error.max_backoff) == ("b0", 5.0, 9.0)


@pytest.mark.parametrize("error", [broken(f"refused {CANARY}"), broken("refused", f"with {CANARY}")])
def test_an_error_that_quotes_a_secret_or_is_chained_to_one_that_does_is_told_alone(error, caplog):
    told = connect_error("connecting", error, "b0", [Secret(CANARY)])
    assert told.__cause__ is None
    logging.getLogger("test").error("failed", exc_info=told)
    assert CANARY not in "".join(traceback.format_exception(told)) + caplog.text


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("correct  horse", "refused: correct  horse"),
        ("correct\nhorse", "refused: correct\nhorse"),
        ("correct horse battery", "x" * 480 + "correct horse battery"),
    ],
)
def test_a_secret_is_not_told_either_where_the_text_is_put_into_one_short_line(secret, text):
    told = connect_error("connecting", ValueError(text), "b0", [Secret(secret)])
    assert "correct" not in str(told)
    assert "ValueError: " in str(told)


def test_an_error_with_a_note_that_quotes_a_secret_is_told_alone():
    error = OSError("refused")
    error.add_note(f"with {CANARY}")
    assert connect_error("connecting", error, "b0", [Secret(CANARY)]).__cause__ is None


def test_pauses_that_are_none_are_none():
    assert ConnectError("x", min_backoff=float("nan")).min_backoff == 0.0
    assert ConnectError("x", min_backoff=-1.0).min_backoff == 0.0


def refuse(login, used, backend="db"):
    error = login.refusal("authentication failed", OSError(f"no {CANARY} here"), backend, used)
    assert CANARY not in str(error)
    return error


def test_credentials_that_were_refused_are_not_tried_again_for_five_seconds_and_not_only_by_the_one_who_was():
    async def main():
        login = Login("app", CANARY)
        error = refuse(login, await login.ask("db"))
        assert (error.min_backoff, error.max_backoff) == (5.0, math.inf)
        await asyncio.sleep(2)
        with pytest.raises(
            ConnectError, match=r"^authentication failed: .*; the same is not tried again for 3\.0 s$"
        ) as caught:
            await login.ask("db")
        assert caught.value.min_backoff == pytest.approx(3.0)
        assert (await login.ask("another")).password == Secret(CANARY)
        await asyncio.sleep(3)
        await login.ask("db")

    run(main)


@pytest.mark.parametrize("changes", ["user", "password"])
def test_other_credentials_than_those_that_were_refused_are_tried_at_once(changes):
    said = {"user": "app", "password": CANARY}

    async def main():
        login = Login(lambda: said["user"], lambda: said["password"])
        error = refuse(login, await login.ask("db"))
        assert (error.min_backoff, error.max_backoff) == (0.5, 0.5)
        with pytest.raises(ConnectError, match="not tried again") as caught:
            await login.ask("db")
        assert (caught.value.min_backoff, caught.value.max_backoff) == (0.5, 0.5)
        said[changes] = "another"
        assert getattr(await login.ask("db"), changes).reveal() == "another"

    run(main)


@pytest.mark.parametrize(
    ("user", "hidden"),
    [("app", False), (lambda: "app", False), (None, False), (Secret("app"), True), (lambda: Secret("app"), True)],
)
def test_a_name_is_a_secret_when_it_was_given_as_one(user, hidden):
    async def main():
        found = await Login(user, CANARY, user_is="username").ask("db")
        assert found.secrets == ((Secret("app"), Secret(CANARY)) if hidden else (Secret(CANARY),))

    run(main)


def test_the_errors_of_several_addresses_become_one_with_the_pauses_of_the_last():
    first, last = ConnectError("a", "db"), ConnectError("b", "db", min_backoff=1.0, max_backoff=2.0)
    told = summed_up([first, last], "db")
    assert str(told) == "a; b"
    assert (told.backend, told.min_backoff, told.max_backoff, told.__cause__) == ("db", 1.0, 2.0, last)
    assert summed_up([first], "db") is first
