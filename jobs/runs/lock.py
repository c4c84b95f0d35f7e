"""One run at a time on one OUTPUT, on disk and in a bucket.

The lock is the object lock.json, created only where there is none. It names its owner (host, process, start time) and
is rewritten every few seconds. A lock whose process is dead on this host, or that stood still for a minute elsewhere,
is a killed run's, and is taken over. Who comes back after a minute without storage and finds another's lock, stops
(`check`).
"""

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from jobs.runs.marks import has_parts, read_json
from store.errors import UserError
from store.objects import ObjectStore

KEY = "lock.json"
PARTS = {"token": str, "host": str, "beat": float}  # without which a lock is none; `alive` judges the others
BEAT_S = 10.0  # between signs of life
SILENCE_S = 60.0  # without one, an owner on another host is taken for dead


class Lock:
    """`take()` or a UserError saying who holds it; then `release()`. The holder beats from a thread of its own."""

    def __init__(self, store: ObjectStore) -> None:
        self.store, self.token, self.lost_to = store, uuid.uuid4().hex, ""
        self.stop, self.thread = threading.Event(), threading.Thread(target=self._beat, daemon=True, name="lock")

    def take(self) -> None:
        if not self.store.create(KEY, self._content()):
            self._take_over()
        self.thread.start()

    def release(self) -> None:
        self.stop.set()
        if self.thread.is_alive():
            self.thread.join(timeout=BEAT_S)
        try:
            if self.holder().get("token") == self.token:
                self.store.delete(KEY)
        except OSError as error:  # what ended the run is more worth saying; a dead run's lock is taken over
            print(f"the lock stays behind, and the next run takes it over: {error}", flush=True)

    def check(self) -> None:
        """Raise a UserError where another run took over while the storage did not hear from this one."""
        if self.lost_to:
            raise UserError(f"{self.store.uri}: {self.lost_to} took over while storage was out of reach; wait for it")

    def _take_over(self) -> None:
        holder = self.holder()
        if holder.get("host") == host():
            if alive(holder):
                raise UserError(
                    f"{self.store.uri}: {described(holder)} is at work here; wait for it, or name another place"
                )
        else:
            self._wait_for_silence(holder)
        if self.holder().get("token") == holder.get("token"):
            self.store.delete(KEY)
        created = self.store.create(KEY, self._content())
        time.sleep(0.3)  # a rival that saw the same dead lock may have deleted ours meanwhile: the last one in stays
        if not created or self.holder().get("token") != self.token:
            raise UserError(
                f"{self.store.uri}: another run took over here at this moment; wait for it, or name another place"
            )

    def _wait_for_silence(self, holder: dict[str, Any]) -> None:
        """Return once the holder's beat stood still for a minute by our clock; a beat means it lives."""
        print(
            f"{described(holder)} left a lock on {self.store.uri}; watching {SILENCE_S:g} s for a sign of life",
            flush=True,
        )
        end = time.monotonic() + SILENCE_S
        while time.monotonic() < end:
            time.sleep(min(1.0, SILENCE_S / 10))
            seen = self.holder()
            if seen and (seen.get("token"), seen.get("beat")) != (holder.get("token"), holder.get("beat")):
                raise UserError(
                    f"{self.store.uri}: {described(seen)} is at work here; wait for it, or name another place"
                )

    def is_listed(self) -> bool:
        """Whether the store already lists the lock, taken a moment ago; one that does not lists late."""
        return any(info.key == KEY for info in self.store.list(KEY))

    def holder(self) -> dict[str, Any]:
        return holder_of(self.store)

    def _content(self) -> bytes:
        pid = os.getpid()
        owner = {"token": self.token, "host": host(), "name": socket.gethostname(), "pid": pid, "start": start_of(pid)}
        return json.dumps(owner | {"beat": time.time()}).encode()

    def _beat(self) -> None:
        while not self.stop.wait(BEAT_S):
            try:
                holder = self.holder()
                if holder.get("token") != self.token:
                    self.lost_to = described(holder) if holder else "another run, ended since,"
                    return
                self.store.write(KEY, self._content())
            except OSError:
                continue  # storage is away for a moment; the next beat tries again


def holder_of(store: ObjectStore) -> dict[str, Any]:
    """What lock.json says; {} where there is none, or one that no run of ours wrote."""
    holder = read_json(store, KEY)
    return holder if holder is not None and has_parts(holder, PARTS) else {}


def host() -> str:
    """This machine since its last start, and its process table: containers of one host name differ."""
    boot = _read("/proc/sys/kernel/random/boot_id")
    try:
        processes = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        processes = ""
    return "/".join((socket.gethostname(), boot, processes))


def check_file(lock: "Lock", what: str = "run") -> None:
    """Make sure by its file that this process still holds the lock: the thread that watches it looks every ten seconds.

    A UserError says that the lock is another's, or gone; `what` names the other in the message.
    """
    lock.check()
    if lock.holder().get("token") != lock.token:
        raise UserError(f"{lock.store.uri}: another {what} took over meanwhile; wait for it")


def alive(holder: dict[str, Any]) -> bool:
    """Whether the holder's process still runs on this host; a reused process number has another start time."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or not 0 < pid < 2**31:  # 0 and below stand for groups of processes
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return start_of(pid) == holder.get("start")


def start_of(pid: int) -> str:
    """Start time of a process in clock ticks since boot; "" where the system does not say, and for a zombie."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return "" if len(fields) < 20 or fields[0] == "Z" else fields[19]


def described(holder: dict[str, Any]) -> str:
    return f"run {holder.get('pid', '?')} on {holder.get('name', 'an unknown host')}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
