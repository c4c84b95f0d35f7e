"""Every numeric flag of every command refuses a value outside its limits, in argparse's one line with status 2."""

import ast
import importlib
from pathlib import Path

import pytest

from jobs import compare, train_embedder
from store.errors import UserError

ROOT = Path(__file__).parents[2]
TRAIN = "--model lite0-sg --imageset set --output out"
DRAWN = "drawn set --users 1 --shops 1 --seed 1"
WHOLE, NATURAL = "a whole number from 1 to 2147483648", "a whole number from 0 to 2147483648"
SHARE, AMOUNT, ABOVE = "a number from 0 to 1", "a finite number from 0 up", "a finite number above 0"
BOTH = [
    ("steps", WHOLE, "0"), ("batch-size", WHOLE, "0"), ("accumulate", WHOLE, "-1"), ("lr", ABOVE, "-1 0 nan inf"),
    ("backbone-share", AMOUNT, "-1 nan inf"), ("weight-decay", AMOUNT, "-1 nan inf"), ("warm-up", NATURAL, "-5 1.5"),
    ("drops", SHARE, "2 nan"), ("ema-decay", "a number from 0 to below 1", "1 nan"), ("workers", WHOLE, "0"),
    ("threads", "a whole number from 1 to 1024", "0 1025"), ("seed", NATURAL, "-1 2147483649 nan"),
    ("cache-gb", "a number from 0 to 100000", "-1 nan inf"), ("log-every", WHOLE, "0"), ("save-every", WHOLE, "0"),
    ("keep", WHOLE, "0"),
]  # fmt: skip
TABLE = {
    ("train_embedder", TRAIN): [
        *BOTH, ("share", "a number above 0 to 1", "0 1.5 nan"), ("dim", "a whole number from 1 to 65536", "0 65537"),
        ("input-size", "a whole number from 1 to 4096", "0 4097"), ("stride", WHOLE, "0"),
        ("freeze-stages", NATURAL, "-1"), ("auxiliary", AMOUNT, "-1 nan inf"), ("temperature", ABOVE, "0 -1 nan inf"),
        ("smoothing", "a number from 0 to below 1", "-0.5 1 2 nan"), ("jitter", SHARE, "-1 nan"),
        ("turn", AMOUNT, "-1 nan inf"), ("flip", SHARE, "2 nan"), ("light", SHARE, "-1"), ("colour", SHARE, "2"),
        ("erase", SHARE, "inf"), ("minutes", "a number from 0 up", "-1 nan"),
        ("per-identity", "a whole number from 2 to 2147483648", "1"), ("layer-decay", SHARE, "-1 nan"),
        ("proxy-share", AMOUNT, "-1 inf"), ("eval-every", WHOLE, "0"),
    ],
    ("train_detector", TRAIN): [
        *BOTH, ("user-weight", ABOVE, "0 -1 nan inf"), ("zoom", "a number above 0 to 100", "0,1 1,inf nan,1"),
        ("mosaic", SHARE, "2 nan"), ("copy-paste", SHARE, "-1"), ("eval-every", NATURAL, "-1"),
    ],
    ("compare", "plan.yaml --output out"): [
        ("minutes", "a number from 0 up", "-1 nan"), ("threads", "a whole number from 1 to 1024", "0 1025"),
    ],
    ("ablate", "out"): [("parallel", WHOLE, "0 nan")],
    ("full_eval", "--imageset set --output out"): [
        ("limit", WHOLE, "0 1.5 inf"), ("top", "a whole number from 1 to 100", "0 101"),
    ],
    ("reindex_gallery", "--gallery place --prune"): [("keep", WHOLE, "0 nan")],
    ("search", "photo.jpg --gallery place"): [
        ("top", "a whole number from 1 to 1000", "0 1001 nan"), ("min-score", SHARE, "2 nan"),
    ],
    ("ingest", DRAWN): [
        ("users", "a whole number from 0 to 1099511627776", "-1 inf"),
        ("shops", "a whole number from 0 to 1099511627776", "-1"),
        ("seed", "a whole number from 0 to 9223372036854775808", "-1 1.5"), ("shard-images", WHOLE, "0"),
        ("shard-bytes", "a whole number from 1 to 1099511627776", "0 1e9"),
    ],
    ("ingest", "folder . set --source user"): [("max-pixels", "a whole number from 1 to 1099511627776", "0 nan")],
    ("ingest", "deepfashion2 . set"): [("limit", WHOLE, "0")],
}  # fmt: skip
CASES = [
    (command, line, flag, value, want)
    for (command, line), flags in TABLE.items()
    for flag, want, values in flags
    for value in values.split()
]


@pytest.mark.parametrize("command, line, flag, value, want", CASES)
def test_a_number_outside_its_limits_is_refused(command, line, flag, value, want, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        importlib.import_module(f"jobs.{command}").main([*line.split(), f"--{flag}", value])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    refused = next((part for part in value.split(",") if part != "1"), value)  # of several numbers, the bad one
    assert error.endswith(f"error: argument --{flag}: want {want}, got {refused}")


def test_no_flag_takes_any_number():
    files = [path for room in ("jobs", "sources") for path in (ROOT / room).rglob("*.py")]
    nodes = [(path.name, node) for path in files for node in ast.walk(ast.parse(path.read_text()))]
    unchecked = [
        f"{name}:{node.value.lineno}"
        for name, node in nodes
        if isinstance(node, ast.keyword) and node.arg == "type" and ast.unparse(node.value) in ("int", "float")
    ]
    assert len(files) > 50 and unchecked == []


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "x", ""])
def test_an_argument_of_a_loss_is_a_finite_number(value, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        train_embedder.parse([*TRAIN.split(), "--loss-arg", f"margin={value}"])
    assert f"--loss-arg: want NAME=NUMBER, got 'margin={value}'" in capsys.readouterr().err


@pytest.mark.parametrize("flags, message", [
    ("lr: -1", "argument --lr: want a finite number above 0, got -1"),
    ("lr: nan", "argument --lr: want a finite number above 0, got nan"),
    ("weight-decay: inf", "argument --weight-decay: want a finite number from 0 up, got inf"),
    ("smoothing: 2", "argument --smoothing: want a number from 0 to below 1, got 2"),
    ("steps: true", "argument --steps: want a whole number from 1 to 2147483648, got True"),
    ("loss-arg: {margin: nan}", "--loss-arg: want NAME=NUMBER, got 'margin=nan'"),
])  # fmt: skip
def test_a_plan_refuses_the_same_numbers(flags, message, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(f"base: {{model: lite0-sg, imageset: [set]}}\nvariants: {{bad: {{{flags}}}}}\n")
    with pytest.raises(UserError) as caught:
        compare.main([str(path), "--output", str(tmp_path / "out")])
    assert str(caught.value) == f"variant bad: {message}"


@pytest.mark.parametrize("command", ["train_embedder", "train_detector"])
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "tpu"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(command, device, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match=f"^--device {device}: not found on this machine; take one of: cpu$"):
        importlib.import_module(f"jobs.{command}").main([*TRAIN.split(), "--device", device])


def test_a_comparison_does_not_wait_for_a_gpu_that_its_cluster_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.runs.cluster.join_ray", lambda *_, **__: None)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    path = tmp_path / "plan.yaml"
    path.write_text("base: {model: lite0-sg, imageset: [set]}\nvariants: {one: {}}\n")
    with pytest.raises(UserError, match=r"^--device cuda: the cluster has no GPU; take one of: cpu$"):
        compare.main([str(path), "--output", str(tmp_path / "out"), "--device", "cuda"])
