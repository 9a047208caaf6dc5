"""Where work on many items is done: here, one by one, or on a cluster (metastable.evaluation.on_ray).

A piece of work is an object that is called with an item.  What it returns depends on the item and on what the
object was made of alone, so an item may be done by any copy of it, and again where one is lost.  The object
can be pickled, and makes what is dear (networks on a device, an engine) when it is first called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pool(Protocol):
    """Does a piece of work on items.

    Attributes:
        here: whether that is in this process.
        about: what it has beside this machine, for the record; empty where that is nothing.
    """

    here: bool
    about: str

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Every item with its result, once that is there, in any order.

        Items are taken from the iterable as there is room for them.  An iterator that is closed takes no
        more of them, and what is under way is done in vain.  Raises what the work raises.
        """


class Here:
    """This process: an item is taken when the result of the one before was given."""

    here = True
    about = ""

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """See `Pool`; in the order of the items."""
        return ((item, work(item)) for item in items)
