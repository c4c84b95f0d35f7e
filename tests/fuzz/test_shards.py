"""Image sets from elsewhere: shards and manifests broken, or made up by someone who recomputed every digest."""

import contextlib
import json
import re
import shutil
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pytest
import stand_ins
from hypothesis import given
from hypothesis import strategies as st

from jobs import full_eval
from store.decode import DecodeError, decode
from store.imageset import ITEM, SCHEMA, ImageSetError, Item, Photo, open_imageset
from store.imageset_write import write_imageset
from tests.fuzz import guard

PNG = stand_ins.photo(1, "user", 1).image
ITEM_3 = Item(3, 1, (4.0, 6.0, 34.0, 46.0), ((4.0, 6.0, 30.0, 9.0, 30.0, 40.0),))
PHOTOS = [
    Photo(n, PNG, 48, 64, source, 1, "SKU", f"{n}.png", items=(ITEM_3,))
    for n, source in enumerate(("user", "shop", "shop"))
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound set of three photos in one shard."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    write_imageset(PHOTOS, folder, source={"adapter": "test", "arguments": {}})
    return folder


def digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def signed(folder: Path, shard: bytes, rows: int = 3, **changes: object) -> Path:
    """A set of one shard whose manifest is right about every byte."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "shard-00000.arrow").write_bytes(shard)
    entry = {"name": "shard-00000", "rows": rows, "bytes": len(shard), "digest": digest(shard)}
    manifest = {
        "schema": 1, "shards": [entry], "images": rows, "failures": 0, "bytes": len(shard),
        "source": {"adapter": "test", "arguments": {}}, "digest": digest(bytes.fromhex(entry["digest"])),
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return folder


def arrow(columns: dict[str, object], schema: pa.Schema, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as file:
        file.write_batch(pa.RecordBatch.from_pydict(columns, schema=schema))
    return sink.getvalue().to_pybytes()


def columns(**changes: object) -> dict[str, object]:
    """The three rows as columns; `changes` replace some, a value that is no list three times."""
    names = [name for name in SCHEMA.names if name not in ("digest", "items")]
    rows = {name: [getattr(photo, name) for photo in PHOTOS] for name in names}
    rows["digest"] = [blake2b(PNG, digest_size=16).digest()] * 3
    rows["items"] = [[vars(item) for item in photo.items] for photo in PHOTOS]
    return rows | {name: value if isinstance(value, list) else [value] * 3 for name, value in changes.items()}


def use(folder: Path) -> None:
    """What a run does with a set: the table of truth, every row and its picture."""
    images = open_imageset(folder)
    for shard in images.shards:
        for row in images.read(shard.name).to_pylist():
            with contextlib.suppress(DecodeError):
                decode(row["image"])
    images.truth().to_pylist()


def item(**changes: object) -> dict[str, object]:
    return vars(PHOTOS[0].items[0]) | changes


def without(name: str) -> bytes:
    schema = pa.schema([field for field in SCHEMA if field.name != name])
    return arrow({key: value for key, value in columns().items() if key != name}, schema)


def retyped(name: str, kind: pa.DataType, value: object) -> bytes:
    place = SCHEMA.get_field_index(name)
    return arrow(columns(**{name: value}), SCHEMA.set(place, pa.field(name, kind)))


SOUND = arrow(columns(), SCHEMA)
RESIGNED = [
    ("no Arrow file", b"PK\x03\x04" + b"\0" * 500, "no shard"),
    ("cut short", SOUND[:-100], "no shard"),
    ("cut in the middle", SOUND[: len(SOUND) // 2], "no shard"),
    ("a footer of 2 GB", SOUND[:-10] + b"\xff\xff\xff\x7fARROW1", "no shard"),
    ("a footer of no length", SOUND[:-10] + b"\0\0\0\0ARROW1", "no shard"),
    ("a column's name that is no text", SOUND.replace(b"weak_box", b"weak\xe9box"), "no shard"),
    ("no pictures", without("image"), "columns|field index"),
    ("no ids", without("image_id"), "columns|field index"),
    ("pictures as text", retyped("image", pa.string(), "x"), "columns|field index"),
    ("ids as text", retyped("image_id", pa.string(), "1"), "columns|field index"),
    ("items as numbers", retyped("items", pa.int64(), 1), "columns|field index"),
    ("digests of any length", retyped("digest", pa.binary(), b"x"), "columns|field index"),
    ("other items", retyped("items", pa.list_(pa.struct(list(ITEM)[1:])), [[{}]] * 3), "columns|field index"),
    ("another table", arrow({"a": [1, 2, 3]}, pa.schema([("a", pa.int64())])), "columns|field index"),
    ("no id", arrow(columns(image_id=[1, None, 2]), SCHEMA), "image_id"),
    ("an id below 0", arrow(columns(image_id=[1, -5, 2]), SCHEMA), "image_id"),
    ("one id twice", arrow(columns(image_id=7), SCHEMA), "image_id"),
    ("no picture", arrow(columns(image=[PNG, None, PNG]), SCHEMA), "image"),
    ("a source of its own", arrow(columns(source="thief"), SCHEMA), "source"),
    ("no source", arrow(columns(source=[None] * 3), SCHEMA), "source"),
    ("no size", arrow(columns(width=0), SCHEMA), "width"),
    ("no name", arrow(columns(file_name=[None] * 3), SCHEMA), "file_name"),
    ("no items", arrow(columns(items=[None] * 3), SCHEMA), "items"),
    ("an item that is none", arrow(columns(items=[[None]] * 3), SCHEMA), "items"),
    ("an item without a box", arrow(columns(items=[[item(bbox=None)]] * 3), SCHEMA), "items"),
    ("a box of NaN", arrow(columns(items=[[item(bbox=[float("nan")] * 4)]] * 3), SCHEMA), "box"),
    ("an endless box", arrow(columns(items=[[item(bbox=[0, 0, float("inf"), 1])]] * 3), SCHEMA), "box"),
    ("a box turned round", arrow(columns(items=[[item(bbox=[9, 9, 1, 1])]] * 3), SCHEMA), "box"),
    ("category 99", arrow(columns(items=[[item(category_id=99)]] * 3), SCHEMA), "category_id"),
    ("category -1", arrow(columns(items=[[item(category_id=-1)]] * 3), SCHEMA), "category_id"),
]  # fmt: skip


@pytest.mark.parametrize("why, shard, names", RESIGNED, ids=[row[0] for row in RESIGNED])
def test_an_invalid_shard_with_a_matching_digest_is_refused_in_one_line(why, shard, names, tmp_path, calls):
    argv = ["--imageset", str(signed(tmp_path / "set", shard)), "--output", str(tmp_path / "run"), *stand_ins.SETTINGS]
    with guard.untouched(tmp_path, but="run"):
        said = guard.run(lambda argv: full_eval.main(argv, stand_ins.CATALOGUE), argv, tmp_path / "run")
    assert said.status == 2 and re.search(names, said.line) and f"{tmp_path / 'set'}/shard-00000.arrow" in said.line
    with guard.watched(tmp_path), pytest.raises(ImageSetError, match=names):
        use(tmp_path / "set")


MANIFESTS = [
    ("nothing at all", b""),
    ("no JSON", b"{"),
    ("no UTF-8", b"\xff\xfe{}"),
    ("a list", b"[]"),
    ("nothing", b"{}"),
    ("very deep", b"[" * 100_000),
    ("a number of 5000 digits", b'{"schema": ' + b"9" * 5000 + b"}"),
    ("NaN", b'{"schema": NaN}'),
]


@pytest.mark.parametrize("why, data", MANIFESTS, ids=[row[0] for row in MANIFESTS])
def test_an_invalid_manifest_is_refused(why, data, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "set")
    (tmp_path / "set" / "manifest.json").write_bytes(data)
    with guard.watched(tmp_path), pytest.raises(ImageSetError, match="is not an image set's manifest"):
        use(tmp_path / "set")


@pytest.mark.parametrize(
    "name", ["../../outside", "/etc/passwd", "shard-00000/../x", "", ".", "a\0b", "x" * 300, 5, None, ["a"], {}]
)
def test_a_shard_name_does_not_lead_out_of_the_set(name, tmp_path):
    (tmp_path / "outside.arrow").write_bytes(SOUND)
    entry = {"name": name, "rows": 3, "bytes": len(SOUND), "digest": digest(SOUND)}
    signed(tmp_path / "deep" / "set", SOUND, shards=[entry])
    with guard.watched(tmp_path), pytest.raises(ImageSetError, match="manifest"):
        use(tmp_path / "deep" / "set")


def accepted_or_refused(box: Path) -> None:
    with guard.untouched(box, but="nothing"), guard.watched(box / "nothing"):
        try:
            use(box / "set")
        except ImageSetError as error:
            line = " ".join(str(error).split())
            assert len(line) < 1000, line
    guard.inputs["test_shards"] += 1


@guard.fuzzed()
@given(shard=guard.broken([SOUND]))
def test_any_shard_changed_without_its_manifest_is_refused(shard, whole, tmp_path_factory):
    box = tmp_path_factory.getbasetemp() / "changed"
    if not box.exists():
        shutil.copytree(whole, box / "set")
    true = (whole / "shard-00000.arrow").read_bytes()
    (box / "set" / "shard-00000.arrow").write_bytes(shard)
    guard.inputs["test_shards"] += 1
    with guard.watched(box / "nothing"):
        if shard == true:
            use(box / "set")
            return
        with pytest.raises(ImageSetError, match=r"bytes|digest"):
            use(box / "set")


@guard.fuzzed()
@given(shard=guard.broken([SOUND]))
def test_any_shard_with_a_matching_digest_is_taken_or_refused(shard, tmp_path_factory):
    box = tmp_path_factory.getbasetemp() / "resigned"
    signed(box / "set", shard)
    accepted_or_refused(box)


@guard.fuzzed()
@given(data=st.data())
def test_any_manifest_is_taken_or_refused(data, whole, tmp_path_factory):
    box = tmp_path_factory.getbasetemp() / "manifests"
    if not box.exists():
        shutil.copytree(whole, box / "set")
    valid = (whole / "manifest.json").read_bytes()
    text = json.dumps(data.draw(guard.replaced(json.loads(valid)))).encode()
    (box / "set" / "manifest.json").write_bytes(data.draw(st.one_of(st.just(text), guard.broken([valid, text]))))
    accepted_or_refused(box)
