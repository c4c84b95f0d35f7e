"""A gallery through many nights: each night's answers are those of a gallery built anew of the same photos.

4 nights of 200 drawn photos with stand-in models; `make soak` sets GALLERY_NIGHTS=14 GALLERY_PHOTOS=1200
GALLERY_MODELS=tiny: then a real detector and embedder look at the photos.
"""

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_ins

from jobs import reindex_gallery
from jobs.runs.catalogue import SHIPPED
from retrieval.gallery import Gallery, open_gallery
from sources.drawn import source
from store.imageset import Photo
from store.imageset_write import write_imageset

NIGHTS = int(os.environ.get("GALLERY_NIGHTS", "4"))
PHOTOS = int(os.environ.get("GALLERY_PHOTOS", "200"))
TINY = os.environ.get("GALLERY_MODELS", "stand-ins") == "tiny"
SEED = int(os.environ.get("GALLERY_SEED", "1"))
MODELS = ["--set", "detectors=[retinanet-lite0-tiny]", "--set", "embedders=[lite0-sg]"] if TINY else stand_ins.SETTINGS
LOOSE = ["gallery.copies=0", "max_failed_share=1", "gallery.least_recall=0.9"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200 + NIGHTS * PHOTOS * (4 if TINY else 1))]


def run(imageset: Path, gallery: Path, *more: str) -> dict[str, Any]:
    said = io.StringIO()
    argv = [
        "--imageset",
        str(imageset),
        "--gallery",
        str(gallery),
        *(word for one in (*LOOSE, *more) for word in ("--set", one)),
    ]
    with contextlib.redirect_stdout(said):
        status = reindex_gallery.main([*MODELS, *argv], SHIPPED if TINY else stand_ins.CATALOGUE)
    assert status == 0, said.getvalue()
    return json.loads(said.getvalue().splitlines()[-1])


def nights(seed: int) -> list[list[Photo]]:
    """Tonight's photos, night by night: 1 to 5 % come, as many go or show another garment; some change product."""
    rng = np.random.default_rng(seed)
    pictures = list(source.read(0, PHOTOS + NIGHTS * PHOTOS // 5, seed=seed, size_px=96))
    fresh = iter(pictures)
    now = {one.image_id: one for one in (next(fresh) for _ in range(PHOTOS))}
    found = [list(now.values())]
    for _ in range(NIGHTS - 1):
        come, go, change = (max(1, int(share * PHOTOS)) for share in rng.uniform(0.01, 0.05, 3))
        for number in rng.choice(list(now), go, replace=False).tolist():
            del now[number]
        for number in rng.choice(list(now), change, replace=False).tolist():
            now[number] = replace(next(fresh), image_id=number, file_name=now[number].file_name)
        number = int(rng.choice(list(now)))
        now[number] = replace(now[number], product_id="renamed")
        now |= {one.image_id: one for one in (next(fresh) for _ in range(come))}
        found.append([now[number] for number in rng.permutation(list(now)).tolist()])
    return found


def asked(gallery: Gallery, n: int = 200) -> np.ndarray:
    """(n, D) rows as the models give them: stored rows, moved as another photo of the garment would be."""
    rng = np.random.default_rng(SEED)
    ids = np.sort(gallery.items["id"].to_numpy())
    rows = (
        gallery.vectors(rng.choice(ids, n)) + rng.normal(size=(n, sum(gallery.dims.values()))).astype(np.float32) * 0.01
    )
    parts, start = [], 0
    for dim in gallery.dims.values():
        part = rows[:, start : start + dim]
        parts.append(part / np.linalg.norm(part, axis=1, keepdims=True))
        start += dim
    return np.concatenate(parts, axis=1).astype(np.float32)


def share_found(got: Sequence[Any], want: Sequence[Any]) -> float:
    """recall@10 against exact answers; what is as similar as the tenth may stand for it."""
    return float((got[0][:, :10] >= want[0][:, 9:10] - 1e-6).mean())


KINDS = ["flat", "hnsw", *(["ivf_flat", "ivf_pq"] if PHOTOS >= 1200 else [])]  # 1,000 rows can be clustered


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[int]]:
    """Real models' results and their fingerprint: what one kind of index has computed, the next reuses."""
    return tmp_path_factory.mktemp("results"), set()


@pytest.mark.parametrize("kind", KINDS)
def test_every_night_answers_as_a_full_rebuild(
    tmp_path: Path, request: pytest.FixtureRequest, looked_at: tuple[Path, set[int]], kind: str
) -> None:
    results, seen = looked_at if TINY else (None, set())
    if results:
        (tmp_path / "gallery").mkdir()
        (tmp_path / "gallery" / "results").symlink_to(results)
    else:
        request.getfixturevalue("calls")  # in this process, without Ray
    for number, photos in enumerate(nights(SEED)):
        imageset = tmp_path / f"set-{number}"
        write_imageset(photos, imageset, source={"adapter": "drawn", "arguments": {}}, max_images=100)
        found = run(imageset, tmp_path / "gallery", f"gallery.index={kind}")
        anew = tmp_path / f"anew-{number}"
        anew.mkdir()
        (anew / "results").symlink_to(
            tmp_path / "gallery" / "results"
        )  # what photos gave is known; rows and index are made anew
        assert run(imageset, anew, "gallery.index=flat")["detected"] == 0
        now, want = open_gallery(tmp_path / "gallery"), open_gallery(anew)
        fresh = {hash(photo.image) for photo in photos} - seen
        assert found["detected"] == len(fresh)
        seen |= fresh
        assert found["rebuilt"] == ("the first version" if number == 0 else "")
        assert sorted(now.items["id"].to_pylist()) == sorted(want.items["id"].to_pylist())
        ids = want.items["id"].to_numpy()
        np.testing.assert_array_equal(now.vectors(ids), want.vectors(ids))
        assert now.lookup(ids) == want.lookup(ids)
        vectors = asked(want)
        got, exact = now.search(vectors, 20), want.search(vectors, 20)
        if kind == "flat":
            np.testing.assert_array_equal(got[1], exact[1])
            np.testing.assert_array_equal(got[0], exact[0])
        else:
            assert share_found(got, exact) >= 0.95
        print(f"{kind}, night {number}: {found['added']} added, {found['changed']} changed, "
              f"{found['removed']} removed, "
              f"{found['rows']} garments, recall {share_found(got, exact):.3f}, {found['seconds']} s")  # fmt: skip
