"""Sets of cells of one group, with matched controls: which cells form which set. Pure.

A set has ``set_size`` cells of one group, and beside each of them a control of the same stratum. In every epoch:

- the cells of a group are put in a random order and cut into sets. A group of ``n`` cells rarely divides evenly: the
  last set is padded with cells of the group, or left out;
- the controls of each stratum are put in a circle, in a random order, and the cells of the stratum take them one after
  another, group by group. So each control is taken equally often up to one, and the cells of a set take different
  controls if the stratum has that number of them.

All of it is a function of ``(seed, epoch)``. The order of the sets, and their division among ranks, are those of
:class:`cellfeed.plan.epoch.EpochOrder`, where a set takes the place of a cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray, expand
from cellfeed.plan.permutation import Purpose, random_bits

SetRemainder = Literal["pad", "drop"]

_CELLS, _CONTROLS = 0, 1
"""Keys of the random bits of an epoch."""


class Sets(NamedTuple):
    """The sets of an epoch; cells are given by their positions.

    Attributes
    ----------
    cells, controls
        int64, shape (n_sets, set_size): cells of one group, and a control for each.
    mask
        bool, shape (n_sets, set_size): False where a cell and its control are repeated to pad a set.
    """

    cells: IntArray
    controls: IntArray
    mask: npt.NDArray[np.bool_]

    def take(self, numbers: IntArray) -> Sets:
        """Return some of the sets."""
        return Sets(self.cells[numbers], self.controls[numbers], self.mask[numbers])


class Shortage(NamedTuple):
    """A stratum in which a set needs more controls than there are.

    Attributes
    ----------
    stratum
        The stratum.
    n_needed, n_controls
        Most cells of the stratum that a set can have, and controls of the stratum.
    """

    stratum: int
    n_needed: int
    n_controls: int


@dataclass(frozen=True, eq=False)
class SetPlan:
    """Divides cells into sets.

    Attributes
    ----------
    groups
        int64, shape (n_cells,): the group of each cell, at least 0; -1 for a cell that belongs to no set.
    strata
        int64, shape (n_cells,): the stratum of each cell, at least 0.
    is_control
        bool, shape (n_cells,): whether the cell is a control; a control has no group.
    set_size
        Cells in a set.
    seed
        Key of all random orders.
    remainder
        ``"pad"`` fills the last set of a group with cells of the group that it has already had; ``"drop"`` leaves out
        cells that do not fill a set, other ones in each epoch.
    shuffle
        ``False`` keeps the order of the positions.

    Examples
    --------
    Two groups, of 3 cells and 1 cell, and two controls, in one stratum:

    >>> groups, is_control = np.array([0, 0, -1, 0, 1, -1]), np.array([0, 0, 1, 0, 0, 1], dtype=np.bool_)
    >>> plan = SetPlan(groups, np.zeros(6, np.int64), is_control, set_size=2, seed=0, shuffle=False)
    >>> sets = plan.sets(epoch=0)
    >>> sets.cells.tolist()
    [[0, 1], [3, 0], [4, 4]]
    >>> sets.controls.tolist()
    [[2, 5], [2, 2], [5, 5]]
    >>> sets.mask.tolist()
    [[True, True], [True, False], [True, False]]
    """

    groups: IntArray
    strata: IntArray
    is_control: npt.NDArray[np.bool_]
    set_size: int
    seed: int
    remainder: SetRemainder = "pad"
    shuffle: bool = True

    @cached_property
    def _perturbed(self) -> IntArray:
        """int64, shape (n_perturbed,): positions of the cells with a group."""
        return np.flatnonzero(self.groups >= 0)

    @cached_property
    def _sizes(self) -> IntArray:
        """int64, shape (n_groups,): cells of each group."""
        return np.bincount(self.groups[self._perturbed]).astype(np.int64)

    @property
    def _sets_of_group(self) -> IntArray:
        """int64, shape (n_groups,): sets of each group."""
        return -(-self._sizes // self.set_size) if self.remainder == "pad" else self._sizes // self.set_size

    @cached_property
    def group_of_set(self) -> IntArray:
        """int64, shape (n_sets,): the group of each set, ascending; the same in all epochs."""
        return np.repeat(np.arange(len(self._sizes)), self._sets_of_group)

    @property
    def n_sets(self) -> int:
        """Number of sets in an epoch."""
        return len(self.group_of_set)

    @property
    def n_cells(self) -> int:
        """Number of cells in the sets of an epoch, each counted once."""
        return int(np.minimum(self._sets_of_group * self.set_size, self._sizes).sum())

    @property
    def n_left_out(self) -> int:
        """Number of cells with a group that are in no set of an epoch."""
        return len(self._perturbed) - self.n_cells

    @property
    def n_padded(self) -> int:
        """Number of places of an epoch that have a repeated cell."""
        return self.n_sets * self.set_size - self.n_cells

    def sets(self, epoch: int) -> Sets:
        """Return the sets of an epoch, group by group."""
        cells = self._in_random_order(self._perturbed, self.groups, epoch, _CELLS)
        number, _ = expand(np.zeros(len(self._sizes), np.int64), self._sets_of_group)
        first, size = self._first_and_size
        place = number[:, None] * self.set_size + np.arange(self.set_size)  # (n_sets, set_size), within the group
        mask = place < size[:, None]
        index = first[:, None] + place % size[:, None]  # into cells
        controls = np.zeros(len(cells), np.int64)  # of the cells that are left out: any
        is_used = np.zeros(len(cells), np.bool_)
        is_used[index[mask]] = True
        controls[is_used] = self._controls_for(cells[is_used], epoch)
        return Sets(cells[index], controls[index], mask)

    @property
    def _first_and_size(self) -> tuple[IntArray, IntArray]:
        """Number of the first cell, and the cells, of the group of each set: (n_sets,) each."""
        ends = np.cumsum(self._sizes)
        return (ends - self._sizes)[self.group_of_set], self._sizes[self.group_of_set]

    def _in_random_order(self, positions: IntArray, keys: IntArray, epoch: int, purpose: int) -> IntArray:
        """Return positions in ascending order of their keys, and at random within a key."""
        bits: npt.NDArray[Any] = np.arange(len(positions))
        if self.shuffle:
            bits = random_bits(len(positions), self.seed, Purpose.SETS, epoch, purpose)
        return positions[np.lexsort((bits, keys[positions]))]

    def _controls_for(self, cells: IntArray, epoch: int) -> IntArray:
        """Return the control of each cell; the cells of a stratum take its controls in turn."""
        circles = self._in_random_order(np.flatnonzero(self.is_control), self.strata, epoch, _CONTROLS)
        n_strata = int(self.strata.max(initial=0)) + 1
        n_controls = np.bincount(self.strata[circles], minlength=n_strata)
        strata = self.strata[cells]
        n_cells = np.bincount(strata, minlength=n_strata)
        turn = np.empty(len(cells), np.int64)  # of each cell: its number within the stratum
        turn[np.argsort(strata, kind="stable")] = expand(np.zeros(n_strata, np.int64), n_cells)[0]
        control: IntArray = circles[(np.cumsum(n_controls) - n_controls)[strata] + turn % n_controls[strata]]
        return control

    def shortages(self) -> list[Shortage]:
        """Return the strata in which the cells of a set could not have different controls, the worst first."""
        groups, strata = self.groups[self._perturbed], self.strata[self._perturbed]
        n_strata = int(self.strata.max(initial=0)) + 1
        pairs, n_cells = np.unique(groups * n_strata + strata, return_counts=True)
        needed = np.zeros(n_strata, np.int64)
        np.maximum.at(needed, pairs % n_strata, np.minimum(n_cells, self.set_size))
        n_controls = np.bincount(self.strata[self.is_control], minlength=n_strata)
        short = np.flatnonzero(n_controls < needed)
        order = short[np.argsort(n_controls[short] - needed[short], kind="stable")]
        return [Shortage(stratum, int(needed[stratum]), int(n_controls[stratum])) for stratum in order.tolist()]

    def without(self, strata: IntArray) -> SetPlan:
        """Return the plan without the cells of some strata."""
        groups = np.where(np.isin(self.strata, strata), -1, self.groups)
        return SetPlan(groups, self.strata, self.is_control, self.set_size, self.seed, self.remainder, self.shuffle)
