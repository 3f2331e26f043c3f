"""Columns of Arrow from and to NumPy, by their buffers.

What pyarrow itself has for that imports pandas wherever it is installed, a third of the start of a process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def column(values: np.ndarray) -> pa.Array:
    """Numbers (n,) as a column without nulls."""
    import numpy as np
    import pyarrow as pa

    held = np.ascontiguousarray(values)
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(held.dtype), len(held), [None, pa.py_buffer(held)]
    )


def numbers(found: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers without nulls as (n,)."""
    import numpy as np

    kind = np.dtype(found.type.to_pandas_dtype())
    return np.concatenate(
        [
            np.frombuffer(chunk.buffers()[1], kind, len(chunk), chunk.offset * kind.itemsize)
            for chunk in found.chunks
        ]
        or [np.empty(0, kind)]
    )
