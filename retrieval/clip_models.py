"""CLIP models by open_clip, an image and a text tower that give rows of one space. Plain data, without torch.

    - {name: marqo, open_clip: "hf-hub:Marqo/marqo-fashionSigLIP"}          # configuration and weights from the hub
    - {name: vit, open_clip: ViT-B-32/laion2b_s34b_b79k}                    # architecture/tag, as open_clip lists them
    - {name: mine, open_clip: ViT-B-32, weights: ./mine.safetensors}        # weights of one's own
    - {name: here, open_clip: "local-dir:models/clip"}                      # open_clip_config.json, weights beside it

The crops are squares of the model's own size, for which open_clip's preprocessing only normalises: its resize and crop
modes have nothing left to do. Source: open_clip (github.com/mlfoundations/open_clip), Radford et al., arXiv:2103.00020.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, cast

from networks import hub, specs
from retrieval.models import check_name, viewed
from store.errors import UserError

HUB, FOLDER = "hf-hub:", "local-dir:"
CONFIG, WEIGHTS = "open_clip_config.json", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FIELDS = ("name", "open_clip", "weights", "sha256", "licence", "input_size", "mean", "std", "view")
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# open_clip's table of published weights, without the package's other modules and without torch, which they import
TAGS = """
import json, sys, types
sys.modules["safetensors.torch"] = None
package = types.ModuleType("open_clip")
package.__path__ = [sys.argv[1]]
sys.modules["open_clip"] = package
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
print(json.dumps({tag: get_pretrained_cfg(sys.argv[2], tag) for tag in list_pretrained_tags_by_model(sys.argv[2])}))
"""


@dataclass(frozen=True)
class ClipSpec:
    """One CLIP model: everything needed to build both towers, feed them and trust their weights."""

    LOADER: ClassVar[str] = "retrieval.clip_embedder:load"

    name: str  # short; goes into file names, run files and the report
    open_clip: str  # as the run file names it
    network: Mapping[str, Any]  # open_clip's `model_cfg`
    dim: int  # D, length of one row
    input_size: int  # side of the square crops in pixels
    mean: tuple[float, float, float]  # of RGB values 0 to 255, per channel
    std: tuple[float, float, float]
    resized: bool = False  # `input_size` was given: position embeddings are interpolated
    weights: str = ""  # the user's own file; "" means those published
    sha256: str = ""  # of the weights; "" accepts any
    # of the published weights: repository, revision and the file's names, best first; () where there are none
    published: tuple[str, ...] = ()
    tokenizer: str = ""  # folder or repository of tokenizer.json; "" for CLIP's own vocabulary, which open_clip brings
    licence: str = ""
    flip: bool = False
    margin: float = 0.0

    def fetched(self) -> "ClipSpec":
        """The same with the digest of the published weights, and the very commit they come from.

        They are fetched into this machine's cache where they are not there. UserError: that cannot be done, there are
        none, or they have another digest than the entry gives.
        """
        if not self.published:
            raise UserError(f"{self.open_clip} names no weights; want open_clip: ARCHITECTURE/TAG, or `weights`")
        published, digest = hub.pinned(self.published, self.sha256)
        return replace(self, published=published, sha256=digest)


@dataclass(frozen=True)
class _Source:
    """What an entry's `open_clip` stands for."""

    network: Mapping[str, Any]
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[str, ...] = ()  # as in ClipSpec
    folder: str = ""


def from_fields(fields: Mapping[str, Any]) -> ClipSpec:
    """A CLIP model from the run file. A configuration of the hub is fetched here, its weights by `ClipSpec.fetched`.

    `mean` and `std` are of values 0 to 1, as open_clip writes them. ValueError, in one line: open_clip is not
    installed, an unknown field, name or tag, a wrong value, or a configuration that is neither cached nor to be had.
    """
    who = f"embedder {fields.get('name', '?')!r}"
    if unknown := sorted(str(key) for key in set(fields) - set(FIELDS)):
        raise ValueError(f"{who}: unknown field {unknown[0]!r}; with open_clip there are: {', '.join(FIELDS)}")
    if not isinstance(fields.get("name"), str) or not isinstance(fields["open_clip"], str):
        raise ValueError(f"{who}: want {{name: TEXT, open_clip: TEXT}}, got open_clip {fields['open_clip']!r}")
    if find_spec("open_clip") is None:
        raise ValueError(f"{who}: open_clip is not installed; install the extra: pip install '.[clip]'")
    try:
        spec = _spec(fields, _source(fields["open_clip"]))
    except (KeyError, TypeError, AttributeError, OSError) as error:  # a configuration of another shape
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{who}: {fields['open_clip']}: its configuration cannot be used ({reason})") from error
    except (ValueError, UserError) as error:
        raise ValueError(f"{who}: {error}") from error
    specs.check(spec, "embedder")
    check_name(who, spec.name)
    return viewed(spec, str(fields["view"])) if "view" in fields else spec


def _spec(fields: Mapping[str, Any], source: _Source) -> ClipSpec:
    text, vision = source.network["text_cfg"], source.network["vision_cfg"]
    if "hf_model_name" in text and find_spec("transformers") is None:
        raise ValueError(f"its text tower is {text['hf_model_name']}, which needs the package transformers")
    size = fields.get("input_size", vision.get("image_size", 224))
    sides = set(size) if isinstance(size, list) else {size}
    if len(sides) != 1 or not all(type(side) is int and side >= 1 for side in sides):
        raise ValueError(f"input_size wants a whole number of at least 1, for crops are square; got {size!r}")
    weights = str(fields.get("weights", ""))
    if source.folder and not weights:
        weights = str(next((p for name in WEIGHTS if (p := Path(source.folder, name)).exists()), ""))
    pixels = {
        name: tuple(255 * value for value in fields.get(name, source.preprocess.get(name, default)))
        for name, default in (("mean", OPENAI_MEAN), ("std", OPENAI_STD))
    }
    tokenizer = text.get("hf_tokenizer_name", "")
    return ClipSpec(
        fields["name"],
        fields["open_clip"],
        source.network,
        dim=source.network["embed_dim"],
        input_size=sides.pop(),
        mean=cast(Any, pixels["mean"]),
        std=cast(Any, pixels["std"]),
        resized="input_size" in fields,
        weights=weights,
        sha256=str(fields.get("sha256", "")),
        published=source.published,
        tokenizer=source.folder if tokenizer and source.folder else tokenizer,
        licence=fields.get("licence", ""),
    )


def _source(text: str) -> _Source:
    if text.startswith(HUB):
        repository, _, revision = text.removeprefix(HUB).partition("@")
        config = json.loads(hub.fetch(repository, [CONFIG], revision).read_text(encoding="utf-8"))
        published = (repository, revision, *WEIGHTS)
        return _Source(config["model_cfg"], config.get("preprocess_cfg", {}), published)
    if text.startswith(FOLDER):
        folder = Path(text.removeprefix(FOLDER)).expanduser().absolute()
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return _Source(config["model_cfg"], config.get("preprocess_cfg", {}), folder=str(folder))
    return _architecture(*text.partition("/")[::2])


def _architecture(name: str, tag: str) -> _Source:
    """A network that open_clip knows by name, with the tag of its published weights where one is given."""
    package = Path(cast(str, cast(Any, find_spec("open_clip")).origin)).parent
    known = {path.stem: path for path in (package / "model_configs").glob("*.json")}
    if name not in known:
        near = sorted(k for k in known if k.casefold().startswith(name.casefold()[:5]))
        raise ValueError(f"open_clip has no architecture {name!r}; near it: {', '.join(near[:5]) or 'none'}")
    network = json.loads(known[name].read_text(encoding="utf-8"))
    command = [sys.executable, "-P", "-c", TAGS, str(package), name]  # -P: the folder hides no library
    tags = json.loads(subprocess.run(command, capture_output=True, check=True, text=True, timeout=120).stdout)
    if not tag:
        # weights of one's own: they were most likely trained as the published ones, where those agree
        agreed = {json.dumps([cfg["mean"], cfg["std"]]) for cfg in tags.values()}
        return _Source(network, next(iter(tags.values())) if len(agreed) == 1 else {})
    tag = tag.lower().replace("-", "_")
    if tag not in tags:
        raise ValueError(f"open_clip has no weights {tag!r} of {name}; there are: {', '.join(tags) or 'none'}")
    cfg = tags[tag]
    if cfg.get("quick_gelu", False) != network.get("quick_gelu", False):
        raise ValueError(f"{name}/{tag} was trained with QuickGELU; name {name}-quickgelu/{tag}")
    repository, _, file = cfg["hf_hub"].rpartition("/")
    if not repository:
        raise ValueError(f"{name}/{tag} is not on the hub; download {cfg['url']} and give the file as `weights`")
    names = (f"{file.rpartition('.')[0]}.safetensors", file) if file else WEIGHTS
    return _Source(network, cfg, (repository, "", *names))
