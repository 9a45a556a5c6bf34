"""The reference model of a job shard: what the queue's scripts promise, in the fewest words."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

RETURNED = "returned"
DEFERRED = ".deferred"


@dataclasses.dataclass(eq=False)
class Entry:
    """An entry of a job stream, in somebody's hands (`consumer`) or not yet. Its id comes later."""

    lane: str
    fields: tuple[bytes, ...]
    entry_id: bytes | None = None
    consumer: str | None = None
    deliveries: int = 0
    out_of_turn: bool = False
    """Whether it was taken before its turn, which is still to come."""

    @property
    def place(self) -> str:
        """What an id record says."""
        assert self.entry_id is not None
        return f"{self.lane}/{self.entry_id.decode()}"

    @property
    def asked(self) -> tuple[bytes, ...]:
        """What was enqueued: a deferred job says beside that when it was."""
        return self.fields[:-2] if self.fields[-2] == b"o" else self.fields

    @property
    def client(self) -> str:
        return self._field(b"c")

    @property
    def address(self) -> str:
        return self._field(b"r")

    def _field(self, name: bytes) -> str:
        return dict(zip(self.fields[::2], self.fields[1::2], strict=True)).get(name, b"").decode()


@dataclasses.dataclass(eq=False)
class Mail:
    """An entry of a reply stream: the lines in it."""

    lines: tuple[bytes, ...]
    entry_id: bytes | None = None


@dataclasses.dataclass
class Hold:
    """Who has a client's name, and until when."""

    token: str
    deadline_ms: float


@dataclasses.dataclass(frozen=True)
class NewJob:
    """What an enqueue asks for."""

    job_id: str
    payload: bytes
    tags: str
    deadline_ms: int = 0


@dataclasses.dataclass(frozen=True)
class Settled:
    """What a settle says of one job."""

    entry_id: bytes
    record: str
    address: str
    line: bytes


class QueueModel:
    """One shard. Every script is a method that does, and returns, what the script does."""

    def __init__(self, now_ms: float) -> None:
        self.now_ms = now_ms
        self.streams: defaultdict[str, list[Entry]] = defaultdict(list)
        self.records: dict[str, Entry] = {}
        self.due: defaultdict[str, list[Entry]] = defaultdict(list)
        """Deferred jobs with a deadline; here all have passed, as the clock is ahead of ids."""
        self.owed: Counter[str] = Counter()
        self.mail: defaultdict[str, list[Mail]] = defaultdict(list)
        self.names: dict[str, Hold] = {}
        self.beats: dict[str, float] = {}
        self.solo: dict[str, tuple[int, str]] = {}
        self.dead: list[tuple[str, tuple[bytes, ...]]] = []
        self.accepted: Counter[str] = Counter()
        """How often the job of an id record was accepted."""
        self.replied: Counter[str] = Counter()
        """How often it was replied to: once for each time it was accepted."""
        self.vanished: Counter[str] = Counter()
        """Replies that nobody was there for."""
        self.swept: set[str] = set()
        """Clients that were gone for longer than the retention: only they may lose replies."""

    def __iter__(self) -> Iterator[Entry]:
        return (entry for stream in self.streams.values() for entry in stream)

    def has(self, lane: str, consumer: str | None) -> bool:
        """Whether a lane has entries in the hands of `consumer`, or in nobody's."""
        return any(entry.consumer == consumer for entry in self.streams[lane])

    def others_than(self, consumer: str) -> set[str]:
        """The lanes that have entries in the hands of others."""
        return {entry.lane for entry in self if entry.consumer not in {None, consumer}}

    def is_held_by(self, consumer: str, lane: str, entry_id: bytes) -> bool:
        entry = self.find(lane, entry_id)
        return entry is not None and entry.consumer == consumer

    def promised(self) -> Counter[str]:
        """Of each job the replies there were, or would have been if somebody had been there."""
        ends = self.replied + self.vanished
        assert all(record.split("/")[0] in self.swept for record in self.vanished & self.accepted)
        return Counter({record: ends[record] for record in self.accepted if ends[record]})

    def find(self, lane: str, entry_id: bytes) -> Entry | None:
        return next((one for one in self.streams[lane] if one.entry_id == entry_id), None)

    def check(self) -> None:
        """What is owed to a client is what it has queued and what it has not read."""
        owed = Counter(entry.client for entry in self if not entry.address)
        for address, mail in self.mail.items():
            owed[address] += sum(len(one.lines) for one in mail)
        for client in self.names.keys() - self.swept:
            assert self.owed[client] == owed[client]

    # Clients

    def claim_name(self, client: str, token: str, ttl_ms: float) -> int:
        held = self.names.get(client)
        if held and held.token != token and held.deadline_ms >= self.now_ms:
            return 0
        self.names[client] = Hold(token, self.now_ms + ttl_ms)
        return 1

    def release_name(self, client: str, token: str) -> int:
        held = self.names.get(client)
        if held is None or held.token != token:
            return 0
        if self.owed[client] > 0:
            held.deadline_ms = self.now_ms
            return 0
        self._forget(client)
        return 1

    def enqueue(
        self,
        lane: str,
        client: str,
        token: str,
        address: str,
        bounds: tuple[int, int],
        jobs: Sequence[NewJob],
    ) -> str:
        """`bounds`: most entries of the stream, most replies owed (or unread in a named stream)."""
        held = self.names.get(client)
        if held is None or held.token != token:
            return "!"
        room = bounds[0] - len(self.streams[lane])
        unread = bounds[1] - self.owed[client]
        if address:
            unread = len(jobs) if len(self.mail[address]) < bounds[1] else 0
        letters = ""
        for job in jobs:
            fields = job_fields(client, address, job)
            queued = self.records.get(f"{client}/{job.job_id}")
            if queued:
                is_same = queued.lane in {lane, lane + DEFERRED} and queued.asked == fields
                letters += "s" if is_same else "c"
            elif room <= 0 or unread <= 0:
                letters += "f" if room <= 0 else "u"
            else:
                entry = Entry(lane, fields)
                self.streams[lane].append(entry)
                self.records[f"{client}/{job.job_id}"] = entry
                room, unread = room - 1, unread - 1
                self.accepted[f"{client}/{job.job_id}"] += 1
                if not address:
                    self.owed[client] += 1
                letters += "a"
        return letters

    def hand_over(self, client: str, entries: Sequence[tuple[bytes, int]]) -> int:
        sizes = dict(entries)
        over = [one for one in self.mail[client] if one.entry_id in sizes]
        self.mail[client] = [one for one in self.mail[client] if one not in over]
        handed = sum(len(one.lines) for one in over)
        self.owed[client] -= handed
        if self.owed[client] <= 0:
            del self.owed[client]
        return handed

    # Workers

    def beat(self, consumer: str, ttl_ms: float) -> int:
        self.beats[consumer] = self.now_ms + ttl_ms
        return int(self.now_ms)

    def is_alive(self, consumer: str) -> bool:
        return self.beats.get(consumer, 0.0) >= self.now_ms

    def fetch(self, lane: str, consumer: str, most: int) -> list[bytes]:
        waiting = [one for one in self.streams[lane] if one.consumer is None or one.out_of_turn]
        new = waiting[:most]
        for entry in new:
            entry.consumer, entry.deliveries, entry.out_of_turn = consumer, 1, False
        return [one.entry_id or b"" for one in new]

    def claim(self, lane: str, consumer: str, most: int) -> list[tuple[bytes, int, bool]]:
        """Entry id, deliveries before this one, whether it was handed back."""
        taken: list[tuple[bytes, int, bool]] = []
        if not self.is_alive(consumer):
            return taken
        holders = {one.consumer for one in self.streams[lane] if one.consumer}
        for holder in sorted(holders - {consumer}):
            handed_back = holder == RETURNED
            if not handed_back and self.is_alive(holder):
                continue
            held = [one for one in self.streams[lane] if one.consumer == holder]
            for entry in held[: most - len(taken)]:
                taken.append((entry.entry_id or b"", entry.deliveries, handed_back))
                entry.consumer = consumer
                entry.deliveries += 0 if handed_back else 1
        return taken

    def give_back(self, lane: str, consumer: str, entry_ids: Sequence[bytes]) -> int:
        mine = [self.find(lane, entry_id) for entry_id in entry_ids]
        given = [one for one in mine if one and one.consumer == consumer]
        for entry in given:
            entry.consumer = RETURNED
        return len(given)

    def leave(self, consumer: str, *, only_if_dead: bool) -> int:
        if only_if_dead and self.is_alive(consumer):
            return 0
        if any(one.consumer == consumer for one in self):
            return 0
        self.beats.pop(consumer, None)
        return 1

    def settle(self, lane: str, groups: Sequence[Sequence[Settled]]) -> int:
        """`groups`: jobs of one address each."""
        total = 0
        for group in groups:
            mine = [one for one in group if self._is_held(lane, one.entry_id)]
            if mine:
                self._reply(mine)
            for one in mine:
                self._remove(lane, one.entry_id, one.record)
            total += len(mine)
        return total

    def bury(self, lane: str, job: Settled, code: str, fields: Sequence[bytes]) -> int:
        if not self._is_held(lane, job.entry_id):
            return 0
        self.dead.append((code, tuple(fields)))
        if job.address:
            self._reply([job])
        self._remove(lane, job.entry_id, job.record)
        return 1

    def defer(self, lane: str, most: int, jobs: Sequence[tuple[bytes, str]]) -> str:
        letters = ""
        again = lane.endswith(DEFERRED)
        goal = lane if again else lane + DEFERRED
        for entry_id, record in jobs:
            entry = self.find(lane, entry_id)
            if not again and len(self.streams[goal]) >= most:
                letters += "f"
            elif entry is None or entry.consumer is None:
                letters += "x"
            else:
                self.streams[lane].remove(entry)
                since = () if again else (b"o", entry_id.partition(b"-")[0])
                later = Entry(goal, (*entry.fields, *since))
                self.streams[later.lane].append(later)
                if b"d" in entry.fields[::2]:
                    self.due[later.lane].append(later)
                self.records[record] = later
                letters += "d"
        return letters

    def take_overdue(self, lane: str, consumer: str) -> tuple[int, set[bytes]]:
        """How many there were, and which are now in the hands of `consumer`."""
        due, self.due[lane] = self.due[lane], []
        taken = [one for one in due if one in self.streams[lane] and one.consumer is None]
        for entry in taken:
            entry.consumer, entry.deliveries, entry.out_of_turn = consumer, 1, True
        return len(due), {one.entry_id or b"" for one in taken}

    def count_solo(self, place: str, token: str) -> int:
        count, last = self.solo.get(place, (0, ""))
        if last == token:
            return count - 1
        self.solo[place] = (count + 1, token)
        return count

    # Sweeps

    def sweep_solo(self) -> int:
        places = {entry.place for entry in self}
        over = [place for place in self.solo if place not in places]
        for place in over:
            del self.solo[place]
        return len(over)

    def sweep_clients(self, retain_ms: float) -> int:
        over = [c for c, held in self.names.items() if held.deadline_ms + retain_ms < self.now_ms]
        for client in over:
            self._forget(client)
        self.swept.update(over)
        return len(over)

    def sweep_owed(self) -> int:
        over = [client for client, owed in self.owed.items() if owed and client not in self.names]
        for client in over:
            self._forget(client)
        return len(over)

    def _forget(self, client: str) -> None:
        self.names.pop(client, None)
        self.owed.pop(client, None)
        self.mail.pop(client, None)

    def _is_held(self, lane: str, entry_id: bytes) -> bool:
        entry = self.find(lane, entry_id)
        return entry is not None and entry.consumer is not None

    def _reply(self, jobs: Sequence[Settled]) -> None:
        address = jobs[0].address
        if address.startswith("@") or address in self.names:
            self.mail[address].append(Mail(tuple(job.line for job in jobs)))
            self.replied.update(job.record for job in jobs)
        else:
            self.vanished.update(job.record for job in jobs)

    def _remove(self, lane: str, entry_id: bytes, record: str) -> None:
        entry = self.find(lane, entry_id)
        assert entry is not None
        self.streams[lane].remove(entry)
        if self.records.get(record) is entry:
            del self.records[record]


def job_fields(client: str, address: str, job: NewJob) -> tuple[bytes, ...]:
    """The fields of a job's entry."""
    fields = [b"v", b"1", b"c", client.encode(), b"i", job.job_id.encode(), b"p", job.payload]
    if address:
        fields += [b"r", address.encode()]
    if job.tags:
        fields += [b"g", job.tags.encode()]
    if job.deadline_ms:
        fields += [b"d", b"%d" % job.deadline_ms]
    return tuple(fields)
