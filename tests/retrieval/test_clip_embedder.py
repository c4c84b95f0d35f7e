"""Small random CLIP models: rows equal open_clip's own, from files, from a cache of the hub, and what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from networks.engines import Engine
from networks.weight_files import WeightsError
from retrieval.clip_embedder import ClipEmbedder, load
from retrieval.clip_models import ClipSpec, from_fields
from retrieval.clip_text import tokenizer
from store.errors import UserError
from tests.retrieval import tiny_clip

TEXTS = ["red midi skirt", "Jeans, blue & wide!", ""]
WORDS = {"<pad>": 0, "</s>": 1, "red": 2, "skirt": 3, "<unk>": 4}
SIGLIP: dict[str, Any] = {  # a tower of timm, and words of the hub
    "embed_dim": 64, "custom_text": True, "init_logit_bias": -10,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "none"},
    "text_cfg": {
        "context_length": 6, "vocab_size": 5, "hf_tokenizer_name": "shop/words", "width": 64, "heads": 2, "layers": 1,
        "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.folder(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def spec_of(open_clip_name: str, **more: Any) -> ClipSpec:
    return from_fields({"name": "mine", "open_clip": open_clip_name, **more})


def loaded(spec: ClipSpec) -> ClipEmbedder:
    return load(spec, "cpu", weights=Path(spec.weights) if spec.weights else None)


def crops(size: int, n: int = 5) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


def images_by_open_clip(place: Path, crops: np.ndarray, **how: Any) -> np.ndarray:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{place}", **how)
    with torch.inference_mode():
        pixels = torch.stack([preprocess(Image.fromarray(crop)) for crop in crops])
        return model.eval().encode_image(pixels, normalize=True).numpy()


def test_crops_as_open_clip_embeds_them(place):
    spec = spec_of(f"local-dir:{place}")
    rows = loaded(spec).embed(crops(32), batch_size=2)
    assert rows.shape == (5, 24) and rows.dtype == np.float32
    np.testing.assert_allclose(rows, images_by_open_clip(place, crops(32)), atol=1e-4)


def test_crops_and_texts_have_the_same_rows_through_openvino(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = spec_of(f"local-dir:{place}")
    ours = load(spec, "cpu", weights=Path(spec.weights), engine=Engine("openvino"))
    np.testing.assert_allclose(ours.embed(crops(32)), loaded(spec).embed(crops(32)), atol=1e-5)
    np.testing.assert_array_equal(ours.embed_text(TEXTS), loaded(spec).embed_text(TEXTS))  # torch runs those
    assert (ours.engine, ours.notes) == ("openvino", [])


def test_texts_as_open_clip_embeds_them(place):
    rows = loaded(spec_of(f"local-dir:{place}")).embed_text(TEXTS)
    model = open_clip.create_model(f"local-dir:{place}").eval()
    with torch.inference_mode():
        want = model.encode_text(open_clip.get_tokenizer(f"local-dir:{place}")(TEXTS), normalize=True).numpy()
    np.testing.assert_allclose(rows, want, atol=1e-4)
    assert rows.dtype == np.float32 and np.abs(rows[0] - rows[1]).max() > 0.01, "texts differ"


def test_another_size_as_open_clip_interpolates_it(place):
    spec = spec_of(f"local-dir:{place}", input_size=48)
    want = images_by_open_clip(place, crops(48), force_image_size=48)
    np.testing.assert_allclose(loaded(spec).embed(crops(48)), want, atol=1e-4)


def test_a_tower_of_timm_and_words_of_the_hub(tmp_path):
    place = tiny_clip.folder(tmp_path, copy.deepcopy(SIGLIP))
    words(tmp_path)
    embedder = loaded(spec_of(f"local-dir:{place}"))
    np.testing.assert_allclose(embedder.embed(crops(160)), images_by_open_clip(place, crops(160)), atol=1e-4)
    model = open_clip.create_model(f"local-dir:{place}").eval()
    tokens = torch.tensor([[2, 3, 1, 0, 0, 0], [4, 1, 0, 0, 0, 0]])  # red skirt </s>, <unk> </s>
    assert tokenizer(embedder.spec)(["Red, skirt!", "dress"]).tolist() == tokens.tolist()
    with torch.inference_mode():
        want = model.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(embedder.embed_text(["Red, skirt!", "dress"]), want, atol=1e-4)


def words(folder: Path, pad: Any = "<pad>") -> None:
    """A vocabulary of five words as the hub's repositories hold it."""
    folder.mkdir(exist_ok=True)
    fast = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))


def test_words_come_from_the_hubs_cache(cache, tmp_path):
    place = tiny_clip.folder(tmp_path / "model", copy.deepcopy(SIGLIP))
    tiny_clip.in_hub(cache, place)
    embedder = loaded(spec_of(f"hf-hub:{tiny_clip.REPOSITORY}").fetched())
    with pytest.raises(UserError, match=r"tokenizer.json of shop/words is not in .* and cannot be fetched"):
        embedder.embed_text(["red"])
    words(tmp_path / "words", pad={"content": "</s>"})
    tiny_clip.in_hub(cache, tmp_path / "words", "shop/words")
    assert tokenizer(embedder.spec)(["red"]).tolist() == [[2, 1, 1, 1, 1, 1]]
    assert embedder.embed_text(["red"]).shape == (1, 64)


def test_published_weights_come_from_the_hubs_cache(cache, place):
    tiny_clip.in_hub(cache, place)
    spec = spec_of(f"hf-hub:{tiny_clip.REPOSITORY}").fetched()
    np.testing.assert_array_equal(loaded(spec).embed(crops(32)), loaded(spec_of(f"local-dir:{place}")).embed(crops(32)))
    blob = cache / "models--shop--tiny-clip" / "blobs" / spec.sha256
    snapshot = cache / "models--shop--tiny-clip" / "snapshots" / tiny_clip.COMMIT / "open_clip_model.safetensors"
    snapshot.unlink()
    snapshot.write_bytes(blob.read_bytes()[:-4] + bytes(4))
    with pytest.raises(WeightsError, match=f"has sha256 .*, want {spec.sha256[:16]}"):
        loaded(spec)
    snapshot.unlink()
    with pytest.raises(UserError, match=r"open_clip_model.safetensors of shop/tiny-clip is not in"):
        loaded(spec)


def test_torchs_files_of_tensors_are_read_and_pickled_code_is_not(place, tmp_path):
    tensors = load_file(tiny_clip.weights_of(place))
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, tmp_path / "own.pt")
    spec = spec_of(f"local-dir:{place}", weights=str(tmp_path / "own.pt"))
    np.testing.assert_array_equal(loaded(spec).embed(crops(32)), loaded(spec_of(f"local-dir:{place}")).embed(crops(32)))
    torch.save({"state_dict": tensors, "trainer": Path("anything that is no tensor")}, tmp_path / "own.pt")
    with pytest.raises(WeightsError, match=r"own.pt cannot be loaded: Weights only load failed"):
        loaded(spec)


def test_weights_of_another_model_are_refused_in_a_line(place, tmp_path):
    tensors = load_file(tiny_clip.weights_of(place))
    spec = spec_of(f"local-dir:{place}", weights=str(tmp_path / "own.safetensors"))
    wrong = {
        "text_projection": {**tensors, "text_projection": torch.zeros(3, 24)},
        "ln_final.weight": {name: tensor for name, tensor in tensors.items() if name != "ln_final.weight"},
        "visual.proj is not all finite": {**tensors, "visual.proj": tensors["visual.proj"] / 0},
    }
    for message, given in wrong.items():
        save_file(given, tmp_path / "own.safetensors")
        with pytest.raises(WeightsError, match=message) as caught:
            loaded(spec)
        assert "\n" not in str(caught.value)
    (tmp_path / "own.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(WeightsError, match=r"own.safetensors cannot be loaded"):
        loaded(spec)


def test_without_weights_only_where_that_is_allowed(place):
    spec = spec_of(f"local-dir:{place}")
    with pytest.raises(WeightsError, match=r"mine: no weights given; name a file with `weights`"):
        load(spec, "cpu", weights=None)
    one, two = (load(spec, "cpu", weights=None, allow_random_weights=True).embed(crops(32)) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_views_share_the_network_and_the_texts(place):
    embedder = loaded(spec_of(f"local-dir:{place}"))
    mirrored = embedder.view(spec_of(f"local-dir:{place}", view="flip"))
    assert mirrored.model is embedder.model
    np.testing.assert_allclose(mirrored.embed(crops(32)), embedder.embed(crops(32)[:, :, ::-1]), atol=1e-6)
    np.testing.assert_array_equal(mirrored.embed_text(TEXTS), embedder.embed_text(TEXTS))


def test_texts_none_and_too_long(place):
    embedder = loaded(spec_of(f"local-dir:{place}"))
    assert embedder.embed_text([]).shape == (0, 24)
    assert embedder.embed_text([" ".join(["skirt"] * 10)]).shape == (1, 24)  # and the tokens of beginning and end
    with pytest.raises(ValueError, match=r"'skirt skirt.*has 13 tokens, the model reads 12; shorten the text"):
        embedder.embed_text(["skirt", " ".join(["skirt"] * 11)])
