"""Each published data set and each mixture, from a miniature tree to a trained and judged embedder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import ingest, train_embedder
from store.imageset import open_imageset
from store.imageset_write import write_imageset
from tests.jobs.pictures import patch
from tests.sources import miniatures

MINIATURES: dict[str, Callable[[Path], object]] = {
    "deepfashion2": miniatures.deepfashion2,
    "street2shop": miniatures.street2shop,
    "darn": miniatures.darn,
    "mvc": miniatures.mvc,
    "mpv": miniatures.mpv,
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image set under each data set's name, made by the command line."""
    root = tmp_path_factory.mktemp("sets")
    for name, draw in MINIATURES.items():
        draw(root / "trees" / name)
        assert ingest.main([name, str(root / "trees" / name), str(root / name)]) == 0
    # the trees share pictures, which could not be learnt from while they judge
    others = [patch(2 * pair + side, pair, ("user", "shop")[side]) for pair in range(1, 6) for side in (0, 1)]
    write_imageset(others, root / "others", source={"adapter": "test", "arguments": {}})
    return root


def train(output: Path, *words: str) -> dict:
    fixed = (
        f"--model lite0-sg --output {output} --threads 1 --steps 2 --dim 16 --batch-size 4 --input-size 32 --stride 32"
    )
    assert train_embedder.main([*fixed.split(), "--eval-every", "2", "--warm-up", "1", *words]) == 0
    summary: dict = json.loads((output / "summary.json").read_text())
    return summary


@pytest.mark.parametrize("name", MINIATURES)
def test_a_data_set_is_trained_on_and_judged(sets: Path, tmp_path: Path, name: str) -> None:
    summary = train(tmp_path / "run", "--imageset", str(sets / name))
    assert summary["identities"] >= 2 and summary["stopped_at"] == 2
    sources = set(open_imageset(sets / name).truth()["source"].to_pylist())
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert page.count("Training of lite0-sg") and (sources == {"shop"} or sources == {"user", "shop"})
    judged = train(tmp_path / "judged", "--imageset", str(sets / "others"), "--validation", str(sets / name))
    if sources == {"shop"}:  # nobody asks
        assert name == "mvc" and "validation" not in judged
    else:
        assert judged["validation"]["queries"] >= 8 and 0 <= judged["validation"]["acc@10"] <= 1


@pytest.mark.parametrize("mixture, n_sets", [("m0", 1), ("m1", 2), ("m2", 3), ("m3", 3), ("m4", 4), ("m5", 5)])
def test_a_mixture_is_trained_on(sets: Path, tmp_path: Path, mixture: str, n_sets: int) -> None:
    summary = train(tmp_path / "run", "--mixture", mixture, "--data", str(sets))
    assert len(summary["imagesets"]) == n_sets and summary["stopped_at"] == 2


def test_identities_of_different_sets_never_meet(sets: Path) -> None:
    """The same tree under two names: every pair_id collides, and no identity does."""
    from jobs.training.data import LearningSet
    from jobs.training.embedder import read_garments
    from sources.mixtures import MixturePart

    args = train_embedder.parse(["--model", "lite0-sg", "--output", "-", "--input-size", "32"])
    spec = train_embedder.spec_of(args)

    def classes(*names: str) -> int:
        parts = [MixturePart(name, str(sets / name), 1.0) for name in names]
        return len(read_garments(args, spec, LearningSet(parts)).classes)

    assert classes("darn", "street2shop", "mpv") == classes("darn") + classes("street2shop") + classes("mpv")
