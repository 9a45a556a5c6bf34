"""What the nodes of a cluster say about it: CLUSTER NODES as values, and whether they all agree.

Format: https://valkey.io/commands/cluster-nodes/, "Serialization format".
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from askonce_queue.shards import SLOTS


class Member(NamedTuple):
    """One node as a node sees it. `slots` are ranges; `port` is the one that clients are told."""

    node_id: str
    port: int
    flags: frozenset[str]
    primary_id: str
    """The node it replicates, or "-"."""
    epoch: int
    linked: bool
    slots: tuple[range, ...]
    moving: tuple[int, ...]
    """Slots that it migrates or imports; a node tells only its own."""

    @property
    def is_primary(self) -> bool:
        """Whether it is, or was, a primary."""
        return "master" in self.flags

    def owns(self, slot: int) -> bool:
        """Whether it claims a slot."""
        return any(slot in one for one in self.slots)


class View(NamedTuple):
    """The cluster as one node sees it: node id → member."""

    me: Member
    members: dict[str, Member]

    @property
    def roles(self) -> frozenset[tuple[str, str, tuple[range, ...]]]:
        """What nodes must agree on: who has which slots, and who replicates whom."""
        return frozenset((m.node_id, m.primary_id, m.slots) for m in self.members.values())


def read_view(text: str) -> View:
    """Parse the reply to CLUSTER NODES."""
    members = {member.node_id: member for member in map(_read_member, text.splitlines())}
    (me,) = (member for member in members.values() if "myself" in member.flags)
    return View(me, members)


def _read_member(line: str) -> Member:
    node_id, address, flags, primary_id, _, _, epoch, link, *slots = line.split()
    owned = [one for one in slots if not one.startswith("[")]
    moving = [one for one in slots if one.startswith("[")]
    return Member(
        node_id,
        port=int(address.partition("@")[0].rpartition(":")[2]),
        flags=frozenset(flags.split(",")),
        primary_id=primary_id,
        epoch=int(epoch),
        linked=link == "connected",
        slots=tuple(_read_range(one) for one in owned),
        # [slot->-id] migrating, [slot-<-id] importing
        moving=tuple(int(one[1:].partition("-")[0]) for one in moving),
    )


def _read_range(text: str) -> range:
    first, dash, last = text.partition("-")
    return range(int(first), int(last if dash else first) + 1)


def disagreement(views: dict[str, View], *, primaries: int, replicas_each: int) -> str:
    """What is wrong with a cluster by the views of its nodes (name → view); "" if nothing is."""
    (first_name, first), *_ = views.items()
    for name, view in views.items():
        if view.roles != first.roles:
            return f"{name} sees other roles or slots than {first_name}"
        if doubt := _doubt(view):
            return f"{name} {doubt}"
    if len(first.members) != len(views):
        return f"the nodes know {len(first.members)} nodes, not {len(views)}"
    owners = [member for member in first.members.values() if member.slots]
    covered = sum(len(one) for owner in owners for one in owner.slots)
    followers = Counter(member.primary_id for member in first.members.values())
    if len(owners) != primaries or covered != SLOTS:
        return f"{len(owners)} primaries have {covered} slots"
    if any(followers[owner.node_id] != replicas_each for owner in owners):
        return f"replicas are spread unevenly: {followers}"
    return ""


def _doubt(view: View) -> str:
    """What a node thinks to be wrong."""
    for member in view.members.values():
        bad = member.flags & {"fail", "fail?", "handshake", "noaddr"}
        if bad or not member.linked:
            return f"sees {member.node_id[:8]} as {sorted(bad) or 'not connected'}"
    return f"has slots that migrate: {view.me.moving}" if view.me.moving else ""
