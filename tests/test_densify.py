"""CSR to dense: the result is that of PyTorch."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellfeed.rows.minibatch import densified


@given(st.data())
def test_as_pytorch_does_it(data):
    n_rows, n_columns = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 7))
    sizes = data.draw(st.lists(st.integers(0, 6), min_size=n_rows, max_size=n_rows))
    n = sum(sizes)
    columns = data.draw(st.lists(st.integers(0, n_columns - 1), min_size=n, max_size=n))  # the same one twice, too
    index = data.draw(st.sampled_from([torch.int32, torch.int64]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.int32, torch.float16, torch.bfloat16]))
    X = torch.sparse_csr_tensor(
        torch.tensor(np.append(0, np.cumsum(sizes)), dtype=index),
        torch.tensor(columns, dtype=index),
        torch.arange(1, n + 1).to(dtype),
        size=(n_rows, n_columns),
        check_invariants=False,
    )
    dense = densified(X)
    assert dense.layout == torch.strided
    assert dense.dtype == dtype
    assert torch.equal(dense, X.to_dense())


def test_a_dense_tensor_stays():
    X = torch.ones(2, 3)
    assert densified(X) is X


def test_gradients_go_through():
    values = torch.ones(1, requires_grad=True)
    X = torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([1]), values, size=(1, 2), check_invariants=True)
    densified(X).sum().backward()
    assert values.grad.tolist() == [1]
