"""What a start and `status` of a large run ask of a bucket that takes its time over each request.

    python benchmarks/planning_in_a_bucket.py --shards 10000

SeaweedFS in this machine, and before it a proxy that holds each request back for `--delay-ms` (50), as a distant bucket
does. Five detectors, fusion and one embedder over made-up shards: a mark and its outputs (empty objects) for each. No
photo is stored, no model and no Ray runs. `start` opens the run as `jobs/full_eval.py` does, plans all stages and does
nothing; the image set is its manifest alone. Each row is a process of its own:

    first          OUTPUT is empty
    resumed        half of detect is finished; there are marks alone, as an earlier release left them
    resumed again  the same once more
    finished       all of detect, fuse and embed is finished; marks alone likewise
    finished again the same once more
    status         of the finished run

`--keep FOLDER` keeps the server's data, so that another checkout can be measured by the same marks.
"""

import argparse
import asyncio
import contextlib
import http.client
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

REPO = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(REPO), str(REPO / "tests")]

from seaweed import Seaweed

from detection.models import ATSS_TINY
from jobs import status
from jobs.runs import marks
from jobs.runs.catalogue import SHIPPED
from jobs.runs.marks import Outcome, Unit
from jobs.runs.models import Model
from jobs.runs.planning import plan
from jobs.runs.run import Run, open_run
from jobs.runs.run_record import read_record
from jobs.runs.selection import Selected, ShardTaken
from jobs.runs.settings import Settings
from jobs.stages import order
from retrieval.models import LITE0_SG
from store.categories import DEEPFASHION2
from store.files import digest
from store.objects import open_store

BUCKET, DETECTORS, SHARD, STAGES = "planning", 5, 256, ("detect", "fuse", "embed")
EMPTY = '0 "d41d8cd98f00b204e9800998ecf8427e"'  # the stamp of an empty object: its ETag is the MD5
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
PARTS = ("first", "resumed", "resumed again", "finished", "finished again", "status")


# ---------------------------------------------------------------------------------------------------------------------
# The run that is measured.


@contextlib.contextmanager
def opened(output: str, n_shards: int) -> Iterator[Run]:
    """`open_run` over an image set that is made up."""
    shards = tuple(ShardTaken(f"shard-{i:05d}", digest(b"%d" % i), SHARD, None, 10_000_000) for i in range(n_shards))
    selected = Selected(shards, None, SHARD * n_shards // 2, SHARD * n_shards // 2, 400 * n_shards, 200 * n_shards)
    detectors = tuple(Model(f"detector{i}", ATSS_TINY, digest(b"d%d" % i), "") for i in range(DETECTORS))
    embedders = (Model("embedder", LITE0_SG, digest(b"e"), ""),)
    settings = Settings(
        imageset=("made up",),
        output=output,
        boxes=("detected",),
        detectors=tuple(model.name for model in detectors),
        embedders=("embedder",),
    )
    more: dict[str, Any] = {"categories": DEEPFASHION2, "check_ids": lambda: None, "uri": "made up"}
    images: Any = SimpleNamespace(digest="made up", shards=shards, manifest=SimpleNamespace(source={}), **more)
    images.sets = (images,)
    with (
        mock.patch("jobs.runs.run.select", lambda *_: selected),
        open_run(settings, SHIPPED, (detectors, embedders), images=images) as run,
    ):
        yield run


def planned(run: Run) -> Iterator[Unit]:
    """The units of the measured stages, each marked as done in turn, so that those after it have a basis."""
    for stage in STAGES:
        for unit in plan(run, order.IN_ORDER, stage):
            outputs = {key: digest(key.encode()) for key in unit.outputs}
            seconds = {"read": 1.234, "infer": 12.345, "write": 0.123}
            stamps = dict.fromkeys(outputs, EMPTY)
            run.marks[unit.path] = marks.mark_of(unit, Outcome(outputs, SHARD, seconds), stamps)
            run.present |= stamps
            yield unit


def fill(server: Seaweed, n_shards: int) -> None:
    """Write run.json, marks and outputs of both runs past S3, by eight threads."""
    import boto3

    boto3.client("s3", endpoint_url=server.url).create_bucket(Bucket=BUCKET)
    with tempfile.TemporaryDirectory() as scratch, opened(scratch, n_shards) as run:
        units, record = list(planned(run)), marks.as_json(run.description())
        half = DETECTORS * n_shards // 2
        objects = {
            f"{output}/{key}": data
            for output, finished in (("half", units[:half]), ("whole", units))
            for unit in finished
            for key, data in (
                *((key, b"") for key in unit.outputs),
                (unit.mark_key, marks.as_json(run.marks[unit.path])),
            )
        }
        objects |= {f"{output}/run.json": record for output in ("half", "whole")}
    names = sorted(objects)

    def write(part: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.ports["filer"][0], timeout=60)
        for name in names[part::8]:
            connection.request("PUT", f"/buckets/{BUCKET}/{name}", objects[name])
            reply = connection.getresponse()
            reply.read()
            assert reply.status == 201, (name, reply.status)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))


def measure(part: str, n_shards: int) -> None:
    """One part, in this process; prints a row."""
    from botocore.httpsession import URLLib3Session

    sent: list[str] = []
    send = URLLib3Session.send

    def counted(self: Any, request: Any) -> Any:
        sent.append(request.method)
        return send(self, request)

    place = f"s3://{BUCKET}/" + {"first": "first", "resumed": "half"}.get(part.split()[0], "whole")
    open_store(place).exists("nothing")  # the libraries are loaded, and the client is made
    wall, cpu = time.perf_counter(), time.process_time()
    with mock.patch.object(URLLib3Session, "send", counted):
        if part == "status":
            store = open_store(place)
            done = "\n".join(status.run_lines(status.run_status(store, read_record(store))))
        else:
            with opened(place, n_shards) as run:
                done = "\n".join(order.plan_lines(run, STAGES))
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if part == "status":
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    n_done = {"first": 0, "resumed": DETECTORS * n_shards // 2}.get(part.split()[0], DETECTORS * n_shards)
    assert f"{n_done:6} of {DETECTORS * n_shards} done" in done, done
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"| {part} | {len(sent):,} | {wall:.1f} | {cpu:.1f} | {peak:.0f} |", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# The proxy.


async def hold_back(port: int, server_port: int, delay_s: float) -> None:
    """Pass bytes on, those towards the server `delay_s` after they came."""

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait_s: float) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 20):
                await asyncio.sleep(wait_s)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", server_port)
        await asyncio.gather(passed(reader, server_writer, delay_s), passed(server_reader, writer, 0))

    async with await asyncio.start_server(connected, "127.0.0.1", port) as listening:
        await listening.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--delay-ms", type=float, default=50.0, help="of each request (50)")
    parser.add_argument("--keep", type=Path, help="folder of the server's data, made where it does not exist")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="rows of the table (all)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--proxy", type=int, nargs=2, metavar=("PORT", "SERVER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.proxy:
        asyncio.run(hold_back(args.proxy[0], args.proxy[1], args.delay_ms / 1e3))
    elif args.part:
        measure(args.part, args.shards)
    else:
        measure_all(args)


def measure_all(args: argparse.Namespace) -> None:
    os.environ.update(CREDENTIALS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        with Seaweed(folder) as server:
            if not (folder / "filled").exists():
                fill(server, args.shards)
                (folder / "filled").touch()
            print(
                f"{args.shards:,} shards, {args.delay_ms:g} ms a request, load {os.getloadavg()[0]:.1f}\n\n"
                "| | requests | wall s | CPU s | most memory, MB |\n|---|--:|--:|--:|--:|",
                flush=True,
            )
            port = server.ports["s3"][0] + 10_000 if server.ports["s3"][0] < 50_000 else server.ports["s3"][0] - 10_000
            line = [sys.executable, __file__, "--delay-ms", str(args.delay_ms), "--shards", str(args.shards)]
            proxy = subprocess.Popen([*line, "--proxy", str(port), str(server.ports["s3"][0])])
            try:
                time.sleep(2.0)
                os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
                for part in args.parts:
                    subprocess.run([*line, "--part", part], check=True)
            finally:
                proxy.kill()


if __name__ == "__main__":
    main()
