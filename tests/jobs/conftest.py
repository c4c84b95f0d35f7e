"""Fixtures of the jobs' tests: a small set for the stand-in models, a pool that works in this process, and a browser
for pages: an installed Chromium, never a downloaded one."""

import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # stand_ins

import stand_ins

from jobs import full_eval
from jobs.runs import cluster, shards


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 photos in 5 shards, one of them cut off in the middle."""
    folder = tmp_path_factory.mktemp("small") / "imageset"
    stand_ins.imageset(folder)
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """No Ray: jobs are done in this process, one after the other. The list names them: stage, shard, models."""
    done: list[tuple[str, str, Any]] = []
    monkeypatch.setattr(shards, "run_on_actors", functools.partial(stand_ins.here, done))
    monkeypatch.setattr(cluster, "start_ray", lambda settings: pytest.fail("started Ray"))
    return done


@pytest.fixture
def full() -> Callable[..., int]:
    """`full_eval` with stand-in models: (imageset, output, *arguments) -> exit status."""

    def run(imageset: Path | str, output: Path | str, *more: str) -> int:
        return full_eval.main(
            [*stand_ins.SETTINGS, "--imageset", str(imageset), "--output", str(output), *more], stand_ins.CATALOGUE
        )

    return run


# --- pages in a browser -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        reason = "no Chromium: `apt-get install chromium` as root, or name one in $CHROMIUM"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=found, args=arguments)
        yield chromium
        chromium.close()


@dataclass
class Tab:
    """A page of a folder in a browser, and everything it complained of or asked the network for."""

    page: Any
    folder: Path
    trouble: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.trouble.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("requestfailed", self._failed)
        self.page.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.folder.as_uri(), "data:")):
            self.trouble.append(f"request: {request.url}")

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page is left or loaded again while a picture is on its way
            self.trouble.append(f"failed: {request.url}: {request.failure}")

    def open(self, name: str) -> Any:
        self.page.goto("about:blank")  # or a change of what follows # alone would load nothing
        self.page.goto(f"{self.folder.as_uri()}/{name}")
        if "queries" in name and self.page.locator("#list").count():
            self.page.wait_for_selector("#list[data-shown]")
        return self.page


@pytest.fixture
def tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """A tab on a folder of pages; options are those of a browser context. Fails at the end where a page had trouble."""
    opened: list[tuple[Any, Tab]] = []

    def new(folder: Path, **options: Any) -> Tab:
        context = browser.new_context(**options)
        opened.append((context, Tab(context.new_page(), folder)))
        return opened[-1][1]

    yield new
    for context, _ in opened:
        context.close()
    assert not [trouble for _, one in opened for trouble in one.trouble]
