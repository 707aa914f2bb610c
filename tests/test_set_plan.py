"""Which cells form a set, and which controls they get: properties of the plan."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfeed.plan.sets import SetPlan


@st.composite
def plans(draw):
    """Plans over strata with one or more controls and groups of unequal size."""
    n_strata = draw(st.integers(1, 4))
    n_controls = draw(st.lists(st.integers(1, 12), min_size=n_strata, max_size=n_strata))
    cells = draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, n_strata - 1)), min_size=1, max_size=60)
    )  # a group and a stratum each
    table = [(group, stratum, False) for group, stratum in cells]
    table += [(-1, stratum, True) for stratum, n in enumerate(n_controls) for _ in range(n)]
    table += [(-1, 0, False)] * draw(st.integers(0, 3))  # cells without a label
    table = draw(st.permutations(table))
    groups, strata, is_control = (np.array(column) for column in zip(*table, strict=True))
    return SetPlan(
        groups, strata, is_control, draw(st.integers(1, 9)), seed=draw(st.integers(0, 2**32)),
        remainder=draw(st.sampled_from(["pad", "drop"])), shuffle=draw(st.booleans()),
    )  # fmt: skip


epochs = st.integers(0, 2**40)


@settings(max_examples=300)
@given(plan=plans(), epoch=epochs)
def test_each_cell_is_in_one_set_of_its_group(plan, epoch):
    cells, _, mask = plan.sets(epoch)
    assert cells.shape == mask.shape == (plan.n_sets, plan.set_size)
    assert (plan.groups[cells] == plan.group_of_set[:, None]).all()
    received = Counter(cells[mask].tolist())
    assert max(received.values(), default=1) == 1
    sizes = np.bincount(plan.groups[plan.groups >= 0])
    n_received = np.bincount(plan.groups[list(received)], minlength=len(sizes)) if received else 0 * sizes
    expected = sizes if plan.remainder == "pad" else sizes // plan.set_size * plan.set_size
    assert np.array_equal(n_received, expected)
    assert (plan.n_cells, plan.n_left_out) == (expected.sum(), (sizes - expected).sum())
    assert plan.n_padded == (~mask).sum()


@settings(max_examples=300)
@given(plan=plans(), epoch=epochs)
def test_controls_match_and_are_used_equally_often(plan, epoch):
    cells, controls, mask = plan.sets(epoch)
    assert plan.is_control[controls].all()
    assert (plan.strata[controls] == plan.strata[cells]).all()
    used = np.bincount(controls[mask], minlength=len(plan.groups))
    for stratum in np.unique(plan.strata):
        own = used[plan.is_control & (plan.strata == stratum)]
        assert own.max(initial=0) - own.min(initial=10**9) <= 1


@settings(max_examples=300)
@given(plan=plans(), epoch=epochs)
def test_the_controls_of_a_set_are_different_if_there_are_enough(plan, epoch):
    short = {shortage.stratum for shortage in plan.shortages()}
    cells, controls, mask = plan.sets(epoch)
    for own, of_set, is_new in zip(cells, controls, mask, strict=True):
        enough = is_new & ~np.isin(plan.strata[own], list(short))
        assert len(set(of_set[enough])) == enough.sum()


@given(plan=plans())
def test_shortages_are_those_of_the_largest_sets(plan):
    expected = {}
    for stratum in set(plan.strata.tolist()):
        in_groups = Counter(plan.groups[(plan.strata == stratum) & (plan.groups >= 0)].tolist())
        needed = min(max(in_groups.values(), default=0), plan.set_size)
        n_controls = int((plan.is_control & (plan.strata == stratum)).sum())
        if n_controls < needed:
            expected[stratum] = (needed, n_controls)
    found = plan.shortages()
    assert {shortage.stratum: shortage[1:] for shortage in found} == expected
    lacks = [shortage.n_needed - shortage.n_controls for shortage in found]
    assert lacks == sorted(lacks, reverse=True)


@given(plan=plans(), epoch=epochs)
def test_a_cell_that_repeats_keeps_its_control(plan, epoch):
    cells, controls, mask = plan.sets(epoch)
    control_of = dict(zip(cells[mask].tolist(), controls[mask].tolist(), strict=True))
    assert all(control_of[cell] == control for cell, control in zip(cells[~mask], controls[~mask], strict=True))


def test_sets_are_a_function_of_seed_and_epoch():
    groups, is_control = np.repeat([0, 1, -1], 40), np.repeat([False, False, True], 40)

    def sets(seed, epoch):
        plan = SetPlan(groups, np.zeros(120, np.int64), is_control, 8, seed)
        return [part.tolist() for part in plan.sets(epoch)[:2]]

    assert sets(1, 2) == sets(1, 2)
    for other in (sets(1, 3), sets(2, 2)):
        assert other[0] != sets(1, 2)[0]
        assert other[1] != sets(1, 2)[1]


def test_the_sets_of_a_seed_never_change():
    groups, is_control = np.repeat([0, 1, -1], [5, 3, 4]), np.repeat([False, True], [8, 4])
    sets = SetPlan(groups, np.zeros(12, np.int64), is_control, 4, seed=7).sets(epoch=3)
    assert sets.cells.tolist() == [[2, 4, 0, 1], [3, 2, 4, 0], [6, 7, 5, 6]]
    assert sets.controls.tolist() == [[9, 8, 10, 11], [9, 9, 8, 10], [8, 10, 11, 8]]


def test_dropped_cells_differ_between_epochs():
    plan = SetPlan(
        np.array([0] * 7 + [-1] * 4), np.zeros(11, np.int64), np.array([False] * 7 + [True] * 4), 4, 0, "drop"
    )
    received = Counter(cell for epoch in range(40) for cell in plan.sets(epoch).cells.ravel().tolist())
    assert len(received) == 7
    assert sum(received.values()) == 160
