"""The parameters of a dataset that shape its plan: each is named, given its default and checked here, once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, get_args

import numpy as np

from cellfeed._checks import check_choice, check_transform, is_integer, is_number, missing_from, parse_bytes, suggest
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError
from cellfeed.plan.epoch import EpochOrder, Remainder, check_ranks
from cellfeed.plan.permutation import check_seed, new_seed
from cellfeed.plan.schedule import ShufflePlan

X_DTYPES = ("float32", "float16", "bfloat16", "stored")
"""Types that X can have; "stored" is the type of the layer."""

MAX_CELLS = (1 << 31) - 1

IN_ORDER: Mapping[str, Any] = {
    "shuffle": False, "drop_last": False, "mixing": None, "soma_chunk_size": None, "shuffle_chunk_count": None,
}  # fmt: skip
"""Parameters that return all cells in ascending order of their joinids."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How cells are ordered, batched and read; see :class:`cellfeed.ExperimentDataset`.

    Parameters are checked, and replaced by the values that the rest of cellfeed works with: ``seed=None`` by a new
    seed, ``memory_budget="2 GiB"`` by a number of bytes.

    Attributes
    ----------
    seed_given
        Whether the user chose the seed.

    Examples
    --------
    >>> Settings(memory_budget="1 MiB").memory_budget
    1048576
    """

    batch_size: int = 128
    shuffle: bool = True
    seed: int = None  # type: ignore[assignment] # an integer after __post_init__
    drop_last: bool = False
    return_sparse_X: bool = False
    X_dtype: str = "float32"
    soma_chunk_size: int | None = None
    shuffle_chunk_count: int | None = None
    memory_budget: int = "2 GiB"  # type: ignore[assignment] # bytes after __post_init__
    mixing: float | None = None
    use_eager_fetch: bool = True
    verify: bool = True
    joinids: bool = False
    rank_remainder: Remainder = "drop"
    rank: int | None = None
    world_size: int | None = None
    transform: Any = None
    seed_given: bool = True

    def __post_init__(self) -> None:
        self._set("X_dtype", _name_of_dtype(self.X_dtype))
        self._set("mixing", parse_fraction(self.mixing))
        self._check_sizes()
        self._check_choices()
        if self.transform is not None:
            check_transform(self.transform)
        self._check_mixing()
        rank, world_size = check_ranks(self.rank, self.world_size)
        self._set("rank", rank)
        self._set("world_size", world_size)
        self._set("seed_given", self.seed_given and self.seed is not None)
        self._set("seed", new_seed() if self.seed is None else check_seed(self.seed))
        self._set("memory_budget", parse_bytes(self.memory_budget))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_sizes(self) -> None:
        for name in ("batch_size", "soma_chunk_size", "shuffle_chunk_count"):
            value, is_optional = getattr(self, name), name != "batch_size"
            if value is None and is_optional:
                continue
            check_size(name, value, ", or None to have it planned" if is_optional else "")
            self._set(name, int(value))

    def _check_choices(self) -> None:
        for name in ("shuffle", "drop_last", "return_sparse_X", "use_eager_fetch", "verify", "joinids"):
            if not isinstance(getattr(self, name), bool):
                raise PlanError(f"{name}={getattr(self, name)!r} must be True or False")
        for name, choices in (("rank_remainder", get_args(Remainder)), ("X_dtype", X_DTYPES)):
            check_choice(name, getattr(self, name), choices)
        if self.rank_remainder == "pad" and self.drop_last:
            raise PlanError(
                'rank_remainder="pad" and drop_last=True contradict each other: repeat cells or leave them out'
            )

    def _check_mixing(self) -> None:
        """Refuse an invalid mixing, or one beside another parameter that decides how cells are shuffled."""
        if self.mixing is None:
            return
        check_mixing(self.mixing)
        for name, value, neutral in (
            ("shuffle", self.shuffle, True),
            ("soma_chunk_size", self.soma_chunk_size, None),
            ("shuffle_chunk_count", self.shuffle_chunk_count, None),
        ):
            if value != neutral:
                raise PlanError(
                    f"mixing={self.mixing!r} chooses how cells are shuffled, and so does {name}={value!r}: give one"
                )

    def type_of_X(self, stored: str) -> str:
        """Return the name of the type in minibatches of values that the store has in the type ``stored``."""
        return stored if self.X_dtype == "stored" else self.X_dtype

    def epoch_order(self, epoch: int, bounds: IntArray, shuffle_plan: ShufflePlan, **chunks: Any) -> EpochOrder:
        """Return the order of an epoch over chunks between ``bounds``; ``chunks`` are further attributes."""
        return EpochOrder(
            bounds=bounds,
            seed=self.seed,
            epoch=epoch,
            shuffle=self.shuffle,
            batch_size=self.batch_size,
            shuffle_plan=shuffle_plan,
            drop_last=self.drop_last,
            rank_remainder=self.rank_remainder,
            **chunks,
        )

    @classmethod
    def from_mapping(cls, parameters: Mapping[str, Any]) -> Self:
        """Make settings of the entries that have the name of a parameter; others are ignored."""
        return cls(**{name: parameters[name] for name in PARAMETERS if name in parameters})

    def replace(self, **parameters: Any) -> Self:
        """Return settings with other values for some parameters, which are checked."""
        return dataclasses.replace(self, seed_given=self.seed_given or "seed" in parameters, **parameters)


PARAMETERS: Sequence[str] = tuple(field.name for field in dataclasses.fields(Settings) if field.name != "seed_given")
"""The parameters of a dataset from which settings are made."""


def check_size(argument: str, value: Any, otherwise: str = "") -> None:
    """Raise a PlanError if an argument is no number of cells; ``otherwise`` says what else it may be."""
    if not is_integer(value) or not 1 <= value <= MAX_CELLS:
        raise PlanError(f"{argument}={value!r} must be an integer of at least 1, and less than 2**31{otherwise}")


def check_names(function: str, parameters: Mapping[str, Any]) -> None:
    """Refuse names that are not parameters of settings.

    Examples
    --------
    >>> check_names("from_query", {"batchsize": 64})
    Traceback (most recent call last):
    cellfeed.errors.PlanError: from_query does not take 'batchsize'; did you mean 'batch_size'? ...
    """
    unknown = missing_from(sorted(parameters), PARAMETERS)
    if unknown:
        raise PlanError(f"{function} does not take {unknown[0]!r}; {suggest(unknown[0], PARAMETERS)}")


def _name_of_dtype(dtype: Any) -> Any:
    """Return the name of a dtype of PyTorch or NumPy; an argument of another kind is returned unchanged."""
    text = str(dtype)
    if isinstance(dtype, str) or text.startswith("torch."):
        return text.removeprefix("torch.")
    try:
        return dtype if dtype is None else np.dtype(dtype).name
    except (TypeError, ValueError):  # ValueError: a tensor
        return dtype


def parse_fraction(fraction: Any) -> Any:
    """Return a fraction written as text, such as ``"90%"`` or ``"0.9"``, as a number; others unchanged."""
    if not isinstance(fraction, str):
        return fraction
    try:
        return float(fraction.removesuffix("%")) / (100 if fraction.endswith("%") else 1)
    except ValueError:
        return fraction


def check_mixing(mixing: float) -> None:
    """Check that ``mixing`` is in (0, 1]."""
    if not is_number(mixing) or not 0 < mixing <= 1:
        raise PlanError(
            f"mixing={mixing!r} must be more than 0 and at most 1: the effective batch size over batch_size, which a "
            f"full shuffle brings to 1; or None to mix as well as memory_budget permits"
        )
