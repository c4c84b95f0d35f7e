"""Hostile run files, `--set` values and comparisons are refused in one line, soon, and nothing is written or run."""

import copy
from pathlib import Path
from unittest import mock

import pytest
import stand_ins
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs import compare, full_eval
from jobs.comparison.plan import final_run, read_plan, seed_runs
from jobs.runs.catalogue import SHIPPED
from tests.fuzz import guard

LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 30))
DEEP = "[" * 5_000 + "]" * 5_000


@pytest.fixture(scope="module")
def imageset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("yaml") / "imageset"
    stand_ins.imageset(folder, 2)
    return folder


def check(text: str | bytes, imageset: Path, box: Path, *more: str, catalogue: object = SHIPPED) -> guard.Said:
    """`full_eval --config FILE --check` without building the models: all that settings lead to by themselves."""
    box.mkdir(exist_ok=True)
    (box / "run.yaml").write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    argv = [
        "--imageset",
        str(imageset),
        "--output",
        str(box / "out"),
        "--config",
        str(box / "run.yaml"),
        "--check",
        *more,
    ]
    with guard.untouched(box, but="out"), mock.patch("jobs.stages.check.model_lines", lambda *_: []):
        return guard.run(lambda argv: full_eval.main(argv, catalogue), argv, box / "out")


REFUSED = [
    ("billion laughs", LAUGHS + "detectors: *a29\n", "anchors and aliases"),
    ("billion laughs under a known key", f"fusion:\n  weights: [1]\n{LAUGHS}", "anchors and aliases"),
    ("billion laughs by merging", MERGES, "anchors and aliases"),
    ("a list within itself", "detectors: &a [*a]\n", "anchors and aliases"),
    ("a mapping within itself", "detectors: [&a {name: x, model: *a}]\n", "anchors and aliases"),
    ("5,000 lists in each other", f"detectors: {DEEP}\n", "nested too deeply"),
    ("Python's own tag", "detectors: !!python/object/apply:os.system ['touch owned']\n", "is no plain value"),
    ("Python's name", "detectors: !!python/name:os.system\n", "is no plain value"),
    ("a new object", "detectors: !!python/object/new:os.system ['touch owned']\n", "is no plain value"),
    ("an unknown tag", "detectors: !include /etc/passwd\n", "is no plain value"),
    ("a tag its value does not fit", "limit: !!int many\n", "not YAML"),
    ("no time", "limit: !!timestamp soon\n", "line 1: timestamp is no plain value"),
    ("no truth value", "limit: !!bool perhaps\n", "not YAML"),
    ("the 99th of a 99th month", "limit: 2001-99-99\n", "line 1: timestamp is no plain value"),
    ("a hexadecimal number without digits", "limit: 0x_\n", "not YAML"),
    ("5000 digits", f"limit: {'9' * 5000}\n", "not YAML"),
    ("a key that is a list", "? [a]\n: 1\n", "not YAML"),
    ("two documents", "limit: 1\n---\nlimit: 2\n", "not YAML"),
    ("no YAML", "limit: [1\n", "not YAML"),
    ("a zero byte", b"limit: \0\n", "not YAML"),
    ("no UTF-8", b"limit: \xff\n", "cannot be read"),
    ("a list", "- limit\n", "want keys and values"),
    ("a word", "limit\n", "want keys and values"),
    ("a key of 100,000 letters", f"? {'x' * 100_000}\n: 1\n", "unknown setting"),
    ("a key of escape sequences", '"\\e[2J\\u202e": 1\n', "unknown setting"),
    ("a value of 100,000 letters", f"limit: {'x' * 100_000}\n", "limit: want a whole number"),
    ("a million letters", f"limit: {'x' * 1_000_000}\n", "1000008 characters"),
    ("a long list in the wrong place", f"limit: [{'x, ' * 10_000}]\n", "limit: want a whole number"),
    ("no number", "items: {score_threshold: .nan}\n", "line 1: want a number, got .nan"),
    ("an endless weight", "fusion: {weights: [.inf, 1, 1, 1, 1]}\n", "line 1: want a number, got .inf"),
    ("bytes", "detectors: [{name: x, base: atss-tiny, licence: !!binary aGk=}]\n", "binary is no plain value"),
    ("a set", "detectors: !!set {a, b}\n", "set is no plain value"),
    ("a weight of 400 digits", f"fusion: {{weights: [{'9' * 400}, 1, 1, 1, 1]}}\n", "fusion.weights[0]: want a number"),
    ("a password", "weights_dir: s3://me:secret@bucket/x\n", "credentials do not belong in settings"),
    ("weights elsewhere", "detectors: [{name: x, base: atss-tiny, weights: ../nowhere/x.safetensors}]\n", "no weights"),
    ("absolute weights", "embedders: [{name: x, base: lite0-sg, weights: /nowhere/x.safetensors}]\n", "no weights"),
    ("weights that are no name", "detectors: [{name: x, base: atss-tiny, weights: 7}]\n", "weights"),
    ("weights of a zero byte", 'embedders: [{name: x, base: lite0-sg, weights: "a\\0b"}]\n', "weights"),
    ("a folder of a zero byte", 'weights_dir: "a\\0b"\n', "weights"),
    ("a name that is a path", "detectors: [{name: ../../x, base: atss-tiny}]\n", "as it goes into file names"),
    ("a name that is a page", "embedders: [{name: <script>, base: lite0-sg}]\n", "as it goes into file names"),
    ("no such base", "detectors: [{name: x, base: {a: 1}}]\n", "no detector named"),
    ("one twice", "detectors: [{name: x, base: atss-tiny, categories: [a, a]}]\n", "category 'a' is named twice"),
    ("no categories", "detectors: [{name: x, base: atss-tiny, categories: []}]\n", "want at least one name"),
    ("too few categories", "detectors: [{name: x, model: {type: A, num_classes: 2}, categories: [a]}]\n", "names, 1"),
    ("classes that are none", "detectors: [{name: x, base: atss-tiny, classes: [a]}]\n", "classes want a mapping"),
    ("a numbered class", "detectors: [{name: x, base: atss-tiny, classes: {shorts: 3}}]\n", "classes want a mapping"),
    ("no such class", "detectors: [{name: x, base: atss-tiny, classes: {short: null}}]\n", "did you mean 'shorts'"),
    ("categories that are none", "detectors: [{name: x, base: atss-tiny, categories: 5}]\n", "detectors[0]"),
    ("a model that is none", "detectors: [{name: x, base: atss-tiny, model: 7}]\n", "model"),
    ("means that are none", "detectors: [{name: x, base: atss-tiny, mean: abc}]\n", "mean"),
    ("a size that is none", "detectors: [{name: x, base: atss-tiny, scale_px: [a, b]}]\n", "scale_px"),
    ("a size of nothing", "detectors: [{name: x, base: atss-tiny, pad_multiple_px: 0}]\n", "pad_multiple_px"),
    ("unknown fields", "detectors: [{name: x, base: atss-tiny, 7: 8, run: me}]\n", "unknown field"),
]  # fmt: skip


@pytest.mark.parametrize("why, text, want", REFUSED, ids=[row[0] for row in REFUSED])
def test_a_hostile_run_file_is_refused(why, text, want, imageset, tmp_path):
    line = check(text, imageset, tmp_path).line
    assert want in line, line


@pytest.mark.parametrize("override", [
    "detectors=&a [*a]", f"detectors={DEEP}", "detectors=!!python/name:os.system", "limit=2001-99-99", "=", "a..b=1",
    ".=1", f"{'a.' * 2000}a=1", "\udcff=1", "limit=\udcff",
])  # fmt: skip
def test_a_hostile_set_value_is_refused(override, imageset, tmp_path):
    said = check("", imageset, tmp_path, "--set", override)
    assert "--set" in said.line or "unknown setting" in said.line or "limit: want" in said.line


ANCHORS = "anchors and aliases (&a, *a) are refused; write the value out"


@pytest.mark.parametrize("text, line, want", [
    ("limit: 2\nitems: &a {score_threshold: 0.2}\n", 2, ANCHORS),
    ("items: *a\n", 1, ANCHORS),
    ("items: {<<: {score_threshold: 0.2}}\n", 1, "merge is no plain value"),
])  # fmt: skip
def test_anchors_are_refused_where_they_stand(text, line, want, imageset, tmp_path):
    said = check(text, imageset, tmp_path).line
    assert f"run.yaml, line {line}: {want}" in said
    assert check(text.partition("items")[0], imageset, tmp_path).status == 0


PLAN = {
    "base": {"model": "lite0-sg", "imageset": ["runs/a"], "input-size": 128, "steps": 150},
    "seeds": [0, 1],
    "variants": {
        "triplet": {},
        "ms": {"loss": "multi-similarity"},
        "spoc": {"descriptors": "spoc", "loss-arg": {"margin": 0.2}},
    },
    "against": ["triplet"],
    "final": {"steps": 600},
}


def plan(path: Path) -> None:
    """What `jobs/compare.py` does with its file before it trains anything."""
    content = read_plan(path)
    for seed_run in seed_runs(content):
        compare.check_flags(seed_run.variant, seed_run)
    if content.get("final"):
        compare.check_flags("final", final_run(content, next(iter(content["variants"]))))


@pytest.mark.parametrize(
    "why, text, want",
    [
        ("billion laughs", f"{LAUGHS}variants: {{a: {{loss: *a29}}}}\n", "anchors and aliases"),
        ("within itself", "variants: &a {x: *a}\n", "anchors and aliases"),
        ("deep", f"variants: {{a: {DEEP}}}\n", "nested too deeply"),
        ("Python's own tag", "variants: !!python/object/apply:os.system ['touch owned']\n", "is no plain value"),
        ("no UTF-8", b"\xff", "cannot be read"),
        ("an impossible day", "variants: {a: {steps: 2001-99-99}}\n", "timestamp is no plain value"),
        ("a folder elsewhere", "variants: {../../x: {}}\n", "becomes a folder"),
        ("the folder above", "variants: {'..': {}}\n", "becomes a folder"),
        ("a command", "variants: {a: {init-from: '$(touch owned)', 'model; touch owned': 1}}\n", "variant a"),
        ("another's output", "variants: {a: {output: /etc}}\n", "jobs/compare.py itself sets output"),
        ("a flag with its value in it", "variants: {a: {'output=/etc': ''}}\n", "variant a"),
        ("help", "variants: {a: {help: ''}}\n", "variant a"),
        ("flags that are no texts", "variants: {a: {1: 2}}\n", "variant a"),
        ("seeds that are none", "variants: {a: {}}\nseeds: [-1]\n", "seeds want"),
        ("against a list", "variants: {a: {}}\nagainst: [[a]]\n", "against wants"),
        ("keys of two kinds", "variants: {a: {}}\n1: 2\nx: 3\n", "unknown key"),
        ("a base that is none", "variants: {a: {}}\nbase: [1]\n", "base wants a mapping"),
    ],
)  # fmt: skip
def test_a_hostile_comparison_is_refused(why, text, want, tmp_path):
    (tmp_path / "plan.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    said = guard.run(lambda _: plan(tmp_path / "plan.yaml"), [], tmp_path / "nothing")
    assert want in said.line, said.line


# ------------------------------------------------------------------------------------------------ made up

SETTINGS = {
    "detectors": [
        "near",
        {"name": "mine", "base": "atss-tiny", "scale_px": [512, 512], "mean": [1.0, 2.0, 3.0],
         "categories": ["shorts"]},
    ],
    "embedders": ["coarse", {"name": "own", "base": "lite0-sg", "branches": ["spoc"], "dim": 4, "blocks": []}],
    "boxes": ["true"], "limit": 1, "max_pixels": 100, "allow_random_weights": True,
    "detect": {"actors": "auto", "batch_size": 4}, "fusion": {"method": "nms", "weights": [1, 2.0]},
    "items": {"score_threshold": 0.5}, "search": {"steps": [{"step": "concat"}], "weights": None},
    "storage": {"endpoint_url": None}, "weights_dir": None, "models_per_actor": 1, "report": {"queries": 0},
}  # fmt: skip
MODELS = {
    "detectors": ["atss-tiny", SETTINGS["detectors"][1]], "embedders": ["lite0-sg", SETTINGS["embedders"][1]],
    "allow_random_weights": True,
}  # fmt: skip


def dumped(value: object) -> bytes:
    """As YAML; what PyYAML cannot write, as Python's repr."""
    try:
        return yaml.safe_dump(copy.deepcopy(value), allow_unicode=True).encode("utf-8", "surrogatepass")
    except yaml.YAMLError:
        return repr(value).encode("utf-8", "surrogatepass")


@guard.fuzzed()
@given(data=st.data())
def test_any_run_file_is_accepted_or_refused(data, imageset, tmp_path_factory):
    valid = data.draw(st.sampled_from([SETTINGS, MODELS]))
    text = dumped(data.draw(guard.replaced(valid)))
    text = data.draw(st.one_of(st.just(text), st.just(text), guard.broken([text])))
    catalogue = stand_ins.CATALOGUE if valid is SETTINGS else SHIPPED
    check(text, imageset, tmp_path_factory.getbasetemp() / "runs", catalogue=catalogue)
    guard.inputs["test_yaml"] += 1


@guard.fuzzed()
@given(data=st.data())
def test_any_comparison_is_accepted_or_refused(data, tmp_path_factory):
    box = tmp_path_factory.getbasetemp() / "plans"
    box.mkdir(exist_ok=True)
    text = dumped(data.draw(guard.replaced(PLAN)))
    (box / "plan.yaml").write_bytes(data.draw(st.one_of(st.just(text), st.just(text), guard.broken([text]))))
    with guard.untouched(box, but="nothing"):
        guard.run(lambda _: plan(box / "plan.yaml"), [], box / "nothing")
    guard.inputs["test_yaml"] += 1
