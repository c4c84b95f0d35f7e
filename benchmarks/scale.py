"""The table of docs/scale.md: what galleries of 1 M to 1 G garments take, from costs that were measured.

    python benchmarks/scale.py

Every constant says what was measured, where, and in which file the figure stands; every figure of the table is such a
constant times a number of garments, photos or files. Nothing is measured here. A cost that is not linear (training of
clusters, the depth of an index) is named in docs/scale.md.
"""

from dataclasses import dataclass

SIZES = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)  # garments
GARMENTS_A_PHOTO = 1.4  # worth embedding: 2,621 of 1,896 photos of ccp_df2 val
PHOTO_KB = 18  # ccp_df2 val: 33.6 MB of 1,896 photos. A shop's own are some 100 kB
SHARD_PHOTOS = 256
DIM, BYTES = 512, 4  # an embedding of lite0-sg, float32
DETECTORS, EMBEDDERS = 5, 3
PART_ROWS = 10_000_000  # garments of an index that a machine of 32 GB builds and serves
# Object storage: what a thousand requests cost by price class, USD, and a GB a month; Amazon's list for us-east-1
PUT_PRICE, GET_PRICE, GB_MONTH = 0.005, 0.0004, 0.023


@dataclass(frozen=True)
class Cost:
    """A step's cost: `each` of `unit` for a million of `of` ("photos", "garments" or "units")."""

    step: str
    each: float
    unit: str
    of: str
    measured: str  # on what, and where the figure stands


COSTS = (
    Cost(
        "detect, tiny profile, CPU",
        25.9,
        "core h",
        "photos",
        "23.9 s for 256 photos, two_checkouts.py; 42.9 with AVX2 alone",
    ),
    Cost("detect, tiny profile, GPU", 6.0, "GPU h", "photos", "41 s for 1,896 photos, four actors on one H100, gpu.py"),
    Cost("fuse", 0.083, "core h", "photos", "0.3 ms a photo, docs/watching.md"),
    Cost("embed, tiny profile, CPU", 15.5, "core h", "photos", "14.3 s for 256 photos, two_checkouts.py"),
    Cost("embed, tiny profile, GPU", 0.88, "GPU h", "photos", "6 s for 1,896 photos, four actors on one H100, gpu.py"),
    Cost("driver: plan and marks", 0.0005, "core h", "photos", "bookkeeping.py, 1 M photos"),
    Cost("driver: a start of a finished run", 0.0008, "core h", "photos", "bookkeeping.py, 1 M photos"),
    Cost("index: train and fill ivf_pq", 0.0156, "core h", "garments", "56 CPU s for 1,000,000 x 512, ann.py"),
    Cost("index: gate, copies aside", 0.0028, "core h", "garments", "10 CPU s for 1 M x 512, version_at_size.py"),
    Cost("index: a night's 1 % changed, written", 0.0048, "core h", "garments", "17 CPU s, version_at_size.py"),
    Cost("evaluate (where there is truth)", 0.142, "core h", "photos", "51 CPU s for 100,000 photos, evaluation.py"),
    Cost("a million queries at 1 M garments", 0.094, "core h", "queries", "2,970 a CPU s at recall 0.963, ann.py"),
)
# MB of memory for a million photos: a start of a finished run, a night's comparison (bookkeeping.py, 1 M photos)
DRIVER_MB, NIGHT_MB, BASE_GB = 202.0, 359.0, 0.2


def photos_of(garments: int) -> float:
    return garments / GARMENTS_A_PHOTO


def hours(cost: Cost, garments: int) -> float:
    n = {"photos": photos_of(garments), "garments": float(garments), "queries": 1e6}[cost.of]
    return cost.each * n / 1e6


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def line(name: str, values: list[str], note: str) -> str:
    return f"| {name} | {' | '.join(values)} | {note} |"


def requests(garments: int) -> tuple[float, float]:
    """PUT and GET requests of a first run: two stages read a shard, tables and marks are written and read once."""
    shards = photos_of(garments) / SHARD_PHOTOS
    units = shards * (DETECTORS + 1 + EMBEDDERS)
    files = shards * (DETECTORS + 2 + EMBEDDERS)  # a shard's tables; fuse writes two
    return files + units, 2 * shards + files + shards * (DETECTORS + EMBEDDERS)


def table() -> list[str]:
    lines = [line("", [f"{n / 1e6:,.0f} M" for n in SIZES], "measured"), f"|---|{'--:|' * len(SIZES)}---|"]
    lines.append(
        line("photos", [f"{photos_of(n) / 1e6:,.1f} M" for n in SIZES], f"{GARMENTS_A_PHOTO} garments a photo")
    )
    for cost in COSTS:
        values = [number(hours(cost, n)) for n in SIZES]
        lines.append(line(f"{cost.step}, {cost.unit}", values, cost.measured))
    rows = [n * DIM * BYTES / 1e9 for n in SIZES]
    codes = [78 * n / 1e9 for n in SIZES]  # 78 MB a million
    lines.append(line("embeddings of one model on disk, GB", [number(v) for v in rows], "512 float32 a garment"))
    lines.append(
        line("photos in the bucket, GB", [number(photos_of(n) * PHOTO_KB / 1e6) for n in SIZES], "18 kB a photo")
    )
    lines.append(line("index in memory, GB", [number(v) for v in codes], "78 MB a million, ann.py"))
    lines.append(line("parts of the index", [number(max(1, n / PART_ROWS)) for n in SIZES], "10 M garments a part"))
    driver = [BASE_GB + photos_of(n) / 1e6 * DRIVER_MB / 1e3 for n in SIZES]
    lines.append(line("driver's memory while a run starts again, GB", [number(v) for v in driver], "bookkeeping.py"))
    night = [BASE_GB + photos_of(n) / 1e6 * NIGHT_MB / 1e3 for n in SIZES]
    lines.append(line("memory of a night's comparison, GB", [number(v) for v in night], "bookkeeping.py"))
    puts, gets = zip(*(requests(n) for n in SIZES), strict=True)
    lines.append(line("PUT requests (class A)", [number(v) for v in puts], "files of a shard, counted"))
    lines.append(line("GET requests (class B)", [number(v) for v in gets], "the same"))
    dollars = [(p * PUT_PRICE + g * GET_PRICE) / 1e3 for p, g in zip(puts, gets, strict=True)]
    lines.append(line("requests, USD", [number(v) for v in dollars], "0.005 and 0.0004 a thousand"))
    stored = [(photos_of(n) * PHOTO_KB / 1e6 + row_gb) * GB_MONTH for n, row_gb in zip(SIZES, rows, strict=True)]
    lines.append(line("photos and embeddings, USD a month", [number(v) for v in stored], "0.023 a GB"))
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
