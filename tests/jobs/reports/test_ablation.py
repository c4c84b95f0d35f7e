"""The page of an ablation: variants, intervals, queries that were helped and hurt."""

import pytest
import report_runs as runs
from report_runs import build, write_rows

from jobs.runs import tables


def test_an_ablation_has_its_page(four):
    output, images = four
    write_rows(output, "ablation.parquet", runs.ABLATION, runs.ablation_rows())
    found = build(output, images)
    page = found.pages["ablation"]
    assert [tag["href"] for tag in found.pages["index"].of("a")].count("ablation.html") == 1
    for words in (
        "kreciprocal <b>",
        "+12.5",
        "[+2.5, +22.5]",
        "[−5.0, +25.0]",
        "12.25",
        "1 helped, 1 hurt",
        "none → 2",
        "1 → none",
    ):
        assert words in page.words
    assert 'title="concat, kreciprocal k1=20"' in page.source
    assert [image["src"] for image in page.of("img")] == ["pictures/query-3-0.jpg", "pictures/query-1-0.jpg"]
    (chart, alone) = found.data["charts-ablation"]
    better = chart["choices"][0]["series"][1]
    assert (better["x"], better["y"], better["bars"]) == (
        [12.25],
        [62.5],
        [[10.0, 10.0]],
    )  # 62.5 - (12.5 - 2.5), + (22.5 - 12.5)
    assert alone["choices"][0]["series"][0]["x"] == []  # fusing: no seconds known


def test_an_ablation_of_another_kind_is_refused(four):
    output, images = four
    write_rows(output, "ablation.parquet", tables.FAILURES, [])
    with pytest.raises(ValueError, match="no column part, boxes"):
        build(output, images)
