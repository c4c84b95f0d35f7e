"""pyarrow imports pandas only for who asks for it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from store.arrow import numpy_dtype

CODE = """
import sys
from store import imageset
import numpy as np, pyarrow as pa
table = pa.table({"a": pa.array(np.arange(3))})
print("pandas" in sys.modules)
print(table.to_pandas()["a"].sum())
"""


def test_an_array_does_without_pandas_and_a_data_frame_is_there_for_who_asks() -> None:
    repo = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", CODE], cwd=repo, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["False", "3"], done.stderr


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "float16", "float32"])
def test_a_column_of_numbers_has_the_dtype_of_its_name(kind: str) -> None:
    assert numpy_dtype(pa.type_for_alias(kind)) == np.dtype(kind)
