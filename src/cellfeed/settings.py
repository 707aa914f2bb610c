"""The parameters of a dataset that shape its plan, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from cellfeed.errors import PlanError
from cellfeed.keyed import check_seed, fresh_seed
from cellfeed.memory import parse_bytes
from cellfeed.plan import Remainder
from cellfeed.topology import check_ranks

X_DTYPES = ("float32", "float16", "bfloat16", "store")
"""Types that X can have; "store" is that of the layer."""


@dataclass(frozen=True)
class Settings:
    """How cells are ordered, batched and held; see :class:`cellfeed.ExperimentDataset`."""

    batch_size: int
    shuffle: bool
    seed: int
    seed_given: bool
    drop_last: bool
    return_sparse_X: bool
    X_dtype: str
    soma_chunk_size: int | None
    shuffle_chunk_count: int | None
    memory_budget: int
    use_eager_fetch: bool
    remainder: Remainder
    rank: int | None
    world_size: int | None

    PARAMETERS: ClassVar = (
        "batch_size", "shuffle", "seed", "drop_last", "return_sparse_X", "X_dtype", "soma_chunk_size",
        "shuffle_chunk_count", "memory_budget", "use_eager_fetch", "remainder", "rank", "world_size",
    )  # fmt: skip
    """The parameters of a dataset from which settings are made."""

    @classmethod
    def check(cls, *, seed: int | None, memory_budget: int | str, **given: Any) -> Settings:
        """Check each parameter and fill in what was left open."""
        for name in ("batch_size", "soma_chunk_size", "shuffle_chunk_count"):
            value = given[name]
            if value is None and name != "batch_size":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                optional = "" if name == "batch_size" else ", or None to have it planned"
                raise PlanError(f"{name}={value!r} must be an integer of at least 1{optional}")
        for name in ("shuffle", "drop_last", "return_sparse_X", "use_eager_fetch"):
            if not isinstance(given[name], bool):
                raise PlanError(f"{name}={given[name]!r} must be True or False")
        if given["remainder"] not in get_args(Remainder):
            raise PlanError(
                f"remainder={given['remainder']!r} must be one of {', '.join(map(repr, get_args(Remainder)))}"
            )
        if given["remainder"] == "pad" and given["drop_last"]:
            raise PlanError('remainder="pad" and drop_last=True contradict each other: repeat cells or leave them out')
        if given["X_dtype"] not in X_DTYPES:
            raise PlanError(f"X_dtype={given['X_dtype']!r} must be one of {', '.join(map(repr, X_DTYPES))}")
        check_ranks(given["rank"], given["world_size"])
        return cls(
            seed=fresh_seed() if seed is None else check_seed(seed),
            seed_given=seed is not None,
            memory_budget=parse_bytes(memory_budget),
            **given,
        )
