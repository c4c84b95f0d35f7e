"""pyarrow without pandas: importing this module keeps pyarrow from importing it at the first array that it makes.

pyarrow wants to see whether that is an array of pandas' own. It takes a second of every process, no table of ours comes
from pandas, and pandas need not be installed. A caller who asks pyarrow for a data frame still gets one.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any

import numpy as np
import pyarrow as pa


class _NoPandas(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not imported here", name=name)


_no_pandas = _NoPandas()
sys.meta_path.insert(0, _no_pandas)
pa.array(memoryview(b""), pa.uint8())  # pyarrow looks for pandas now, and not again
sys.meta_path.remove(_no_pandas)


def numpy_dtype(kind: pa.DataType) -> np.dtype:
    """NumPy's dtype of a column of numbers; `kind.to_pandas_dtype()` fails where pandas is not installed."""
    return pa.array([], kind).to_numpy().dtype
