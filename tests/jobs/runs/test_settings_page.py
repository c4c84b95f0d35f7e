"""docs/settings.md is what the settings say of themselves."""

from pathlib import Path

from jobs.runs.settings import Settings
from jobs.runs.settings_page import page

REPO = Path(__file__).resolve().parents[3]


def test_the_page_is_current() -> None:
    kept = (REPO / "docs" / "settings.md").read_text(encoding="utf-8")
    assert kept == page(), "run `python -m jobs.runs.settings_page`"


def test_every_setting_says_what_it_is_for() -> None:
    schema = Settings.model_json_schema()
    fields = [f for part in (schema, *schema["$defs"].values()) for f in part["properties"].values() if "$ref" not in f]
    assert len(fields) > 50
    for field in fields:
        assert field["description"][0].isupper() and field["description"].endswith("."), field


def test_a_row_holds_default_bounds_and_what_a_profile_changes() -> None:
    want = "| a number from 0 to 1 | `0.55`; tiny: `0.65` |"
    (row,) = [line for line in page().splitlines() if line.startswith("| `fusion.iou_threshold` |")]
    assert row.endswith(want)
