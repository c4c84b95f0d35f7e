"""File names, product ids and captions that try to be HTML: pages keep the tags they have with plain names."""

import html.parser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_ins
from hypothesis import given
from hypothesis import strategies as st

from jobs.reports import site, training
from jobs.reports.pages import content_of
from store.imageset import Photo, open_imageset
from store.imageset_write import write_imageset
from store.objects import open_store
from tests.fuzz import guard

N_PHOTOS = 20  # of a page, half of them consumers'; each takes two names
N_NAMES = 2 * N_PHOTOS
PAGES = ("index", "detection", "retrieval", "queries", "run")
EVIL_FOLDER = "<img src=x onerror=alert(1)> '\"&"
HOSTILE = [
    "<script>alert(1)</script>",
    "</bdi><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</style><script>alert(1)</script>",
    "</title></head><body onload=alert(1)>",
    "<!--",
    "-->",
    "]]>",
    "<![CDATA[",
    "&lt;script&gt;",
    "&#60;b&#62;",
    "{{ 7 * 7 }}",
    "{% include '/etc/passwd' %}",
    "${7*7}",
    "<a href='javascript:alert(1)'>x</a>",
    "\u202e\u2066gnp.exe",
    "\0<b>",
    "\ufeff<b>",
    "\uff1cscript\uff1e",
    "<\u017fcript>",
    '"title="',
    "`onload=1`",
    "x" * 5000,
    "<" * 300,
    "a\r\n\r\n<b>",
    "\ud800<b>",
    "data:text/html,<b>",
    "//evil.example/x",
    "../../../etc/passwd",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content=0>",
    "<iframe srcdoc='<b>'>",
    "<plaintext>",
    "</main></html>",
    "%3Cscript%3E",
    "+ADw-script+AD4-",
    '<math><mi//xlink:href="data:x,<b>">',
    "<?php echo 1 ?>",
]


class Page(html.parser.HTMLParser):
    """A page's tags in order, with attributes' names and every address but a picture's; texts and titles apart."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[tuple] = []
        self.texts: list[str] = []
        self.feed(data.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        addresses = [(name, told[name]) for name in ("href", "src", "style") if name in told and tag != "img"]
        assert tag != "img" or str(told["src"]).startswith("pictures/"), told
        self.texts.append(told.get("title") or "")
        self.tags.append((tag, *told, *(addresses if tag != "span" else ())))

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}",))

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment", data))

    def handle_decl(self, decl: str) -> None:
        self.tags.append(("declaration", decl))

    def unknown_decl(self, data: str) -> None:
        self.tags.append(("declaration", data))

    def handle_pi(self, data: str) -> None:
        self.tags.append(("instruction", data))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def shown(name: str) -> str:
    """A name as the page has it: half a letter is none."""
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in name)


def imageset(folder: Path, names: list[str]) -> None:
    def photos() -> Iterator[Photo]:
        for i in range(N_PHOTOS):
            one = stand_ins.photo(i, "user" if i < N_PHOTOS // 2 else "shop", 1 + i % (N_PHOTOS // 2))
            more = one.source, one.pair_id, names[2 * i], names[2 * i + 1]
            yield Photo(one.image_id, one.image, one.width, one.height, *more, items=one.items)

    write_imageset(photos(), folder, source={"adapter": "x", "arguments": {"directory": names[0]}}, overwrite=True)


@pytest.fixture
def finished(tmp_path, full, calls) -> Path:
    """A whole run with stand-ins, in a folder that tries to be a picture: it names the page."""
    box = tmp_path / EVIL_FOLDER
    imageset(box / "set", [f"name-{i}" for i in range(N_NAMES)])
    with guard.watched(box / "run", deadline_s=60):
        assert full(box / "set", box / "run") == 0
    return box


def run_pages(box: Path, names: list[str]) -> list[Page]:
    """The run's pages with its photos renamed; last the data of their scripts, as the texts of one more page."""
    imageset(box / "set", names)
    with guard.watched(box / "run"):
        site.build(open_store(box / "run"), open_imageset(box / "set"), queries=N_PHOTOS, top=N_PHOTOS)
    training = box / "run" / "report"
    fed = Page(b"")
    for path in sorted((training / "data").iterdir()):
        data = path.read_bytes()
        assert data.startswith(f'(window.REPORT ??= {{}})["{path.stem}"] = '.encode()) and data.endswith(b";\n")
        assert not set(data) & set(b"<>&") and data.isascii() and data.count(b"\n") == 1, (
            "nothing in it ends a script or begins a tag"
        )
        fed.texts += texts_of(content_of(data))
    return [*(Page((training / f"{name}.html").read_bytes()) for name in PAGES), fed]


def texts_of(content: Any) -> list[str]:
    """Every text in a JSON value."""
    if isinstance(content, str):
        return [content]
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return [text for part in parts for text in texts_of(part)]


def training_page(box: Path, names: list[str]) -> Page:
    """A training's page that has names wherever there is room for one, none of which is said twice."""
    picture = np.zeros((4, 4, 3), np.uint8)
    keys = [f"{i}{name}" for i, name in enumerate(names)]
    with guard.watched(box / "training"):
        training.write(
            open_store(box / "training"),
            title=names[0],
            facts={key: key for key in keys[:10]} | {"sets": {key: 1.0 for key in keys}, "list": keys},
            log=[],
            tables={names[1]: [dict.fromkeys(keys[10:15], name) for name in names]},
            mistakes=[training.Mistake(name, ((name, picture), (name, picture[:0]))) for name in names[:20]],
        )
    return Page((box / "training" / "report" / "index.html").read_bytes())


def agrees(box: Path, names: list[str], plain: list[Page]) -> None:
    pages = [*run_pages(box, names), training_page(box, names)]
    assert [page.tags for page in pages] == [page.tags for page in plain]
    texts = set(pages[len(PAGES)].texts)
    asked, found = names[1:N_PHOTOS:2], names[N_PHOTOS::2]  # consumers' files, shops' products
    lost = [name for name in (*asked, *found) if name and name not in texts and shown(name) not in texts]
    assert not lost, "each is there to be read, letter by letter"


def plain_pages(box: Path) -> list[Page]:
    names = [f"name-{i}" for i in range(N_NAMES)]
    pages = [*run_pages(box, names), training_page(box, names)]
    assert "name-1" in pages[len(PAGES)].texts and all(page.tags for page in pages[: len(PAGES)])
    return pages


def test_names_that_try_to_be_html(finished):
    plain = plain_pages(finished)
    assert len(HOSTILE) == N_NAMES
    for names in (HOSTILE, HOSTILE[1:] + HOSTILE[:1]):  # each as a file's name and as a product's
        agrees(finished, names, plain)


@guard.fuzzed(N_NAMES)
@given(data=st.data())
def test_any_name_is_text(finished, data):
    plain = plain_pages(finished)
    part = st.sampled_from(
        [
            "<",
            ">",
            '"',
            "'",
            "&",
            "/",
            "=",
            " ",
            "\0",
            "\n",
            "script",
            "img src=",
            "--",
            "!",
            "]]>",
            "\ud800",
            "{{",
            "%}",
            "\u202e",
        ]
    )
    name = st.lists(st.one_of(part, st.text(min_size=1, max_size=3)), min_size=1, max_size=12).map("".join)
    agrees(finished, data.draw(st.lists(name, min_size=N_NAMES, max_size=N_NAMES)), plain)
    guard.inputs["test_report_names"] += N_NAMES
