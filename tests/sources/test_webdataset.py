"""Tar files of samples, by webdataset's own writer and by hand: what is taken, counted, and a failure."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import webdataset as published
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.ingest import main
from sources import webdataset
from sources.folder import Origin, image_id
from store.formats import NO_PICTURE
from store.imageset import Failure, Item, Photo, open_imageset
from store.objects import open_store
from tests.sources.four_forms import png


def packed(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def of_json(**values: Any) -> bytes:
    return json.dumps(values).encode()


def test_what_img2dataset_writes(tmp_path: Path) -> None:
    facts = {"caption": "a red hat", "url": "https://shop/1", "key": "000000001", "status": "success"}
    facts |= {"error_message": None, "width": 24, "exif": "{}"}
    with published.TarWriter(str(tmp_path / "00000.tar")) as writer:
        writer.write({"__key__": "000000001", "jpg": png(1), "txt": "a red hat\n", "json": facts})
        writer.write({"__key__": "000000002", "jpg": png(2), "txt": "a cape"})
    first, second = webdataset.read([tmp_path / "00000.tar"], "shop")
    attributes = {key: str(value) for key, value in facts.items() if value is not None}
    name = "000000001.jpg"
    known = {"weak_box": True, "attributes": attributes}
    assert first == Photo(image_id(f"shop/{name}"), png(1), 24, 32, "shop", 0, "", name, **known)
    assert isinstance(second, Photo) and second.attributes == {"caption": "a cape"}


def test_products_pairs_and_items(tmp_path: Path) -> None:
    item = {"category": "hat", "bbox": [1, 2, 3.5, 4]}
    data = of_json(product_id=7, pair_id=9, items=[item, item | {"style": 3, "category": "cape"}])
    reading = webdataset.read([packed(tmp_path / "x.tar", [("1.png", png(1)), ("1.json", data)])], "user")
    (photo,) = reading
    assert isinstance(photo, Photo) and (photo.product_id, photo.pair_id, photo.weak_box) == ("7", 9, False)
    assert photo.items == (Item(1, 0, (1, 2, 3.5, 4)), Item(2, 3, (1, 2, 3.5, 4)))
    assert [*reading.categories] == ["hat", "cape"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_compressed_nested_and_with_dots(tmp_path: Path, mode: str) -> None:
    members = [("./a.b/1.JPG", png(1)), ("./a.b/1.json", of_json(price=2)), ("a.b/2.png", png(2))]
    rows = [*webdataset.read([packed(tmp_path / "x", members, mode)], "user")]
    assert [(row.file_name, row.attributes) for row in rows] == [  # type: ignore[union-attr]
        ("a.b/1.JPG", {"price": "2"}),
        ("a.b/2.png", {}),
    ]


def test_failures_and_what_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "MAX_PHOTO_BYTES", 1000)
    members = [
        ("good.png", png(1)),
        ("good.cls", b"3"),
        ("good.seg.png", png(2)),
        ("text.png", b"no"),
        ("../up.png", png(3)),
        ("/root.png", png(4)),
        ("big.png", b"x" * 1001),
        ("json.png", png(5)),
        ("json.json", b"{"),
        ("list.png", png(6)),
        ("list.json", b"[]"),
        ("deep.png", png(6)),
        ("deep.json", b"[" * 100_000),
        ("pair.png", png(7)),
        ("pair.json", of_json(pair_id="x")),
        ("items.png", png(8)),
        ("items.json", of_json(items=[{"category": "hat", "bbox": [1, 2]}, 3, {"bbox": [1, 2, 3, 4]}])),
        ("alone.txt", b"no picture"),
        ("good.png", png(9)),
    ]
    reading = webdataset.read([packed(tmp_path / "x.tar", members)], "user")
    rows = [*reading]
    assert [row.file_name for row in rows if isinstance(row, Photo)] == ["good.png", "items.png"]
    assert [(row.file_name, row.reason) for row in rows if isinstance(row, Failure)] == [
        ("text.png", NO_PICTURE),
        ("../up.png", "its name leads out of the tar"),
        ("/root.png", "its name leads out of the tar"),
        ("big.png", "cannot be read: 1001 bytes are more than 1000"),
        (
            "json.png",
            "json.json is no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        ("list.png", "list.json is list, want an object"),
        ("deep.png", "deep.json is nested too deeply"),
        ("pair.png", "pair_id 'x' is not a whole number below 2^63"),
        ("items.png", "item 1 is left out: box [1, 2] is not a list of four numbers"),
        ("items.png", "item 2 is left out: box None is not a list of four numbers"),
        ("items.png", "item 3 is left out: category None is no text"),
        ("good.png", "another photo of this name came before; make two sets of the files, one with --prefix"),
    ]
    assert reading.skipped == {".cls": 1, "further pictures of a sample (.png)": 1, "samples without a picture": 1}


def test_members_that_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (("a", tarfile.DIRTYPE), ("a/1.png", tarfile.SYMTYPE), ("a/2.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    reading = webdataset.read([tmp_path / "x.tar"], "user")
    assert [*reading] == [] and reading.skipped == {"members of a tar that are no plain files": 2}


SAMPLES = [
    (f"{n}.{ending}", png(n) if ending == "png" else of_json(n=n)) for n in range(6) for ending in ("png", "json")
]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.8])
def test_a_tar_that_is_cut_short(tmp_path: Path, mode: str, kept: float) -> None:
    whole = packed(tmp_path / "whole.tar", SAMPLES, mode)
    want = [*webdataset.read([whole], "user")]
    with tarfile.open(whole) as tar:
        end = tar.getmembers()[-1].offset_data  # behind it come padding and the mark at the end
    data = whole.read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: int((end if mode == "w" else len(data)) * kept)])
    *taken, failure, other = webdataset.read(
        [tmp_path / "cut.tar", packed(tmp_path / "b", [("x.png", png(99))])], "user"
    )
    assert taken == want[: len(taken)] and len(taken) < 6 and other.file_name == "x.png"
    assert isinstance(failure, Failure) and failure.file_name == "cut.tar"
    after = f"after {len(taken) - 1}.json" if taken else "from its start"
    assert failure.reason.startswith(f"cut short or damaged {after}, the rest is lost: ")


def test_every_cut_is_told(tmp_path: Path) -> None:
    """Between two members as well, where tarfile itself sees the end of the tar."""
    whole = packed(tmp_path / "whole.tar", SAMPLES)
    with tarfile.open(whole) as tar:
        starts = [member.offset for member in tar.getmembers()]
    for place in (*starts[1:], starts[5] + 100, starts[5] + 512, starts[5] + 600):
        (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:place])
        *taken, failure = webdataset.read([tmp_path / "cut.tar"], "user")
        assert isinstance(failure, Failure) and len(taken) == (sum(start < place for start in starts) - 1) // 2


@settings(max_examples=200)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=30)), max_size=8),
    cut=st.integers(0, 30_000),
)
def test_bytes_changed_at_random_never_end_an_ingestion(
    tmp_path_factory: pytest.TempPathFactory, changes: Sequence[tuple[int, bytes]], cut: int
) -> None:
    file = tmp_path_factory.mktemp("changed") / "x.tar"
    data = bytearray(packed(file, SAMPLES).read_bytes())
    for place, values in changes:
        place %= len(data)
        data[place : place + len(values)] = values
    file.write_bytes(data[:cut] if cut < len(data) else data)
    for row in webdataset.read([file], "user"):
        assert isinstance(row, Photo | Failure)


def test_what_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    (failure,) = webdataset.read([tmp_path / "x.tar"], "user")
    assert isinstance(failure, Failure) and "cut short or damaged from its start" in failure.reason
    with pytest.raises(ValueError, match="no file gone"):
        webdataset.read([tmp_path / "x.tar", "gone.tar"], "user")
    with pytest.raises(ValueError, match="is a folder"):
        webdataset.read([tmp_path], "user")


def test_from_a_bucket(tmp_path: Path, s3_bucket: str) -> None:
    file = packed(tmp_path / "x.tar", SAMPLES)
    open_store(f"{s3_bucket}/in").write("x.tar", file.read_bytes())
    assert main(["webdataset", f"{s3_bucket}/in/x.tar", str(tmp_path / "set"), "--source", "shop"]) == 0
    assert open_imageset(tmp_path / "set").manifest.images == 6


def test_one_sample_is_in_memory(tmp_path: Path) -> None:
    """tarfile would keep every member's header."""
    file = packed(tmp_path / "x.tar", [(f"{n}.png", png(1)) for n in range(50)])
    members: list[int] = []
    content = webdataset._Reader._content

    class Counting(webdataset._Reader):
        def _content(self, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes | str:
            members.append(len(tar.members))  # type: ignore[attr-defined]
            return content(self, tar, member, name)

    assert len([*Counting(Origin("user"), None).rows(file)]) == 50
    assert max(members) <= 1
