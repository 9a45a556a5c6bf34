"""`askonce dead list | show | retry | drop`, and what `askonce stats` says of dead letters."""

from __future__ import annotations

import io
import json
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from askonce_queue import names, queue_scripts
from askonce_queue.connections import connect_sync
from askonce_queue.scripts import run_sync
from askonce_queue.shards import shard_tags
from askonce_worker.cli import counting
from askonce_worker.cli.dead_choice import Filters
from askonce_worker.cli.loop import Failed
from askonce_worker.cli.main import app
from tests.support.askonce_command import CONFIG, Askonce
from tests.support.dead_letters import BURIED_MS, Grave, envelope
from tests.support.terminal import terminal
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("store")  # every test begins with an empty store


@pytest.fixture
def askonce(tmp_path: Path, store_url: str) -> Iterator[Askonce]:
    with Askonce(tmp_path) as command:
        command.configure(f'[redis]\nurl = "{store_url}"\n{CONFIG}')
        yield command


@pytest.fixture
def grave(store_url: str) -> Iterator[Grave]:
    client = connect_sync(store_url, role="commands")
    yield Grave(client)
    client.close()


def dead(askonce: Askonce, command: str, *args: str, code: int = 0) -> Result:
    """Run a command in this process, which is quicker."""
    done = CliRunner().invoke(app, ["dead", command, str(askonce.folder / "askonce.toml"), *args])
    assert done.exit_code == code, done.output
    return done


def told(askonce: Askonce, command: str, *args: str) -> str:
    """What a command that succeeds writes to stdout."""
    return dead(askonce, command, *args).stdout


def listed(askonce: Askonce, *args: str) -> list[str]:
    """The ids that `list` shows."""
    return [line.split("\t")[0] for line in told(askonce, "list", *args).splitlines()]


def of_size(job_id: str, text: str, **fields: str) -> dict[str, Any]:
    """A job that the workers of this configuration can answer."""
    return envelope(job_id, p=json.dumps({"task": "size", "text": text}), **fields)


# list


def test_a_list_for_programs(askonce: Askonce, grave: Grave) -> None:
    assert told(askonce, "list") == told(askonce, "list", "--json") == ""
    ids = [grave.bury(envelope(f"j{n}", n="acme"), at_ms=BURIED_MS + n) for n in range(3)]
    lines = told(askonce, "list").splitlines()
    assert [line.split("\t")[0] for line in lines] == ids[::-1]
    assert lines[0].split("\t")[2:] == ["poison", "echo", "client/j2", "it died"]
    shown = [json.loads(line) for line in told(askonce, "list", "--json").splitlines()]
    assert [one["id"] for one in shown] == ids[::-1]
    assert shown[0]["payload"] == {"task": "echo", "text": "hello"}
    assert listed(askonce, "--limit", "2") == ids[:0:-1]


def test_filters(askonce: Askonce, grave: Grave) -> None:
    now_ms = int(time.time() * 1000)
    old = grave.bury(envelope("old", c="first"), code="undecodable")
    hour = grave.bury(of_size("hour", "x"), at_ms=now_ms - 3_600_000)
    new = grave.bury(envelope("new", n="acme"), at_ms=now_ms - 1000)
    assert listed(askonce, "--code", "undecodable") == [old]
    assert listed(askonce, "--task", "size") == [hour]
    assert listed(askonce, "--tenant", "acme") == [new]
    assert listed(askonce, "--client", "first") == [old]
    assert listed(askonce, "--since", "2h") == [new, hour]
    assert listed(askonce, "--since", "2h", "--until", "30m") == [hour]
    assert listed(askonce, "--until", "2023-11-14T22:13:20+00:00") == [old]
    assert listed(askonce, "--until", "2023-11-14T22:13:19Z") == []
    assert listed(askonce, "--code", "poison", "--client", "first") == []


def test_a_list_for_people(askonce: Askonce, grave: Grave) -> None:
    with terminal(askonce, "dead", "list", "askonce.toml") as shown:
        shown.until("no dead letters")
        assert shown.end() == 0
    for n in range(3):
        grave.bury(envelope(f"j{n}", c="\x1b[2Jclient"), at_ms=BURIED_MS + n)
    with terminal(askonce, "dead", "list", "askonce.toml", "--limit", "2") as shown:
        assert shown.end() == 0
        assert "client/job" in shown.shown
        assert r"\x1b[2Jclient/j2" in shown.shown
        assert "\x1b[2J" not in shown.shown
        assert "j0" not in shown.shown
        assert "the newest 2; --limit shows more" in shown.shown
    with terminal(askonce, "dead", "list", "askonce.toml", "--code", "nope") as shown:
        shown.until("no such dead letters")
        assert shown.end() == 0


def test_shards_that_cannot_be_read(askonce: Askonce, grave: Grave, store_url: str) -> None:
    askonce.configure(f'[redis]\nurl = "{store_url}"\nshards = 2\n{CONFIG}')
    first, second = shard_tags(2)
    grave.send("SET", names.dead(first, "default"), "no stream")
    letter = grave.bury(tag=second)
    done = dead(askonce, "list", code=1)
    assert done.stdout.startswith(letter)
    assert f"shard {first} could not be read: WRONGTYPE" in done.stderr
    done = dead(askonce, "drop", "--all", "--yes", code=1)
    assert done.stdout == "1 dead letter dropped\n"
    grave.send("DEL", names.dead(second, "default"))
    grave.send("SET", names.dead(second, "default"), "no stream")
    done = dead(askonce, "list", code=69)
    assert "WRONGTYPE" in done.stderr


# show


def test_show(askonce: Askonce, grave: Grave) -> None:
    letter = grave.bury(envelope(n="acme", g="a\nb", r="@nightly"))
    shown = told(askonce, "show", letter)
    for line in (
        "code        poison",
        "tags        a, b",
        "reply to    nightly",
        '  "task": "echo"',
    ):
        assert line in shown.splitlines() or f"{line}," in shown.splitlines()
    letter_json = json.loads(told(askonce, "show", letter, "--json"))
    assert (letter_json["id"], letter_json["tenant"]) == (letter, "acme")
    garbage = grave.bury({b"\xff\x00": b"\x1b[2J", "p": b"\x00\xff" * 40})
    shown = told(askonce, "show", garbage)
    assert "retry       not possible" in shown
    assert "00ff00ff" in shown
    assert shown.replace("\n", "").isprintable()
    assert json.loads(told(askonce, "show", garbage, "--json"))["payload_hex"] == "00ff" * 40


def test_show_what_is_not_there(askonce: Askonce) -> None:
    done = dead(askonce, "show", "0:1-1", code=1)
    assert "there is no dead letter 0:1-1" in done.stderr
    done = dead(askonce, "show", "1-1", code=2)
    assert "'1-1' is no id of a dead letter" in done.stderr


# retry


def test_what_was_retried_is_answered(askonce: Askonce, grave: Grave) -> None:
    ids = [grave.bury(of_size(f"j{n}", f"text {n}")) for n in range(3)]
    bad = grave.bury({"v": "1", "c": "c", "i": "bad"})
    done = dead(askonce, "retry", "--all", "--dry-run", code=1)
    assert done.stdout == "3 dead letters would be retried, 1 not\nreplies: reply:{0}:@retried\n"
    assert grave.left() == [*ids, bad]
    done = dead(askonce, "retry", ids[0], ids[0], code=0)
    assert done.stdout == "1 dead letter retried\nreplies: reply:{0}:@retried\n"
    done = dead(askonce, "retry", "--all", "--reply-to", "fixed", code=1)
    assert done.stdout == "2 dead letters retried, 1 not\nreplies: reply:{0}:@fixed\n"
    assert f"{bad}: the envelope has no payload" in done.stderr
    assert grave.left() == [bad]
    askonce("worker", "askonce.toml", "--burst")
    assert sorted(askonce.calls()) == ["text 0", "text 1", "text 2"]
    assert sum(answers(grave, "@retried")) == 1
    assert sum(answers(grave, "@fixed")) == 2


def answers(grave: Grave, address: str) -> list[int]:
    """How many replies there are in each entry of a stream."""
    entries = grave.send("XRANGE", names.replies("0", address), "-", "+")
    return [int(fields[1]) for _, fields in entries]


def test_retry_of_what_is_not_there(askonce: Askonce, grave: Grave) -> None:
    letter = grave.bury(of_size("j1", "x"))
    done = dead(askonce, "retry", "0:1-1", letter, "--lane", "bulk", code=1)
    assert done.stdout.startswith("1 dead letter retried, 1 not\n")
    assert "0:1-1: there is no such dead letter" in done.stderr


def test_many_refusals_are_counted_not_listed(askonce: Askonce, grave: Grave) -> None:
    for n in range(250):
        grave.bury({"v": "1", "i": f"{n}"})
    done = dead(askonce, "retry", "--code", "poison", code=1)
    assert done.stdout == "0 dead letters retried, 250 not\n"
    assert len(done.stderr.splitlines()) == 11
    assert "… and 240 more" in done.stderr


# drop


def test_drop(askonce: Askonce, grave: Grave) -> None:
    ids = [grave.bury(code=code) for code in ("a", "b", "b", "c", "c", "c")]
    assert told(askonce, "drop", ids[0]) == "1 dead letter dropped\n"
    done = dead(askonce, "drop", ids[0], ids[1], code=1)
    assert done.stdout == "1 dead letter dropped, 1 not\n"
    done = dead(askonce, "drop", "--code", "c", code=2)
    assert "add --yes" in done.stderr
    assert told(askonce, "drop", "--code", "c", "--dry-run") == "3 dead letters would be dropped\n"
    assert grave.left() == ids[2:]
    assert told(askonce, "drop", "--code", "c", "--yes") == "3 dead letters dropped\n"
    assert grave.left() == [ids[2]]
    assert told(askonce, "drop", "--all", "-y") == "1 dead letter dropped\n"
    assert told(askonce, "drop", "--all", "-y") == "0 dead letters dropped\n"


def test_drop_asks_and_drops_what_it_has_counted(askonce: Askonce, grave: Grave) -> None:
    ids = [grave.bury() for _ in range(150)]
    with terminal(askonce, "dead", "drop", "askonce.toml", "--code", "poison") as shown:
        shown.until("Drop 150 dead letters (--code poison) for good? [y/N] ")
        shown.type("\n")
        assert shown.end() == 1
        assert "nothing was dropped" in shown.shown
    with terminal(askonce, "dead", "drop", "askonce.toml", "--all") as shown:
        shown.until("Drop 150 dead letters for good? [y/N] ")
        shown.process.send_signal(signal.SIGINT)
        assert shown.end() == 130
    assert grave.left() == ids
    with terminal(askonce, "dead", "drop", "askonce.toml", "--all") as shown:
        shown.until("[y/N] ")
        newer = grave.bury()
        shown.type("y\n")
        assert shown.end() == 0
        assert "150 dead letters dropped" in shown.shown
    assert grave.left() == [newer]
    with terminal(askonce, "dead", "drop", "askonce.toml", "--code", "none") as shown:
        assert shown.end() == 0
        assert "0 dead letters dropped" in shown.shown


# usage


def test_usage(askonce: Askonce) -> None:
    for args in (("retry",), ("retry", "--all", "--code", "x"), ("drop", "0:1-1", "--all")):
        done = dead(askonce, *args, code=2)
        assert "say which dead letters" in done.stderr
    done = dead(askonce, "retry", "--all", "--reply-to", "no name", code=2)
    assert "--reply-to: names match" in done.stderr
    assert done.stdout == ""


NOW_MS = BURIED_MS + 10_000_000


def filters(since: str | None = None, until: str | None = None) -> Filters:
    return Filters(None, None, None, None, since, until)


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("2h", NOW_MS - 7_200_000),
        ("1.5 s", NOW_MS - 1500),
        ("2023-11-14T22:13:20Z", BURIED_MS),
        ("2023-11-14T23:13:20.5+01:00", BURIED_MS + 500),
        ("1960-01-01", 0),
    ],
)
def test_times(text: str, expected_ms: int) -> None:
    assert filters(since=text).wanted(NOW_MS).since_ms == expected_ms
    assert filters(until=text).wanted(NOW_MS).until_ms == expected_ms
    assert filters(since=text).given


def test_a_time_without_a_zone_is_local() -> None:
    local = datetime.fromtimestamp(BURIED_MS / 1000).isoformat()  # noqa: DTZ006 -- that is meant
    assert filters(since=local).wanted(NOW_MS).since_ms == BURIED_MS


@pytest.mark.parametrize("text", ["", "soon", "2 weeks", "-1h", "0s", "2026-13-01", "9" * 5000])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(Failed, match="--since: expected an age like '2h' or a time like"):
        filters(since=text).wanted(NOW_MS)


def test_a_time_span_has_its_beginning_first() -> None:
    with pytest.raises(Failed, match="--since is later than --until"):
        filters(since="1h", until="2h").wanted(NOW_MS)


def test_without_a_store(askonce: Askonce) -> None:
    askonce.configure(f'[redis]\nurl = "redis://127.0.0.1:1/0"\n{CONFIG}')
    for args in (("list",), ("drop", "0:1-1")):
        done = dead(askonce, *args, code=69)
        assert "the store cannot be reached" in done.stderr


# stats


def test_stats_tell_how_many_were_dropped_for_want_of_room(askonce: Askonce, grave: Grave) -> None:
    askonce.configure((askonce.folder / "askonce.toml").read_text() + "max_dead = 3\n")
    for n in range(5):
        grave.send("XADD", names.jobs("0", "default", "bulk"), "*", *("v", "1", "i", f"{n}"))
    askonce("worker", "askonce.toml", "--burst")
    stats = json.loads(askonce("stats", "askonce.toml", "--json").stdout)
    assert (stats["dead_letters"], stats["dead_letters_dropped"]) == (3, 2)
    shown = askonce("stats", "askonce.toml").stdout
    assert "3 (2 older ones were dropped to make room)" in shown
    grave.send("DEL", names.stats("0"))
    run_sync(grave.client, queue_scripts.count("0", {"*|jobs_buried": 3}))
    assert "were dropped" not in askonce("stats", "askonce.toml").stdout


# progress


async def test_progress_appears_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()

    def console(*, stderr: bool) -> Console:
        assert stderr
        return Console(file=screen, force_terminal=True, width=100)

    monkeypatch.setattr(counting, "Console", console)
    async with counting.counting("retrying", lambda: 5, 10):
        pass
    assert screen.getvalue() == ""
    monkeypatch.setattr(counting, "PATIENCE_S", 0.0)
    async with counting.counting("retrying", lambda: 5, 10):
        await eventually(lambda: "retrying" in screen.getvalue() and "5/10" in screen.getvalue())
