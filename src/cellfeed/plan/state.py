"""What a saved state holds, and whether one belongs to a dataset: pure, in plain values that JSON knows."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfeed._checks import is_integer
from cellfeed.errors import StateError
from cellfeed.plan.epoch import check_size
from cellfeed.plan.resume import ResumeSegment, WorldLayout
from cellfeed.plan.schedule import MAX_SLICES, ShufflePlan

VERSION = 2
"""Of what a state says and of the orders that it goes on with: another one would be read as another order."""

MAX_COUNT = (1 << 62) - 1

MOST = {"n_slices": MAX_SLICES}
"""What a damaged state shall not make us plan."""

Fingerprint = dict[str, int | str | bool | None]
"""What an order depends on, by name: a state goes on only where all of it is the same."""


def digest(array: npt.NDArray[Any] | None) -> str | None:
    """Return a short name for the contents of an array."""
    if array is None:
        return None
    data = np.ascontiguousarray(array)
    return hashlib.blake2b(data.view(np.uint8).data, digest_size=8).hexdigest()


def pack(epoch: int, segments: Sequence[ResumeSegment], rank: int, fingerprint: Fingerprint) -> dict[str, Any]:
    """Make a state: small, of numbers, text, lists and dicts only."""
    return {
        "version": VERSION,
        "epoch": epoch,
        "rank": rank,
        "segments": [
            {
                "world_size": segment.world_layout.world_size,
                "num_workers": segment.world_layout.num_workers,
                "mixing": asdict(segment.world_layout.mixing),
                "received": segment.received if isinstance(segment.received, int) else list(segment.received),
            }
            for segment in segments
        ],
        "fingerprint": dict(fingerprint),
    }


def unpack(
    state: Mapping[str, Any] | Sequence[Mapping[str, Any]], fingerprint: Fingerprint
) -> tuple[int, tuple[ResumeSegment, ...]]:
    """Read a state, or those of all ranks.

    Returns
    -------
    The epoch, and what was walked of it.

    Raises
    ------
    StateError
        If it is none, or belongs to other cells, genes or parameters; the message names the field.
    """
    if isinstance(state, Mapping):
        return _unpack_one(state, fingerprint)
    if not isinstance(state, (list, tuple)) or not state:
        raise StateError(
            f"state is {_outlined(state)}; it must be what state_dict() returned, or a list of that of each rank"
        )
    unpacked = [_unpack_one(one, fingerprint) for one in state]
    return unpacked[0] if len(state) == 1 else _merge([one["rank"] for one in state], unpacked)


def _merge(
    ranks: list[int], states: list[tuple[int, tuple[ResumeSegment, ...]]]
) -> tuple[int, tuple[ResumeSegment, ...]]:
    (epoch, segments), *others = states
    for rank, (other_epoch, other_stages) in zip(ranks[1:], others, strict=True):
        if (other_epoch, _apart_from_counts(other_stages)) != (epoch, _apart_from_counts(segments)):
            raise StateError(
                f"the states of ranks {ranks[0]} and {rank} do not belong together: epochs {epoch} and {other_epoch}, "
                f"after {len(segments)} and {len(other_stages)} segments; give those that were saved at one step"
            )
    if not segments:
        return epoch, segments
    *before, last = segments
    if sorted(ranks) != list(range(last.world_layout.world_size)):
        raise StateError(
            f"states of ranks {sorted(ranks)} were given where {last.world_layout.world_size} ranks were at work; give "
            f"each rank's once, or a single one if all had received as many minibatches"
        )
    received = {rank: own[-1].received_by(rank) for rank, (_, own) in zip(ranks, states, strict=True)}
    return epoch, (*before, ResumeSegment(last.world_layout, tuple(received[rank] for rank in range(len(ranks)))))


def _apart_from_counts(segments: tuple[ResumeSegment, ...]) -> tuple[Any, ...]:
    return (*segments[:-1], segments[-1].world_layout) if segments else ()


def _unpack_one(state: Mapping[str, Any], fingerprint: Fingerprint) -> tuple[int, tuple[ResumeSegment, ...]]:
    try:
        if state["version"] != VERSION:
            raise StateError(f"the state has version {_short(state['version'])}; this cellfeed reads version {VERSION}")
        _compare(state["fingerprint"], fingerprint)
        epoch, _ = _whole(state["epoch"], 0), _whole(state["rank"], 0)
        return epoch, tuple(_unpack_stage(segment) for segment in state["segments"])
    except StateError:
        raise
    except Exception as cause:  # what was given may be anything, and fail in any way
        raise StateError(f"state is {_outlined(state)}, which is not what state_dict() returned ({cause!r})") from cause


def _short(value: object) -> str:
    plain = value is None or isinstance(value, (str, int, float))
    return reprlib.repr(value) if plain else f"a {type(value).__name__}"


def _outlined(state: object) -> str:
    """Describe what was given as a state: a checkpoint may be large, and may hold what is nobody's business."""
    if isinstance(state, Mapping):
        return f"a dict with the keys {reprlib.repr(list(state))}"
    return "an empty list" if isinstance(state, list) and not state else f"a {type(state).__name__}"


def _unpack_stage(stage: Mapping[str, Any]) -> ResumeSegment:
    mixing = ShufflePlan(
        **{
            name: _whole(value, int(name != "warmup_chunks"), MOST.get(name, MAX_COUNT))
            for name, value in stage["mixing"].items()
        }
    )
    world_layout = WorldLayout(_whole(stage["world_size"], 1), _whole(stage["num_workers"], 1), mixing)
    check_size(world_layout.world_size, world_layout.num_workers)
    received = stage["received"]
    if not isinstance(received, (list, tuple)):
        return ResumeSegment(world_layout, _whole(received, 0))
    if len(received) != world_layout.world_size:
        raise StateError(
            f"the state counts the minibatches of {len(received)} ranks where there were {world_layout.world_size}"
        )
    return ResumeSegment(world_layout, tuple(_whole(n, 0) for n in received))


def _whole(value: Any, least: int, most: int = MAX_COUNT) -> int:
    if not is_integer(value) or not least <= value <= most:
        raise TypeError(f"{value!r} is not an integer from {least} to {most}")
    return int(value)


def _compare(saved: Mapping[str, Any], own: Fingerprint) -> None:
    differing = [name for name in own if saved.get(name) != own[name]]
    if differing:
        name = differing[0]
        also = f" ({', '.join(differing[1:])} differ as well)" if len(differing) > 1 else ""
        raise StateError(
            f"the state was saved with {name}={_short(saved.get(name))}, and this dataset has "
            f"{name}={own[name]!r}{also}: make the dataset with the same experiment, queries and parameters, or start "
            f"afresh without the state"
        )
