"""Hypotheses of categories as a column of a table: of a run's items and rankings, and of a gallery's items.

In: `postproc.hypotheses.Hypotheses`, or a table. Out: the other. A row's first hypothesis is its own category.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from postproc.hypotheses import Hypotheses

# the best first; null, empty or no such column, as in older tables: the own category alone
HYPOTHESES = pa.list_(pa.struct([("category_id", pa.int16()), ("score", pa.float32())]))


def as_column(hypotheses: Hypotheses) -> pa.Array:
    """As a column of the type HYPOTHESES."""
    real = hypotheses.real
    category_id, score = pa.array(hypotheses.category_id[real], pa.int16()), pa.array(hypotheses.score[real])
    flat = pa.StructArray.from_arrays([category_id, score], fields=list(HYPOTHESES.value_type))
    return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(real.sum(axis=1))], pa.int32()), flat)


def read_hypotheses(rows: pa.Table, prefix: str = "") -> Hypotheses:
    """A table's column `hypotheses` as arrays; a row without any, and a table without the column: its own alone.

    `prefix` is that of the columns' names: "query_" in rankings.
    """
    own = Hypotheses.own(*(rows.column(f"{prefix}{name}").to_numpy() for name in ("category_id", "score")))
    if f"{prefix}hypotheses" not in rows.column_names:
        return own
    column = rows.column(f"{prefix}hypotheses").combine_chunks()
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    real, flat = np.arange(max([*counts.tolist(), 1])) < counts[:, None], column.flatten()
    category_id, score = np.zeros(real.shape, np.int64), np.zeros(real.shape, np.float32)
    category_id[real], score[real] = flat.field("category_id").to_numpy(), flat.field("score").to_numpy()
    category_id[counts == 0, :1], score[counts == 0, :1] = own.category_id[counts == 0], own.score[counts == 0]
    return Hypotheses(category_id, score)
