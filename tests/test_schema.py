from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deescal.schema import CLIPS, empty_row, to_table

WORDS = st.lists(
    st.fixed_dictionaries(
        {
            "start_s": st.floats(0, 100),
            "end_s": st.floats(0, 100),
            "text": st.text(),
            "probability": st.floats(0, 1),
        }
    ),
    max_size=4,
)


@given(words=WORDS, source=st.dictionaries(st.text(), st.text(), max_size=3), error=st.none() | st.text())
def test_a_row_survives_arrow_unchanged(words: list, source: dict, error: str | None) -> None:
    row = empty_row(clip_id="a", words=words, source=source, error=error)
    assert to_table([row]).to_pylist(maps_as_pydicts="strict") == [row]


def test_no_rows_still_have_the_types() -> None:
    assert to_table([]).schema == CLIPS


def test_unknown_and_missing_keys_are_refused() -> None:
    row = empty_row(clip_id="a")
    with pytest.raises(ValueError, match=r"unknown keys \['extra'\]"):
        to_table([{**row, "extra": 1}])
    del row["uri"]
    with pytest.raises(ValueError, match=r"missing keys \['uri'\]"):
        to_table([row])
    with pytest.raises(KeyError):
        empty_row(nonsense=1)


def test_a_value_of_the_wrong_type_is_refused() -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        to_table([empty_row(clip_id="a", duration_s="long")])
