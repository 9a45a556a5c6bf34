"""What is done about what the store says: every row of the table in `exchange.py`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as StoreDown
from redis.exceptions import DataError
from redis.exceptions import TimeoutError as StoreTimeout

from askonce_queue.connections import RETRIES, RETRY_BASE_S, RETRY_CAP_S, Role, Words
from askonce_queue.exchange import MOST_REDIRECTS, Exchange, Next
from askonce_queue.scripts import Plain
from askonce_queue.topology import NotKnown

PASSING = [
    "CLUSTERDOWN The cluster is down",
    "CLUSTERDOWN Hash slot not served",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "READONLY You can't write against a read only replica.",
    "NOREPLICAS Not enough good replicas to write.",
    "BUSY The server is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
]
REFUSALS = [
    "OOM command not allowed when used memory > 'maxmemory'.",
    "NOGROUP No such key 'jobs:{0}:default:bulk' or consumer group 'workers'",
    "NOPERM User worker has no permissions to run the 'flushall' command",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "ERR unknown command 'WAITAOF'",
    "BUSYGROUP Consumer Group name already exists",
    "BUSYKEY Target key name already exists.",
    "CROSSSLOT Keys in request don't hash to the same slot",
    "WAITED too long",
]
NOSCRIPT = "NOSCRIPT No matching script."
MOVED = "MOVED 3999 127.0.0.2:6381"
ASK = "ASK 3999 127.0.0.3:6382"
LOST = StoreDown("Connection closed by server.")


class Numbered(NamedTuple):
    """A request that can be told from others."""

    number: int

    def command(self, verb: str) -> Words:
        return (verb, self.number)


def said(line: str) -> Exception:
    """A refusal as redis-py reads it from the wire."""
    refusal = BaseParser.parse_error(line)
    assert isinstance(refusal, Exception)
    return refusal


def exchange(count: int = 1, role: Role = "commands", *, together: bool = False) -> Exchange:
    return Exchange([Numbered(n) for n in range(count)], role, random.Random(1), together=together)


def numbers(commands: Sequence[Words]) -> list[int]:
    return [int(words[1]) for words in commands if words != ("ASKING",)]


class TestReplies:
    def test_are_the_results_in_order(self) -> None:
        ours = exchange(3)
        assert ours.commands() == [("EVALSHA", 0), ("EVALSHA", 1), ("EVALSHA", 2)]
        assert not ours.done
        assert not ours.answered
        assert ours.replied([b"a", None, []]) == Next()
        assert ours.done
        assert ours.answered
        assert ours.results == [b"a", None, []]
        assert ours.unreachable is None

    def test_there_must_be_one_for_each_command(self) -> None:
        with pytest.raises(ValueError, match="shorter"):
            exchange(2).replied([b"a"])

    def test_a_plain_command_is_no_script(self) -> None:
        ours = Exchange([Plain(("XLEN", b"key"))], "commands", random.Random())
        assert ours.commands() == [("XLEN", b"key")]

    @pytest.mark.parametrize("role", ["commands", "blocking"])
    @pytest.mark.parametrize("line", REFUSALS)
    def test_a_refusal_is_told_at_once(self, line: str, role: Role) -> None:
        ours = exchange(2, role)
        refusal = said(line)
        assert ours.replied([refusal, b"b"]) == Next()
        assert ours.done
        assert ours.results == [refusal, b"b"]
        assert ours.unreachable is None


class TestNoScript:
    def test_the_source_is_sent_at_once_and_only_for_what_was_refused(self) -> None:
        ours = exchange(3)
        assert ours.replied([b"a", said(NOSCRIPT), b"c"]) == Next()
        assert ours.commands() == [("EVAL", 1)]
        assert ours.replied([b"b"]) == Next()
        assert ours.results == [b"a", b"b", b"c"]

    def test_a_server_that_refuses_the_source_as_well_is_not_asked_for_ever(self) -> None:
        ours = exchange()
        ours.replied([said(NOSCRIPT)])
        refusal = said(NOSCRIPT)
        assert ours.replied([refusal]) == Next()
        assert ours.results == [refusal]

    def test_the_source_is_sent_after_a_redirection_too(self) -> None:
        """The other server does not know the script either."""
        ours = exchange()
        ours.replied([said(NOSCRIPT)])
        ours.replied([said(MOVED)])
        assert ours.commands() == [("EVAL", 0)]


class TestRedirection:
    @pytest.mark.parametrize("role", ["commands", "blocking"])
    @pytest.mark.parametrize(
        ("line", "address"),
        [
            (MOVED, ("127.0.0.2", 6381)),
            ("MOVED 3999 :6381", ("", 6381)),
            ("MOVED 3999 ::1:6381", ("::1", 6381)),
            ("MOVED 3999 store-1.example:6381", ("store-1.example", 6381)),
        ],
    )
    def test_moved_goes_to_the_new_address_at_once(
        self, line: str, address: tuple[str, int], role: Role
    ) -> None:
        ours = exchange(2, role)
        assert ours.replied([b"a", said(line)]) == Next(learn=True)
        assert ours.moved_to == address
        assert ours.detour is None
        assert ours.commands() == [("EVALSHA", 1)]

    @pytest.mark.parametrize("role", ["commands", "blocking"])
    def test_ask_goes_there_this_once(self, role: Role) -> None:
        ours = exchange(3, role)
        assert ours.replied([said(ASK), b"b", said(ASK)]) == Next()
        assert ours.detour == ("127.0.0.3", 6382)
        assert ours.moved_to is None
        assert ours.commands() == [("ASKING",), ("EVALSHA", 0), ("ASKING",), ("EVALSHA", 2)]
        # A script that is not known there.
        assert ours.replied([b"OK", b"a", b"OK", said(NOSCRIPT)]) == Next()
        assert ours.detour is None
        assert ours.commands() == [("EVAL", 2)]
        assert ours.replied([b"c"]) == Next()
        assert ours.results == [b"a", b"b", b"c"]

    def test_a_detour_ends_with_the_connection(self) -> None:
        ours = exchange()
        ours.replied([said(ASK)])
        ours.failed(LOST)
        assert ours.detour is None
        assert ours.commands() == [("EVALSHA", 0)]

    @pytest.mark.parametrize("lines", [[MOVED], [ASK], [MOVED, ASK]])
    def test_servers_that_send_us_to_each_other_are_left(self, lines: list[str]) -> None:
        ours = exchange()
        for round_ in range(MOST_REDIRECTS):
            ours.replied(doubled(ours, said(lines[round_ % len(lines)])))
            assert not ours.done
        last = said(lines[0])
        ours.replied(doubled(ours, last))
        assert ours.done
        assert ours.results == [last]
        assert ours.unreachable is None, "the shard answers; no breaker may open"

    def test_a_batch_that_is_redirected_counts_once(self) -> None:
        ours = exchange(MOST_REDIRECTS + 1)
        ours.replied([said(MOVED)] * (MOST_REDIRECTS + 1))
        assert numbers(ours.commands()) == list(range(MOST_REDIRECTS + 1))


def doubled(ours: Exchange, reply: Any) -> list[Any]:
    """The reply to one command, with that to ASKING before it, if that is sent."""
    return [b"OK", reply] if len(ours.commands()) == 2 else [reply]


class TestPassing:
    @pytest.mark.parametrize("role", ["commands", "blocking"])
    @pytest.mark.parametrize("line", PASSING)
    def test_it_is_tried_again_after_a_pause(self, line: str, role: Role) -> None:
        """Nothing was executed, so a blocking read may be repeated as well."""
        ours = exchange(2, role)
        for tries in range(RETRIES):
            following = ours.replied([b"a", said(line)] if tries == 0 else [said(line)])
            assert following.learn
            assert not following.renew
            most_s = min(RETRY_CAP_S, RETRY_BASE_S * 2**tries)
            assert most_s / 2 <= following.pause_s <= most_s
            assert ours.commands() == [("EVALSHA", 1)]
        assert ours.replied([b"b"]) == Next()
        assert ours.results == [b"a", b"b"]
        assert ours.unreachable is None

    @pytest.mark.parametrize("line", PASSING)
    def test_but_not_for_ever(self, line: str) -> None:
        ours = exchange()
        for _ in range(RETRIES):
            ours.replied([said(line)])
        last = said(line)
        assert ours.replied([last]) == Next()
        assert ours.results == [last]
        assert ours.unreachable is last

    def test_beside_a_redirection_it_waits_as_well(self) -> None:
        ours = exchange(2)
        following = ours.replied([said(ASK), said(PASSING[2])])
        assert following.pause_s
        assert ours.detour
        assert numbers(ours.commands()) == [0, 1]


class TestFailures:
    @pytest.mark.parametrize(
        "error",
        [
            LOST,
            StoreDown("Error 111 connecting to 127.0.0.1:1. Connection refused."),
            ConnectionResetError(104, "Connection reset by peer"),
            said("LOADING Valkey is loading the dataset in memory"),
            said("ERR max number of clients reached"),
            NotKnown("no server holds this shard"),
        ],
        ids=repr,
    )
    def test_a_command_is_sent_again_after_a_pause(self, error: Exception) -> None:
        ours = exchange(2)
        ours.replied([b"a", said(MOVED)])
        for _ in range(RETRIES):
            following = ours.failed(error)
            assert following.learn
            assert following.pause_s
            assert ours.commands() == [("EVALSHA", 1)]
        assert ours.failed(error) == Next()  # learnt before the last try
        assert ours.results == [b"a", error]
        assert ours.unreachable is error

    @pytest.mark.parametrize("error", [LOST, said("LOADING"), StoreTimeout(), TimeoutError()])
    def test_a_blocking_read_never_is(self, error: Exception) -> None:
        """But who holds the shard is asked for the next one: the server may be gone for good."""
        ours = exchange(1, "blocking")
        assert ours.failed(error) == Next(learn=True)
        assert ours.done
        assert ours.results == [error]
        assert ours.unreachable is error

    def test_a_blocking_read_that_was_sent_nowhere_is(self) -> None:
        ours = exchange(1, "blocking")
        assert ours.failed(NotKnown("no server is known")).pause_s
        assert not ours.done

    @pytest.mark.parametrize("error", [StoreTimeout("Timeout reading"), TimeoutError()])
    def test_after_a_time_out_there_is_one_more_try(self, error: Exception) -> None:
        ours = exchange()
        assert ours.failed(error) == Next(learn=True, renew=True)
        assert ours.commands() == [("EVALSHA", 0)]
        assert ours.failed(error) == Next()
        assert ours.results == [error]
        assert ours.unreachable is error

    def test_a_probe_has_one_try(self) -> None:
        ours = Exchange([Numbered(0)], "commands", random.Random(), second_chance=False)
        error = StoreTimeout()
        assert ours.failed(error) == Next()
        assert ours.unreachable is error

    @pytest.mark.parametrize("role", ["commands", "blocking"])
    @pytest.mark.parametrize(
        "line",
        [
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "ERR invalid password",
        ],
    )
    def test_a_wrong_password_is_not_tried_again(self, line: str, role: Role) -> None:
        ours = exchange(2, role)
        error = said(line)
        ours.failed(error)
        assert ours.results == [error, error]
        assert ours.unreachable is error

    @pytest.mark.parametrize("role", ["commands", "blocking"])
    def test_what_cannot_be_packed_says_nothing_of_the_shard(self, role: Role) -> None:
        ours = exchange(1, role)
        error = DataError("not valid Unicode")
        assert ours.failed(error) == Next()
        assert ours.results == [error]
        assert ours.unreachable is None
        assert not ours.answered


class TestTogether:
    """The last command speaks of those before it: WAIT."""

    @pytest.mark.parametrize("line", [NOSCRIPT, MOVED, PASSING[0]])
    def test_all_are_sent_again(self, line: str) -> None:
        ours = exchange(3, together=True)
        ours.replied([b"a", said(line), 1])
        assert numbers(ours.commands()) == [0, 1, 2]
        ours.replied([b"a'", b"b", 2])
        assert ours.results == [b"a'", b"b", 2]

    def test_a_refusal_sends_nothing_again(self) -> None:
        ours = exchange(2, together=True)
        refusal = said(REFUSALS[0])
        ours.replied([refusal, 1])
        assert ours.results == [refusal, 1]

    def test_what_fails_in_the_end_fails_as_a_whole(self) -> None:
        ours = exchange(2, together=True)
        ours.replied([b"a", said(MOVED)])
        for _ in range(RETRIES + 1):
            ours.failed(LOST)
        assert ours.results == [LOST, LOST]


# --- in any order ----------------------------------------------------------------------------

REPLY_LINES = st.sampled_from(["", "", NOSCRIPT, MOVED, ASK, *PASSING[:3], *REFUSALS[:2]])
FAILURES = st.sampled_from(
    [LOST, StoreTimeout(), TimeoutError(), NotKnown(), DataError(), said("LOADING")]
)


class Reference:
    """What the table says, in the fewest words: which requests are to be sent again."""

    def __init__(self, count: int, *, together: bool) -> None:
        self.told: list[Any] = [None] * count
        """What was last said to each."""
        self.left = list(range(count))
        self.given_up: Exception | None = None
        self._count = count
        self._together = together
        self._by_source: set[int] = set()
        self._redirects = self._tries = 0

    def reply(self, lines: dict[int, str], round_: int) -> None:
        again: list[int] = []
        redirected = False
        for n, line in lines.items():
            self.told[n] = said(line) if line else f"round {round_} of {n}"
            if line == NOSCRIPT and n not in self._by_source:
                self._by_source.add(n)
                again.append(n)
            elif line in (MOVED, ASK) and self._redirects < MOST_REDIRECTS:
                redirected = True
                again.append(n)
            elif line in PASSING:
                again.append(n)
        self._redirects += redirected
        passing = [n for n in again if lines[n] in PASSING]
        self.left = list(range(self._count)) if again and self._together else again
        if passing and self._out_of_tries():
            self.give_up(self.told[passing[-1]])

    def fail(self, error: Exception, role: Role, *, second_chance: bool) -> None:
        match error:
            case DataError():
                self._end(error)
            case NotKnown():
                if self._out_of_tries():
                    self.give_up(error)
            case StoreTimeout() | TimeoutError():
                if role == "blocking" or not second_chance:
                    self.give_up(error)
            case _:
                if role == "blocking" or self._out_of_tries():
                    self.give_up(error)

    def give_up(self, error: Exception) -> None:
        self.given_up = error
        self._end(error)

    def _end(self, error: Exception) -> None:
        for n in self.left:
            self.told[n] = error
        self.left = []

    def _out_of_tries(self) -> bool:
        self._tries += 1
        return self._tries > RETRIES


@settings(deadline=None)
@given(
    data=st.data(),
    count=st.integers(1, 5),
    role=st.sampled_from(["commands", "blocking"]),
    together=st.booleans(),
    probing=st.booleans(),
)
def test_whatever_the_store_says(
    data: st.DataObject, count: int, role: Role, *, together: bool, probing: bool
) -> None:
    """It ends, and every request has what was said to it last, or why nothing was."""
    ours = Exchange(
        [Numbered(n) for n in range(count)],
        role,
        random.Random(1),
        together=together,
        second_chance=not probing,
    )
    reference, chances = Reference(count, together=together), 0 if probing else 1
    for round_ in range(3 + count + MOST_REDIRECTS + RETRIES + chances):
        assert ours.done == (not reference.left)
        if ours.done:
            break
        commands = ours.commands()
        assert numbers(commands) == reference.left
        if data.draw(st.integers(0, 3)) == 0:
            error = data.draw(FAILURES)
            ours.failed(error)
            reference.fail(error, role, second_chance=chances > 0)
            chances -= isinstance(error, StoreTimeout | TimeoutError)
        else:
            lines = {n: data.draw(REPLY_LINES) for n in numbers(commands)}
            reference.reply(lines, round_)
            replies = [b"OK" if words == ("ASKING",) else None for words in commands]
            told = iter([reference_reply(line, n, round_) for n, line in lines.items()])
            ours.replied([next(told) if reply is None else reply for reply in replies])
    assert ours.done
    assert list(map(str, ours.results)) == list(map(str, reference.told))
    assert str(ours.unreachable) == str(reference.given_up)


def reference_reply(line: str, number: int, round_: int) -> Any:
    return said(line) if line else f"round {round_} of {number}"
