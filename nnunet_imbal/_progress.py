"""A progress bar that stays away from short work."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["track"]

PATIENCE_SECONDS = 2.0

_Item = TypeVar("_Item")


def track(items: Iterable[_Item], total: int, description: str) -> Iterator[_Item]:
    """Yield the items; work that takes longer than `PATIENCE_SECONDS` gets a bar on the error stream.

    Example:
        >>> list(track([1, 2], 2, "Reading"))
        [1, 2]
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress, begin = Progress(*columns, console=Console(stderr=True)), time.monotonic()
    task = progress.add_task(description, total=total)
    try:
        for item in items:
            if time.monotonic() - begin > PATIENCE_SECONDS and not progress.live.is_started:
                progress.start()
            yield item
            progress.advance(task)
    finally:
        if progress.live.is_started:  # stop() alone would print an empty line
            progress.stop()
