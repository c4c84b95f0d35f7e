"""Networks through OpenVINO: torch's numbers for every shape, plans from disk, and torch where it cannot be."""

import dataclasses
import logging
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from networks import engines, plan_files
from networks.engines import CompiledNetwork, Engine, choose, describe, noise
from store.errors import UserError

OPENVINO = Engine("openvino")
HERE = Path(__file__).resolve()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


class TwoMaps(nn.Module):
    """A map and its mean: of any height and width, and of a dilated convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 8, 3, padding=2, dilation=2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.layer(images).relu()
        return maps, maps.mean((2, 3))


def images(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(np.float32))


def network(
    module: nn.Module, description: dict | None = None, shapes: tuple = ((2, 3, 16, 24), (1, 3, 24, 16))
) -> CompiledNetwork:
    return CompiledNetwork("small", lambda: module.eval(), description, noise(*shapes), OPENVINO)


def refuse() -> nn.Module:
    raise AssertionError("the network is built though its plan is on disk")


class Refusing(nn.Module):
    def eval(self) -> nn.Module:
        return refuse()


@pytest.mark.parametrize(
    "setting, device, installed, want",
    [
        ("auto", "cpu", True, "openvino"),
        ("auto", "cuda", True, "torch"),
        ("auto", "cpu", False, "torch"),
        ("torch", "cpu", True, "torch"),
        ("openvino", "cpu", True, "openvino"),
        ("openvino", "cuda", True, "openvino runs networks on a CPU and device is cuda"),
        ("openvino", "cpu", False, "openvino is not installed"),
        ("cudagraph", "cuda", True, "cudagraph"),
        ("cudagraph", "cpu", True, "cudagraph runs networks on a GPU and device is cpu"),
    ],
)
def test_the_engine_of_a_device(setting, device, installed, want, monkeypatch) -> None:
    monkeypatch.setattr(engines.util, "find_spec", lambda _: object() if installed else None)
    if want in ("torch", "openvino", "cudagraph"):
        assert choose(setting, device, 3) == Engine(want, 3)
    else:
        with pytest.raises(UserError, match=want):
            choose(setting, device, 3)


def test_outputs_are_torchs_whatever_the_sizes_that_are_free() -> None:
    module = TwoMaps()
    ours = network(module)
    for shape in ((2, 3, 16, 24), (1, 3, 16, 24), (5, 3, 40, 8), (2, 3, 16, 24)):
        found = ours(images(*shape))
        with torch.inference_mode():
            want = module(images(*shape))
        assert isinstance(found, tuple) and len(found) == 2
        torch.testing.assert_close(found, tuple(want), rtol=1e-5, atol=1e-6)
    assert ours.notes == [] and ours.engine == "openvino"


def test_outputs_do_not_depend_on_the_batches_before() -> None:
    ours, batches = network(TwoMaps()), [images(2, 3, 16, 24), images(3, 3, 24, 8)]
    first = [ours(batch)[0].clone() for batch in batches]
    for batch, want in zip(reversed(batches), reversed(first), strict=True):
        torch.testing.assert_close(ours(batch)[0], want, rtol=0, atol=0)


def test_a_batch_is_not_changed_and_its_strides_do_not_matter() -> None:
    ours, batch = network(TwoMaps()), images(2, 3, 16, 24)
    found = ours(batch.to(memory_format=torch.channels_last))
    torch.testing.assert_close(ours(batch), found, rtol=0, atol=0)
    before = found[0].clone()
    ours(images(2, 3, 16, 24) + 1)
    torch.testing.assert_close(found[0], before, rtol=0, atol=0)  # nor are outputs, later
    torch.testing.assert_close(batch, images(2, 3, 16, 24), rtol=0, atol=0)


def test_another_size_where_all_agree_is_refused() -> None:
    ours = network(TwoMaps(), shapes=((2, 3, 16, 24),))
    with pytest.raises(RuntimeError):
        ours(images(1, 3, 16, 24))


def test_a_second_start_builds_nothing_and_gives_the_same_bytes() -> None:
    batch = images(2, 3, 16, 24).numpy()
    first = network(TwoMaps(), {"weights": "a"}).run(batch)
    again = network(Refusing(), {"weights": "a"}).run(batch)
    assert [array.tobytes() for array in again] == [array.tobytes() for array in first]


@pytest.mark.parametrize("other", [{"description": {"weights": "b"}}, {"description": None}])
def test_another_network_has_another_plan(other: dict) -> None:
    network(TwoMaps(), {"weights": "a"})
    with pytest.raises(AssertionError, match="is built"):
        network(Refusing(), **{"description": {"weights": "a"}} | other)


@pytest.mark.parametrize("other", ["versions", "code", "machine"])
def test_othersurroundings_have_another_plan(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network(TwoMaps(), {"weights": "a"})
    here = engines.surroundings()
    monkeypatch.setattr(engines, "surroundings", lambda: here | {other: "another"})
    with pytest.raises(AssertionError, match="is built"):
        network(Refusing(), {"weights": "a"})


def in_another_process() -> str:
    """Digest of the outputs there, and whether torch was imported."""
    code = f"import sys; sys.path.insert(0, {str(HERE.parents[2])!r}); " + (
        "import numpy as np; from store.files import digest\n"
        "from networks.engines import CompiledNetwork, Engine, noise\n"
        "def build():\n"
        "    from tests.networks.test_engines import TwoMaps\n"
        "    return TwoMaps().eval()\n"
        "batch = np.random.default_rng(1).standard_normal((2, 3, 16, 24)).astype(np.float32)\n"
        "examples = noise(batch.shape)\n"
        "outputs = CompiledNetwork('small', build, {'weights': 'a'}, examples, Engine('openvino')).run(batch)\n"
        "print(digest(b''.join(array.tobytes() for array in outputs)), 'torch' in sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_two_processes_give_the_same_bytes_and_the_second_one_needs_no_torch() -> None:
    digest, _, with_torch = in_another_process().partition(" ")
    assert with_torch == "True"
    assert in_another_process() == f"{digest} False"


def test_a_damaged_plan_is_made_again(cache: Path) -> None:
    batch = images(2, 3, 16, 24).numpy()
    want = network(TwoMaps(), {"weights": "a"}).run(batch)
    (file,) = cache.rglob("*.plan")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    np.testing.assert_array_equal(network(TwoMaps(), {"weights": "a"}).run(batch)[0], want[0])
    assert plan_files.read(file) is not None


class Unknown(nn.Module):
    def forward(self, batch: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(batch)


class Forgetful(nn.Module):
    """Its path depends on the numbers, of which a trace sees those of one batch alone."""

    def forward(self, batch: Tensor) -> Tensor:
        self.times = getattr(self, "times", 0) + 1
        return batch * self.times


class OfOneSize(nn.Module):
    """The trace of one batch holds its sizes."""

    def forward(self, batch: Tensor) -> Tensor:
        return batch + torch.arange(int(batch.shape[1]))[:, None]


@pytest.mark.parametrize(
    "module, reason",
    [
        (Unknown(), r"matrix_exp"),
        (Forgetful(), r"its outputs are \S+ from torch's, of \S+ at most"),
        (OfOneSize(), r"its outputs are|shape|Shape|dimension"),
    ],
)
def test_torch_stays_where_openvino_cannot_and_a_note_says_so(
    module, reason, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ours = network(module, {"weights": "a"}, ((1, 4, 4), (2, 6, 6)))
    (found,) = ours(images(1, 4, 4))
    assert found.shape == (1, 4, 4) and ours.engine == "torch"
    assert len(ours.notes) == 1 and "\n" not in ours.notes[0] and re.search(reason, ours.notes[0])
    assert ours.notes[0].startswith("small: it runs in torch, because OpenVINO cannot run it: ")
    assert not list(cache.rglob("*.plan"))
    assert logging.root.level == logging.INFO  # as before: warnings are still told


@dataclass(frozen=True)
class Spec:
    name: str
    width: int
    flip: bool = False


def test_views_of_a_network_are_described_alike(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"a")
    ours = describe(Spec("a", 1), file)
    assert ours == describe(Spec("a@flip", 1, flip=True), file)
    assert ours != describe(dataclasses.replace(Spec("a", 1), width=2), file)
    assert describe(Spec("a", 1), None) is None
    file.write_bytes(b"b")
    assert describe(Spec("a", 1), file) != ours
