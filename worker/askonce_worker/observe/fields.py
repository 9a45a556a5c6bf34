"""The names of counters in the store: `task|name`, and `@tenant|name` for what a tenant's asks did.

Names of counters may have `|` in them, tasks and tenants are escaped. A process keys its counts by
(task, name); a tenant stands there as a task that no task can be called.
"""

from __future__ import annotations

from urllib.parse import unquote

_TENANT = "\0"
WORKER = "*"
"""The task under which workers count what belongs to no task."""


def of_tenant(tenant: str) -> str:
    """What stands in the place of a task for what a tenant's asks did."""
    return _TENANT + tenant


def tenant_in(task: str) -> str | None:
    """The tenant that stands in the place of a task, if one does."""
    return task[1:] if task.startswith(_TENANT) else None


def of_lane(lane: str, name: str) -> str:
    """The counter of what calls for asks of a lane did."""
    return f"lane_{lane}_{name}"


def field_of(task: str, name: str) -> str:
    """The field under which something is counted in the store."""
    tenant = tenant_in(task)
    text = (task if tenant is None else tenant).replace("%", "%25").replace("|", "%7C")
    if tenant is not None:
        text = f"@{text}"
    elif text.startswith("@"):
        text = f"%40{text[1:]}"
    return f"{text}|{name}"


def read_field(field: bytes) -> tuple[str, str]:
    """The inverse of `field_of`."""
    text, _, name = field.decode(errors="replace").partition("|")
    if text.startswith("@"):
        return of_tenant(unquote(text[1:])), name
    return unquote(text), name
