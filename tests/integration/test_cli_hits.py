"""`askonce hits list | review | export | rules`, and what `askonce stats` says of reviews."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from askonce_queue import names, queue_scripts
from askonce_queue.connections import connect_sync
from askonce_queue.queue_scripts import LoggedHit
from askonce_queue.scripts import SyncStore, run_sync, send_sync
from askonce_queue.shards import shard_of_digest, shard_tags
from askonce_worker.cli.main import app
from tests.support.askonce_command import CONFIG, Askonce
from tests.support.terminal import terminal

pytestmark = pytest.mark.usefixtures("store")  # every test begins with an empty store

INPUTS = ("I lost my card, call [phone]", "reset my password", "what is my balance")


@pytest.fixture
def askonce(tmp_path: Path, store_url: str) -> Iterator[Askonce]:
    with Askonce(tmp_path) as command:
        command.configure(f'[redis]\nurl = "{store_url}"\n{CONFIG}')
        yield command


@pytest.fixture
def client(store_url: str) -> Iterator[SyncStore]:
    one = connect_sync(store_url, role="commands")
    yield one
    one.close()


def log(client: SyncStore, *inputs: str, shards: int = 1, **fields: Any) -> list[str]:
    """Log hits, the last the newest; their keys."""
    keys: list[str] = []
    for number, text in enumerate(inputs):
        key = fields.get("key") or f"{number:08x}" * 8
        tag = shard_tags(shards)[shard_of_digest(bytes.fromhex(key), shards)]
        hit = LoggedHit(
            key=key,
            task=fields.get("task", "size"),
            source="memory",
            age_ms=7_200_000,
            answer=fields.get("answer", b'{"label":"long","score":0.75}'),
            input=text,
            tenant=fields.get("tenant", ""),
        )
        run_sync(client, queue_scripts.log_hits(tag, 100, [hit]))
        keys.append(key)
    return keys


def hits(askonce: Askonce, *args: str, code: int = 0, stdin: str = "") -> Result:
    """Run a command in this process, which is quicker."""
    command, *rest = args
    words = [command] if command != "rules" else [command, rest.pop(0)]
    path = str(askonce.folder / "askonce.toml")
    done = CliRunner().invoke(app, ["hits", *words, path, *rest], input=stdin)
    assert done.exit_code == code, done.output
    return done


def listed(askonce: Askonce, *args: str) -> list[dict[str, Any]]:
    """What `list --json` shows, without times."""
    lines = hits(askonce, "list", "--json", *args).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    for one in found:
        one.pop("at")
        one.pop("reviewed_at", None)
    return found


# list and export


def test_a_list_for_programs(askonce: Askonce, client: SyncStore) -> None:
    nothing = hits(askonce, "list")
    assert nothing.stdout == ""
    assert "workers log a share" in nothing.stderr
    keys = log(client, *INPUTS)
    shown = listed(askonce)
    assert [one["input"] for one in shown] == list(INPUTS[::-1])
    assert shown[0] == {
        "key": keys[2],
        "task": "size",
        "source": "memory",
        "age_s": 7200.0,
        "answer": {"label": "long", "score": 0.75},
        "input": INPUTS[2],
    }
    line = hits(askonce, "list", "--limit", "1").stdout.rstrip("\n").split("\t")
    assert line[0] == keys[2]
    assert line[2:] == ["size", "memory", "2h", "long 0.75", "-", INPUTS[2]]


def test_filters(askonce: Askonce, client: SyncStore) -> None:
    log(client, *INPUTS)
    assert len(listed(askonce, "--since", "1h", "--task", "size", "--limit", "2")) == 2
    assert listed(askonce, "--since", "2099-01-01") == []
    hits(askonce, "list", "--task", "nope", code=2)
    hits(askonce, "list", "--since", "yesterday", code=2)
    hits(askonce, "review", stdin="f\n")
    assert len(listed(askonce, "--unreviewed")) == 2
    askonce.configure((askonce.folder / "askonce.toml").read_text() + OFF)
    assert "no task has a hit log" in hits(askonce, "list", "--since", "2099-01-01").stderr


OFF = "\n[tasks.size.hit_log]\nshare = 0\n"


def test_nothing_of_a_hit_reaches_a_terminal_unescaped(askonce: Askonce, client: SyncStore) -> None:
    log(client, "\x1b[2Jone\ntwo\u202e", answer=b'{"label":"\\u001b[2J"}', tenant="\x1b]0;x\x07")
    for words in (("list",), ("list", "--json"), ("export",), ("review",)):
        shown = hits(askonce, *words, stdin="q\n").stdout
        assert "\x1b" not in shown
        assert "\u202e" not in shown
    assert listed(askonce)[0]["input"] == "\x1b[2Jone\ntwo\u202e"


def test_export(askonce: Askonce, client: SyncStore) -> None:
    log(client, *INPUTS)
    hits(askonce, "review", stdin="f\nw\ns\n")
    out = askonce.folder / "hits.jsonl"
    assert "3 hits in" in hits(askonce, "export", "--out", str(out)).stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.get("verdict") for line in lines] == ["fine", "wrong", None]
    assert hits(askonce, "export").stdout == out.read_text()
    assert out.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in askonce.folder.glob("*hits*")) == ["hits.jsonl"]
    failed = hits(askonce, "export", "--out", str(askonce.folder / "no" / "x"), code=2)
    assert "cannot write" in failed.stderr


def test_a_shard_that_cannot_be_read(askonce: Askonce, client: SyncStore, store_url: str) -> None:
    askonce.configure(f'[redis]\nurl = "{store_url}"\nshards = 2\n{CONFIG}')
    log(client, *INPUTS, shards=2)
    log(client, "there", key="8" * 64, shards=2)  # on the first one
    client.set(names.hits(shard_tags(2)[1]).decode(), "no stream")
    done = hits(askonce, "list", code=1)
    assert "could not be read" in done.stderr
    assert "there" in done.stdout


# review


def test_a_review_by_lines(askonce: Askonce, client: SyncStore) -> None:
    keys = log(client, *INPUTS)
    done = hits(askonce, "review", stdin="f\nn\nw p *lost my card*\n")
    assert "3 of 3 · size" in done.stdout
    assert "reviewed 3: 1 fine, 1 should not have been cached, 1 wrong; 0 left" in done.stdout
    assert "66.7% (20.8% to 93.8%): 2 of 3 reviewed" in done.stdout
    taken = send_sync(client, "ZRANGE", names.last("0"), 0, -1)
    assert set(taken) == {b"\0" + bytes.fromhex(key) for key in keys[:2]}
    rules = hits(askonce, "rules", "list").stdout.splitlines()
    assert [rule.split("\t")[2:] for rule in rules] == [["size", "*lost my card*"]]
    again = hits(askonce, "review")
    assert "every hit has been reviewed" in again.stderr
    assert "2 of 3 reviewed" in again.stdout


def test_the_ways_to_make_a_rule(askonce: Askonce, client: SyncStore) -> None:
    log(client, *INPUTS)
    hits(askonce, "review", stdin="w t\nn p\nw p " + "x" * 501 + "\n", code=1)
    rules = hits(askonce, "rules", "list").stdout.splitlines()
    assert {rule.split("\t")[3] for rule in rules} == {"*", "reset my password"}
    assert [one["input"] for one in listed(askonce, "--unreviewed")] == [INPUTS[0]]


def test_the_end_of_the_lines_and_what_is_no_word(askonce: Askonce, client: SyncStore) -> None:
    log(client, *INPUTS)
    done = hits(askonce, "review", stdin="\nyes\nf\n", code=1)
    assert "'yes' is not one of" in done.stderr
    assert "reviewed 1: 1 fine; 2 left" in done.stdout
    assert "reviewed 0; 2 left" in hits(askonce, "review", stdin="q\nf\n").stdout
    assert "1 of 1" in hits(askonce, "review", "--limit", "1", stdin="s\nf\n").stdout
    assert len(listed(askonce, "--unreviewed")) == 2


def test_a_review_on_a_terminal(askonce: Askonce, client: SyncStore) -> None:
    log(client, *INPUTS)
    with terminal(askonce, "hits", "review", "askonce.toml") as shown:
        shown.until(" quit")
        shown.type("\x1b[Axf")  # an arrow, a slip, fine
        shown.until("2 of 3")
        shown.type("n")
        shown.until("the whole task")
        shown.type("\r")
        shown.until("3 of 3")
        shown.type("wp")
        shown.until("Enter for: I lost my card, call *")
        shown.type("\n")
        assert shown.end() == 0
        assert "'I lost my card, call *' from the cache" in shown.shown
        assert "reviewed 3: 1 fine, 1 should not have been cached, 1 wrong" in shown.shown
    assert [one["verdict"] for one in listed(askonce)] == ["fine", "not_cacheable", "wrong"]


def test_a_review_that_is_interrupted_keeps_what_was_said(
    askonce: Askonce, client: SyncStore
) -> None:
    log(client, *INPUTS)
    with terminal(askonce, "hits", "review", "askonce.toml") as shown:
        shown.until(" quit")
        shown.type("f")
        shown.until("2 of 3")
        shown.process.send_signal(signal.SIGINT)
        assert shown.end() == 128 + signal.SIGINT
        assert "reviewed 1: 1 fine; 2 left" in shown.shown
    assert len(listed(askonce, "--unreviewed")) == 2


# rules


def test_rules(askonce: Askonce) -> None:
    assert hits(askonce, "rules", "list").stdout == ""
    added = hits(askonce, "rules", "add", "--task", "size", "--pattern", "*Balance*").stdout
    rule_id = added.split(":")[0]
    hits(askonce, "rules", "add", "--task", "size", "--pattern", "*balance*")
    (line,) = hits(askonce, "rules", "list", "--json").stdout.splitlines()
    shown = json.loads(line)
    assert (shown["id"], shown["task"], shown["pattern"]) == (rule_id, "size", "*balance*")
    hits(askonce, "rules", "add", "--task", "nope", "--pattern", "*", code=2)
    assert "patterns have" in (
        hits(askonce, "rules", "add", "--task", "size", "--pattern", " ", code=2).stderr
    )
    gone = hits(askonce, "rules", "remove", rule_id, "nope", code=1)
    assert "1 rule removed" in gone.stdout
    assert "no rule 'nope'" in gone.stderr
    assert hits(askonce, "rules", "list").stdout == ""


# all of it


def test_from_a_run_to_stats(askonce: Askonce) -> None:
    askonce.configure((askonce.folder / "askonce.toml").read_text() + OFF.replace("0", "1"))
    askonce.write("in.jsonl", [{"text": "mail john@example.com"}, {"text": "hello"}])
    for _ in range(2):
        askonce.run("in.jsonl")
    done = hits(askonce, "review", stdin="w t\nf\n")
    assert "mail [email]" in done.stdout
    assert "john" not in done.stdout
    askonce.run("in.jsonl")
    assert askonce.summary()["model_calls"] == 2
    assert len(askonce.calls()) == 4
    stats = ["stats", str(askonce.folder / "askonce.toml")]
    state = json.loads(CliRunner().invoke(app, [*stats, "--json"]).stdout)
    assert state["reviews"]["tasks"]["size"]["reviewed"] == 2
    assert state["reviews"]["total"]["wrong"] == 1
    assert "Wrong hits, by review" in CliRunner().invoke(app, stats).stdout
