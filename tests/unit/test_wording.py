"""Numbers as people say them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from broker.core import wording


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (timedelta(days=14), "14 days"),
        (timedelta(days=1, hours=1), "1 day 1 h"),
        (timedelta(minutes=90), "1 h 30 min"),
        (timedelta(seconds=1.5), "1.5 s"),
        (timedelta(), "0 s"),
        (None, "without an end"),
    ],
)
def test_lengths(length: timedelta | None, words: str) -> None:
    assert wording.length(length) == words
