"""The parameters of a dataset that shape its plan, checked once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, get_args

import numpy as np

from cellfeed._checks import check_transform, is_integer, is_number, parse_bytes, suggest
from cellfeed.errors import PlanError
from cellfeed.plan.epoch import Remainder, check_ranks
from cellfeed.plan.permutation import check_seed, new_seed

X_DTYPES = ("float32", "float16", "bfloat16", "stored")
"""Types that X can have; "stored" is that of the layer."""

MAX_CELLS = (1 << 31) - 1

IN_ORDER = {
    "shuffle": False, "drop_last": False, "mixing": None, "soma_chunk_size": None, "shuffle_chunk_count": None,
}  # fmt: skip
"""Parameters with which cells come in the order of their joinids, whatever was said of shuffling."""


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
    mixing: float | None
    use_eager_fetch: bool
    verify: bool
    rank_remainder: Remainder
    rank: int | None
    world_size: int | None
    transform: Any = None

    PARAMETERS: ClassVar = (
        "batch_size", "shuffle", "seed", "drop_last", "return_sparse_X", "X_dtype", "soma_chunk_size",
        "shuffle_chunk_count", "memory_budget", "mixing", "use_eager_fetch", "verify",
        "rank_remainder", "rank", "world_size", "transform",
    )  # fmt: skip
    """The parameters of a dataset from which settings are made."""

    @classmethod
    def check(cls, *, seed: int | None, memory_budget: int | str, **given: Any) -> Settings:
        """Check each parameter and fill in what was left open."""
        for name in ("batch_size", "soma_chunk_size", "shuffle_chunk_count"):
            value = given[name]
            if value is None and name != "batch_size":
                continue
            if not is_integer(value) or not 1 <= value <= MAX_CELLS:
                optional = "" if name == "batch_size" else ", or None to have it planned"
                raise PlanError(f"{name}={value!r} must be an integer of at least 1, and less than 2**31{optional}")
            given[name] = int(value)
        for name in ("shuffle", "drop_last", "return_sparse_X", "use_eager_fetch", "verify"):
            if not isinstance(given[name], bool):
                raise PlanError(f"{name}={given[name]!r} must be True or False")
        if not isinstance(given["rank_remainder"], str) or given["rank_remainder"] not in get_args(Remainder):
            raise PlanError(
                f"rank_remainder={given['rank_remainder']!r} must be one of {', '.join(map(repr, get_args(Remainder)))}"
            )
        if given["rank_remainder"] == "pad" and given["drop_last"]:
            raise PlanError(
                'rank_remainder="pad" and drop_last=True contradict each other: repeat cells or leave them out'
            )
        given["X_dtype"] = _name_of_type(given["X_dtype"])
        given["mixing"] = parse_share(given["mixing"])
        if not isinstance(given["X_dtype"], str) or given["X_dtype"] not in X_DTYPES:
            raise PlanError(f"X_dtype={given['X_dtype']!r} must be one of {', '.join(map(repr, X_DTYPES))}")
        if given["transform"] is not None:
            check_transform(given["transform"])
        _check_alone(**given)
        given["rank"], given["world_size"] = check_ranks(given["rank"], given["world_size"])
        return cls(
            seed=new_seed() if seed is None else check_seed(seed),
            seed_given=seed is not None,
            memory_budget=parse_bytes(memory_budget),
            **given,
        )

    def replace(self, **parameters: Any) -> Settings:
        """Make settings that differ in some parameters, which are checked as those of a new dataset are."""
        kept = {name: getattr(self, name) for name in self.PARAMETERS}
        made = self.check(**{**kept, **parameters})
        return replace(made, seed_given=self.seed_given or "seed" in parameters)


def _name_of_type(given: Any) -> Any:
    """Return the name of a type of PyTorch or NumPy; what is none as it is."""
    text = str(given)
    if isinstance(given, str) or text.startswith("torch."):
        return text.removeprefix("torch.")
    try:
        return given if given is None else np.dtype(given).name
    except TypeError:
        return given


def parse_share(given: Any) -> Any:
    """Return a share that was written as text, such as ``"90%"`` or ``"0.9"``, as a number; others as they are."""
    if not isinstance(given, str):
        return given
    try:
        return float(given.removesuffix("%")) / (100 if given.endswith("%") else 1)
    except ValueError:
        return given


def check_mixing(mixing: float) -> None:
    """Refuse what is no effective over nominal batch size."""
    if not is_number(mixing) or not 0 < mixing <= 1:
        raise PlanError(
            f"mixing={mixing!r} must be more than 0 and at most 1: the effective batch size over batch_size, which a "
            f"full shuffle brings to 1; or None to mix as well as memory_budget permits"
        )


def _check_alone(
    *,
    mixing: float | None,
    shuffle: bool,
    soma_chunk_size: int | None,
    shuffle_chunk_count: int | None,
    **_others: Any,
) -> None:
    """Refuse a mixing beside another way to say how cells are shuffled."""
    if mixing is None:
        return
    check_mixing(mixing)
    for name, value, without in (
        ("shuffle", shuffle, True),
        ("soma_chunk_size", soma_chunk_size, None),
        ("shuffle_chunk_count", shuffle_chunk_count, None),
    ):
        if value != without:
            raise PlanError(f"mixing={mixing!r} chooses how cells are shuffled, and so does {name}={value!r}: give one")


def with_defaults(function: Callable[..., Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in a function's defaults for the parameters that make settings."""
    signature = inspect.signature(function)
    defaults = {name: signature.parameters[name].default for name in Settings.PARAMETERS}
    unknown = sorted(set(parameters) - set(defaults))
    if unknown:
        raise PlanError(f"from_query does not take {unknown[0]!r}; {suggest(unknown[0], defaults)}")
    return {**defaults, **parameters}
