"""Every command that README and docs/ show is run by a test, or NOT_RUN says why it is not; all of them parse.

Those of PAGES are run here as they are written, on a few photos and with stand-in models; s3://BUCKET is a folder.
tests/test_documents.py runs the README's with the models that ship.
"""

import functools
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "jobs"))  # stand_ins, small_gallery

import infer_with_stand_ins  # noqa: E402
import small_gallery  # noqa: E402
import stand_ins  # noqa: E402

from jobs import full_eval, reindex_gallery, search  # noqa: E402
from jobs.cli_page import parser_of  # noqa: E402
from jobs.runs import shards  # noqa: E402
from jobs.runs.marks import STAGES  # noqa: E402
from jobs.stages import order  # noqa: E402
from store.imageset import Photo  # noqa: E402
from store.imageset_write import write_imageset  # noqa: E402

DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (REPO / "docs").glob("*.md"))]
PAGES = ("docs/nightly.md", "docs/postproc.md", "docs/recipes.md", "docs/settings.md")
NOT_RUN = {  # beginning of a command, or document and beginning -> why; the first that fits holds
    "make demo": "tests/test_documents.py runs it",
    "make lock-here": "wants an index of the reader's own; tests/test_install.py has a local one",
    "make test": "the tests themselves, by .ci/run",
    "pip install": "tests/test_install.py installs the lock and a wheel into fresh environments",
    "source ": "says which Python the shell uses",
    "export ": "sets a variable of the shell",
    "ray up": "tests/cluster/test_ray_submit.py runs it over ssh on one machine",
    "ray submit": "tests/cluster/test_ray_submit.py",
    "ray down": "tests/cluster/test_ray_submit.py",
    "ray attach": "opens a shell on a head",
    "ray get-auth-token": "writes into the user's ~/.ray",
    "ray start --head": "tests/jobs/test_clusters.py starts a head on ports of its own",
    "ray start --address": "tests/jobs/test_clusters.py",
    "ray job submit": "tests/jobs/test_clusters.py",
    "ray timeline": "wants a running cluster, and is Ray's",
    "ray stop": "ends every Ray of the user",
    "RAY_ADDRESS=": "tests/jobs/test_clusters.py",
    "docs/formats.md python jobs/ingest.py": "tests/sources, a file of tests for each source",
    "docs/models.md python jobs/search.py --text": "wants a CLIP model; tests/jobs/test_search_text.py",
    "docs/models.md python jobs/search.py street.jpg --text": "wants a CLIP model; tests/jobs/test_search_text.py",
    "docs/results.md python": "measured by hand on ccp_df2, which is not part of the project",
    "docs/results.md for plan in": "hours; tests/jobs/test_compare.py compares small trainings",
    "docs/training.md python jobs/train_": "tests/test_documents.py runs shorter ones; --workers 8 wants eight GPUs",
    "docs/training.md python jobs/full_eval.py": "its run is for the next line",
    "docs/training.md python jobs/fit_categories.py": "tests/jobs/test_fit_categories.py",
    "docs/training.md python jobs/compare.py": "an hour; tests/jobs/test_compare.py",
    "tensorboard": "a server, and not ours",
}  # fmt: skip


def fenced(document: str) -> list[str]:
    """The lines of fenced blocks without a language, continued lines joined, without comments."""
    text = (REPO / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(block for language, block in blocks if not language).replace("\\\n", " ").splitlines()
    return [" ".join(line.partition(" #")[0].split()) for line in lines if line.strip() and line[0] not in "# "]


def commands(document: str) -> list[str]:
    """Those that run a program; listings of folders and what a program prints are none."""
    programs = (
        r"(?:[A-Z_]+=\S+ )?(?:python|make|ray|source|export(?= [A-Z])|for|tensorboard|pip|uv|clothes|docker|kubectl)\b"
    )
    return [line for line in fenced(document) if re.match(programs, line)]


def in_passing(document: str) -> list[str]:
    """Whole commands of ours within a sentence, and indented ones: examples of a command's own words."""
    text = (REPO / document).read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"`(python jobs/[^`\n]*)`", text) + re.findall(r"(?m)^ {4,}(python jobs/.*)$", text)
    return [" ".join(line.partition(" #")[0].split()) for line in found if "…" not in line and " " in line[12:]]


def reason(document: str, command: str) -> str | None:
    lines = command, f"{document} {command}"
    return next((why for start, why in NOT_RUN.items() if any(line.startswith(start) for line in lines)), None)


RUN = [
    (document, command)
    for document in PAGES
    for command in dict.fromkeys(commands(document) + [line for line in in_passing(document) if "OUTPUT" in line])
    if reason(document, command) is None
]


def words_of(command: str) -> tuple[str, list[str]]:
    """The name of the job, and its arguments."""
    words = shlex.split(re.sub(r"^.*?\bjobs/", "", command).partition(" > ")[0].partition(";")[0])
    return words[0].removesuffix(".py"), [word for word in words[1:] if word != "--"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_is_run_or_said_not_to_be(document: str) -> None:
    for command in commands(document):
        ours = document == "README.md" and command.startswith("python jobs/")  # tests/test_documents.py
        assert ours or (document, command) in RUN or reason(document, command), f"{document}: {command}"


def test_every_reason_is_of_a_command() -> None:
    lines = {f"{document} {command}" for document in DOCUMENTS for command in commands(document)}
    lines |= {line.partition(" ")[2] for line in lines}
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_parses(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in dict.fromkeys(commands(document) + in_passing(document)):
        if "jobs/" not in command:
            continue
        name, words = words_of(command)
        try:
            parser_of(name, words[:1]).parse_args(words)
        except SystemExit:
            pytest.fail(f"{document}: {command}\n{capsys.readouterr().err}")


# --- running them -----------------------------------------------------------------------------------------------------


def photos(sources: str = "user shop") -> Iterator[Photo]:
    """Twelve of consumers, 0 to 11, and twelve of the shop, 12 to 23; photo i of either half shows garment i."""
    for number in range(24):
        source = "user" if number < 12 else "shop"
        if source in sources:
            yield stand_ins.photo(number, source, 1 + number % 12)


def imageset(folder: Path, sources: str = "user shop") -> None:
    write_imageset(photos(sources), folder, source={"adapter": "stand-in", "arguments": {}}, max_images=6)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """set, run and gallery: a finished evaluation, and a gallery of two versions."""
    folder = tmp_path_factory.mktemp("made")
    imageset(folder / "set")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "run_on_actors", functools.partial(stand_ins.here, []))
        line = [*stand_ins.SETTINGS, "--imageset", str(folder / "set"), "--output", str(folder / "run")]
        assert full_eval.main(line, stand_ins.CATALOGUE) == 0
        for weights in ("[1, 1]", "[2, 1]"):
            small_gallery.publish(folder / "set", folder / "gallery", "--set", f"search.weights={weights}")
    return folder


def prepare(name: str, args: object, made: Path) -> None:
    """What the command reads, in the working folder: image sets, a finished run, a gallery, photos."""
    for place in getattr(args, "imageset", []) if name != "ingest" else []:
        imageset(Path(place), {"street": "user", "shop": "shop"}.get(Path(place).name, "user shop"))
    runs = [getattr(args, "compare", None) if name in (*STAGES, "full_eval") else None]
    runs += [getattr(args, "output", None)] if name in ("ablate", "export", "status", "report") else []
    for place in filter(None, runs):
        shutil.copytree(made / "run", place)
    if name == "search" or getattr(args, "upkeep", False):
        shutil.copytree(made / "gallery", args.gallery)  # type: ignore[attr-defined]
    for folder in (Path("PHOTOS"), Path("PHOTOS/street")):
        folder.mkdir()
    for photo in photos("shop"):
        (Path("PHOTOS") / photo.file_name).write_bytes(photo.image)
    street = next(photos("user"))
    for path in (Path("street.jpg"), Path("PHOTOS/street/1.jpg")):
        path.write_bytes(street.image)
    Path("products.csv").write_text("file_name,product_id\n12.png,sku-1\n")
    Path("RUN.yaml").write_text("fusion: {method: nms}\n")


def main_of(name: str) -> Callable[[list[str]], int]:
    """A job's main, with stand-in models where it runs some."""
    settings = [*stand_ins.SETTINGS, "--set", "gallery.copies=0"]
    if name == "search":
        how = {"catalogue": stand_ins.CATALOGUE, "script": infer_with_stand_ins.SCRIPT}
        return lambda words: search.main([*words, "--device", "cpu"], **how)
    if name == "reindex_gallery":
        return lambda words: reindex_gallery.main([*words, *settings], stand_ins.CATALOGUE)
    if name in (*STAGES, "full_eval"):
        stages = list(order.IN_ORDER) if name == "full_eval" else [name]
        return lambda words: order.main(stages, [*words, *settings], None, stand_ins.CATALOGUE)
    return __import__(f"jobs.{name}", fromlist=["main"]).main


@pytest.mark.parametrize("document, command", [
    pytest.param(*line, marks=[pytest.mark.slow] * ("ablate.py" in line[1]))  # it starts a Ray
    for line in RUN
])  # fmt: skip
def test_command_runs(document: str, command: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, "run_on_actors", functools.partial(stand_ins.here, []))
    versions = sorted(path.name for path in (made / "gallery" / "versions").iterdir())
    places = {
        "s3://BUCKET": "BUCKET", "/var/lib/node_exporter/textfile/": "", "000017-20261126T031500Z": versions[0],
        "IMAGESET": "BUCKET/looks", "OUTPUT": "runs/own", "NAME": versions[0],
    }  # fmt: skip
    for written, ours in places.items():
        command = command.replace(written, ours)
    name, words = words_of(command)
    args = parser_of(name, words[:1]).parse_args(words)
    if name == "reindex_gallery":
        args = reindex_gallery.parse(words)
    prepare(name, args, made)
    assert main_of(name)(words) == 0
