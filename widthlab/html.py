"""Pieces of HTML for notebooks. A notebook's own style sheet gives tables their look."""

from collections.abc import Iterable
from html import escape

import pandas as pd

#: Rows of a table that are shown; a larger one is cut in the middle, as pandas does.
MOST_ROWS = 60


def heading(text: str) -> str:
    """A line in bold."""
    return f"<p><b>{escape(text)}</b></p>"


def paragraph(text: str) -> str:
    """Text that may wrap."""
    return f"<p>{escape(text)}</p>"


def listing(lines: Iterable[str]) -> str:
    """A list, or nothing where it would be empty."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def table(frame: pd.DataFrame) -> str:
    """A frame without its index; floats to four digits."""
    return frame.to_html(
        index=False, border=0, max_rows=MOST_ROWS, float_format="{:.4g}".format, na_rep=""
    )


def folded(title: str, text: str) -> str:
    """Text in columns that opens on a click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
