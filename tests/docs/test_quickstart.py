"""docs/quickstart.ipynb: its cells run in one process, and find what jobs/search.py finds."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
NOTEBOOK = json.loads((REPO / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]

# As a kernel does it: a cell's last line is shown where it is an expression.
RUN = """
import ast, json, sys
shown, names = [], {"__name__": "__main__"}
for source in json.load(sys.stdin):
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    shown.append(None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names))
"""
COMPARE = """
import io, contextlib
from jobs import search
photo = names["folder"] / "street.jpg"
photo.write_bytes(next(row["image"] for row in names["rows"] if row["source"] == "user"))
said = io.StringIO()
with contextlib.redirect_stdout(said):
    line = [str(photo), "--gallery", str(names["folder"] / "gallery"), "--top", "5", "--all", "--json", "--device", "cpu"]
    assert search.main(line) == 0
answer, mine = json.loads(said.getvalue())["garments"], names["garments"][0]
print(json.dumps({
    "kinds": [type(one).__name__ for one in shown], "heavy": [name in sys.modules for name in ("torch", "faiss")],
    "job": [[*garment["bbox"], garment["score"], *(item["similarity"] for item in garment["items"])] for garment in answer],
    "notebook": [[*box, score, *row] for box, score, row in zip(
        mine.boxes.tolist(), mine.scores.tolist(), names["similarity"].tolist(), strict=True)],
    "found": [[item["file_name"] for item in garment["items"]] for garment in answer][0],
    "table": names["found_items"]["file_name"].to_pylist(),
}))
"""  # noqa: E501


def test_it_is_a_notebook_without_outputs() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids) and NOTEBOOK["metadata"]["kernelspec"]["language"] == "python"
    for cell in NOTEBOOK["cells"]:
        assert cell["metadata"] == {} and all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_each_step_is_five_lines_at_most() -> None:
    """Detection, fusion, embedding and search, their imports apart."""
    for words in ("detector.detect(images)", "fuse(found", "gallery.search(", "gallery.table("):
        (cell,) = [source for source in CODE if words in source]
        lines = [node for node in ast.parse(cell).body if not isinstance(node, ast.Import | ast.ImportFrom)]
        assert len(lines) <= 5, cell


@pytest.mark.slow
def test_its_cells_run_and_find_what_the_job_finds() -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    how = {"cwd": REPO / "docs", "env": env, "capture_output": True, "text": True, "timeout": 900}
    done = subprocess.run([sys.executable, "-c", RUN + COMPARE], input=json.dumps(CODE), **how)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["heavy"] == [True, True], "torch and FAISS were in one process"
    assert told["kinds"] == [
        "int", "Image", "list", "Detections", "Image", "int", "ndarray", "DataFrame", "Image",
    ]  # fmt: skip
    # of boxes on one garment the job shows the surest alone
    near = [[row for row in told["notebook"] if row == pytest.approx(shown, abs=1e-4)] for shown in told["job"]]
    assert near and all(len(rows) == 1 for rows in near), told
    assert told["table"] == told["found"]
