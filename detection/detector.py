"""One call for every detector: upright RGB photos in, boxes with scores, categories and masks out.

    detector = load(models.ATSS_TINY, "cpu", weights=Path("weights/tiny/atss-tiny.safetensors"))
    detections = detector.detect([photo, another])

Resizing, padding and normalising are ours and batched, and so is what follows the network for the heads that
`detection.families` knows; the others end in mmdetection's own `predict`. The results are those of mmdetection's
per-image pipeline (tested on real photos).
"""

import copy
import functools
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detection import head_facts, rle
from detection.batches import alike, fit, normalise, record_of
from detection.decode import BatchBoxes, visible
from detection.dense import fold, pad_alike
from detection.detections import Detections, Rle
from detection.early import key_of
from detection.families import PhotoSizes, family_of
from detection.models import DetectorSpec
from networks import plan_files, weight_files
from networks.engines import TORCH, Engine, surroundings
from networks.weight_files import WeightsError
from store.files import file_sha256

TRAINER = "jobs/train_detector.py"
# OpenVINO takes so many pixels at once, or one photo. More would cost no less each, and a network keeps the memory of
# its largest batch.
COMPILED_PIXELS = 4 * 320 * 256
ALL_BOXES = 1_000_000  # of a photo: more than any head proposes


def build_config(spec: DetectorSpec) -> Any:
    """The spec's model as mmengine's `ConfigDict`, a copy; every module it names is registered."""
    from detection import backbones, mmcv_ops  # import timm

    mmcv_ops.install()
    from mmengine.config import ConfigDict

    backbones.register()
    return ConfigDict(copy.deepcopy(dict(spec.model)))


def build(spec: DetectorSpec, *, pretrained_backbone: bool = False, initialise: bool = True) -> nn.Module:
    """The mmdetection model of a spec, with random heads; the backbone too unless `pretrained_backbone`.

    `initialise` is False where a file fills every tensor afterwards: mmdetection's own initial values are left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = build_config(spec)
        from mmdet.registry import MODELS

        if pretrained_backbone and config.backbone.type == "EfficientNetLite":
            config.backbone.pretrained = True
        logging.disable(logging.INFO)  # mmengine would print three lines for each of hundreds of tensors
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # heads start alike in every process, so a run with random weights can be repeated
                model: nn.Module = MODELS.build(config)
                if initialise:
                    model.init_weights()  # type: ignore[operator]  # mmengine's modules have it
        finally:
            logging.disable(logging.NOTSET)
    return model


def load(
    spec: DetectorSpec,
    device: str,
    *,
    weights: Path | None,
    allow_random_weights: bool = False,
    score_threshold: float = 0.01,
    max_per_image: int = 100,
    category_ids: Sequence[int] | None = None,
    engine: Engine = TORCH,
) -> "Detector":
    """A detector ready for photos.

    Args:
        spec: which one.
        device: "cpu", "cuda" or "cuda:0".
        weights: a file of safetensors (nothing in it is executed); checked against `spec.sha256` where that is given.
        allow_random_weights: build it untrained when `weights` is None: for tests of the machinery, not for results.
        score_threshold: boxes below this score are not returned, in [0, 1].
        max_per_image: boxes a photo at most, the best ones.
        category_ids: the category id that each of `spec.categories` becomes, 0 where its boxes are left out; they take
            no other box's place. None: 1, 2, 3 …
        engine: what runs the network. OpenVINO and CUDA graphs do where its outputs are read by `detection.families`,
            OpenVINO only where its weights are of a file; of a Cascade R-CNN CUDA graphs run all but the heads.

    Raises:
        WeightsError: no weights, another digest, or tensors that do not fit.
    """
    limits = score_threshold, max_per_image, category_ids
    facts = _facts_file(spec, weights, limits) if engine.name == "openvino" else None
    known = None if facts is None else plan_files.read(facts)
    made = functools.partial(_filled, spec, weights, allow_random_weights)
    detector = Detector(spec, made if known else made().to(device), device, *limits, facts=known)
    detector.compile(engine, weights)
    if facts is not None and known is None and detector.engine == "openvino":
        plan_files.write(facts, head_facts.facts_of(detector._family, detector.model))
    return detector


def _facts_file(spec: DetectorSpec, weights: Path | None, limits: tuple[Any, ...]) -> Path | None:
    """Where the facts of a detector with these weights and limits lie, beside its plans; None without weights."""
    try:
        digest = file_sha256(weights or "")
    except OSError:
        return None
    key = {"model": spec.model, "weights": digest, "sha256": spec.sha256, "limits": limits}
    return plan_files.path_of({"facts": key} | surroundings())


def _filled(spec: DetectorSpec, weights: Path | None, allow_random_weights: bool) -> nn.Module:
    """The model with its weights, batch norms folded, padding the same for all batches; raises as `load`."""
    model = build(spec, initialise=weights is None)
    if weights is not None:
        tensors = weight_files.read(Path(weights), model=spec.name, sha256=spec.sha256, trainer=TRAINER)
        weight_files.fill(model, tensors, f"{spec.name}: {weights}")
    elif not allow_random_weights:
        raise WeightsError(f"{spec.name}: no weights given; train them with {TRAINER}, or set allow_random_weights")
    fold(model.eval())
    pad_alike(model, spec.pad_multiple_px)
    return model


def _set_test_limits(model: nn.Module, score_threshold: float, max_per_image: int, left_out: list[int]) -> None:
    """Put the caller's limits where mmdetection's heads read them.

    Heads keep the best boxes of all classes together. So that those of the classes `left_out` take no other box's place
    they keep all.
    """
    heads = [getattr(model, "bbox_head", None), getattr(model, "roi_head", None)]
    for limits in (head.test_cfg for head in heads if head is not None):
        limits.max_per_img = ALL_BOXES if left_out else max_per_image
        limits.score_thr = score_threshold
        if "topk" in limits:  # CenterNet: so many peaks of the heat map
            limits.topk = max(max_per_image, 100)


class Detector:
    """A detector ready for photos, made by `load` or around a model in training.

    Attributes:
        path: "batched" where we decode a batch at once, "mmdetection" where the model's own `predict` does.
        notes: a line for a batch that was halved, and for a network that the engine does not run.
    """

    def __init__(
        self,
        spec: Any,  # a DetectorSpec, or that of another kind for a class after this one
        model: nn.Module | Callable[[], nn.Module],
        device: str,
        score_threshold: float,
        max_per_image: int,
        category_ids: Sequence[int] | None = None,
        *,
        facts: bytes | None = None,
    ) -> None:
        """With `facts` (`detection.head_facts.facts_of`), for OpenVINO, `model` makes the model where it is needed."""
        ids = range(1, len(spec.categories) + 1) if category_ids is None else category_ids
        self._category_ids = np.array(ids, np.int16)
        self.spec, self.device = spec, torch.device(device)
        self._given, self._facts = model, facts
        self.score_threshold, self.max_per_image = score_threshold, max_per_image
        self._left_out = np.flatnonzero(self._category_ids == 0).tolist()
        self._family = self._whole() if facts is None else head_facts.from_facts(facts, self._left_out)
        self.path = "mmdetection" if self._family is None else "batched"
        self.notes: list[str] = []
        self._few_sizes = self.device.type == "cuda"  # cuDNN plans each convolution again for every new shape
        self._layout, self._half = torch.contiguous_format, False
        if facts is None:
            self._layout, self._half = self._choose_layout()
            self.model.to(memory_format=self._layout)  # type: ignore[call-overload]

    @functools.cached_property
    def model(self) -> nn.Module:
        """The mmdetection model; with facts it is made when it is first asked for."""
        model: Any = self._given if self._facts is None else self._given()
        return model.eval()

    def _whole(self) -> Any:
        """How its outputs are read, around the model."""
        self._set_limits(self._left_out)
        return family_of(self.model, self._left_out)

    def compile(self, engine: Engine, weights: Path | None) -> None:
        """Have OpenVINO or CUDA graphs run the network, where the engine is one of them.

        `weights` is the file that the model was filled from; without one OpenVINO does not take it. Nothing changes for
        a model whose outputs mmdetection itself reads.
        """
        if self._family is None:
            return
        if engine.name == "cudagraph":
            self._family.capture(self.spec.name, self.notes)
        if engine.name != "openvino" or weights is None:
            return
        description: dict[str, Any] | None = None
        if not getattr(self.spec, "imports", ()):  # the user's own code, which no digest covers
            description = {"kind": "detector", "model": self.spec.model, "weights": file_sha256(weights)}
        whole = None if self._facts is None else self._whole
        share = isinstance(self.spec, DetectorSpec)  # those of another kind prepare photos in other ways
        self.notes += self._family.compile(self.spec.name, description, engine, whole, share)
        self._layout = torch.contiguous_format

    @property
    def engine(self) -> str:
        """What runs its network: torch, openvino or cudagraph."""
        return getattr(self._family and self._family.dense, "engine", "torch")

    def _set_limits(self, left_out: list[int]) -> None:
        _set_test_limits(self.model, self.score_threshold, self.max_per_image, left_out)

    def _choose_layout(self) -> tuple[torch.memory_format, bool]:
        """How the network's tensors lie in memory, and whether it computes in half precision."""
        on_gpu = self.device.type == "cuda"
        # cuDNN takes seconds to plan a depthwise convolution in channels last, which is a third faster on a CPU
        planes_first = on_gpu and _is_depthwise(self.model)
        # small networks: converting costs more time than half precision saves
        return torch.contiguous_format if planes_first else torch.channels_last, on_gpu and not planes_first

    def view(self, spec: Any) -> "Detector":
        """Another view of the same detector (`detection.models.viewed`), around the same network."""
        limits = self.score_threshold, self.max_per_image
        given: Any = self.model if self._facts is None else (lambda: self.model)
        more: dict[str, Any] = {} if self._facts is None else {"facts": self._facts}
        other = type(self)(spec, given, str(self.device), *limits, self._category_ids.tolist(), **more)
        other._family, other._layout = self._family, self._layout
        return other

    def detect(self, images: Sequence[np.ndarray], *, batch_size: int = 8) -> list[Detections]:
        """Find the garments in upright RGB photos of any sizes: one `Detections` a photo, in the order given.

        Up to `batch_size` photos of one padded shape go through the model together. A photo's result does not depend on
        the order of the others, up to the rounding of batched arithmetic. Raises ValueError for a photo that is not
        (H, W, 3) uint8.
        """
        prepared = [self._prepare(image) for image in images]
        detections: list[Detections | None] = [None] * len(images)
        for shape, members in alike([self._padded(photo) for photo in prepared]):
            size = batch_size
            if self.engine == "openvino":
                size = min(batch_size, max(1, COMPILED_PIXELS // (shape[0] * shape[1])))
            for start in range(0, len(members), size):
                rows = members[start : start + size]
                n = min(_power_of_two(len(rows)), size) if self._few_sizes else len(rows)
                batch = rows + rows[-1:] * (n - len(rows))
                results = self._run([prepared[r] for r in batch], [images[r].shape[:2] for r in batch], shape)
                for row, result in zip(rows, results, strict=False):  # drops the copies that filled the batch
                    detections[row] = result
        return [result for result in detections if result is not None]

    def _prepare(self, image: np.ndarray) -> Any:
        """A photo as `_inputs` takes it."""
        fitted = fit(image, self.spec.scale_px)
        return np.ascontiguousarray(fitted[:, ::-1]) if self.spec.flip else fitted

    def _padded(self, prepared: Any) -> tuple[int, int]:
        """(height, width) that a prepared photo is padded to, whichever photos are with it."""
        multiple = self.spec.pad_multiple_px
        height, width = (-(-side // multiple) * multiple for side in prepared.shape[:2])
        return height, width

    def _run(self, photos: list[Any], originals: list[tuple[int, int]], shape: tuple[int, int]) -> list[Detections]:
        """One batch; when the device's memory is too small, its two halves, and a note."""
        try:
            return self._forward(photos, originals, shape)
        except torch.cuda.OutOfMemoryError:
            if len(photos) == 1:
                raise
            self.notes.append(
                f"{self.spec.name}: out of memory at {len(photos)} photos of {shape[1]}x{shape[0]}, halved"
            )
        torch.cuda.empty_cache()
        half = len(photos) // 2
        return self._run(photos[:half], originals[:half], shape) + self._run(photos[half:], originals[half:], shape)

    @torch.inference_mode()
    def _forward(self, photos: list[Any], originals: list[tuple[int, int]], shape: tuple[int, int]) -> list[Detections]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            batch, samples = self._inputs(photos, originals, shape)
            if self._family is None:
                return self._by_mmdetection(batch, samples)
            given = batch
            if self._family.early is not None:
                given = self._family.early(batch, lambda: key_of(photos, (shape, self.spec.mean, self.spec.std)))
            outputs = [one.float() for one in self._family.dense(given)]
            sizes = PhotoSizes.of(samples, batch)
            found = self._family.decode(outputs, sizes)
            scaled = found._replace(boxes=found.boxes / sizes.scale[found.photos].repeat(1, 2))
            kept, rows = visible(scaled, sizes.original, self.score_threshold, self.max_per_image)
            cells = self._family.masks(outputs, found.take(rows))
        return self._as_records(kept, cells, self._family.mask_threshold, [sample.ori_shape for sample in samples])

    def _inputs(
        self, photos: list[Any], originals: list[tuple[int, int]], shape: tuple[int, int]
    ) -> tuple[Tensor, list[Any]]:
        """The batch that the network takes, (B, 3, H, W), and mmdetection's record of each photo."""
        batch = normalise(photos, shape, self.spec, self.device).to(memory_format=self._layout)
        sample = _sample if self._facts is None else record_of
        samples = [sample(photo.shape[:2], original, shape) for photo, original in zip(photos, originals, strict=True)]
        return batch, samples

    def _as_records(
        self, kept: BatchBoxes, cells: Tensor | None, threshold: float, sizes: list[tuple[int, int]]
    ) -> list[Detections]:
        """The boxes of each photo, with one copy from the device for the batch.

        `kept` is by photo and best first, `sizes` are heights and widths of the photos. Each of `cells` (N, S, S) is
        stretched over its box, and the mask is on where it reaches the threshold.
        """
        columns = [kept.boxes, kept.scores[:, None], kept.labels[:, None], kept.photos[:, None]]
        table = torch.cat(columns if cells is None else [*columns, cells.flatten(1)], 1).cpu().numpy()
        ends = np.searchsorted(table[:, 6], np.arange(len(sizes) - 1), side="right")
        records = []
        for rows, size in zip(np.split(table, ends), sizes, strict=True):
            boxes, scores, labels = rows[:, :4].copy(), rows[:, 4].copy(), rows[:, 5].astype(np.int64)
            masks = None
            if cells is not None:
                each = rows[:, 7:].reshape(len(rows), *cells.shape[1:])
                masks = [rle.drawn(one, box, size, threshold) for one, box in zip(each, boxes, strict=True)]
            records.append(self._record(boxes, scores, labels, masks, size[1]))
        return records

    def _by_mmdetection(self, batch: Tensor, samples: list[Any]) -> list[Detections]:
        """What the model's own `predict` finds in each photo, clipped to it, thresholded, best first."""
        results = []
        for sample in self.model(batch, samples, mode="predict"):
            instances, (height, width) = sample.pred_instances, sample.ori_shape
            labels = instances.labels
            wanted = torch.from_numpy(self._category_ids > 0).to(labels.device)[labels].nonzero()[:, 0]
            wanted = wanted[instances.scores[wanted].float().argsort(descending=True, stable=True)]
            found = BatchBoxes(
                instances.bboxes.float().reshape(-1, 4), instances.scores.float(), labels, torch.zeros_like(labels)
            ).take(wanted)
            size = found.boxes.new_tensor([[width, height]])
            kept, rows = visible(found, size, self.score_threshold, self.max_per_image)
            masks = self._masks(instances, wanted[rows].cpu().numpy())
            boxes, scores, labels = (column.cpu().numpy() for column in kept[:3])
            results.append(self._record(boxes, scores, labels, masks, width))
        return results

    def _masks(self, instances: Any, rows: np.ndarray) -> list[Rle] | None:
        return [instances.masks[r] for r in rows] if getattr(self.model, "with_mask", False) else None

    def _record(
        self, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, masks: list[Rle] | None, width: int
    ) -> Detections:
        """One photo's boxes, with the categories' ids, as they lie in the photo as given."""
        if self.spec.flip:
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
            masks = masks and [rle.mirrored(mask) for mask in masks]
        return Detections(boxes, scores, self._category_ids[labels], masks)


def _is_depthwise(model: nn.Module) -> bool:
    """Whether it has depthwise convolutions, as EfficientNet-Lite has."""
    return any(isinstance(m, nn.Conv2d) and 1 < m.groups == m.in_channels for m in model.modules())


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n` >= 1."""
    return 1 << (n - 1).bit_length()


def _sample(fitted: tuple[int, ...], original: tuple[int, int], padded: tuple[int, int]) -> Any:
    """mmdetection's record of a photo: its place in the batch and its original size."""
    from mmdet.structures import DetDataSample

    return DetDataSample(metainfo=record_of(fitted, original, padded).metainfo)
