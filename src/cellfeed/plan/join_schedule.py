"""Which cells of each dataset of a join are in each minibatch: a pure function of the epoch and the step.

The number of cells *t* before each minibatch is apportioned to the shares by largest remainders: dataset *i* has
``share_i * t`` of them, rounded down or up. So its count is within one cell of its share after every minibatch. As
``share_i * batch_size`` is at least 1, no count decreases. If a share is smaller, the method of Webster is used: the
counts are ``share_i * T`` rounded to nearest, for the *T* that gives *t* cells. No count decreases then, and each is
within one cell of its share for two or three datasets, and within half a cell plus ``share_i * n / 2`` for *n* of them
(M. L. Balinski, H. P. Young: Fair Representation, 1982).

Each dataset passes through its own epochs, one after another, in the steps of the join. The cells of dataset *i* are
numbered through all its epochs. Epoch ``e`` of the join begins with cell ``e * c_i``, where ``c_i`` is the number of
cells of the dataset in an epoch of the join, with those that ``drop_last`` leaves out. With datasets of 6 and 2 cells,
equal shares and ``batch_size=4``::

    step of the join       0     1     2  |  3     4     5
    cells of the first     0 1   2 3   4 5|  0 1   2 3   4 5      epochs 0 and 1 of the first dataset
    cells of the second    0 1   0 1   0 1|  0 1   0 1   0 1      epochs 0 to 5 of the second dataset
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache

from cellfeed.plan.join_runs import Run

Counts = tuple[int, ...]
"""A number of cells of each dataset."""


@dataclass(frozen=True)
class JoinSchedule:
    """The minibatches of the epochs of a join, as one rank receives them.

    Attributes
    ----------
    weights
        The shares of the datasets, as integers in proportion to them.
    sizes
        Cells of the rank in one epoch of each dataset.
    batch_size
        Cells of a minibatch.
    length
        ``"longest"``: an epoch has each cell of each dataset once at least, and those of one dataset once.
        ``"shortest"``: each cell once at most, and those of one dataset once. Or a number of minibatches.
    drop_last
        Whether an epoch ends before a minibatch that would be short.

    Examples
    --------
    >>> schedule = JoinSchedule((1, 1), (6, 2), batch_size=4)
    >>> len(schedule), schedule.taken(2)
    (3, (4, 4))
    """

    weights: Counts
    sizes: Counts
    batch_size: int
    length: str | int = "longest"
    drop_last: bool = False

    @cached_property
    def n_cells(self) -> int:
        """Number of cells of an epoch, from which the shares are apportioned."""
        if isinstance(self.length, int):
            return self.length * self.batch_size
        n_cells = max(self._ends) if self.length == "longest" else min(self._ends)
        return n_cells - n_cells % self.batch_size if self.drop_last else n_cells

    def __len__(self) -> int:
        return -(-self.n_cells // self.batch_size)

    def taken(self, step: int) -> Counts:
        """Return how many cells of each dataset an epoch has before a step; before ``len(self)``, all of them."""
        return self._taken(step) if step < len(self) else self._end

    def size(self, step: int) -> int:
        """Return the number of cells of a minibatch."""
        return sum(self.taken(step + 1)) - sum(self.taken(step))

    @cached_property
    def _ends(self) -> Counts:
        """Number of cells of an epoch of the join with which each dataset would end."""
        total = sum(self.weights)
        return tuple(-(-size * total // weight) for weight, size in zip(self.weights, self.sizes, strict=True))

    @cached_property
    def _end(self) -> Counts:
        """Cells of each dataset in an epoch. The last minibatch has at most the cells of a full one, of each dataset.

        A share of the dataset that ends the epoch may round up to one cell more than it has, which is left out.
        """
        last = len(self) - 1
        if last < 0:
            return self._taken(0)
        end = tuple(map(min, apportion(self.n_cells, self.weights, self.batch_size), self._taken(last + 1)))
        if self.length == "shortest":
            end = tuple(map(min, end, self.sizes))
        elif self.length == "longest":
            end = tuple(
                min(n, size) if own_end == self.n_cells else n
                for n, size, own_end in zip(end, self.sizes, self._ends, strict=True)
            )
        return tuple(map(max, end, self._taken(last)))

    @cached_property
    def _stride(self) -> Counts:
        """Cells of each dataset from the beginning of an epoch to that of the next, with those that it leaves out."""
        return replace(self, drop_last=False)._end

    def _taken(self, step: int) -> Counts:
        return apportion(step * self.batch_size, self.weights, self.batch_size)

    def position(self, dataset: int, epoch: int) -> tuple[int, int]:
        """Return the epoch of a dataset that is under way when an epoch of the join begins, and its cells done."""
        return divmod(epoch * self._stride[dataset], self.sizes[dataset])

    def bounds(self, dataset: int, epoch: int, run: Run, step: int) -> tuple[int, int]:
        """Return the half-open range of the cells of a dataset in a minibatch, or in the portion of it that a run has.

        Cells are numbered through all epochs of the dataset.
        """
        before, after = self.taken(step), self.taken(step + 1)
        sizes = [stop - start for start, stop in zip(before, after, strict=True)]
        first = epoch * self._stride[dataset] + before[dataset]
        if run.n_portions == 1:
            return first, first + sizes[dataset]
        # The minibatch has the cells of one dataset after another; each portion has equally many consecutive ones.
        n_cells, own = sum(sizes), sum(sizes[:dataset])
        edges = (n_cells * run.portion // run.n_portions, n_cells * (run.portion + 1) // run.n_portions)
        low, high = (min(max(edge - own, 0), sizes[dataset]) for edge in edges)
        return first + low, first + high


@lru_cache(maxsize=1 << 12)
def apportion(n_cells: int, weights: Counts, batch_size: int) -> Counts:
    """Apportion cells to datasets by their shares, in integers, thus exactly; the first of equal ones comes first.

    Examples
    --------
    >>> apportion(10, (1, 2), batch_size=3), apportion(10, (1, 99), batch_size=3), apportion(60, (1, 99), batch_size=3)
    ((3, 7), (0, 10), (1, 59))
    """
    total = sum(weights)
    if min(weights) * batch_size >= total:
        return _by_largest_remainders(n_cells, weights, total)
    counts = [(2 * weight * n_cells + total) // (2 * total) for weight in weights]  # rounded to nearest
    while sum(counts) > n_cells:
        latest = max(range(len(counts)), key=lambda i: (Fraction(2 * counts[i] - 1, weights[i]), i))
        counts[latest] -= 1
    while sum(counts) < n_cells:
        earliest = min(range(len(counts)), key=lambda i: (Fraction(2 * counts[i] + 1, weights[i]), i))
        counts[earliest] += 1
    return tuple(counts)


def _by_largest_remainders(n_cells: int, weights: Counts, total: int) -> Counts:
    parts = [divmod(weight * n_cells, total) for weight in weights]
    n_left = n_cells - sum(whole for whole, _ in parts)
    rounded_up = sorted(range(len(parts)), key=lambda i: -parts[i][1])[:n_left]
    return tuple(whole + (i in rounded_up) for i, (whole, _) in enumerate(parts))
