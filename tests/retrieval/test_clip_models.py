"""Entries with `open_clip`: what is read from open_clip's own tables, from a folder and from a cache of the hub."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from retrieval.clip_models import from_fields
from store.errors import UserError
from tests.retrieval import tiny_clip

REPO = Path(__file__).resolve().parents[2]
LAION = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"  # where open_clip's table has ViT-B-32/laion2b_s34b_b79k


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def entry(open_clip: str, **more: object) -> dict[str, object]:
    return {"name": "mine", "open_clip": open_clip, **more}


def config(**text: object) -> bytes:
    network = tiny_clip.NETWORK | {"text_cfg": tiny_clip.NETWORK["text_cfg"] | text}
    return json.dumps({"model_cfg": network, "preprocess_cfg": tiny_clip.PREPROCESS}).encode()


def test_an_architecture_with_a_tag(cache):
    tiny_clip.hub(cache, {"open_clip_model.safetensors": b"weights"}, LAION)
    spec = from_fields(entry("ViT-B-32/laion2b-s34b-b79k")).fetched()
    assert (spec.dim, spec.input_size, spec.tokenizer, spec.weights) == (512, 224, "", "")
    assert spec.published == (LAION, tiny_clip.COMMIT, "open_clip_model.safetensors")
    assert spec.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert spec.mean == pytest.approx((255 * 0.48145466, 255 * 0.4578275, 255 * 0.40821073))


def test_a_repository_of_the_hub(cache):
    files = {"open_clip_config.json": config(), "open_clip_pytorch_model.bin": b"pickled tensors"}
    tiny_clip.hub(cache, files)
    spec = from_fields(entry(f"hf-hub:{tiny_clip.REPOSITORY}", view="flip@margin0.1")).fetched()
    assert (spec.name, spec.flip, spec.margin) == ("mine@flip@margin0.1", True, 0.1)
    assert (spec.dim, spec.input_size) == (24, 32)
    assert spec.mean == (127.5, 102, 76.5) and spec.std == (51, 76.5, 102)  # 255 times those of PREPROCESS
    assert spec.published == (tiny_clip.REPOSITORY, tiny_clip.COMMIT, "open_clip_pytorch_model.bin")
    assert from_fields(entry(f"hf-hub:{tiny_clip.REPOSITORY}@{tiny_clip.COMMIT}")).fetched().published == spec.published


def test_safetensors_are_taken_before_torchs_files(cache):
    names = ("open_clip_pytorch_model.bin", "open_clip_model.safetensors")
    tiny_clip.hub(cache, {"open_clip_config.json": config(), **{name: name.encode() for name in names}})
    assert from_fields(entry(f"hf-hub:{tiny_clip.REPOSITORY}")).fetched().published[2] == names[1]


def test_ones_own_weights_need_nothing_published(cache):
    tiny_clip.hub(cache, {"open_clip_config.json": config(hf_tokenizer_name="shop/words")})
    spec = from_fields(entry(f"hf-hub:{tiny_clip.REPOSITORY}", weights="s3://b/w.safetensors", input_size=64))
    assert (spec.weights, spec.sha256) == ("s3://b/w.safetensors", "")
    assert (spec.input_size, spec.resized, spec.tokenizer) == (64, True, "shop/words")


@pytest.mark.parametrize(
    "name, mean",
    [
        ("ViT-B-16-SigLIP", 127.5),  # all that is published of it was trained with 0.5
        ("ViT-B-32", 255 * 0.48145466),  # some weights were trained with other figures: open_clip's default
    ],
)
def test_an_architecture_alone_sees_pixels_as_its_published_weights_do(cache, name, mean):
    assert from_fields(entry(name, weights="own.safetensors")).mean[0] == pytest.approx(mean)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"open_clip": "ViT-B-3"}, "'mine': open_clip has no architecture 'ViT-B-3'; near it: ViT-B-16, "),
        ({"open_clip": "ViT-B-32/none"}, "open_clip has no weights 'none' of ViT-B-32; there are: openai, "),
        ({"open_clip": "ViT-B-32/openai"}, "name ViT-B-32-quickgelu/openai"),
        ({"open_clip": "hf-hub:a b"}, "embedder 'mine': a b: Repo id must use"),
        ({"open_clip": "local-dir:none"}, "local-dir:none: its configuration cannot be used .FileNotFoundError"),
        ({"open_clip": 3}, "want {name: TEXT, open_clip: TEXT}, got open_clip 3"),
        ({"open_clip": "ViT-B-32", "dim": 3}, "unknown field 'dim'; with open_clip there are: name, open_clip,"),
        ({"open_clip": "ViT-B-32", "input_size": [32, 64]}, r"input_size wants a whole number .*got \[32, 64\]"),
        ({"open_clip": "ViT-B-32", "mean": [1, 0.2]}, "mean wants three numbers"),
        ({"open_clip": "ViT-B-32", "name": "../up"}, "the name becomes a folder"),
        ({"open_clip": "ViT-B-32", "view": "back"}, "has no view 'back'"),
        ({"open_clip": "xlm-roberta-base-ViT-B-32"}, "its text tower is xlm-roberta-base, which needs .* transformers"),
    ],
)  # fmt: skip
def test_what_is_refused_in_one_line(cache, fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_fields({"name": "mine"} | fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{", '{"model_cfg": {"embed_dim": 3}}', '{"model_cfg": 7}'])
def test_a_configuration_of_another_shape_is_refused(cache, tmp_path, text):
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"^embedder 'mine': "):
        from_fields(entry(f"local-dir:{tmp_path}"))


def test_published_weights_that_cannot_be_had(cache):
    absent = (
        r"open_clip_model.safetensors or .* of laion/CLIP.* cannot be fetched .*HF_HOME, or name a file with `weights`"
    )
    with pytest.raises(UserError, match=absent):
        from_fields(entry("ViT-B-32/laion2b_s34b_b79k")).fetched()
    with pytest.raises(UserError, match=r"ViT-B-32 names no weights; want open_clip: ARCHITECTURE/TAG, or `weights`"):
        from_fields(entry("ViT-B-32")).fetched()
    tiny_clip.hub(cache, {"open_clip_config.json": config(), "open_clip_model.safetensors": b"others"})
    with pytest.raises(UserError, match=r"has sha256 .*, its entry wants 0000"):
        from_fields(entry(f"hf-hub:{tiny_clip.REPOSITORY}", sha256="0" * 64)).fetched()


def test_neither_torch_nor_open_clip_is_imported(tmp_path):
    code = "import sys; from retrieval.clip_models import from_fields\n"
    code += "from_fields({'name': 'a', 'open_clip': 'ViT-B-16-SigLIP'})\n"
    code += "print(sorted({'torch', 'timm', 'open_clip', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=100)
    assert done.stdout == "[]\n", done.stderr
