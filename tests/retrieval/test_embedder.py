"""Loading and feeding: numbers against a plain pass, digests, wrong files, and memory that does not suffice."""

import dataclasses
import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from networks.engines import TORCH, Engine
from networks.weight_files import WeightsError
from retrieval import cgd_networks, crop_networks, embedder
from retrieval.cgd_networks import build
from retrieval.embedder import load
from retrieval.models import LITE0_SG, PROFILES, viewed
from tests.networks.test_cuda_graphs import StandIn

WEIGHTS = Path(embedder.__file__).parents[1] / "weights" / "tiny"
SMALL = dataclasses.replace(LITE0_SG, name="small", input_size=48, dim=16, stride=32, sha256="")
PUBLISHED = dataclasses.replace(SMALL, weights="")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A float16 file as training leaves it."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    tensors = build(SMALL, pretrained_backbone=True).state_dict()
    save_file({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture
def crops() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)


def test_rows_are_a_plain_pass_over_normalised_pixels(weights, crops):
    ours = load(SMALL, "cpu", weights=weights)
    rows = ours.embed(crops)
    images = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1  # RGB in [-1, 1]
    with torch.inference_mode():
        want = ours.model(images)
    torch.testing.assert_close(torch.from_numpy(rows), want, rtol=1e-4, atol=1e-5)
    assert rows.dtype == np.float32 and rows.shape == (5, 16)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(rows, load(SMALL, "cpu", weights=weights).embed(crops))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batches_do_not_change_the_order(weights, crops, batch_size):
    rows = load(SMALL, "cpu", weights=weights).embed(crops, batch_size=batch_size)
    np.testing.assert_allclose(rows, load(SMALL, "cpu", weights=weights).embed(crops), atol=1e-5)


def test_no_crops_no_rows(weights):
    assert load(SMALL, "cpu", weights=weights).embed(np.zeros((0, 48, 48, 3), np.uint8)).shape == (0, 16)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((1, 48, 48, 3), np.float32),  # not bytes
        np.zeros((1, 3, 48, 48), np.uint8),  # channels first
        np.zeros((1, 64, 64, 3), np.uint8),  # another model's crops
        np.zeros((48, 48, 3), np.uint8),  # one crop, not a batch
    ],
)
def test_other_crops_are_refused(weights, bad):
    with pytest.raises(ValueError, match=r"small: want crops \(N, 48, 48, 3\) uint8"):
        load(SMALL, "cpu", weights=weights).embed(bad)


def test_the_digest_is_checked_before_use(weights, tmp_path):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    load(dataclasses.replace(SMALL, sha256=digest), "cpu", weights=weights)
    with pytest.raises(WeightsError, match=r"has sha256 .*; fetch the weights again"):
        load(dataclasses.replace(SMALL, sha256="0" * 64), "cpu", weights=weights)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    for name, data in (("pickle", pickle.dumps(Trap())), ("text", b"weights"), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError, match="not a safetensors file"):
            load(SMALL, "cpu", weights=tmp_path / name)
    torch.save({"x": Trap()}, tmp_path / "torch")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load(SMALL, "cpu", weights=tmp_path / "torch")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "spec, message",
    [
        (dataclasses.replace(SMALL, dim=32), r"reductions.0.weight wants \(16, 320\), has \(8, 320\)"),
        (
            dataclasses.replace(SMALL, branches=("gem",)),
            r"pools.0.p wants \(1,\), has nothing",
        ),  # keys before shapes: the first by name
        (dataclasses.replace(SMALL, timm_id="resnet18"), "trained for another model"),
    ],
)
def test_weights_of_another_model_are_refused(weights, spec, message):
    with pytest.raises(WeightsError, match=message):
        load(spec, "cpu", weights=weights)


def test_without_weights(tmp_path, crops):
    with pytest.raises(WeightsError, match=r"small: no weights given; train them with jobs/train_embedder\.py"):
        load(SMALL, "cpu", weights=None)
    with pytest.raises(WeightsError, match=r"cannot read weights .*gone.*No such file"):
        load(SMALL, "cpu", weights=tmp_path / "gone")
    with pytest.raises(WeightsError, match="no published weights of resnet18"):
        load(dataclasses.replace(PUBLISHED, timm_id="resnet18"), "cpu", weights=None)
    rows = [load(SMALL, "cpu", weights=None, allow_random_weights=True).embed(crops) for _ in range(2)]
    np.testing.assert_array_equal(*rows)  # random, but the same in every process


def test_an_empty_weights_field_means_the_backbone_as_published(weights, crops):
    rows = load(PUBLISHED, "cpu", weights=None).embed(crops)
    np.testing.assert_allclose(
        rows, load(SMALL, "cpu", weights=weights).embed(crops), atol=5e-3
    )  # that file is its float16 copy


def test_lack_of_memory_halves_the_batch_and_says_so(weights, crops, monkeypatch):
    ours = load(SMALL, "cpu", weights=weights)
    want, forward = ours.embed(crops, batch_size=1), ours.network._forward

    def small_gpu(batch):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("no room")
        return forward(batch)

    monkeypatch.setattr(ours.network, "_forward", small_gpu)
    np.testing.assert_array_equal(ours.embed(crops, batch_size=4), want)
    assert ours.notes == [f"small: out of GPU memory at {n} crops, halved" for n in (4, 2, 2)]
    monkeypatch.setattr(
        ours.network, "_forward", lambda batch: (_ for _ in ()).throw(torch.OutOfMemoryError("no room"))
    )
    with pytest.raises(torch.OutOfMemoryError):
        ours.embed(crops, batch_size=2)


@pytest.mark.parametrize("n, seen", [(3, [4]), (4, [4]), (7, [4, 4]), (0, [])])
def test_on_a_gpu_every_batch_is_full_and_the_rows_are_the_same(weights, crops, monkeypatch, n, seen):
    ours, sizes = load(SMALL, "cpu", weights=weights), []
    some = np.concatenate([crops] * 3)[:n]
    want, forward = ours.embed(some, batch_size=1), ours.network._forward
    monkeypatch.setattr(ours.network, "_full_batches", True)
    monkeypatch.setattr(ours.network, "_forward", lambda batch: sizes.append(len(batch)) or forward(batch))
    np.testing.assert_allclose(ours.embed(some, batch_size=4), want, atol=1e-5)
    assert sizes == seen


@pytest.mark.slow
@pytest.mark.parametrize("spec", PROFILES["paper"], ids=lambda spec: spec.name)
def test_paper_models_embed_a_real_photo(spec, ccp_df2):
    from retrieval.crops import crop
    from store.decode import decode

    photo = decode((ccp_df2 / "val" / "image" / "000001.jpg").read_bytes())
    height, width = photo.shape[:2]
    boxes = np.array([[0, 0, width, height], [width / 4, 0, width / 2, height / 2]])
    ours = load(spec, "cpu", weights=None, allow_random_weights=True)
    rows = ours.embed(crop(photo, boxes, spec.input_size))
    assert rows.shape == (2, 1536) and np.isfinite(rows).all()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """No plans of other tests, nor of this machine's user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("spec", PROFILES["tiny"], ids=lambda spec: spec.name)
def test_through_openvino_the_shipped_models_give_torchs_rows(spec, own_cache):
    path, size = WEIGHTS / spec.weights, spec.input_size
    crops = np.random.default_rng(0).integers(0, 256, (6, size, size, 3), dtype=np.uint8)
    crops[:3] = np.arange(size, dtype=np.uint8)[:, None]  # a ramp, for noise is much alike
    ours, torchs = (load(spec, "cpu", weights=path, engine=engine) for engine in (Engine("openvino"), TORCH))
    rows = ours.embed(crops)
    np.testing.assert_allclose(rows, torchs.embed(crops), rtol=0, atol=1e-5)
    assert (ours.engine, torchs.engine, ours.notes) == ("openvino", "torch", [])
    for n in range(len(crops)):  # filled up to a whole batch, or not
        np.testing.assert_array_equal(ours.embed(crops[: n + 1], batch_size=3), rows[: n + 1])


def test_a_view_of_a_compiled_embedder_shares_its_plan(weights, crops, own_cache, monkeypatch):
    ours = load(SMALL, "cpu", weights=weights, engine=Engine("openvino"))
    monkeypatch.setattr(cgd_networks, "with_weights", None)  # nothing is built from here on
    mirror = ours.view(viewed(SMALL, "flip"))
    want = ours.embed(np.ascontiguousarray(crops[:, :, ::-1]))
    np.testing.assert_array_equal(mirror.embed(crops), want)
    again = load(viewed(SMALL, "flip"), "cpu", weights=weights, engine=Engine("openvino"))
    np.testing.assert_array_equal(again.embed(crops), want)
    assert again.embed(crops[:0]).shape == (0, 16)


def test_a_compiled_embedder_refuses_what_the_other_refuses(weights, own_cache):
    openvino = Engine("openvino")
    load(SMALL, "cpu", weights=weights, engine=openvino)
    with pytest.raises(WeightsError, match=r"has sha256 .*; fetch the weights again"):
        load(dataclasses.replace(SMALL, sha256="0" * 64), "cpu", weights=weights, engine=openvino)
    with pytest.raises(WeightsError, match=r"reductions.0.weight wants \(16, 320\), has \(8, 320\)"):
        load(dataclasses.replace(SMALL, dim=32), "cpu", weights=weights, engine=openvino)
    with pytest.raises(WeightsError, match="no weights given"):
        load(SMALL, "cpu", weights=None, engine=openvino)


def test_neither_torch_nor_faiss_comes_along():
    code = "import sys, retrieval.embedder; sys.exit('faiss' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(embedder.__file__).parents[1]).returncode == 0


def test_a_view_mirrors_its_crops_and_shares_the_network(weights, crops):
    ours = load(SMALL, "cpu", weights=weights)
    mirror = ours.view(viewed(SMALL, "flip"))
    assert mirror.model is ours.model
    np.testing.assert_array_equal(mirror.embed(crops), ours.embed(np.ascontiguousarray(crops[:, :, ::-1])))
    assert np.abs(mirror.embed(crops) - ours.embed(crops)).max() > 1e-3


def test_from_graphs_an_embedder_makes_torchs_rows(weights, crops, monkeypatch):
    monkeypatch.setattr(crop_networks, "GraphedNetwork", StandIn)
    ours = load(SMALL, "cpu", weights=weights, engine=Engine("cudagraph"))
    torchs = load(SMALL, "cpu", weights=weights)
    for some in (crops, crops[:2], crops[::-1]):  # a batch each: rows stay on the CPU, where the next would spoil them
        np.testing.assert_array_equal(ours.embed(some), torchs.embed(some))
    assert (ours.engine, ours.notes, ours.view(viewed(SMALL, "flip")).engine) == ("cudagraph", [], "cudagraph")
