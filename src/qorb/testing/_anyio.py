"""What the tools for testing use of anyio; imported only when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

try:
    import anyio
except ImportError as error:
    raise ImportError('by="anyio" needs anyio; run: pip install anyio') from error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


async def within_scope(await_operation: Callable[[Callable[[], bool]], Awaitable[T]]) -> T | None:
    """Await an operation in a cancel scope; hand it the function that cancels the scope. None when that happened."""

    def cancel() -> bool:
        scope.cancel()
        return True

    with anyio.CancelScope() as scope:
        return await await_operation(cancel)
    return None
