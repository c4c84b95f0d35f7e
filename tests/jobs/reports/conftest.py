"""A run with four queries, and a browser for the report's pages: an installed Chromium, never a downloaded one."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import report_runs as runs

from store.imageset import ImageSet
from store.objects import ObjectStore, open_store


@pytest.fixture
def four(tmp_path: Path) -> tuple[ObjectStore, ImageSet]:
    """`report_runs.four`: 1 right at once, 2 right at rank 2, 3 wrong, 4 missed."""
    output = open_store(tmp_path / "run")
    return output, runs.four(tmp_path / "set", output)


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
    """A page of a report in a browser, and everything it complained of or asked the network for."""

    page: Any
    folder: Path
    trouble: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.trouble.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("requestfailed", lambda request: self.trouble.append(f"failed: {request.url}"))
        self.page.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.folder.as_uri(), "data:")):
            self.trouble.append(f"request: {request.url}")

    def open(self, name: str) -> Any:
        self.page.goto("about:blank")  # or a change of what follows # alone would load nothing
        self.page.goto(f"{self.folder.as_uri()}/{name}")
        if "queries" in name and self.page.locator("#list").count():
            self.page.wait_for_selector("#list[data-shown]")
        return self.page


@pytest.fixture
def tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """A tab on a report's folder; options are those of a browser context. Fails at the end where a page had trouble."""
    opened: list[tuple[Any, Tab]] = []

    def new(folder: Path, **options: Any) -> Tab:
        context = browser.new_context(**options)
        opened.append((context, Tab(context.new_page(), folder)))
        return opened[-1][1]

    yield new
    for context, _ in opened:
        context.close()
    assert not [trouble for _, one in opened for trouble in one.trouble]
