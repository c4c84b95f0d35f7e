"""Photos decoded on other cores are those that the actor would have decoded, whatever becomes of a decoder."""

import os
import signal
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from jobs.runs import decoding, photos, settings, versions
from store.decode import DecodeError, decode
from store.errors import UserError
from store.imageset import ImageSet, open_imageset

N = 24


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    import stand_ins  # here, as Ray's processes import this file and have no such path

    folder = tmp_path_factory.mktemp("photos")
    stand_ins.imageset(folder, N, max_images=N + 1)  # and one more, cut off in the middle
    return open_imageset(str(folder))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    import own_ray
    import ray

    own_ray.init(num_cpus=3, log_to_driver=False)
    yield
    ray.shutdown()


def in_groups(images: ImageSet, helper: photos.Helper | None, rows: int = N + 1) -> list[list[photos.Decoded]]:
    how = {"size": 7, "max_pixels": 10**9, "helper": helper}
    return list(photos.groups(images, images.shards[0].name, range(rows), {3: "left out"}, clock=photos.Clock(), **how))


def ready(helper: decoding.Decoders, n: int) -> decoding.Decoders:
    """With its decoders started."""
    until = time.monotonic() + 60
    while helper.begin() < n * decoding.AT_ONCE and time.monotonic() < until:
        time.sleep(0.1)
    return helper


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process takes its time over each photo, so that the first thread cannot do them all."""

    def decode_slowly(data: bytes, **how: int) -> np.ndarray:
        time.sleep(0.05)
        return decode(data, **how)

    monkeypatch.setattr(photos, "decode", decode_slowly)


def assert_same(found: list[list[photos.Decoded]], want: list[list[photos.Decoded]]) -> None:
    assert [[(p.row, p.image_id, p.reason) for p in group] for group in found] == [
        [(p.row, p.image_id, p.reason) for p in group] for group in want
    ]
    for group, other in zip(found, want, strict=True):
        for photo, same in zip(group, other, strict=True):
            assert (photo.pixels is None) == (same.pixels is None)
            if photo.pixels is not None and same.pixels is not None:
                np.testing.assert_array_equal(photo.pixels, same.pixels)
                assert photo.pixels.flags.writeable


@pytest.mark.usefixtures("local_ray", "slowly")
@pytest.mark.slow
def test_decoders_give_what_the_actor_would_have(images: ImageSet) -> None:
    helper = ready(decoding.Decoders(2, threads=1), 2)
    assert_same(in_groups(images, helper), in_groups(images, None))
    assert 0 < helper.taken() < N
    assert helper.taken() == 0
    assert_same(in_groups(images, helper, rows=1), in_groups(images, None, rows=1))
    assert helper.taken() == 0  # a photo alone is tried where it would do its harm


@pytest.mark.usefixtures("local_ray")
def test_a_broken_photo_has_the_same_reason() -> None:
    import stand_ins

    whole = stand_ins.photo(1, "user", 1).image
    first, second = asked(whole, b"no photo") or [None, None]
    np.testing.assert_array_equal(first, decode(whole))
    with pytest.raises(DecodeError) as here:
        decode(b"no photo")
    assert second == str(here.value)


class Dies(decoding.Decoder):
    def decode(self, *_: object) -> list[photos.Pixels]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []


class Hangs(decoding.Decoder):
    def decode(self, *_: object) -> list[photos.Pixels]:
        time.sleep(3600)
        return []


class FindsNoMemory(decoding.Decoder):
    def decode(self, *_: object) -> list[photos.Pixels]:
        raise MemoryError("no room for the pixels")


class HasOtherCode(decoding.Decoder):
    def versions(self) -> dict[str, str]:
        return super().versions() | {"source": "0123456789ab", "node": "late"}


def asked(*sent: bytes) -> list[photos.Pixels] | None:
    return ready(decoding.Decoders(1, threads=1), 1).decode(sent, 10**9)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray", "slowly")
@pytest.mark.parametrize("decoder", [Dies, Hangs])
def test_a_lost_decoder_leaves_its_shard_to_the_actor(
    images: ImageSet, decoder: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = in_groups(images, None)
    with monkeypatch.context() as lost:
        lost.setattr(decoding, "Decoder", decoder)
        lost.setattr(decoding, "LATE_S", 2.0)
        helper = ready(decoding.Decoders(2, threads=1), 2)
        assert_same(in_groups(images, helper), want)
        assert helper.taken() == 0
    ready(helper, 2)
    assert_same(in_groups(images, helper), want)
    assert helper.taken() > 0  # the next shard has others


@pytest.mark.usefixtures("local_ray")
def test_what_a_decoder_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "Decoder", FindsNoMemory)
    with pytest.raises(MemoryError, match="no room for the pixels"):
        asked(b"")


@pytest.mark.usefixtures("local_ray")
def test_a_node_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "Decoder", HasOtherCode)
    with pytest.raises(UserError, match="node late has source 0123456789ab"):
        asked(b"")


def test_a_decoder_decodes_and_tells_its_versions() -> None:
    import stand_ins

    data = stand_ins.photo(1, "user", 1).image
    (found,) = decoding.Decoder().decode([data], 10**9)
    np.testing.assert_array_equal(found, decode(data))
    told = decoding.Decoder().versions()
    assert told["numpy"] == np.__version__ and told.pop("node") and told == versions.versions()


def started(decoder: type) -> Any:
    """What `ray.remote` makes of a class: its `remote` starts an actor, which answers the first call."""
    return types.SimpleNamespace(remote=lambda: types.SimpleNamespace(versions=types.SimpleNamespace(remote=object)))


@pytest.mark.parametrize(
    "decoding_s, busy_s, threads, want",
    [
        (10.0, 20.0, 1, 0),  # one thread keeps up
        (10.0, 10.0, 1, 1),  # 1.2 cores, one of which is there
        (10.0, 10.0, 2, 0),
        (20.0, 10.0, 1, 2),  # 2.4 cores
        (90.0, 10.0, 1, 3),  # 10.8 cores; the cluster has three
        (10.0, 0.0, 1, 3),  # the models take no time
    ],
)  # fmt: skip
def test_as_many_decoders_as_the_models_wait_for(
    decoding_s: float, busy_s: float, threads: int, want: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 3.0, "GPU": 1.0})
    monkeypatch.setattr("ray.remote", lambda **_: started)
    monkeypatch.setattr("ray.wait", lambda calls, **_: (calls, []))
    monkeypatch.setattr("ray.get", lambda call: decoding.Decoder().versions())
    helper = decoding.Decoders("auto", threads)
    assert helper.begin() == 0  # nothing is known of the first shard
    helper.learn(decoding_s, busy_s, waited_s=1.0)
    assert helper.begin() == 0  # they are starting
    assert helper.begin() == want * decoding.AT_ONCE
    fixed = decoding.Decoders(5, threads)
    fixed.learn(decoding_s, busy_s, waited_s=1.0)
    assert [fixed.begin(), fixed.begin()] == [0, 5 * decoding.AT_ONCE]


@pytest.mark.parametrize("waited_s, want", [(3.9, 2), (4.1, 0)])  # 4 s without decoders
def test_decoders_that_make_the_models_wait_longer_end(
    waited_s: float, want: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Any] = []
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr("ray.remote", lambda **_: started)
    monkeypatch.setattr("ray.wait", lambda calls, **_: (calls, []))
    monkeypatch.setattr("ray.get", lambda call: decoding.Decoder().versions())
    monkeypatch.setattr("ray.kill", ended.append)
    helper = decoding.Decoders("auto", threads=1)
    helper.learn(10.0, 5.0, 4.0)
    assert [helper.begin(), helper.begin()] == [0, 2 * decoding.AT_ONCE]
    helper.learn(10.0, 5.0, waited_s)
    assert helper.begin() == want * decoding.AT_ONCE and len(ended) == 2 - want
    helper.learn(10.0, 5.0, 4.0)
    assert helper.begin() == want * decoding.AT_ONCE


@pytest.mark.usefixtures("slowly")
def test_shards_teach_their_helper(images: ImageSet) -> None:
    class Taught:
        def begin(self) -> int:
            return 2

        def learn(self, decoding_s: float, busy_s: float, waited_s: float) -> None:
            learnt.append((decoding_s, busy_s, waited_s))

        def decode(self, sent: list[bytes], max_pixels: int) -> None:
            asked.append(threading.current_thread().name)

    learnt: list[tuple[float, float, float]] = []
    asked: list[str] = []
    how = {"size": 25, "max_pixels": 10**9, "helper": Taught()}
    for group in photos.groups(images, images.shards[0].name, range(N + 1), {}, clock=photos.Clock(), **how):
        assert len(group) == N + 1
        time.sleep(0.2)
    (decoding_s, busy_s, waited_s), *more = learnt
    assert not more and decoding_s > 0 and busy_s >= 0.2 and waited_s > 0
    assert asked and all(name.startswith("decode") for name in asked)


@pytest.mark.parametrize(
    "device, n, want", [("cuda", "auto", True), ("cuda", 3, True), ("cuda", 0, False), ("cpu", 3, False)]
)
def test_only_actors_with_a_gpu_are_helped(
    device: str, n: int | str, want: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = settings.Settings(decoders=n)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    assert decoding.helper(asked, device) is None
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    assert (decoding.helper(asked, device) is not None) == want
