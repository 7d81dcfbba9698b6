"""Identifies the process that holds a lease, so that another one on the same machine can tell whether it has exited."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Return host, boot, pid and start time of this process. A pid alone is not enough: it is reused."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "boot": _boot_id(), "pid": pid, "started": start_ticks(pid)}


def has_exited(holder: Mapping[str, Any]) -> bool:
    """Return whether the holder was a process of this machine that has exited; False if that cannot be known."""
    same_machine = bool(holder["boot"]) and (holder["host"], holder["boot"]) == (socket.gethostname(), _boot_id())
    return same_machine and start_ticks(holder["pid"]) != holder["started"]


def start_ticks(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; an empty string if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _boot_id() -> str:
    """Return an id of this boot and of this container's pid namespace; an empty string on systems without /proc."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
