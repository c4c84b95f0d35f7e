"""Settings of a run: profile < run file < `--set`, checked and frozen before any work starts.

In: the command line that every stage shares. Out: one `Settings` record, which is passed whole to the stages. An
unknown key or an impossible value is refused with its place, the value seen and what is allowed.
`jobs.runs.settings_page` makes docs/settings.md of the descriptions below.

Settings hold no secrets, so a record of them may be stored: credentials come from the SDK's own chain (environment,
profile, role).
"""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from jobs.runs import flags
from jobs.runs.validation import (
    Actors,
    Address,
    Count,
    Distinct,
    Fraction,
    Gpus,
    Models,
    ModelsOrNone,
    SettingsRecord,
    Several,
    Steps,
    Text,
    Weight,
    build,
)
from jobs.runs.yaml_text import parse_override, read_yaml
from networks.engines import refuse_device
from retrieval import steps
from sources.arguments import positive
from store.errors import UserError

PROFILES = Path(__file__).resolve().parents[1] / "profiles"
BOXES: Final = ("detected", "true")
MOST_RESULTS = 100  # of a query in the report
# YAML reads a bare true as the truth value.
BoxKind = Annotated[Literal["detected", "true"], BeforeValidator(lambda value: "true" if value is True else value)]

ImageSets = Annotated[
    Distinct[Address], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]  # one address may stand alone


class DetectSettings(SettingsRecord):
    """What the detectors read, and which of their boxes are kept."""

    actors: Actors | None = Field(None, description="Worker processes of this stage; null: as the run's `actors`.")
    batch_size: int = Field(8, ge=1, le=4096, description="Photos in one pass of the network.")
    score_threshold: Fraction = Field(0.01, description="Boxes with a lower score are not written.")
    max_per_image: int = Field(100, ge=1, le=10_000, description="Boxes kept of each photo and detector, best first.")


class FusionSettings(SettingsRecord):
    """How the boxes of all detectors become one set. Each method is a file of `postproc/` and names its source."""

    method: Literal["wbf", "nms", "soft_nms_linear", "soft_nms_gaussian", "nmw", "voting"] = Field(
        "wbf", description="How overlapping boxes are merged or suppressed, see docs/postproc.md."
    )
    iou_threshold: Fraction = Field(0.55, description="Boxes of one category that overlap by more are taken for one.")
    sigma: float = Field(0.5, ge=0.001, description="Width of `soft_nms_gaussian`; smaller suppresses more.")
    skip_box_threshold: Fraction = Field(0.01, description="Boxes with a lower score do not enter the fusion.")
    thresholds: Several[Fraction] | None = Field(
        None, description="A `skip_box_threshold` for each detector, in the order of `detectors`; null: the common one."
    )
    conf_type: Literal["avg", "max", "box_and_model_avg", "absent_model_aware_avg"] = Field(
        "avg", description="How `wbf` makes one score of several."
    )
    weights: Several[Weight] | None = Field(
        None, description="A weight for each detector, in the order of `detectors`; null: those of the models."
    )
    score_threshold: Fraction = Field(0.01, description="Fused boxes with a lower score are dropped.")
    min_votes: int = Field(1, ge=1, le=127, description="Detectors that must agree on a fused box.")
    masks: bool = Field(True, description="Whether the masks of those detectors that have some are fused too.")
    max_per_image: int = Field(100, ge=1, le=10_000, description="Fused boxes kept of each photo, best first.")


class ItemSettings(SettingsRecord):
    """Which fused boxes are worth embedding, and which categories these garments may have."""

    score_threshold: Fraction = Field(0.1, description="Fused boxes with a lower score are not embedded.")
    query_score_threshold: Fraction | None = Field(
        None, description="The same for consumers' photos, whose garments are queries; null: as `score_threshold`."
    )
    iou_threshold: Fraction = Field(
        0.7, description="Of boxes that overlap by more, whatever their categories, only the best is embedded."
    )
    max_per_image: int = Field(12, ge=1, le=10_000, description="Garments of each photo, best first.")
    hypotheses: int = Field(
        5, ge=1, le=100, description="Categories that a garment may have, its own included; 1: its own alone."
    )
    hypothesis_iou: Fraction = Field(
        0.5, description="Fused boxes that overlap a garment by at least this much say what else it may be."
    )
    hypothesis_score: Fraction = Field(0.02, description="Fused boxes with a lower score do not say so.")


class EmbedSettings(SettingsRecord):
    """How crops of garments become embeddings."""

    actors: Actors | None = Field(None, description="Worker processes of this stage; null: as the run's `actors`.")
    batch_size: int = Field(32, ge=1, le=65_536, description="Crops in one pass of the network.")
    dtype: Literal["float16", "float32"] = Field("float32", description="Type of the embeddings in their files.")


class SearchSettings(SettingsRecord):
    """How shop items are ranked for a consumer's garment."""

    top_k: int = Field(20, ge=1, le=1000, description="Shop items in a ranking; of more, no figure is known.")
    steps: Steps = Field(({"step": "concat"},), description="Steps of the search, in order, see docs/postproc.md.")
    classifier: Address | None = Field(
        None,
        description="File of jobs/fit_categories.py that improves the categories of detected garments, in the weights "
        "folder or with its place; null: the fused boxes alone decide.",
    )
    pool: int = Field(200, ge=1, le=100_000, description="Candidates that steps on ranked lists look at, best first.")
    weights: Several[Weight] | None = Field(
        None, description="A weight for each embedder, in order; views that a step averages count as one; null: all 1."
    )


class GallerySettings(SettingsRecord):
    """The index of the published gallery, and what a new version must reach at the gate to be published."""

    index: Literal["auto", "flat", "hnsw", "ivf_flat", "ivf_pq"] = Field(
        "auto", description="Kind of index; `auto` takes the most exact one that the memory allows."
    )
    parts: int = Field(
        1,
        ge=1,
        le=1000,
        description="Parts of the gallery; each has an index, which one machine builds and holds.",
    )
    memory_mb: float = Field(
        4096.0, ge=1, description="Memory of a search, and of each step of building, for each part; 10^6 bytes."
    )
    recall: float = Field(0.95, ge=0.01, le=1, description="Recall@10 that an approximate index is tuned to.")
    least_recall: Fraction = Field(0.9, description="Recall@10 below which the gate refuses a version.")
    copies: int = Field(
        16, ge=0, le=10_000, description="Photos that are cropped, encoded again and searched for at the gate."
    )
    least_copies: Fraction = Field(0.8, description="Share of those copies that must be found among the first ten.")
    least_canaries: Fraction = Field(
        0.95, description="Share of the previous night's results that must be found again."
    )
    most_gone: Fraction = Field(0.5, description="Share of the previous night's photos that may be missing tonight.")
    most_lost: Fraction = Field(0.2, description="Share of photos that may lose their product, or all their garments.")


class StorageSettings(SettingsRecord):
    """Object storage."""

    endpoint_url: Address | None = Field(
        None, description="Of an S3-compatible store (`--endpoint-url`); null: the SDK's own chain."
    )


class ReportSettings(SettingsRecord):
    """The report on a run."""

    queries: int = Field(500, ge=0, le=10_000, description="Queries shown with pictures; up to 10,000 are listed.")
    top: int = Field(10, ge=1, le=MOST_RESULTS, description="Results shown for each query (`--top`).")
    compare: Address | None = Field(None, description="OUTPUT of an earlier run over the same photos (`--compare`).")


class Settings(SettingsRecord):
    """One run, completely: what is computed (`imageset` to `search`) and how (the rest)."""

    imageset: ImageSets = Field((), description="Image sets to read, one or a list of several (`--imageset`).")
    output: Address = Field("", description="Folder of the run (`--output`).")
    profile: Text = Field("tiny", description="Name of the profile (`--profile`).")
    detectors: ModelsOrNone = Field(
        (), description="Detectors, shipped or your own, see docs/models.md; `[]`: the whole photo is the item."
    )
    embedders: Models = Field((), description="Embedders, shipped or your own, see docs/models.md.")
    boxes: Distinct[BoxKind] = Field(
        BOXES, description="Boxes to search with: those of the detectors, the true ones (if the set has them), or both."
    )
    limit: Count | None = Field(
        None, description="Photos to take, half consumers' and half shops', answers first (`--limit`); null: all."
    )
    max_pixels: int = Field(50_000_000, ge=1, le=2**40, description="Larger photos are refused before decoding.")
    detect: DetectSettings = Field(default_factory=DetectSettings)
    fusion: FusionSettings = Field(default_factory=FusionSettings)
    items: ItemSettings = Field(default_factory=ItemSettings)
    embed: EmbedSettings = Field(default_factory=EmbedSettings)
    search: SearchSettings = Field(default_factory=SearchSettings)
    gallery: GallerySettings = Field(default_factory=GallerySettings)
    report: ReportSettings = Field(default_factory=ReportSettings)
    max_failed_share: Fraction = Field(0.01, description="If a larger share of the photos fails, the exit status is 3.")
    weights_dir: Address | None = Field(
        None, description="Folder of the weight files (`--weights-dir`); null: weights/PROFILE, as shipped."
    )
    allow_random_weights: bool = Field(False, description="Run models without weights untrained, to try a pipeline.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where networks run; `auto`: cuda if there is a GPU (`--device`)."
    )
    engine: Literal["auto", "torch", "openvino", "cudagraph"] = Field(
        "auto", description="What runs networks; `auto`: openvino on a CPU, torch on a GPU. cudagraph is for GPUs."
    )
    actors: Actors = Field("auto", description="Worker processes of a stage; `auto`: as many as there are devices.")
    gpus_per_actor: Gpus = Field(1.0, description="GPUs of a worker process: a share of one, or a whole number.")
    threads_per_actor: int = Field(1, ge=1, le=1024, description="CPU threads of a worker process.")
    decoders: Literal["auto"] | Annotated[int, Field(ge=0, le=1024)] = Field(
        0,
        description="Processes on other cores of the cluster that decode photos for each worker process with a GPU; "
        "`auto`: as many as it waits for, on free cores, as long as that helps.",
    )
    models_per_actor: Literal["all"] | Annotated[int, Field(ge=1, le=1)] = Field(
        "all", description="Models in a worker process: all of the stage, or one."
    )
    shard_deadline_s: float = Field(
        1800.0, ge=1, description="Seconds until a worker process silent on a shard is ended."
    )
    node_wait_s: float = Field(1800.0, ge=1, description="Seconds that a stage waits for its first node to start.")
    storage: StorageSettings = Field(default_factory=StorageSettings)


# Untrained detectors score every box near 0.01: a few are kept, whatever their score.
RANDOM_WEIGHTS = {
    "detect": {"score_threshold": 0.0, "max_per_image": 20},
    "fusion": {"score_threshold": 0.0, "skip_box_threshold": 0.0, "max_per_image": 20},
    "items": {"score_threshold": 0.0, "max_per_image": 20},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of full_eval and of every stage, but those that only `jobs.stages.order` looks at."""
    add = parser.add_argument
    flags.add_imageset(
        add, text="image set to read: folder, file:// or s3://BUCKET/PREFIX; repeat it to read several as one"
    )
    add("--output", required=True, help="folder of the run; the same command again continues it")
    flags.add_settings(parser)
    add(
        "--limit", type=positive, metavar="N",
        help="take N photos only, half consumers', half shops' that are right for them (all)",
    )  # fmt: skip
    flags.add_top(add, most=MOST_RESULTS, otherwise="the setting `report.top`")
    add("--compare", metavar="OUTPUT2", help="an earlier run; the report shows what has changed since")


def load(args: argparse.Namespace) -> Settings:
    """The settings of a command line; a UserError refuses an unknown key, an impossible value or an unreadable file."""
    values = merged(layers(args))
    if not values.get("imageset"):
        raise UserError("no image set: give --imageset, once or several times, or `imageset` in the run file")
    settings = check_together(build(Settings, values))
    places = [("--imageset", uri) for uri in settings.imageset] + [("--output", settings.output)]
    places += [("--compare", settings.report.compare)] if settings.report.compare is not None else []
    submitted = "working_dir" in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")
    for flag, place in places:
        if submitted and "://" not in place and not Path(place).is_absolute():
            raise UserError(
                f"{flag} {place}: a submitted job runs in a temporary copy of the repository; "
                "give an absolute path or a bucket"
            )
    return settings


def layers(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What each source of settings says, by its name; a later one wins.

    UserError: a file or a value of --set that cannot be read, or a profile that does not exist.
    """
    run_file = read_yaml(Path(args.config), "run file") if args.config else {}
    line: dict[str, Any] = {}
    for override in args.overrides:
        merge(line, parse_override(override))
    given = {
        "imageset": [str(uri) for uri in args.imageset] or None, "output": args.output and str(args.output),
        "profile": args.profile, "limit": args.limit, "device": args.device, "weights_dir": args.weights_dir,
    }  # fmt: skip
    line |= {name: value for name, value in given.items() if value is not None}
    deeper = {"report": {"compare": args.compare, "top": args.top}, "storage": {"endpoint_url": args.endpoint_url}}
    for group, entries in deeper.items():
        if said := {name: value for name, value in entries.items() if value is not None}:
            merge(line, {group: said})
    profile = line.get("profile", run_file.get("profile", "tiny"))
    if profile not in (names := sorted(path.stem for path in PROFILES.glob("*.yaml"))):
        raise UserError(f"profile: want {' or '.join(names)}, got {profile!r}")
    if recorded := getattr(args, "recorded", None):  # of the run that the command is about
        return {"run.json": recorded, "command line": line}
    found = {f"profile {profile}": read_yaml(PROFILES / f"{profile}.yaml", "profile")}
    if line.get("allow_random_weights", run_file.get("allow_random_weights")) is True:
        found["allow_random_weights"] = RANDOM_WEIGHTS
    if args.config:
        found["run file"] = run_file
    return found | {"command line": line}


def merged(of: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that layers give together."""
    values: dict[str, Any] = {}
    for layer in of.values():
        merge(values, layer)
    return values


def merge(base: dict[str, Any], top: Mapping[str, Any]) -> None:
    """Lay `top` over `base`, in place; mappings are merged, anything else is replaced."""
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
            base[key] = dict(base[key])
            merge(base[key], value)
        else:
            base[key] = value


def check_together(settings: Settings) -> Settings:
    """Refuse settings that are valid one by one but do not fit together; return the others as they are."""
    embedders = [entry if isinstance(entry, str) else entry["name"] for entry in settings.embedders]
    try:
        search_steps = steps.parse(settings.search.steps, embedders)
    except ValueError as error:
        raise UserError(f"search.{error}") from None
    # the step "views" averages the views of a model (NAME@flip and its like), so that they count as one
    if any(step.name == "views" for step in search_steps):
        embedders = steps.bases(embedders)
    fusion, n_detectors = settings.fusion, len(settings.detectors)
    of_detectors = (fusion.weights, n_detectors, "fusion.weights", "detector")
    of_embedders = (settings.search.weights, len(embedders), "search.weights", "embedder")
    for weights, n, where, noun in (of_detectors, of_embedders):
        if weights is not None and (len(weights) != n or not sum(weights) > 0):
            raise UserError(f"{where}: want {n} weights, one for each {noun} and not all 0, got {list(weights)}")
    if fusion.thresholds is not None and len(fusion.thresholds) != n_detectors:
        want = f"{n_detectors} thresholds, one for each detector"
        raise UserError(f"fusion.thresholds: want {want}, got {list(fusion.thresholds)}")
    refuse_device(settings.engine, settings.device)
    if fusion.min_votes > max(n_detectors, 1):
        want = f"at most {max(n_detectors, 1)}, with {n_detectors} detectors"
        raise UserError(f"fusion.min_votes: want {want}, got {fusion.min_votes}")
    return settings


def record(settings: SettingsRecord) -> dict[str, Any]:
    """The settings as plain JSON (lists for tuples), for run.json and fingerprints."""
    return json.loads(json.dumps(settings.model_dump()))
