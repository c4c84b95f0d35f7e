"""Keeps pyarrow from importing pandas at the first array that it makes, to see whether that is one of pandas' own.

That takes a second of every process, and no table of ours comes from pandas. Imported for its effect. A caller who asks
pyarrow for a data frame still gets one.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any

import pyarrow as pa


class _NoPandas(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not imported here", name=name)


_no_pandas = _NoPandas()
sys.meta_path.insert(0, _no_pandas)
pa.array(memoryview(b""), pa.uint8())  # pyarrow looks for pandas now, and not again
sys.meta_path.remove(_no_pandas)
