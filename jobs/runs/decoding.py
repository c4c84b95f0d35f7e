"""Photos decoded on other cores of the cluster, for an actor whose GPU would wait for its own threads.

An actor with a GPU starts decoders, actors of one core each, sends them the bytes of some photos and gets pixels by
reference through Ray's object store. Ray prefers nodes without a GPU for what wants none. Results do not depend on what
becomes of a decoder: where it dies or does not answer in time, the GPU's actor decodes the photo itself, and the rest
of the shard too. A photo that kills or hangs its decoder then does that to the actor, whose pool knows what to do.

Tasks would do without starting anything, but each waits for a core to be granted: between two nodes on one machine one
took 100 ms where an actor answered in 30.
"""

import contextlib
import math
import queue
import socket
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

from jobs.runs import versions
from jobs.runs.photos import Pixels, decoded
from jobs.runs.pool import thread_limits
from jobs.runs.settings import Settings

LATE_S = 30.0  # a decoder that has not answered by then waits for a core, or hangs
AT_ONCE = 2  # units of photos sent to a decoder: it works on one while the pixels of the other travel
MOST = 32  # decoders of one actor, where it finds the number itself
SPARE = 1.2  # cores asked for, by those that would just do: photos differ, and pixels have to travel


def cores_to_decode(decoding_s: float, busy_s: float) -> int:
    """Cores that decode photos as fast as an actor takes them.

    Args:
        decoding_s: seconds of a core that some photos take to decode, above 0.
        busy_s: seconds that the models take for the same photos.
    """
    return math.ceil(SPARE * decoding_s / max(busy_s, 1e-9))


def helper(settings: Settings, device: str) -> "Decoders | None":
    """For an actor on this device. Who has no GPU needs the cores for the models, and without Ray nobody helps."""
    ray = sys.modules.get("ray")
    helped = device == "cuda" and settings.decoders != 0 and ray is not None and ray.is_initialized()
    return Decoders(settings.decoders, settings.threads_per_actor) if helped else None


class Decoder:
    """The actor."""

    def versions(self) -> dict[str, str]:
        """Of this node's packages and code, with its name."""
        return versions.versions() | {"node": socket.gethostname()}

    def decode(self, photos: Sequence[bytes], max_pixels: int) -> list[Pixels]:
        """Each photo's pixels or the reason why there are none."""
        return [decoded(photo, max_pixels) for photo in photos]

    def __repr__(self) -> str:
        """What Ray's dashboard and `ray list actors --detail` call this actor."""
        return "decoder"


class Decoders:
    """The decoders of one actor, which end with it. Several of its threads use them at once."""

    def __init__(self, n: int | Literal["auto"], threads: int) -> None:
        """`n`: the setting `decoders`; `threads`: in which the actor decodes itself."""
        self._auto, self._threads = n == "auto", threads
        self._wanted = 0 if n == "auto" else int(n)
        self._actors: list[Any] = []  # that have started
        self._starting: dict[Any, Any] = {}  # the call of its versions -> the decoder that is to answer it
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()  # each decoder as often as it may be sent a photo
        self._given_up = False
        self._waited_alone = 0.0  # seconds in which the models waited, for each in which they worked, without decoders
        self._done: deque[None] = deque()  # one for each photo; its threads add to it

    def taken(self) -> int:
        """Photos that decoders have done since the last call."""
        n = len(self._done)
        self._done.clear()
        return n

    def begin(self) -> int:
        """A shard begins: how many units of photos may be sent at once, to decoders that have started.

        As many as are missing are asked for, with `auto` on free cores alone. Those that failed a shard are replaced.
        A UserError says that a node has other packages or other code.
        """
        import ray

        if self._given_up:
            self._end(self._actors)
            self._actors, self._given_up = [], False
        if calls := list(self._starting):
            for call in ray.wait(calls, num_returns=len(calls), timeout=0)[0]:
                actor = self._starting.pop(call)
                with contextlib.suppress(ray.exceptions.RayError):  # it died as it started
                    there = ray.get(call)
                    versions.refuse_other_versions(there["node"], there)
                    self._actors.append(actor)
        missing = self._wanted - len(self._actors) - len(self._starting)
        if missing > 0 and self._auto:
            missing = min(missing, int(ray.available_resources().get("CPU", 0)))
        if missing > 0:
            start: Any = ray.remote(num_cpus=1, runtime_env=versions.our_code(thread_limits(1)))(Decoder)
            actors = [start.remote() for _ in range(missing)]
            self._starting |= {actor.versions.remote(): actor for actor in actors}
        elif missing < 0:
            self._end(self._actors[missing:])
            del self._actors[missing:]
        self._free = queue.SimpleQueue()
        for actor in self._actors * AT_ONCE:
            self._free.put(actor)
        return AT_ONCE * len(self._actors)

    def learn(self, decoding_s: float, busy_s: float, waited_s: float) -> None:
        """A shard is done: its photos take `decoding_s` of a core, kept the models busy and made them wait so long.

        Where the models wait longer with decoders than without, as on a crowded network, there are none from then on.
        """
        if not self._auto:
            return
        waited = waited_s / max(busy_s, 1e-9)
        if not self._actors:
            self._waited_alone = waited
        elif waited > self._waited_alone:
            self._auto, self._wanted = False, 0
            return
        self._wanted = min(MOST, max(0, cores_to_decode(decoding_s, busy_s) - self._threads))

    def decode(self, photos: Sequence[bytes], max_pixels: int) -> list[Pixels] | None:
        """Each photo's pixels or the reason why there are none; None where no decoder could do them.

        No more threads call it than `begin` said.
        """
        if self._given_up:
            return None
        import ray

        actor = self._free.get()
        try:
            answer: list[Pixels] = ray.get(actor.decode.remote(photos, max_pixels), timeout=LATE_S)
        except ray.exceptions.RayTaskError:  # it raised
            raise
        except ray.exceptions.RayError:  # it is gone, or late
            self._given_up = True
            return None
        finally:
            self._free.put(actor)
        self._done.extend([None] * len(photos))
        # copied, they are writable as every decoded photo is, and Ray's memory is free for the next
        return [one if isinstance(one, str) else one.copy() for one in answer]

    def _end(self, actors: list[Any]) -> None:
        import ray

        for actor in actors:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
