"""Training a detector: stopped and started again it ends where a straight run ends, alone or on several workers."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import train_detector
from jobs.runs.settings import Settings
from jobs.training.launch import World
from store.errors import UserError

REPO = Path(__file__).parents[2]
NAME = "centernet-tiny.safetensors"


@pytest.fixture(scope="module")
def drawn_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sources.drawn import source as drawn
    from store.imageset_write import write_imageset

    folder = tmp_path_factory.mktemp("drawn") / "set"
    write_imageset(drawn.read(users=16, shops=16, seed=5, size_px=160), folder, source={"adapter": "drawn"})
    return folder


def line(drawn_set: Path | str, output: Path | str, *more: str) -> list[str]:
    """A command; `more` goes in place of the flags that it names, and adds an image set."""
    usual = {"--model": "centernet-tiny", "--steps": "4", "--batch-size": "2", "--save-every": "2", "--threads": "1"}
    words = [word for flag, value in usual.items() if flag not in more for word in (flag, value)]
    return [*words, "--imageset", str(drawn_set), "--output", str(output), *more]


def log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (output / "log.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ alone


@pytest.mark.slow
def test_stopped_and_continued_it_ends_like_a_straight_run(
    drawn_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detection import detector, models, training

    changes = ("--mosaic", "0.3", "--copy-paste", "0.3", "--accumulate", "2", "--log-every", "2")
    assert train_detector.main(line(drawn_set, tmp_path / "straight", *changes)) == 0
    assert "centernet-tiny 4/4 loss" in (said := capsys.readouterr().out) and "steps/s, 0 s to go" in said

    whole, seen = training.losses, []

    def stop_in_the_third_step(*args: Any) -> Any:
        seen.append(1)
        if len(seen) == 5:  # two parts a step
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(training, "losses", stop_in_the_third_step)
    with pytest.raises(KeyboardInterrupt):
        train_detector.main(line(drawn_set, tmp_path / "broken", *changes))
    monkeypatch.setattr(training, "losses", whole)
    assert train_detector.main(line(drawn_set, tmp_path / "broken", *changes)) == 0
    assert "continuing at step 2" in capsys.readouterr().out

    assert (tmp_path / "straight" / NAME).read_bytes() == (tmp_path / "broken" / NAME).read_bytes()
    told = [
        [(row["step"], row["part"], row.get("loss"), row.get("AP")) for row in log_of(tmp_path / which)]
        for which in ("straight", "broken")
    ]
    assert told[0] == told[1] and [row[:2] for row in told[0]] == [
        (2, "train"),
        (4, "train"),
        (4, "held_out"),
        (4, "validation"),
    ]
    summary = json.loads((tmp_path / "straight" / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["held_out"]["images"] > 0 and summary["validation"] == {}
    page = (tmp_path / "straight" / "report" / "index.html").read_text()
    assert "Training of centernet-tiny" in page and "Average precision by category" in page

    spec = models.from_fields({"name": "mine", "base": "centernet-tiny", "sha256": summary["sha256"]})
    loaded = detector.load(spec, "cpu", weights=tmp_path / "straight" / NAME)
    assert loaded.spec.name == "mine"


def test_a_finished_training_told_again_says_the_same(drawn_set: Path, tmp_path: Path) -> None:
    train_detector.main(line(drawn_set, tmp_path, "--steps", "2"))
    files = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.glob("*.*")}
    assert set(map(str, files)) == {"log.jsonl", "summary.json", NAME}
    train_detector.main(line(drawn_set, tmp_path, "--steps", "2"))
    assert (tmp_path / NAME).read_bytes() == files[Path(NAME)] and (tmp_path / "log.jsonl").read_bytes() == files[
        Path("log.jsonl")
    ]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--model", "atss"], "no detector named 'atss'; there are: atss-tiny"),
        (["--init-from", "absent.safetensors"], "--init-from absent.safetensors: no such file"),
        (["--init-from", __file__], "--init-from .*test_train_detector.py: "),
        (["--imageset", "absent"], "absent"),
        (["--validation", "absent"], "absent"),
        (["--mixture", "m0"], "--mixture and --data go together"),
        (["--batch-size", "6", "--workers", "2", "--accumulate", "2"], "--batch-size 6: want a multiple of .* 4"),
    ],
)
def test_mistakes_are_said_in_one_line(drawn_set: Path, tmp_path: Path, more: list[str], reason: str) -> None:
    with pytest.raises(Exception, match=reason) as caught:
        train_detector.main(line(drawn_set, tmp_path / "out", *more))
    assert getattr(caught.value, "user_facing", False)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--zoom", "2,1"], "argument --zoom: want LOW,HIGH with 0 < LOW <= HIGH, got 2,1"),
        (["--mosaic", "1.5"], "argument --mosaic: want a number from 0 to 1, got 1.5"),
        (["--drops", "0.5,3"], "argument --drops: want a number from 0 to 1, got 3"),
        (["--ema-decay", "1"], "argument --ema-decay: want a number from 0 to below 1, got 1"),
        (["--steps", "0"], "argument --steps: want a whole number from 1 to 2147483648, got 0"),
    ],
)
def test_values_out_of_range_are_refused(more: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train_detector.main(line("set", "out", *more))
    assert caught.value.code == 2 and reason in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_the_training(
    drawn_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detection import training

    whole = training.losses
    monkeypatch.setattr(training, "losses", lambda *args: {k: v * math.nan for k, v in whole(*args).items()})
    with pytest.raises(UserError, match=r"centernet-tiny, step 0: the loss is nan; try a lower --lr than 0\.0012"):
        train_detector.main(line(drawn_set, tmp_path))


def test_a_checkpoint_of_another_training_is_refused(drawn_set: Path, tmp_path: Path) -> None:
    train_detector.main(line(drawn_set, tmp_path, "--steps", "2"))
    with pytest.raises(UserError, match="with steps 2, not 4; use another --output"):
        train_detector.main(line(drawn_set, tmp_path))
    with pytest.raises(UserError, match="with data "):
        train_detector.main(line(drawn_set, tmp_path, "--steps", "2", "--imageset", f"{drawn_set}:0.5"))


def test_photos_that_judge_are_not_learnt_from(tmp_path: Path) -> None:
    from detection.models import CENTERNET_TINY
    from jobs.training.detector import DetectorTraining, photo_counts
    from sources.drawn import source as drawn
    from store.imageset_write import write_imageset

    rows = list(drawn.read(users=16, shops=16, seed=5, size_px=160))
    write_imageset(rows, tmp_path / "learn", source={"adapter": "drawn"})
    write_imageset(rows[:5], tmp_path / "val", source={"adapter": "drawn"})
    more = ("--validation", str(tmp_path / "val"), "--imageset", f"{tmp_path / 'learn'}:0.25", "--user-weight", "4")
    args = train_detector.parse(line(tmp_path / "learn", tmp_path, *more))
    photos = DetectorTraining(args, CENTERNET_TINY, World())
    aside = sum((row.pair_id or row.image_id) % 10 == 0 for row in rows[5:])
    assert photos.set.left_out["in the validation set"] == 2 * 5 and len(photos.validation) == 5
    assert len(photos.held_out) == 2 * aside and len(photos.learn) == 2 * (len(rows) - 5 - aside)
    assert set(photos.learn.weights) == {1.0, 4.0, 0.25}
    assert (
        photo_counts(photos.learn, photos.held_out, photos.set)
        == f"{len(photos.learn)} photos to learn from, {2 * aside} held out (10 in the validation set left out)"
    )


def test_a_set_without_pairs_is_held_out_by_photo(tmp_path: Path) -> None:
    import dataclasses

    from detection.models import CENTERNET_TINY
    from jobs.training.detector import DetectorTraining
    from sources.drawn import source as drawn
    from store.imageset_write import write_imageset

    rows = [dataclasses.replace(row, pair_id=0) for row in drawn.read(users=0, shops=20, seed=5, size_px=160)]
    write_imageset(rows, tmp_path / "set", source={"adapter": "drawn"})
    photos = DetectorTraining(train_detector.parse(line(tmp_path / "set", tmp_path)), CENTERNET_TINY, World())
    assert (len(photos.learn), len(photos.held_out)) == (18, 2)


# ---- a bucket, several workers ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_bucket_holds_the_training_and_its_newest_checkpoints(
    drawn_set: Path, tmp_path: Path, s3_bucket: str, s3_client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"{s3_bucket}/train/one"
    train_detector.main(line(drawn_set, output, "--save-every", "1", "--keep", "2"))
    listed = s3_client.list_objects_v2(Bucket=s3_bucket.removeprefix("s3://"), Prefix="train/one/")["Contents"]
    keys = {entry["Key"].removeprefix("train/one/") for entry in listed}
    events = {key for key in keys if key.startswith("tensorboard/events.")}
    pictures = {key for key in keys if key.startswith("report/pictures/")}
    assert keys - events - pictures == {
        "checkpoints/step-00000003.pt",
        "checkpoints/step-00000004.pt",
        "log.jsonl",
        "report/assets/charts.js",
        "report/assets/report.css",
        "report/index.html",
        "summary.json",
        NAME,
    }
    assert len(events) == 1

    train_detector.main(line(drawn_set, tmp_path / "straight"))
    name = f"train/one/{NAME}"
    shipped = s3_client.get_object(Bucket=s3_bucket.removeprefix("s3://"), Key=name)["Body"].read()
    assert shipped == (tmp_path / "straight" / NAME).read_bytes()
    train_detector.main(line(drawn_set, output, "--save-every", "1", "--keep", "2"))
    assert "continuing at step 4" in capsys.readouterr().out


def goes_on_from(source: Path, target: Path, checkpoint: str) -> None:
    """A training's folder as it was at one of its checkpoints."""
    (target / "checkpoints").mkdir(parents=True)
    shutil.copy(source / "checkpoints" / checkpoint, target / "checkpoints")
    shutil.copy(source / "log.jsonl", target)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_go_on_from_one_and_one_of_them_dies(drawn_set: Path, tmp_path: Path) -> None:
    """CenterNet normalises by a part's garments, as with two parts on one worker: equal up to rounding.

    A process of its own, because Ray stays with the one that started it.
    """
    from safetensors.torch import load_file

    more = ("--steps", "14", "--log-every", "2", "--ema-decay", "0")
    train_detector.main(line(drawn_set, tmp_path / "alone", *more, "--accumulate", "2", "--keep", "9"))
    goes_on_from(tmp_path / "alone", tmp_path / "shared", "step-00000002.pt")
    argv = [sys.executable, "jobs/train_detector.py", *line(drawn_set, tmp_path / "shared", *more, "--workers", "2")]
    said, victim = [], 0
    with subprocess.Popen(argv, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        assert job.stdout is not None
        for text in job.stdout:
            said.append(text)
            found = re.search(r"pid=(\d+)\) world_rank=1", text)
            victim = int(found[1]) if found and not victim else victim
            if "centernet-tiny 6/14" in text and victim > 0:
                os.kill(victim, signal.SIGKILL)
                victim = -1
    everything = "".join(said)
    assert job.returncode == 0, everything
    starts = [int(step) for step in re.findall(r"continuing at step (\d+)", everything)]
    assert starts[0] == 2 and len(starts) == 2 and starts[1] >= 4
    assert [row["step"] for row in log_of(tmp_path / "shared") if row["part"] == "train"] == list(range(2, 15, 2))

    alone, shared = (load_file(tmp_path / which / NAME) for which in ("alone", "shared"))
    for name, tensor in alone.items():  # 12 steps of at most 3e-4 (the warm-up) each, so another batch would show
        assert (tensor.float() - shared[name].float()).abs().max() < 1e-3, name


# ---- categories of its own --------------------------------------------------------------------------------------


def test_it_learns_the_joined_categories_of_its_sets_and_names_them_in_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.runs import catalogue
    from sources.drawn import source as drawn
    from store.categories import DEEPFASHION2
    from store.imageset import Photo
    from store.imageset_write import write_imageset

    def own(ids: dict[int, int], seed: int, photo: Photo) -> Photo:
        """Drawn garments under a few ids; a photo has an id of its own in each set."""
        items = tuple(dataclasses.replace(item, category_id=ids[item.category_id % len(ids)]) for item in photo.items)
        pair_id = 10 if photo.image_id % 3 == 0 else photo.pair_id  # pair 10 is held out
        return dataclasses.replace(photo, image_id=photo.image_id + seed, pair_id=pair_id, items=items)

    for name, seed, categories in (("one", 5, ("kilt", "cape")), ("two", 6, ("hood", "kilt"))):
        rows = [own({0: 1, 1: 2}, seed, row) for row in drawn.read(users=14, shops=14, seed=seed, size_px=160)]
        write_imageset(rows, tmp_path / name, source={"adapter": "drawn"}, categories=categories)
    more = ["--imageset", str(tmp_path / "two"), "--steps", "2"]
    start = ["--init-from", str(REPO / "weights" / "tiny" / NAME)]
    assert train_detector.main(line(tmp_path / "one", tmp_path / "out", *more, *start)) == 0
    assert "2 that tell categories apart start anew" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["categories"] == ["kilt", "cape", "hood"] and summary["held_out"]["AP10"] is None

    settings = Settings(
        imageset="in", output="out", detectors=({"name": "mine", "base": "centernet-tiny", "weights": NAME},),
        weights_dir=str(tmp_path / "out"), allow_random_weights=True,
    )  # fmt: skip
    (mine,), _ = catalogue.choose_models(settings, catalogue.SHIPPED)
    assert mine.spec.categories == ("kilt", "cape", "hood") and mine.spec.model["bbox_head"]["num_classes"] == 3
    other = {"name": "mine", "base": "centernet-tiny", "weights": NAME, "categories": ["kilt", "cape", "coat"]}
    with pytest.raises(UserError, match="trained for kilt, cape, hood, and its entry names kilt, cape, coat"):
        catalogue.choose_models(settings.replace(detectors=(other,)), catalogue.SHIPPED)

    # a set to validate by that has what nobody learns
    write_imageset(rows[:4], tmp_path / "val", source={"adapter": "drawn"}, categories=DEEPFASHION2)
    with pytest.raises(UserError, match="has the category 'short sleeve top', so nothing is learnt of it"):
        train_detector.main(line(tmp_path / "one", tmp_path / "no", "--validation", str(tmp_path / "val")))
