"""Training a detector: stopped and started again it ends where a straight run ends, and its weights load."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import train_detector
from jobs.cli import UserError


@pytest.fixture(scope="module")
def drawn_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from retrieval.datasets import drawn
    from store.imageset import write_imageset

    folder = tmp_path_factory.mktemp("drawn") / "set"
    write_imageset(drawn.read(users=16, shops=16, seed=5, size_px=160), folder, source={"adapter": "drawn"})
    return folder


def line(drawn_set: Path, output: Path, *more: str) -> list[str]:
    words = f"--model centernet-tiny --imageset {drawn_set} --output {output} --steps 4 --batch-size 2 --save-every 2 --threads 1"
    return [*words.split(), *more]


def test_stopped_and_continued_it_ends_like_a_straight_run(
    drawn_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detection import detector, models, training

    assert train_detector.main(line(drawn_set, tmp_path / "straight")) == 0

    whole, seen = training.losses, []

    def stop_at_the_third_step(*args: Any) -> Any:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(training, "losses", stop_at_the_third_step)
    with pytest.raises(KeyboardInterrupt):
        train_detector.main(line(drawn_set, tmp_path / "broken"))
    monkeypatch.setattr(training, "losses", whole)
    assert train_detector.main(line(drawn_set, tmp_path / "broken")) == 0
    assert "going on at step 2" in capsys.readouterr().out

    name = "centernet-tiny.safetensors"
    assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    summary = json.loads((tmp_path / "straight" / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["held_out"]["images"] > 0

    spec = models.from_fields({"name": "mine", "base": "centernet-tiny", "sha256": summary["sha256"]})
    loaded = detector.load(spec, "cpu", weights=tmp_path / "straight" / name)
    assert loaded.spec.name == "mine"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--model", "atss"], "no detector named 'atss'; there are: atss-tiny"),
        (["--init-from", "absent.safetensors"], "--init-from absent.safetensors"),
        (["--imageset", "absent"], "absent"),
    ],
)
def test_mistakes_are_said_in_one_line(drawn_set: Path, tmp_path: Path, more: list[str], reason: str) -> None:
    with pytest.raises(Exception, match=reason) as caught:
        train_detector.main(line(drawn_set, tmp_path / "out", *more))
    assert isinstance(caught.value, UserError) or getattr(caught.value, "user_facing", False)


def test_a_checkpoint_of_another_training_is_refused(drawn_set: Path, tmp_path: Path) -> None:
    train_detector.main(line(drawn_set, tmp_path, "--steps", "2"))
    with pytest.raises(UserError, match="with steps 2, not 4; use another --output"):
        train_detector.main(line(drawn_set, tmp_path))


@pytest.mark.parametrize(("step", "want"), [(0, 1 / 10), (9, 1.0), (10, 1.0), (60, 0.01 + 0.99 / 2), (110, 0.01)])
def test_the_rate_rises_then_falls_by_half_a_cosine(step: int, want: float) -> None:
    from jobs.training_run import rate_share

    assert rate_share(step, steps=110, warm_up=10) == pytest.approx(want)
