"""Eight who want one lock, for the stores' tests."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from store.objects import ObjectStore


def one_of_eight_wins(store: ObjectStore) -> None:
    """All create at the same moment: exactly one is told that it did, and the object is its own."""
    barrier = threading.Barrier(8)

    def race(number: int) -> bool:
        barrier.wait()
        return store.create("lock", b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    assert Counter(won) == {True: 1, False: 7}
    assert store.read("lock") == b"%d" % won.index(True)
