"""The statistics of the demo's pools, for whoever wants to look at them in other ways meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qorb.top import serve

if TYPE_CHECKING:
    from qorb._demo.journal import Journal
    from qorb.pool import Pool


async def serve_statistics(journal: Journal, *pools: Pool[Any]) -> None:
    """Serve the statistics of pools that run, until they end, and say where; or why not.

    Raises what serve() raises, but for ImportError and OSError: a demo without statistics is better than none.
    """
    for pool in pools:
        pool.measure()
    try:
        server = await serve(*pools, port=0)
    except (ImportError, OSError) as error:
        journal.step(f"No statistics are served: {error}.", "all else is as it would be.")
        return
    address = urlsplit(server.url).netloc
    journal.step(
        f"Statistics: {server.url} or `qorb top {address}`",
        "what follows can be watched in a browser, or in another terminal.",
    )
