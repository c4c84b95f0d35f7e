"""The column `items` of photos with other values in one field of every item."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def with_field(column: pa.ChunkedArray, name: str, values: np.ndarray) -> pa.ChunkedArray:
    """The column with a field replaced.

    Args:
        column: list<struct> without nulls, as `items` in `store.imageset.SCHEMA`.
        name: of the field. values: (M,) integers, one for each item, photo by photo.

    Returns:
        A column of the same type; pa.ArrowInvalid refuses values that do not fit into the field.
    """
    photos = column.combine_chunks()
    items, kind = photos.flatten(), column.type.value_type
    fields = dict(zip((field.name for field in kind), items.flatten(), strict=True))
    fields[name] = pa.array(values).cast(kind.field(name).type)
    lengths = pc.list_value_length(photos).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    struct = pa.StructArray.from_arrays(list(fields.values()), fields=list(kind))
    return pa.chunked_array([pa.ListArray.from_arrays(offsets, struct, type=column.type)])


def field_of(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """(M,) the values of one field of every item, photo by photo."""
    return column.combine_chunks().flatten().field(name).to_numpy(zero_copy_only=False)
