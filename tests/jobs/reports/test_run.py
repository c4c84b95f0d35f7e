"""The page of times, logs and failures."""

import json

from report_runs import build, write_rows

from jobs.runs import tables


def test_failures_are_counted_and_the_first_fifty_shown(four):
    output, images = four
    rows = [
        {"image_id": 1000 + i, "shard": "shard-00000", "stage": "detect", "reason": "empty file"} for i in range(120)
    ]
    write_rows(output, "failures.parquet", tables.FAILURES, rows)
    text = build(output, images).text
    assert "120 images, the first 50 shown" in text and text.count("empty file") == 50


def test_logs_are_added_up_over_all_starts(four):
    output, images = four
    shard = {"event": "shard", "stage": "detect", "images": 4, "wall_s": 3.0, "waited_s": 1.0, "peak_mb": 500.0}
    first = [shard | {"actor": "a"}, shard | {"actor": "b", "peak_mb": 1500.0}, {"event": "died", "stage": "detect"}]
    output.write("logs/one-000.jsonl", "\n".join(json.dumps(line) for line in first).encode() + b'\n{"event": "sha')
    output.write("logs/two-000.jsonl", json.dumps(shard | {"actor": "a"}).encode())
    page = build(output, images).pages["run"]
    cells = "".join(f'<td class="n">{value}</td>' for value in ("3", "12", "2", "75.0", "1,500"))  # busy: 9 of 12 s
    assert f'<th scope="row">detect</th>{cells}' in page.source
    assert [t["href"] for t in page.of("a") if "logs/" in str(t["href"])] == [
        "../logs/one-000.jsonl",
        "../logs/two-000.jsonl",
    ]
