"""Weights and checkpoints from elsewhere: other tensors, lying headers, pickles that run code.

Nothing in them is ever executed.
"""

import copy
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from detection import detector, training
from detection import models as detectors
from jobs.training.run import TrainingRun
from networks import checkpoints, weight_files
from networks.weight_files import WeightsError
from retrieval import cgd_networks, embedder
from retrieval import models as embedders
from retrieval import training as retrieval_training
from retrieval.cgd import CGD
from retrieval.losses import RankingLoss
from retrieval.training import Objective
from store.errors import UserError
from tests.fuzz import guard

SAME = {"model": "x", "steps": 4}
SMALL = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.zeros(2), "steps": torch.tensor(3)}
SPEC = embedders.from_fields({"name": "own", "base": "lite0-sg", "sha256": "", "weights": "own.safetensors"})


class Runs:
    """Unpickled as its author means it, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.path}'",)


def file(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file by hand; `length`: what it says of its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


TENSORS = [
    ("nothing", b"", "is not a safetensors file"),
    ("eight bytes", b"\0" * 8, "is not a safetensors file"),
    ("a header of 2^63 bytes", file({}, length=2**63 - 1), "is not a safetensors file"),
    ("a header of 99 MB", file({}, length=99_000_000), "is not a safetensors file"),
    ("no JSON", file(b"{"), "is not a safetensors file"),
    ("a list", file([]), "is not a safetensors file"),
    ("a text of 3,000 letters", file("x" * 3000), "is not a safetensors file"),
    ("lists in each other", file(b'{"a":' + b"[" * 100_000), "is not a safetensors file"),
    ("a tensor that ends after the file", file({"a": tensor([1000], [0, 4000])}, b"\0" * 8),
     "is not a safetensors file"),
    ("a tensor of 2^62 rows", file({"a": tensor([2**62], [0, 8])}, b"\0" * 8), "is not a safetensors file"),
    ("rows whose product is 0 again", file({"a": tensor([2**32, 2**32], [0, 0])}), "is not a safetensors file"),
    ("a tensor that ends before it begins", file({"a": tensor([2], [8, 0])}, b"\0" * 8), "is not a safetensors file"),
    ("two tensors in one place", file({"a": tensor([2], [0, 8]), "b": tensor([2], [0, 8])}, b"\0" * 8),
     "is not a safetensors file"),
    ("one name twice",
     file(b'{"a":' + json.dumps(tensor([1], [0, 4])).encode()
          + b',"a":' + json.dumps(tensor([1], [0, 4])).encode() + b"}", b"\0" * 4),
     "not a safetensors file|were they trained"),
    ("an unknown kind", file({"a": tensor([1], [0, 4], "PICKLE")}, b"\0" * 4), "is not a safetensors file"),
    ("a pickle", pickle.dumps({"a": 1}), "is not a safetensors file"),
    ("no tensors", save({}), "were they trained for another model"),
    ("other tensors", save(SMALL), "were they trained for another model"),
    ("a name of 10,000 letters", save({"x" * 10_000: torch.zeros(1)}), "were they trained for another model"),
]  # fmt: skip
NETWORKS: dict[str, Callable[[Path], Any]] = {
    "detector": lambda path: detector.load(
        detectors.from_fields({"name": "own", "base": "atss-tiny", "sha256": ""}), "cpu", weights=path
    ),
    "embedder": lambda path: embedder.load(SPEC, "cpu", weights=path),
}


@pytest.fixture(scope="module")
def weights(request: pytest.FixtureRequest) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of the shipped models that NETWORKS are like."""
    folder = Path(__file__).resolve().parents[2] / "weights" / "tiny"
    return {
        "detector": load((folder / "atss-tiny.safetensors").read_bytes()),
        "embedder": load((folder / "lite0-sg.safetensors").read_bytes()),
    }


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, built: dict[str, Any]) -> str:
    """A network's name; it is built once, as building takes a second and knows nothing of the file."""
    monkeypatch.setattr(detector, "build", lambda spec, **_: copy.deepcopy(built["detector"]))  # `load` folds it
    monkeypatch.setattr(cgd_networks, "build", lambda spec, **_: built["embedder"])
    return request.param


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {"detector": detector.build(detectors.ATSS_TINY), "embedder": cgd_networks.build(SPEC)}


def refused(name: str, data: bytes, box: Path, reason: str = "") -> None:
    (box / "own.safetensors").write_bytes(data)
    with guard.watched(box / "nothing"), pytest.raises(WeightsError, match=reason) as caught:
        NETWORKS[name](box / "own.safetensors")
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 1000


@pytest.mark.parametrize("why, data, reason", TENSORS, ids=[row[0] for row in TENSORS])
def test_weights_that_are_none(why, data, reason, network, tmp_path):
    refused(network, data, tmp_path, reason)


def test_weights_of_another_network(network, weights, tmp_path):
    other = weights["embedder" if network == "detector" else "detector"]
    refused(network, save(other), tmp_path, "were they trained for another model")
    mine = weights[network]
    name = next(key for key, value in mine.items() if value.ndim == 4)
    refused(
        network, save({**mine, name: mine[name][:-1].contiguous()}), tmp_path, "were they trained for another model"
    )
    refused(network, save({**mine, name: mine[name].to(torch.complex64)}), tmp_path, "complex64")
    head = next((key for key in mine if key.startswith("bbox_head") and "cls" in key and mine[key].ndim == 1), None)
    if head:  # of 80 categories
        refused(network, save({**mine, head: torch.zeros(80, dtype=torch.float16)}), tmp_path, r"has \(80,\)")
    (tmp_path / "own.safetensors").write_bytes(save(mine))
    NETWORKS[network](tmp_path / "own.safetensors")


def test_numbers_that_are_none(network, weights, tmp_path):
    """Weights that are NaN or infinite are refused by name as they are read.

    They would give boxes of nothing and rows that fail later.
    """
    mine = weights[network]
    name = next(key for key, value in mine.items() if value.ndim == 4)
    for value in (float("nan"), float("inf")):
        refused(network, save({**mine, name: torch.full_like(mine[name], value)}), tmp_path, f"{name} .*finite")


@guard.fuzzed()
@given(data=st.one_of(guard.broken([save(SMALL)]), st.builds(file, guard.ODD, st.binary(max_size=32))))
def test_any_safetensors_file_is_read_or_refused(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(data)
    model = torch.nn.Module()
    model.head = torch.nn.Linear(3, 2)
    model.register_buffer("steps", torch.tensor(0))
    with guard.watched(path.parent / "nothing"):
        try:
            weight_files.fill(model, weight_files.read(path, model="own", sha256="", trainer="training"), "own")
        except WeightsError as error:
            assert len(str(error)) < 1000 and len(str(error).splitlines()) == 1
    guard.inputs["test_checkpoints"] += 1


# ------------------------------------------------------------------------------------------------ a trainer's own files


def saved(path: Path, content: Any, **how: Any) -> bytes:
    torch.save(content, path, **how)
    return path.read_bytes()


def zipped(path: Path, pickled: bytes) -> bytes:
    """A file of torch.save with another pickle in it."""
    torch.save({"a": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in parts.items():
            new.writestr(name, pickled if name.endswith("data.pkl") else data)
    return path.read_bytes()


def traps(box: Path) -> dict[str, bytes]:
    """Files that make `box/owned` when they are unpickled as Python does it."""
    runs, scratch = Runs(box / "owned"), box / "scratch"
    return {
        "a plain pickle": pickle.dumps(runs),
        "a pickle of protocol 0": pickle.dumps(runs, 0),
        "torch.save": saved(scratch, {"step": 1, "same": SAME, "seconds": 0.0, "model": runs}),
        "torch.save of old": saved(scratch, {"step": 1, "same": SAME, "x": runs}, _use_new_zipfile_serialization=False),
        "inside a zip": zipped(scratch, pickle.dumps(runs)),
        "a whole module": saved(scratch, torch.nn.Linear(1, 1)),
        "builtins.eval": zipped(scratch, b'cbuiltins\neval\n(S\'open("owned", "w")\'\ntR.'),
        "posix.system": zipped(scratch, f"cposix\nsystem\n(S'touch {box}/owned'\ntR.".encode()),
    }


@pytest.mark.parametrize("which", [
    "a plain pickle", "a pickle of protocol 0", "torch.save", "torch.save of old", "inside a zip", "a whole module",
    "builtins.eval", "posix.system",
])  # fmt: skip
def test_a_pickle_that_runs_code_is_refused_and_not_run(which, tmp_path):
    data = traps(tmp_path)[which]
    (tmp_path / "init.pth").write_bytes(data)
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    (tmp_path / "out" / "checkpoints" / "step-00000001.pt").write_bytes(data)
    with guard.watched(tmp_path / "nothing"):
        with pytest.raises(training.InitError, match=r"it (holds more than tensors|is neither a safetensors)"):
            training.start_from(torch.nn.Linear(1, 1), detectors.ATSS_TINY, tmp_path / "init.pth")
        with pytest.raises(WeightsError, match=r"own: .*init\.pth: it (holds more|is neither a safetensors)"):
            checkpoints.read(tmp_path / "init.pth", model="own")
        run = TrainingRun(tmp_path / "out", SAME)
        if data.startswith(b"PK"):
            with pytest.raises(UserError, match="more than tensors and plain values"):
                run.resume()
        else:  # not of torch.save as it is today: as if cut short
            assert run.resume() is None
    assert not (tmp_path / "owned").exists() and not Path("owned").exists()


STATE = {
    "step": 2,
    "same": SAME,
    "seconds": 1.5,
    "model": dict(SMALL),
    "average": dict(SMALL),
    "optimiser": {"state": {}, "param_groups": []},
}


@pytest.mark.parametrize(
    "why, change",
    [
        ("a list", lambda state: [state]),
        ("a tensor", lambda state: torch.zeros(3)),
        ("nothing", lambda state: {}),
        ("no step", lambda state: {k: v for k, v in state.items() if k != "step"}),
        ("no seconds", lambda state: {k: v for k, v in state.items() if k != "seconds"}),
        ("a step below 0", lambda state: state | {"step": -1}),
        ("a step of half", lambda state: state | {"step": 0.5}),
        ("a step in words", lambda state: state | {"step": "two"}),
        ("`same` that is none", lambda state: state | {"same": 7}),
        ("time that is none", lambda state: state | {"seconds": "long"}),
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_none_of_ours(why, change, tmp_path):
    """As one that is cut short: the one before is taken, here none."""
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    (tmp_path / "out" / "checkpoints" / "step-00000002.pt").write_bytes(saved(tmp_path / "scratch", change(STATE)))
    with guard.watched(tmp_path / "nothing"):
        assert TrainingRun(tmp_path / "out", SAME).resume() is None


def small_embedder_learner() -> retrieval_training.EmbedderLearner:
    model = CGD(torch.nn.Conv2d(3, 4, 1), ("gem",), 2, classes=2)
    return retrieval_training.EmbedderLearner(model, Objective(RankingLoss("triplet", dim=2, classes=2)), rate=0.1)


@pytest.mark.parametrize(
    "learner",
    [lambda: training.DetectorLearner(torch.nn.Linear(3, 2), detectors.ATSS_TINY, rate=0.1), small_embedder_learner],
    ids=["detector", "embedder"],
)
@pytest.mark.parametrize(
    "part, value",
    [
        ("model", {}),
        ("model", torch.nn.Linear(3, 5).state_dict()),
        ("model", [1]),
        ("average", {}),
        ("average", torch.nn.Linear(3, 5).state_dict()),
        ("average", "x"),
        ("optimiser", {}),
        ("optimiser", {"state": {}, "param_groups": [{"params": [0, 1, 2]}]}),
        ("optimiser", None),
    ],
)
def test_a_state_of_another_model_is_refused_in_one_line(learner, part, value, tmp_path):
    learner = learner()
    state = learner.state() | {"step": 2}
    learner.load(state)
    run = TrainingRun(tmp_path / "out", SAME)
    with pytest.raises(UserError, match="its checkpoint does not fit the model") as caught, run.restoring():
        learner.load(state | {part: value})
    assert len(str(caught.value).splitlines()) == 1


@guard.fuzzed()
@given(data=st.data())
def test_any_checkpoint_is_continued_or_refused(data, tmp_path_factory):
    box = tmp_path_factory.getbasetemp() / "checkpoints"
    (box / "out" / "checkpoints").mkdir(parents=True, exist_ok=True)
    content = STATE
    if data.draw(st.booleans()):
        content = STATE | data.draw(guard.replaced({key: STATE[key] for key in ("step", "same", "seconds")}))
    valid = saved(box / "scratch", content)
    pickled = zipfile.ZipFile(box / "scratch").read("scratch/data.pkl")
    made_up = st.builds(lambda text: zipped(box / "scratch", text), guard.broken([pickled]))
    found = data.draw(st.one_of(st.just(valid), guard.broken([valid]), made_up))
    for path in (box / "out" / "checkpoints" / "step-00000002.pt", box / "init.pth"):
        path.write_bytes(found)
    with guard.untouched(box, but="nothing"), guard.watched(box / "nothing"):
        try:
            state = TrainingRun(box / "out", SAME).resume()
            assert state is None or state["step"] >= 0
        except UserError as error:
            assert len(str(error).splitlines()) == 1
        try:
            training.take_matching(torch.nn.Linear(3, 2), checkpoints.read(box / "init.pth", model="own"))
        except (training.InitError, WeightsError) as error:
            assert len(str(error)) < 2000
    guard.inputs["test_checkpoints"] += 1


# ------------------------------------------------------------------------------------------------ weights of one's own


def compressed(path: Path) -> bytes:
    """A file of torch.save packed anew: 400 MB of zeros in some 400 kB."""
    torch.save({"head.weight": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in parts.items():
            new.writestr(name, bytes(400_000_000) if name.endswith("data/0") else data)
    return path.read_bytes()


@pytest.mark.parametrize(
    "data, reason",
    [
        (lambda path: b"PK\x03\x04", "is not a zip file|File is not a zip"),
        (lambda path: b"PK\x05\x06" + bytes(18), "."),  # a zip of nothing
        (lambda path: zipped(path, b"\x80\x02}."), "no tensors by name"),
        (lambda path: saved(path, dict(SMALL))[:-200], "."),  # cut short
        (compressed, "compressed archive"),
        (lambda path: saved(path, {"a": torch.zeros(1).expand(2**40)}), "larger than what the file holds"),
        (lambda path: saved(path, {"a": torch.empty(2**40, device="meta")}), "no plain tensor|more than tensors"),
        (lambda path: saved(path, {"a": torch.sparse_coo_tensor([[5]], [1.0], (2**40,))}), "no plain tensor|more than"),
        (lambda path: b"\x80\x02" + b"(" * 100_000, "."),  # a pickle of marks
    ],
)
def test_a_pth_that_is_none(data, reason, tmp_path):
    (tmp_path / "own.pth").write_bytes(data(tmp_path / "scratch"))
    with guard.watched(tmp_path / "nothing"), pytest.raises(WeightsError, match=reason) as caught:
        checkpoints.read(tmp_path / "own.pth", model="own")
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 1000


@guard.fuzzed()
@given(data=st.data())
def test_any_pth_is_read_or_refused(data, tmp_path_factory):
    box = tmp_path_factory.getbasetemp() / "pth"
    box.mkdir(exist_ok=True)
    valid = saved(box / "scratch", {"state_dict": dict(SMALL), "epoch": 3})
    pickled = zipfile.ZipFile(box / "scratch").read("scratch/data.pkl")
    made_up = st.builds(lambda text: zipped(box / "scratch", text), guard.broken([pickled]))
    (box / "own.pth").write_bytes(data.draw(st.one_of(guard.broken([valid]), made_up)))
    model = torch.nn.Module()
    model.head = torch.nn.Linear(3, 2)
    model.register_buffer("steps", torch.tensor(0))
    with guard.untouched(box, but="nothing"), guard.watched(box / "nothing"):
        try:
            weight_files.fill(model, checkpoints.read(box / "own.pth", model="own"), "own")
        except WeightsError as error:
            assert len(str(error)) < 1000 and len(str(error).splitlines()) == 1
    guard.inputs["test_checkpoints"] += 1
