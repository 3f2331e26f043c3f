"""Tensors in fewer bytes: within half a step, within their range, whatever finite numbers they hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cola_cli.artifacts.tensors import FORMS
from cola_cli.corpus.sequences import LARGEST_LOGVAR

finite = st.floats(-65504, 65504, width=16)
LARGEST = float(np.uint16(LARGEST_LOGVAR).view(np.float16))


@given(st.lists(st.lists(finite, min_size=2, max_size=2), min_size=1, max_size=9))
def test_any_halves_come_back_within_their_range_and_half_a_step(rows: list[list[float]]) -> None:
    values = np.array(rows, np.float16)[None]
    shape = values.shape[1:]
    form = FORMS["int8"]["mean"]
    blob = form.encode(values)
    assert blob.shape == (1, form.width(*shape))
    back = form.tensor(blob.tobytes(), shape).astype(np.float64)
    exact = values[0].astype(np.float64)
    low, high = exact.min(0), exact.max(0)
    assert (back >= low).all()
    assert (back <= high).all()
    # half a step; the step itself rounded down to a half; and the result rounded to a half
    step = (high - low) / 255
    rounding = 255 * np.maximum(step * 2**-10, 2.0**-24) + np.maximum(
        np.abs(exact) * 2**-11, 2.0**-25
    )
    assert (np.abs(back - exact) <= step / 2 + rounding).all()


def test_the_largest_log_variance_stays_one_that_readers_take() -> None:
    values = np.linspace(-30, LARGEST, 64, dtype=np.float16).reshape(1, 64, 1)
    for stored in ("int8", "mean"):
        form = FORMS[stored]["logvar"]
        back = form.decode(form.encode(values), 64, 1)
        assert back.max() <= LARGEST


def test_a_row_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="47 bytes instead of 48"):
        FORMS["int8"]["mean"].tensor(bytes(47), (8, 4))
