"""The detect stage through Ray Data and through our pool: speed, a killed driver, a photo that kills, one that hangs.

    python jobs/ingest.py drawn runs/drawn-2000 --users 400 --shops 1600 --seed 1 --shard-images 50
    OMP_NUM_THREADS=1 python benchmarks/ray_data.py --imageset runs/drawn-2000

Same photos, detectors, decoder, batches and threads, two actors of one thread each; every line is a process of its own
with a Ray of its own. `pool` is our stage as jobs/detect.py runs it. `data, rows` is what Ray Data's documents show:
`read_parquet` of the encoded photos, `map_batches` with an actor pool, `write_parquet`, with
`CheckpointConfig(id_column="image_id")`; an input file for each of our shards, which Ray Data reads together, up to
128 MB a block, unless `--small-blocks` is given. `data, shards` reads names of shards instead, and the actor opens the
shard itself as ours does (`id_column="shard"`).

SIGKILL hits the driver when half of the photos have passed the detectors, and the same line is started again. Bytes
read are those of photos, counted where files are opened. The photo that kills and the one that hangs are marked by
bytes after their end; the hook that reads the mark is in this file and wraps the decoder of every way alike.
"""

import argparse
import contextlib
import functools
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # a busy machine starts Ray's helpers slowly

from jobs.runs import cluster, photos
from jobs.runs.catalogue import SHIPPED, choose_models, engine_of, weight_file
from jobs.runs.categories import resolve
from jobs.runs.planning import run_stage
from jobs.runs.run import open_run
from jobs.runs.settings import add_arguments, load
from jobs.stages import detect, order
from store.decode import decode
from store.imageset import ImageSet, Photo, open_imageset
from store.imageset_write import write_imageset

ACTORS, CPUS = 2, 4  # Ray Data's reading and filtering tasks want CPUs beside the actors; ours leaves them idle
KILLS, HANGS = b"this photo kills", b"this photo hangs"
PARTS = ("straight", "kills", "hangs")
WAYS = ("pool", "data, rows", "data, shards")


# ---------------------------------------------------------------------------------------------------------------------
# What every way has in common: photos, models, and a log of what was read and detected.


def note(log: str, **facts: Any) -> None:
    """Append a line to a log that several processes share."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (json.dumps(facts | {"at": time.time()}) + "\n").encode())
    os.close(file)


def notes(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def marked_decode(encoded: Any, *, max_pixels: int) -> Any:
    """`store.decode.decode`, but for two photos."""
    end = bytes(memoryview(encoded)[-len(KILLS) :])
    if end == KILLS:
        os.kill(os.getpid(), signal.SIGKILL)
    if end == HANGS:
        time.sleep(3600)
    return decode(encoded, max_pixels=max_pixels)


def settings_of(args: argparse.Namespace) -> Any:
    line = ["--imageset", args.photos, "--output", args.output, "--set", "device=cpu", "--set", f"actors={ACTORS}"]
    line += ["--set", f"detectors=[{args.detectors}]", "--set", f"shard_deadline_s={args.deadline_s:g}"]
    of_a_run = argparse.ArgumentParser()
    add_arguments(of_a_run)
    return load(of_a_run.parse_args(line))


def parquet_beside(folder: Path) -> Path:
    """The set's shards as Parquet files of image_id and image, and a file a shard that holds its name alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = open_imageset(folder)
    rows, names = folder.with_name(f"{folder.name}-rows"), folder.with_name(f"{folder.name}-names")
    rows.mkdir()
    names.mkdir()
    for shard in images.shards:
        table = images.read(shard.name, ["image_id", "image"])
        pq.write_table(table, rows / f"{shard.name}.parquet", compression="none")
        pq.write_table(pa.table({"shard": [shard.name]}), names / f"{shard.name}.parquet")
    return folder


def copy_marked(source: str, folder: Path, mark: bytes, n_shards: int) -> Path:
    """The first shards of the image set again, the middle photo with a mark behind its last byte."""
    images = open_imageset(source)
    shards = images.shards[:n_shards]
    n = sum(shard.rows for shard in shards)

    def rows() -> Iterator[Photo]:
        number = itertools.count()
        for shard in shards:
            for row in images.read(shard.name).to_pylist():
                encoded = row["image"] + (mark if next(number) == n // 2 else b"")
                yield Photo(
                    row["image_id"], encoded, row["width"], row["height"], row["source"], 0, file_name=row["file_name"]
                )

    source_of = {"adapter": "benchmark", "arguments": {}}
    write_imageset(rows(), folder, source=source_of, max_images=shards[0].rows)
    return parquet_beside(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Our pool.


class WatchedWorker(detect.DetectWorker):
    """The stage's worker, with the hook and the log."""

    log = ""

    def load(self, device: str) -> dict[str, Any]:
        mock.patch.object(photos, "decode", marked_decode).start()
        read, log = ImageSet.read, self.log

        def counted(images: ImageSet, name: str, columns: list[str] | None = None) -> Any:
            table = read(images, name, columns)
            note(log, read=sum(len(image.as_buffer()) for image in table.column("image")))
            return table

        mock.patch.object(ImageSet, "read", counted).start()
        return super().load(device)

    def run(self, job: Any, skip: dict[int, str], single: bool) -> Any:
        began, cpu = time.time(), time.process_time()
        answer = super().run(job, skip, single)
        note(self.log, photos=len(job.rows), began=began, cpu=time.process_time() - cpu)
        return answer


def run_pool(args: argparse.Namespace) -> None:
    settings = settings_of(args)
    WatchedWorker.log = args.log
    cluster.join_ray(CPUS)
    worker = functools.partial(_with_log, args.log)
    with (
        mock.patch("jobs.stages.detect.DetectWorker", worker),
        open_run(settings, SHIPPED, choose_models(settings, SHIPPED)) as run,
    ):
        run_stage(run, order.IN_ORDER, "detect")
        note(args.log, rows=run.selected.images - len(run.failures(run.units["detect"].values())))


def _with_log(log: str, *arguments: Any) -> WatchedWorker:
    worker = WatchedWorker(*arguments)
    worker.log = log  # of the instance, as the class is copied into the actors without it
    return worker


# ---------------------------------------------------------------------------------------------------------------------
# Ray Data.


class Detector:
    """An actor of `map_batches`: the detectors of a run, and its batches and groups."""

    def __init__(self, args: argparse.Namespace) -> None:
        settings = settings_of(args)
        self.log, self.settings, self.images = args.log, settings, open_imageset(args.photos)
        how = {"score_threshold": settings.detect.score_threshold, "max_per_image": settings.detect.max_per_image}
        self.detectors = [
            SHIPPED.load_detector(
                model.spec, "cpu", weights=weight_file(model, settings), engine=engine_of(settings, "cpu"),
                category_ids=model.category_ids, **how,
            )
            for model in resolve(self.images, choose_models(settings, SHIPPED)[0])[1]
        ]  # fmt: skip
        photos.limit_threads(1)

    def found(self, encoded: list[bytes]) -> list[list[float]]:
        """A photo's boxes, scores and categories of all detectors, flat."""
        began, cpu = time.time(), time.process_time()
        pixels = [marked_decode(image, max_pixels=self.settings.max_pixels) for image in encoded]
        each: list[list[float]] = [[] for _ in encoded]
        for detector in self.detectors:
            for flat, found in zip(
                each, detector.detect(pixels, batch_size=self.settings.detect.batch_size), strict=True
            ):
                for column in (found.boxes, found.scores, found.categories):
                    flat += column.ravel().tolist()
        note(self.log, photos=len(encoded), began=began, cpu=time.process_time() - cpu)
        return each


class OfRows(Detector):
    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        found = self.found([image.as_buffer() for image in batch.column("image")])
        return pa.table({"image_id": batch.column("image_id"), "found": found})


class OfShards(Detector):
    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        found = []
        for name in batch.column("shard").to_pylist():
            column = self.images.read(name, ["image"]).column("image")
            note(self.log, read=sum(len(image.as_buffer()) for image in column))
            found.append(self.found([image.as_buffer() for image in column]))
        return pa.table({"shard": batch.column("shard"), "found": found})


def counted_files(log: str) -> Any:
    """The local file system, with a line in the log for each read of a file."""
    import pyarrow as pa
    import pyarrow.fs
    from fsspec.implementations.local import LocalFileSystem

    class Opened:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def read(self, *n: int) -> bytes:
            data: bytes = self.file.read(*n)
            note(log, read=len(data))
            return data

    class Counted(pyarrow.fs.FSSpecHandler):
        def open_input_file(self, path: str) -> Any:
            return pa.PythonFile(Opened(self.fs.open(path, mode="rb")), mode="r")

    return pyarrow.fs.PyFileSystem(Counted(LocalFileSystem()))


def run_data(args: argparse.Namespace) -> None:
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.checkpoint import CheckpointConfig

    by_rows = args.way == "data, rows"
    cluster.join_ray(CPUS)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    images = open_imageset(args.photos)
    if args.small_blocks:
        context.target_max_block_size = max(shard.bytes for shard in images.shards)
    Path(args.output).mkdir(exist_ok=True)
    context.checkpoint_config = CheckpointConfig(
        id_column="image_id" if by_rows else "shard",
        checkpoint_path=f"{args.output}/checkpoint",
        delete_checkpoint_on_success=False,
    )
    retries: dict[str, Any] = {}
    if args.drop_blocks:
        context.max_errored_blocks = -1
        retries["max_task_retries"] = 1
    source = f"{args.photos}-{'rows' if by_rows else 'names'}"
    how: dict[str, Any] = {"override_num_blocks": len(images.shards)}
    if by_rows:
        how["filesystem"] = counted_files(args.log)
    data = ray.data.read_parquet(source, **how)
    mapped = data.map_batches(
        OfRows if by_rows else OfShards, fn_constructor_args=(args,), batch_format="pyarrow",
        batch_size=images.shards[0].rows if by_rows else 1,
        compute=ActorPoolStrategy(size=ACTORS), num_cpus=1, **retries,
    )  # fmt: skip
    mapped.write_parquet(f"{args.output}/found")
    rows = ray.data.read_parquet(f"{args.output}/found")
    note(args.log, rows=rows.count() if by_rows else sum(len(row["found"]) for row in rows.iter_rows()))


# ---------------------------------------------------------------------------------------------------------------------
# One line of the table: a process, and what its log says.


class Trial:
    """A way over a set of photos, in a fresh folder."""

    def __init__(self, args: argparse.Namespace, way: str, folder: Path, photos_of: Path, *more: str) -> None:
        folder.mkdir()
        self.log, self.said, self.n = folder / "log", folder / "said", open_imageset(photos_of).manifest.images
        self.line = [sys.executable, __file__, "--way", way, "--photos", str(photos_of)]
        self.line += ["--output", str(folder / "run"), "--log", str(self.log), "--detectors", args.detectors, *more]
        self.line += ["--small-blocks"] * args.small_blocks

    def run(self, *, limit_s: float, until: float = math.inf) -> tuple[float, bool]:
        """Seconds, and whether it ended by itself; it is killed after `limit_s`, or with a share `until` detected."""
        start = time.monotonic()
        with open(self.said, "ab") as said:
            process = subprocess.Popen(self.line, stdout=said, stderr=said, start_new_session=True)
        while process.poll() is None:
            if time.monotonic() - start > limit_s or self.detected() >= until * self.n:
                process.kill()
                process.wait()
                self._wait_for_the_dead()
                return time.monotonic() - start, False
            time.sleep(0.05)
        return time.monotonic() - start, process.returncode == 0

    def _wait_for_the_dead(self) -> None:
        """Ray's processes follow their driver within seconds; a new start must not find them."""
        seen = -1
        while seen != (seen := len(notes(self.log))):
            time.sleep(5)

    def detected(self) -> int:
        return sum(line.get("photos", 0) for line in notes(self.log))

    def read_mb(self) -> float:
        return sum(line.get("read", 0) for line in notes(self.log)) / 1e6

    def rows(self) -> Any:
        return next((line["rows"] for line in reversed(notes(self.log)) if "rows" in line), "–")

    def cpu_ms(self) -> float:
        """Of an actor for a photo."""
        return 1000 * sum(line.get("cpu", 0) for line in notes(self.log)) / max(self.detected(), 1)

    def rate(self) -> float:
        """Photos a second from the first shard begun to the last detected."""
        turns = [line for line in notes(self.log) if "photos" in line]
        return sum(turn["photos"] for turn in turns) / (turns[-1]["at"] - min(turn["began"] for turn in turns))


def straight_and_killed(args: argparse.Namespace, scratch: Path, photos_of: Path) -> None:
    print(
        "| way | photos/s | CPU ms a photo | whole process, s | read, MB "
        "| after SIGKILL at half: s to finish | read again, MB | photos detected twice |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|"
    )
    for way in args.ways:
        straight = Trial(args, way, scratch / f"straight {way}", photos_of)
        took, ended = straight.run(limit_s=args.limit_s)
        killed = Trial(args, way, scratch / f"killed {way}", photos_of)
        killed.run(limit_s=args.limit_s, until=0.5)
        rest, finished = killed.run(limit_s=args.limit_s)
        assert ended and finished and straight.rows() == killed.rows() == straight.n, (straight.said, killed.said)
        again, twice = killed.read_mb() - straight.read_mb(), killed.detected() - killed.n
        first = f"{straight.rate():.1f} | {straight.cpu_ms():.1f} | {took:.1f} | {straight.read_mb():.1f}"
        print(f"| {way} | {first} | {rest:.1f} | {again:.1f} | {twice} |", flush=True)


def hurt(args: argparse.Namespace, scratch: Path, name: str, photos_of: Path) -> None:
    print(f"\n| a photo that {name} | ended | s | photos with a result |\n|---|---|--:|--:|")
    for way in args.ways:
        variants: list[tuple[str, tuple[str, ...]]] = [(way, ())]
        if way != "pool":
            variants.append((f"{way}, max_errored_blocks=-1, max_task_retries=1", ("--drop-blocks",)))
        for title, more in variants:
            one = Trial(args, way, scratch / f"{name} {title}", photos_of, "--deadline-s", str(args.deadline_s), *more)
            took, ended = one.run(limit_s=args.limit_s)
            how = "by itself" if ended else ("no" if took >= args.limit_s else "with an error")
            rows = one.rows() if ended else f"{one.detected()} detected"
            print(f"| {title} | {how} | {took:.0f} | {rows} of {one.n} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imageset", help="photos; some 50 a shard show what a block is")
    parser.add_argument("--shards", type=int, default=40, help="taken of the image set (40)")
    parser.add_argument("--detectors", default="retinanet-lite0-tiny")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--deadline-s", type=float, default=20.0, help="of our pool for a shard (20)")
    parser.add_argument("--limit-s", type=float, default=240.0, help="after which a line counts as endless (240)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--small-blocks", action="store_true", help="Ray Data: at least a block for each shard")
    for name in ("--way", "--photos", "--output", "--log"):
        parser.add_argument(name, help=argparse.SUPPRESS)  # of the process of one line
    parser.add_argument("--drop-blocks", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        run_pool(args) if args.way == "pool" else run_data(args)
        return
    shards = open_imageset(args.imageset).shards[: args.shards]
    n, mb = sum(shard.rows for shard in shards), sum(shard.bytes for shard in shards) / 1e6
    print(
        f"{n} photos in {len(shards)} shards, {mb:.1f} MB, {args.detectors}, {ACTORS} actors, "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(BrokenPipeError):
        scratch = Path(folder)
        if "straight" in args.parts:
            straight_and_killed(args, scratch, copy_marked(args.imageset, scratch / "photos", b"", args.shards))
        for name, mark in (("kills", KILLS), ("hangs", HANGS)):
            if name in args.parts:
                hurt(args, scratch, name, copy_marked(args.imageset, scratch / name, mark, args.shards))


if __name__ == "__main__":
    main()
