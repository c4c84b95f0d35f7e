"""Models of timm against timm's own transform and forward pass: over its families, at other sizes, from any file."""

import hashlib
import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save, save_file

from networks.engines import Engine
from networks.weight_files import WeightsError
from retrieval import timm_models, timm_networks
from retrieval.timm_models import TimmSpec
from store.errors import UserError
from tests.hub_cache import put

SMALL = "resnet10t"


@pytest.fixture(autouse=True)
def described_here(monkeypatch):
    """Ask about models in this process, which has torch anyway; the answer passes through JSON all the same."""
    monkeypatch.setattr(timm_models, "_described", timm_networks.answer)


def entry(timm_id: str, **fields) -> TimmSpec:
    return timm_models.from_fields({"name": "own", "timm": timm_id, **fields})


def crops_of(spec: TimmSpec) -> np.ndarray:
    """Noise, and a bright square on a dark ground: far apart even for a network that has learned nothing."""
    size = spec.input_size
    crops = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    crops[1] = 20
    crops[1, size // 4 : size // 2, size // 3 :] = (250, 200, 90)
    return crops


def rows_of_timm(body: torch.nn.Module, crops: np.ndarray) -> np.ndarray:
    """What a user of timm alone would compute."""
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(body))
    images = torch.stack([transform(Image.fromarray(crop)) for crop in crops])
    with torch.inference_mode():
        return F.normalize(body.forward_head(body.forward_features(images), pre_logits=True)).numpy()


def published(timm_id: str, **options) -> torch.nn.Module:
    """A model as timm has it, with its classifier, at random; norms and scales as they are after some training."""
    torch.manual_seed(1)
    body = timm.create_model(timm_id, **options).eval()
    with torch.no_grad():
        for name, parameter in body.named_parameters():
            if parameter.ndim <= 1 and not name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter).abs())
    return body


FAST = [
    # convolutional
    "resnet10t", "efficientnet_b0", "mobilenetv4_conv_small",
    # transformers: with a class token, registers, channels last
    "vit_tiny_patch16_224", "vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224",
]  # fmt: skip
SLOW = [
    "resnetv2_50", "seresnext26ts", "regnetx_002", "tf_efficientnetv2_b0", "mobilenetv3_small_050", "convnext_atto",
    "convnextv2_atto", "fastvit_t8", "mobilevit_xxs", "poolformer_s12",
    # with two class tokens, with none, and of other families
    "deit_tiny_distilled_patch16_224", "vit_medium_patch16_gap_256", "vit_small_patch14_dinov2",
    "eva02_tiny_patch14_224", "xcit_nano_12_p16_224", "levit_128s", "hiera_tiny_224",
    # an attention pool, and CLIP's tower
    "vit_base_patch32_siglip_256", "vit_base_patch32_clip_224",
    # channels last; patches of any number
    "swinv2_tiny_window8_256", "naflexvit_base_patch16_gap", "naflexvit_base_patch16_siglip",
]  # fmt: skip


@pytest.mark.parametrize("timm_id", [*FAST, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_rows_are_timms_own(timm_id, tmp_path):
    body = published(timm_id)
    torch.save(body.state_dict(), tmp_path / "own.pth")
    spec = entry(timm_id, weights="own.pth")
    ours = timm_networks.load(spec, "cpu", weights=tmp_path / "own.pth")
    crops = crops_of(spec)
    rows, theirs = ours.embed(crops), rows_of_timm(body, crops)
    assert rows.shape == (2, spec.dim) and rows.dtype == np.float32
    np.testing.assert_allclose(rows, theirs, atol=1e-4)
    # two crops are far apart beside that, or equality would say nothing; some untrained networks hardly tell them apart
    assert np.abs(rows[0] - rows[1]).max() > 20 * np.abs(rows - theirs).max()


# ---- size, pool, pixels ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "timm_id, size",
    [
        ("vit_small_patch14_dinov2", 112),  # trained at 518: position embeddings of 37 x 37 places become 8 x 8
        ("vit_tiny_patch16_224", 64),
        ("deit3_small_patch16_224", 96),
        ("eva02_tiny_patch14_224", 112),
        ("swin_tiny_patch4_window7_224", 256),
        ("resnet10t", 96),  # nothing to interpolate
    ],
)
def test_another_size_is_timms_own_too(timm_id, size, tmp_path):
    body = published(timm_id)
    save_file(body.state_dict(), tmp_path / "own.safetensors")
    spec = entry(timm_id, weights="own.safetensors", input_size=size)
    ours = timm_networks.load(spec, "cpu", weights=tmp_path / "own.safetensors")
    options = {"img_size": size} if body.pretrained_cfg["fixed_input_size"] else {}
    told = {"file": str(tmp_path / "own.safetensors"), "input_size": (3, size, size), "custom_load": False}
    theirs = timm.create_model(timm_id, pretrained=True, pretrained_cfg_overlay=told, **options).eval()
    crops = crops_of(spec)
    np.testing.assert_allclose(ours.embed(crops), rows_of_timm(theirs, crops), atol=1e-4)


@pytest.mark.parametrize(
    "timm_id, pool, expected",
    [
        ("vit_tiny_patch16_224", "cls", lambda tokens: tokens[:, 0]),
        ("vit_tiny_patch16_224", "avg", lambda tokens: tokens[:, 1:].mean(1)),
        ("vit_tiny_patch16_224", "mac", lambda tokens: tokens[:, 1:].amax(1)),
        ("vit_small_patch16_dinov3", "spoc", lambda tokens: tokens[:, 5:].mean(1)),  # a class token and four registers
        ("swin_tiny_patch4_window7_224", "avg", lambda places: places.mean((1, 2))),  # channels last
        ("swin_tiny_patch4_window7_224", "mac", lambda places: places.amax((1, 2))),
        ("resnet10t", "avg", lambda places: places.mean((2, 3))),
        ("resnet10t", "gem", lambda places: places.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)),
        ("mobilenetv4_conv_small", "spoc", lambda places: places.mean((2, 3))),  # 960 channels, where model has 1280
    ],
)
def test_pools_are_over_places_and_nothing_else(timm_id, pool, expected):
    spec = entry(timm_id, pool=pool, crop=1.0)
    ours = timm_networks.load(spec, "cpu", weights=None, allow_random_weights=True)
    crops = crops_of(spec)
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (spec.mean, spec.std))
    with torch.inference_mode():
        want = F.normalize(expected(ours.model.backbone.body.forward_features((pixels - mean) / std)))
    np.testing.assert_allclose(ours.embed(crops), want.numpy(), atol=1e-5)
    assert want.shape[1] == spec.dim


def test_given_pixels_take_the_place_of_the_models_own(tmp_path):
    """crop 0.5 of a crop that is white but for its middle: enlarged twice, the middle is all there is."""
    spec = entry(SMALL, crop=0.5, interpolation="nearest", mean=[0, 0.5, 1], std=[1, 0.5, 0.25], input_size=64)
    assert (spec.mean, spec.std) == ((0, 127.5, 255), (255, 127.5, 63.75))
    ours = timm_networks.load(spec, "cpu", weights=None, allow_random_weights=True)
    crops = np.full((1, 64, 64, 3), 255, np.uint8)
    crops[:, 16:48, 16:48] = 9
    whole = timm_networks.load(
        entry(SMALL, crop=1.0, mean=[0, 0.5, 1], std=[1, 0.5, 0.25], input_size=64), "cpu", weights=None,
        allow_random_weights=True,
    )  # fmt: skip
    np.testing.assert_allclose(ours.embed(crops), whole.embed(np.full_like(crops, 9)), atol=1e-6)
    assert np.abs(ours.embed(crops) - whole.embed(crops)).max() > 1e-3


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"timm": "resnet10x"}, "timm has no model 'resnet10x'; near it: .*resnet101"),
        ({"timm": "resnet10t.nope"}, r"Invalid pretrained tag \(nope\) for resnet10t"),
        ({"timm": "resnet10t", "pool": "cls"}, "resnet10t at 176 px, pool cls: it has no class token; take pool model"),
        ({"timm": "vit_medium_patch16_gap_256", "pool": "cls"}, "it has no class token"),
        ({"timm": "crossvit_9_240", "pool": "avg"}, "gives no feature map and no tokens; take pool model"),
        ({"timm": "hf-hub:not a name//"}, "not a name"),
        ({"timm": "resnet10t", "pool": "sum"}, "pool wants one of model, cls, avg"),
        ({"timm": "resnet10t", "pool": "avg", "branches": ["gem"]}, "give one of them"),
        ({"timm": "resnet10t", "branches": ["sum"]}, "branches wants some of spoc, mac, gem"),
        ({"timm": "resnet10t", "branches": ["gem", "mac"], "dim": 65}, "dim 65 does not divide into 2 branches"),
        ({"timm": "resnet10t", "mean": [124, 116, 104]}, "mean wants three numbers for RGB values 0 to 1"),
        ({"timm": "resnet10t", "std": [0.2, 0.2, 0]}, "std wants three numbers"),
        ({"timm": "resnet10t", "crop": 1.2}, "crop wants a share"),
        ({"timm": "resnet10t", "interpolation": "cubic"}, "interpolation wants one of bicubic"),
        ({"timm": "resnet10t", "input_size": "big"}, "input_size wants a whole number"),
        ({"timm": "resnet10t", "timm_id": "x"}, "unknown field 'timm_id'"),
        ({"timm": 7}, "timm wants text"),
        ({"timm": "resnet10t", "name": "a/b"}, "the name becomes a folder"),
        ({"timm": "resnet10t", "view": "wide"}, "has no view 'wide'"),
    ],
)
def test_entries_that_cannot_be_are_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        timm_models.from_fields({"name": "own", **fields})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("timm_id", [SMALL, "vit_tiny_patch16_224"])
def test_rows_are_timms_own_through_openvino_too(timm_id, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    body = published(timm_id)
    torch.save(body.state_dict(), tmp_path / "own.pth")
    spec, openvino = entry(timm_id, weights="own.pth"), Engine("openvino")
    assert spec.crop < 1, "crops pass through timm's transform"
    ours = timm_networks.load(spec, "cpu", weights=tmp_path / "own.pth", engine=openvino)
    crops = crops_of(spec)
    np.testing.assert_allclose(ours.embed(crops), rows_of_timm(body, crops), atol=1e-5)
    assert (ours.engine, ours.notes) == ("openvino", [])
    monkeypatch.setattr(timm_networks, "build", None)  # nothing is built from here on
    again = timm_networks.load(spec, "cpu", weights=tmp_path / "own.pth", engine=openvino)
    np.testing.assert_array_equal(again.embed(crops), ours.embed(crops))


def test_views_share_the_network():
    spec = entry(SMALL, input_size=64, view="flip")
    assert (spec.name, spec.flip) == ("own@flip", True)
    plain = timm_networks.load(entry(SMALL, input_size=64), "cpu", weights=None, allow_random_weights=True)
    mirrored, crops = plain.view(spec), crops_of(spec)
    assert mirrored.model is plain.model
    np.testing.assert_allclose(mirrored.embed(crops), plain.embed(crops[:, :, ::-1]), atol=1e-6)


# ---- weights -----------------------------------------------------------------------------------------------------
def test_prefixes_wrappers_and_another_classifier_change_nothing(tmp_path):
    body = published(SMALL, num_classes=7)
    named = {f"module.model.{name}": value for name, value in body.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": named}, tmp_path / "own.pth")
    spec = entry(SMALL, weights="own.pth", input_size=64)
    ours = timm_networks.load(spec, "cpu", weights=tmp_path / "own.pth")
    for name, value in ours.model.backbone.body.state_dict().items():
        torch.testing.assert_close(value, body.state_dict()[name])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: {k: v for k, v in t.items() if k != "layer1.0.conv1.weight"}, "Missing key.*layer1.0.conv1.weight"),
        (lambda t: t | {"layer9.weight": torch.zeros(1)}, "Unexpected key.*layer9.weight"),
        (lambda t: t | {"conv1.0.weight": torch.zeros(2, 3, 3, 3)}, "size mismatch for conv1.0.weight"),
        (lambda t: t | {"bn1.weight": t["bn1.weight"] * float("nan")}, "bn1.weight is not all finite numbers"),
        (lambda t: t | {"reductions.0.weight": torch.zeros(8, 512)}, "it has a head, reductions.0.weight .*branches"),
    ],
)
def test_what_does_not_fit_is_told_by_name(change, message, tmp_path):
    torch.save(change(published(SMALL).state_dict()), tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=message) as caught:
        timm_networks.load(entry(SMALL, weights="own.pth"), "cpu", weights=tmp_path / "own.pth")
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "fields, names",
    [
        ({"branches": ["gem", "mac"], "dim": 64}, {"pools.0.p", "reductions.0.weight", "reductions.1.weight"}),
        ({"pool": "gem", "dim": 64}, {"pools.0.p", "reductions.0.weight"}),  # a CGD head of one branch
        ({"dim": 64}, {"reductions.0.weight"}),  # a linear head on timm's own pool
    ],
)
def test_a_trained_head_comes_back_from_its_file(fields, names, tmp_path):
    spec = entry(SMALL, input_size=64, weights="own.safetensors", **fields)
    model = timm_networks.build(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    tensors = model.state_dict()
    assert {name for name in tensors if not name.startswith("backbone.body.")} == names
    save_file(tensors, tmp_path / "own.safetensors")
    ours = timm_networks.load(spec, "cpu", weights=tmp_path / "own.safetensors")
    assert spec.dim == 64 == ours.embed(crops_of(spec)).shape[1]
    for name, value in ours.model.state_dict().items():
        torch.testing.assert_close(value, tensors[name])
    save_file(published(SMALL).state_dict(), tmp_path / "own.safetensors")
    with pytest.raises(WeightsError, match=r"(pools.0.p|reductions.0.weight) wants .*, has nothing"):
        timm_networks.load(spec, "cpu", weights=tmp_path / "own.safetensors")


# ---- published ---------------------------------------------------------------------------------------------------
@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_published_weights_come_from_the_hub_cache_and_their_digest_is_known(cache):
    body = published(SMALL)
    put(cache, "timm/resnet10t.c3_in1k", {"model.safetensors": save(body.state_dict())})
    spec = entry(SMALL).fetched()
    assert spec.sha256 == hashlib.sha256(save(body.state_dict())).hexdigest()
    put(cache, "timm/resnet10t.c3_in1k", {"model.safetensors": b"newer, and of no use"})  # since the run was planned
    crops = crops_of(spec)
    rows = timm_networks.load(spec, "cpu", weights=None).embed(crops)
    np.testing.assert_allclose(rows, rows_of_timm(body, crops), atol=1e-4)


def test_a_model_of_the_hub_brings_its_configuration(cache):
    body = published(SMALL, num_classes=3)
    config = {
        "architecture": SMALL, "num_classes": 3,
        "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "crop_pct": 1.0,
                           "interpolation": "bilinear", "classifier": "fc", "first_conv": "conv1.0"},
    }  # fmt: skip
    torch.save(body.state_dict(), cache / "scratch")
    files = {"config.json": json.dumps(config).encode(), "pytorch_model.bin": (cache / "scratch").read_bytes()}
    put(cache, "shop/own", files)
    spec = entry("hf-hub:shop/own").fetched()
    assert (spec.input_size, spec.mean, spec.crop, spec.interpolation) == (64, (127.5,) * 3, 1.0, "bilinear")
    theirs = timm.create_model("hf-hub:shop/own", pretrained=True).eval()
    crops = crops_of(spec)
    rows = timm_networks.load(spec, "cpu", weights=None).embed(crops)
    np.testing.assert_allclose(rows, rows_of_timm(theirs, crops), atol=1e-4)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"timm": SMALL}, r"of timm/resnet10t\.c3_in1k is not in .* and cannot be fetched"),
        ({"timm": "gcvit_tiny"}, r"timm publishes no weights of gcvit_tiny on the hub; name a file with `weights`"),
    ],
)
def test_without_network_and_cache(fields, message, cache):
    spec = timm_models.from_fields({"name": "own", **fields})
    with pytest.raises(UserError, match=message):
        spec.fetched()
    with pytest.raises(WeightsError, match="own: no weights given"):
        timm_networks.load(spec, "cpu", weights=None)


def test_another_digest_than_the_entrys_is_refused(cache):
    put(cache, "timm/resnet10t.c3_in1k", {"model.safetensors": b"x"})
    with pytest.raises(UserError, match="its entry wants 0000000000000000…"):
        entry(SMALL, sha256="0" * 64).fetched()
