"""How a version is loaded for a reloader: in a thread, let go of if nobody waits for it any more."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from service.recommend.servable import Servable

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0

Load = Callable[[str], Servable]
"""Opens and verifies a version; blocks; raises ArtefactError for one that must not be served."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that could not be made to answer, and why."""

    version: str | None
    """None: what names it can not be read."""
    reason: str
    at: datetime
    final: bool
    """It is not tried again until what names it is written anew."""


async def load_in_thread(load: Load, version: str) -> Servable:
    """Return a version that is loaded; the caller holds it.

    Raises:
        ArtefactError: It must not be served. Whatever else `load` raises goes on, too.
    """
    loading = asyncio.get_running_loop().run_in_executor(None, load, version)
    try:
        return await asyncio.shield(loading)
    except asyncio.CancelledError:
        loading.add_done_callback(_let_go)
        raise


def _let_go(loading: "asyncio.Future[Servable]") -> None:
    """Close a version that was loaded for a reloader that is gone."""
    if not loading.cancelled() and loading.exception() is None:
        loading.result().release()
