"""One child process for the stages of a small run: it loads a stage's worker and does its shards one after the other.

In: a worker and jobs, as for `jobs.runs.pool`. Out: what the worker returned for each job. Starting Ray and two actors,
each of which imports torch and mmdetection, takes longer than a few photos do (benchmarks/start.py). The process is
kept from stage to stage, so that its imports are paid for once, and it ends with the driver: when its pipe closes.

It does not look for the photo that kills: a death raises `ProcessLost`, and the pool takes the jobs that are left.
"""

import contextlib
import gc
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from typing import Any

from jobs.runs.pool import Host, Worker, thread_limits
from jobs.runs.retries import Job
from jobs.runs.versions import our_code
from store.errors import UserError

WAKE_S = 1.0  # how often whoever waits for an answer is called meanwhile
MAX_REASON = 300  # characters
REAP_S = 10.0  # a process that was killed has long ended by then


class ProcessLost(Exception):
    """The process ended or was ended; `how` is "died" or "hung"."""

    def __init__(self, how: str, reason: str) -> None:
        super().__init__(reason)
        self.how = how


# --- in the driver ----------------------------------------------------------------------------------------------------


@dataclass
class OneProcess:
    """The process, started at the first call; whatever interrupts a call ends it, and the next call starts another."""

    threads: int  # that its libraries may use
    process: subprocess.Popen | None = None
    pipe: Connection = field(init=False)
    output: Any = field(init=False)  # a file of what it prints

    def load(self, worker: Worker, **how: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Load a worker in the place of the one before, on the CPU; answers as `Host.load`. `how`: see `_call`.

        Raises UserError where weights are absent or do not fit, beside what `_call` raises.
        """
        try:
            answer: tuple[dict[str, Any], dict[str, Any]] = self._call("load", worker, **how)
        except (ValueError, FileNotFoundError) as error:
            if getattr(error, "user_facing", False):
                raise
            raise UserError(str(error)) from error
        return answer

    def run(self, job: Job, **how: Any) -> tuple[Any, dict[str, Any]]:
        """Do a job with the worker loaded last; answers as `Host.run`. `how`: see `_call`."""
        answer: tuple[Any, dict[str, Any]] = self._call("run", job, **how)
        return answer

    def _call(
        self, *request: Any, deadline_s: float, tick: Callable[[], None], photos_done: Callable[[float], None]
    ) -> Any:
        """The answer to a request: a name and its argument.

        Args:
            deadline_s: after so many seconds the process is ended.
            tick: called about once a second.
            photos_done: called with the number of the job's photos that are done, whenever it has grown.

        Raises:
            ProcessLost: the process ended, or did not answer in time.
            Exception: what the worker raised.
        """
        try:
            kind, answer = self._answer(request, deadline_s, tick, photos_done)
        except BaseException:
            self.end()
            raise
        if kind == "raised":
            raise answer
        return answer

    def _answer(
        self, request: Any, deadline_s: float, tick: Callable[[], None], photos_done: Callable[[float], None]
    ) -> tuple[str, Any]:
        until = time.monotonic() + deadline_s
        self._send(request)
        while time.monotonic() < until:
            tick()
            kind, answer = self._next()
            if kind == "photos":
                photos_done(answer)
            elif kind != "nothing":
                return kind, answer
        raise ProcessLost("hung", f"no answer for {deadline_s:g} s")

    def _send(self, request: Any) -> None:
        try:
            if self.process is None:
                self._start()
            self.pipe.send(request)
        except ConnectionError as error:
            raise ProcessLost("died", self._last_words()) from error

    def _next(self) -> tuple[str, Any]:
        """The next message: ("photos", number), ("answer", …), ("raised", error); ("nothing", None) after a second."""
        assert self.process is not None
        try:
            ended = self.process.poll() is not None  # first: what it sent before it ended is still read
            if self.pipe.poll(0 if ended else WAKE_S):
                message: tuple[str, Any] = self.pipe.recv()
                return message
            if not ended:
                return "nothing", None
        except (EOFError, ConnectionError) as error:
            raise ProcessLost("died", self._last_words()) from error
        raise ProcessLost("died", self._last_words())  # what it had started holds the pipe open

    def _start(self) -> None:
        self.pipe, theirs = Pipe()
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
        command = [sys.executable, "-P", "-m", "jobs.runs.one_process", str(theirs.fileno())]
        environment = os.environ | our_code(thread_limits(self.threads))["env_vars"]
        # in a session of its own, Ctrl-C reaches the driver alone, which then ends it
        self.process = subprocess.Popen(
            command, env=environment, pass_fds=[theirs.fileno()], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output,
        )  # fmt: skip
        theirs.close()
        self.pipe.send(sys.path)

    def _last_words(self) -> str:
        assert self.process is not None
        self.process.kill()  # its pipe is closed, so that it is of no use where it still runs
        status = self.process.wait()
        self.output.seek(0)
        last = self.output.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
        return f"the process ended with {status}: {last or 'nothing said'}"[:MAX_REASON]

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            # A signal to this driver within Popen.poll can leave its lock taken; a wait without an end never gets it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(REAP_S)
            self.pipe.close()
            self.output.close()
            self.process = None


_kept: OneProcess | None = None


def kept(threads: int) -> OneProcess:
    """The process that this driver keeps from stage to stage."""
    global _kept
    if _kept is None or _kept.threads != threads:
        end()
        _kept = OneProcess(threads)
    return _kept


def end() -> None:
    """End the kept process, if there is one."""
    global _kept
    if _kept is not None:
        _kept.end()
        _kept = None


# --- in the child -----------------------------------------------------------------------------------------------------


def serve(pipe: Connection) -> None:
    """Answer requests until the driver is gone: ("load", worker) and ("run", job)."""
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    sys.path[:] = pipe.recv()
    threading.Thread(target=_receive, args=(pipe, requests), name="receive", daemon=True).start()
    host: Host | None = None
    while True:
        try:
            method, argument = pickle.loads(requests.get())
            if method == "load":
                host = Host(argument, "cpu", tell=lambda n: pipe.send(("photos", n)))
                gc.collect()  # the models of the worker before refer to themselves
            assert host is not None
            reply: tuple[str, Any] = "answer", host.load() if method == "load" else host.run(argument, {}, False)
        except Exception as error:
            reply = "raised", _portable(error)
        pipe.send(reply)


def _receive(pipe: Connection, requests: "queue.SimpleQueue[bytes]") -> None:
    """Pass requests on. When the driver closes the pipe or dies, this process ends, whatever it is doing."""
    try:
        while True:
            requests.put(pipe.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """The exception, with its traceback as a note, or a RuntimeError of its text where it cannot be pickled."""
    error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
