"""Every key that askonce has in the store, as a function.

`{tag}` is a Redis Cluster hash tag: all keys of one shard fall in one slot, so one script can touch
them together. Job shards and answer shards share the table of tags but not their keys.

| key | type | what it holds |
| --- | --- | --- |
| `jobs:{tag}:pool:lane` | stream | jobs not yet settled; group `workers` |
| `jobs:{tag}:pool:lane.deferred` | stream | jobs that wait for their model out of the way |
| `due:{tag}:pool:lane` | sorted set | deferred job with a deadline → that, ms |
| `ids:{tag}:pool` | hash | `client/job id` → stream entry of an unsettled job |
| `owed:{tag}` | hash | client → replies owed: outstanding + unread |
| `reply:{tag}:client` | stream | replies, NDJSON, many an entry |
| `beat:{tag}:pool` | hash | consumer → deadline of its heartbeat, ms |
| `solo:{tag}:pool` | hash | stream entry → how often it crashed a worker alone |
| `dead:{tag}:pool` | stream | dead letters, bounded |
| `clients:{tag}` | hash | client name → token and deadline of its live holder |
| `a:{tag}:<digest>` | string | one answer: header and body; the only keys with a TTL |
| `stamp:{tag}` | hash | `inv`, `base`, `key`, `max_ttl_ms` of an answer shard; invalidated globs |
| `last:{tag}` | sorted set | tag, or key → stamp of its last invalidation |
| `lease:{tag}` | hash | digest → fill lease |
| `tries:{tag}` | hash | digest → attempts, remembered rejections |
| `memory:{tag}` | string | what was last found of the server's memory, see `pressure.lua` |
| `stats:{tag}` | hash | counters flushed by workers |
| `windows:{tag}` | sorted set | names of buckets of time → when they may go, ms |
| `window:{tag}:<bucket>` | hash | the same counters, of one bucket of time |
| `budgets:{tag}` | hash | `day|task` → spent, in billionths; on the first shard |
| `hits:{tag}` | stream | a sample of hits, redacted, for people to judge |
| `reviews:{tag}` | stream | what people said of them |
| `rules:{tag}` | hash | id → inputs that are kept from the cache; on the first shard |
| `quota:{tag}:<model>` | hash | what a model may still be asked; holder → its share of that |
| `quotas:{tag}` | sorted set | names of models with a quota → when it may go, ms |
| `askonce:meta` | hash | the number of shards |

Only answers have a TTL, so everything else has a bound, or a sweep (`pool/sweep.py` of the worker):

| key | what keeps it from growing |
| --- | --- |
| `jobs:` | `max_backlog`, in the scripts that add; settled jobs are deleted, dead consumers swept |
| `due:` | one a deferred job; taken out when it is fetched, and past its deadline in any case |
| `ids:` | one an unsettled job; swept when its job is gone |
| `owed:` | one a client, until nothing is owed; swept with the client, or when there is none |
| `reply:` | `max_unread`; a client's stream goes with its name, a named one (`@`) is its reader's |
| `beat:` | one a worker; swept when it is over and the worker holds nothing |
| `solo:` | one a suspect, until it is answered; swept when its job is gone |
| `dead:` | `max_dead`: the oldest are dropped, and counted |
| `clients:` | one a client; swept `client_retain_s` after it was last seen |
| `a:` | its TTL; evicted when memory is full |
| `stamp:` | four fields and 100 globs; swept as `last:` |
| `last:` | swept after the longest TTL; beyond a million the oldest, with the answers before them |
| `lease:` | the flight slots of live workers; swept 6 lease TTLs after its end |
| `tries:` | swept at the end of what is remembered |
| `memory:` | one short record |
| `stats:` | beyond 10,000 fields those of some tasks are added up in one |
| `windows:` | one a bucket; swept when its time is over, at most some 170 |
| `window:` | 4,000 fields; further tasks are added up in one; swept with its name |
| `budgets:` | one field a task and day; those before yesterday are swept |
| `hits:` | `max_hits`: the oldest are dropped, and counted; swept after `hit_retain_s` |
| `reviews:` | 10,000: the oldest are dropped |
| `rules:` | 100, in the script that adds one |
| `quota:` | one field a worker that asks the model, until its time is over; swept with its name |
| `quotas:` | one a model with limits; swept an hour after it was last asked |
"""

from __future__ import annotations

GROUP = b"workers"
"""The consumer group of every job stream."""
RETURNED = b"returned"
"""The consumer to whom a draining worker hands deliveries it has not started."""
META = b"askonce:meta"
DIGEST_BYTES = 32


def jobs(tag: str, pool: str, lane: str) -> bytes:
    return f"jobs:{{{tag}}}:{pool}:{lane}".encode()


def due(tag: str, pool: str, lane: str) -> bytes:
    return f"due:{{{tag}}}:{pool}:{lane}".encode()


def ids(tag: str, pool: str) -> bytes:
    return f"ids:{{{tag}}}:{pool}".encode()


def owed(tag: str) -> bytes:
    return f"owed:{{{tag}}}".encode()


def replies(tag: str, client: str) -> bytes:
    return f"reply:{{{tag}}}:{client}".encode()


def beats(tag: str, pool: str) -> bytes:
    return f"beat:{{{tag}}}:{pool}".encode()


def solo(tag: str, pool: str) -> bytes:
    return f"solo:{{{tag}}}:{pool}".encode()


def dead(tag: str, pool: str) -> bytes:
    return f"dead:{{{tag}}}:{pool}".encode()


def clients(tag: str) -> bytes:
    return f"clients:{{{tag}}}".encode()


def answer_prefix(tag: str) -> bytes:
    """The part of an answer's key before its 32-byte digest."""
    return f"a:{{{tag}}}:".encode()


def stamps(tag: str) -> bytes:
    return f"stamp:{{{tag}}}".encode()


def last(tag: str) -> bytes:
    return f"last:{{{tag}}}".encode()


def leases(tag: str) -> bytes:
    return f"lease:{{{tag}}}".encode()


def tries(tag: str) -> bytes:
    return f"tries:{{{tag}}}".encode()


def memory(tag: str) -> bytes:
    return f"memory:{{{tag}}}".encode()


def stats(tag: str) -> bytes:
    return f"stats:{{{tag}}}".encode()


def windows(tag: str) -> bytes:
    return f"windows:{{{tag}}}".encode()


def window_prefix(tag: str) -> bytes:
    """The part of a bucket's key before its name, `size in s:number`."""
    return f"window:{{{tag}}}:".encode()


def budgets(tag: str) -> bytes:
    return f"budgets:{{{tag}}}".encode()


def hits(tag: str) -> bytes:
    return f"hits:{{{tag}}}".encode()


def reviews(tag: str) -> bytes:
    return f"reviews:{{{tag}}}".encode()


def rules(tag: str) -> bytes:
    return f"rules:{{{tag}}}".encode()


def quotas(tag: str) -> bytes:
    return f"quotas:{{{tag}}}".encode()


def quota_prefix(tag: str) -> bytes:
    """The part of a quota's key before the name of its model."""
    return f"quota:{{{tag}}}:".encode()
