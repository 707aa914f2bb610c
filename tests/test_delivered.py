"""Labels are counted when minibatches are received, before the training loop can change them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cellfeed.loader.label_counts
from cellfeed.loader.label_counts import LabelCounter


def by_hand(minibatches, codes):
    """The effective batch size, from its definition."""
    low, n = codes.min(), np.ptp(codes) + 1
    p = np.bincount(codes - low, minlength=n) / len(codes)
    parts = [np.bincount(labels - low, minlength=n) / len(labels) for labels in minibatches]
    distance = sum(((part - p) ** 2).sum() for part in parts) / len(parts)
    size = float(len(minibatches[0]))
    return min(size, (1 - (p**2).sum()) / distance) if distance > 1e-12 and (p**2).sum() < 1 else size


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch_size=st.integers(2, 20),
    n_minibatches=st.integers(1, 30),
    n_labels=st.integers(1, 12),
    at_once=st.integers(1, 200),
    lowest=st.integers(-(2**40), 2**40),
)
def test_counted_is_received(seed, batch_size, n_minibatches, n_labels, at_once, lowest):
    """Counts are available at any time. Labels are copied, as loops may change them; short minibatches are left out."""
    rng = np.random.default_rng(seed)
    codes = lowest + rng.integers(0, n_labels, (n_minibatches, batch_size))
    others = rng.integers(0, 1 << 40, codes.shape)
    counts = LabelCounter({"other": None, "label": codes.ravel()}, batch_size)
    minibatches = [torch.from_numpy(np.stack(columns, axis=1)) for columns in zip(others, codes, strict=True)]
    short = torch.zeros((1, 2), dtype=torch.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cellfeed.loader.label_counts, "CELLS_COUNTED", at_once)
        stream = (SimpleNamespace(obs=obs) for obs in [*minibatches, short])
        for k, minibatch in enumerate(counts.counted(stream)):
            minibatch.obs.fill_(-1)
            if k < n_minibatches and rng.random() < 0.3:
                assert counts.effective_batch_sizes()["label"] == pytest.approx(by_hand(codes[: k + 1], codes.ravel()))
    assert counts.effective_batch_sizes() == {"label": pytest.approx(by_hand(codes, codes.ravel()))}


def test_what_waits_is_bounded():
    """Minibatches are collected and counted together, up to a limit of cells."""
    codes = np.arange(1 << 15) % 7
    counts = LabelCounter({"label": codes}, 1 << 10)
    for _ in counts.counted(SimpleNamespace(obs=torch.from_numpy(codes[: 1 << 10, np.newaxis])) for _ in range(500)):
        assert sum(map(len, counts._waiting)) <= 8 * cellfeed.loader.label_counts.CELLS_COUNTED
    assert counts.effective_batch_sizes()["label"] > 500
