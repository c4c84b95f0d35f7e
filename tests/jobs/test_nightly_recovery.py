"""What docs/nightly.md says to do when something is lost works, and no photo goes through the models in vain."""

import json
import shutil
from pathlib import Path

import pytest
import stand_ins
from small_gallery import ALL_COUNTS, publish

from jobs import reindex_gallery
from retrieval.gallery import open_gallery
from retrieval.gallery_files import GalleryError
from store.errors import UserError
from store.imageset_write import write_imageset

SHOPS = 8


class Shop:
    """A shop's folder of photos, its image set and its gallery; `calls` counts what goes through models."""

    def __init__(self, box: Path, calls: list) -> None:
        self.set, self.gallery, self.calls = box / "set", box / "gallery", calls
        self.ingest()
        self.night()

    def ingest(self, n: int = SHOPS) -> None:
        photos = [stand_ins.photo(i, "shop", 1 + i) for i in range(n)]
        write_imageset(photos, self.set, source={"adapter": "x", "arguments": {}}, max_images=3, overwrite=True)

    def night(self) -> int:
        """Publishes, or finds nothing to do; returns how many shards went through the models."""
        before = len(self.calls)
        publish(self.set, self.gallery)
        return len(self.calls) - before

    def said(self, *line: str) -> int:
        return reindex_gallery.main(["--gallery", str(self.gallery), *line], stand_ins.CATALOGUE)

    @property
    def version(self) -> str:
        return json.loads((self.gallery / "CURRENT").read_bytes())["version"]

    def serves(self, n: int = SHOPS) -> bool:
        gallery = open_gallery(self.gallery)
        ids = gallery.items["id"].to_numpy()
        return len(gallery) == n and len(ids) == n


@pytest.fixture
def shop(tmp_path: Path, calls: list) -> Shop:
    return Shop(tmp_path, calls)


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"version": 7}', b"\xff" * 90], ids=str)
def test_current_is_lost_or_unreadable(content, shop):
    name, path = shop.version, shop.gallery / "CURRENT"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(GalleryError):
        open_gallery(shop.gallery)
    assert shop.said("--list") == 0
    assert shop.said("--rollback", name) == 0
    assert shop.version == name and shop.serves() and shop.night() == 0


def test_a_lost_current_is_made_anew_by_the_next_night_too(shop):
    (shop.gallery / "CURRENT").unlink()
    assert shop.night() == 0 and shop.serves()


def test_version_json_is_unreadable(shop, capsys):
    before = shop.version
    shop.ingest(SHOPS + 1)
    shop.night()
    (shop.gallery / "versions" / shop.version / "version.json").write_bytes(b"{")
    with pytest.raises(GalleryError, match="not readable"):
        shop.night()
    capsys.readouterr()
    assert shop.said("--list") == 0 and "broken" in capsys.readouterr().out
    assert shop.said("--rollback") == 0 and shop.version == before and shop.serves()
    assert shop.night() == 0 and shop.serves(SHOPS + 1)


@pytest.mark.parametrize("file", ["vectors.npy", "ids.npy", "items.parquet"])
def test_a_version_is_damaged_and_the_one_before_serves(file, shop):
    before = shop.version
    shop.ingest(SHOPS + 1)
    shop.night()
    damaged = shop.gallery / "versions" / shop.version / file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(GalleryError, match="--rollback"):
        shop.night()
    assert shop.said("--rollback") == 0
    assert shop.version == before and shop.serves()
    assert shop.night() == 0 and shop.serves(SHOPS + 1), "the rows are still in results/"


def test_the_only_version_is_damaged(shop):
    (shop.gallery / "versions" / shop.version / "vectors.npy").unlink()
    (shop.gallery / "CURRENT").unlink()
    assert shop.night() == 0 and shop.serves()


def test_results_are_lost(shop):
    name = shop.version
    shutil.rmtree(shop.gallery / "results")
    assert shop.serves(), "readers need none of it"
    assert shop.night() > 0 and shop.serves() and shop.night() == 0
    assert open_gallery(shop.gallery, version=name)


def test_a_part_of_the_results_is_damaged(shop):
    (part,) = (shop.gallery / "results").rglob("part-*.photos.parquet")
    part.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"part-00000.photos.parquet: 4 bytes that are no Parquet table .*; delete it"):
        shop.night()
    for file in (part, part.with_name(part.name.replace("photos", "items"))):
        file.unlink()
    assert shop.night() > 0 and shop.serves() and shop.night() == 0


def test_the_image_set_is_lost(shop):
    shutil.rmtree(shop.set)
    with pytest.raises(ValueError, match=r"no image set at .*jobs/ingest.py"):
        shop.night()
    assert shop.serves()
    shop.ingest()
    assert shop.night() == 0 and shop.serves(), "the same bytes in other shards are the same photos"


def test_two_at_once(shop):
    from jobs.runs.lock import Lock
    from store.objects import open_store

    lock = Lock(open_store(shop.gallery))
    lock.take()
    try:
        with pytest.raises(UserError, match="at work here"):
            shop.night()
    finally:
        lock.release()
    assert shop.night() == 0


def test_what_readers_hold_stays_for_a_day(shop, capsys):
    first = shop.version
    for n in (SHOPS + 1, SHOPS + 2):
        shop.ingest(n)
        shop.night()
    assert shop.said("--prune", "--keep", "1") == 0 and "nothing to remove" in capsys.readouterr().out
    assert open_gallery(shop.gallery, version=first)


def test_every_line_leaves_one_json_object_last(shop, capsys):
    shop.ingest(SHOPS + 1)
    capsys.readouterr()
    line = ["--imageset", str(shop.set), "--gallery", str(shop.gallery), *stand_ins.SETTINGS, *ALL_COUNTS]
    for status in ("published", "unchanged"):
        assert reindex_gallery.main(line, stand_ins.CATALOGUE) == 0
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert told["status"] == status and told["version"] == shop.version and told["rows"] == SHOPS + 1
