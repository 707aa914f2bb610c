"""The content of a saved state, and the check that it belongs to a dataset: pure, in values that JSON supports."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cellfeed._checks import is_integer
from cellfeed.errors import StateError
from cellfeed.plan.epoch import check_size
from cellfeed.plan.layout import ResumeSegment, WorldLayout
from cellfeed.plan.schedule import MAX_SLICES, ShufflePlan

SOURCE, COPY = "source", "copy"
"""Names of the media of an epoch: a source, or a local copy of it."""

VERSION = 2
"""Version of the state format and of the shuffling algorithm; states of another version are rejected."""

MAX_COUNT = (1 << 62) - 1

MAX_MIXING = {"n_slices": MAX_SLICES}
"""Limits on fields of a :class:`ShufflePlan`: a damaged state could make planning endless."""

Fingerprint = dict[str, int | str | bool | None]
"""Everything that the order of an epoch depends on, by name. A state is restored only if all values are equal."""


def pack(epoch: int, segments: Sequence[ResumeSegment], rank: int, fingerprint: Fingerprint) -> dict[str, Any]:
    """Return a state: a small dict of numbers, strings, lists and dicts."""
    return {
        "version": VERSION,
        "epoch": epoch,
        "rank": rank,
        "segments": [
            {
                "world_size": segment.world_layout.world_size,
                "num_workers": segment.world_layout.num_workers,
                "mixing": asdict(segment.world_layout.mixing),
                "received": n if isinstance(n := segment.n_received, int) else list(n),
            }
            for segment in segments
        ],
        "fingerprint": dict(fingerprint),
    }


def medium_of(state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    """Return the name of the medium to which the epoch of a state belongs."""
    one = state[0] if isinstance(state, (list, tuple)) and state else state
    fingerprint = one.get("fingerprint") if isinstance(one, Mapping) else None
    return str(fingerprint.get("medium", SOURCE)) if isinstance(fingerprint, Mapping) else SOURCE


def unpack(
    state: Mapping[str, Any] | Sequence[Mapping[str, Any]], fingerprint: Fingerprint
) -> tuple[int, tuple[ResumeSegment, ...]]:
    """Read a state, or the states of all ranks.

    Parameters
    ----------
    state
        One state, which is the same for all ranks or that of this rank; or a list with the state of each rank.
    fingerprint
        Fingerprint of the dataset.

    Returns
    -------
    The epoch, and the segments of it that were received.

    Raises
    ------
    StateError
        If ``state`` is not a state, or belongs to other cells, genes or parameters; the message names the field.
    """
    if isinstance(state, Mapping):
        return _unpack_one(state, fingerprint)
    if not isinstance(state, (list, tuple)) or not state:
        raise StateError(
            f"state is {_outlined(state)}; it must be what state_dict() returned, or a list with that of each rank"
        )
    unpacked = [_unpack_one(rank_state, fingerprint) for rank_state in state]
    return unpacked[0] if len(state) == 1 else _merge([rank_state["rank"] for rank_state in state], unpacked)


def _merge(
    ranks: list[int], states: list[tuple[int, tuple[ResumeSegment, ...]]]
) -> tuple[int, tuple[ResumeSegment, ...]]:
    (epoch, segments), *others = states
    for rank, (other_epoch, other_segments) in zip(ranks[1:], others, strict=True):
        if (other_epoch, _without_counts(other_segments)) != (epoch, _without_counts(segments)):
            raise StateError(
                f"the states of ranks {ranks[0]} and {rank} do not belong together: epochs {epoch} and {other_epoch}, "
                f"with {len(segments)} and {len(other_segments)} segments; give states that were saved at the same step"
            )
    if not segments:
        return epoch, segments
    *before, last = segments
    if sorted(ranks) != list(range(last.world_layout.world_size)):
        raise StateError(
            f"states of ranks {sorted(ranks)} were given where {last.world_layout.world_size} ranks received cells; "
            f"give the state of each rank once, or a single state if all ranks received the same number of minibatches"
        )
    by_rank = dict(zip(ranks, states, strict=True))
    n_received = tuple(by_rank[rank][1][-1].received_by(rank) for rank in range(len(ranks)))
    return epoch, (*before, ResumeSegment(last.world_layout, n_received))


def _without_counts(segments: tuple[ResumeSegment, ...]) -> tuple[Any, ...]:
    return (*segments[:-1], segments[-1].world_layout) if segments else ()


def _unpack_one(state: Mapping[str, Any], fingerprint: Fingerprint) -> tuple[int, tuple[ResumeSegment, ...]]:
    try:
        if state["version"] != VERSION:
            raise StateError(f"the state has version {_short(state['version'])}; this cellfeed reads version {VERSION}")
        _compare(state["fingerprint"], fingerprint)
        _check_integer(state["rank"], 0)
        return _check_integer(state["epoch"], 0), tuple(map(_unpack_segment, state["segments"]))
    except StateError:
        raise
    except Exception as cause:  # the argument may be any object and raise any error
        raise StateError(f"state is {_outlined(state)}, which is not what state_dict() returned ({cause!r})") from cause


def _short(value: object) -> str:
    plain = value is None or isinstance(value, (str, int, float))
    return reprlib.repr(value) if plain else f"a {type(value).__name__}"


def _outlined(state: object) -> str:
    """Describe an argument without its values: a checkpoint may be large or confidential."""
    if isinstance(state, Mapping):
        return f"a dict with the keys {reprlib.repr(list(state))}"
    return "an empty list" if isinstance(state, list) and not state else f"a {type(state).__name__}"


def _unpack_segment(segment: Mapping[str, Any]) -> ResumeSegment:
    mixing = ShufflePlan(
        **{
            name: _check_integer(value, int(name != "warmup_chunks"), MAX_MIXING.get(name, MAX_COUNT))
            for name, value in segment["mixing"].items()
        }
    )
    world_size, num_workers = _check_integer(segment["world_size"], 1), _check_integer(segment["num_workers"], 1)
    check_size(world_size, num_workers)
    world_layout, received = WorldLayout(world_size, num_workers, mixing), segment["received"]
    if not isinstance(received, (list, tuple)):
        return ResumeSegment(world_layout, _check_integer(received, 0))
    if len(received) != world_size:
        raise StateError(f"the state counts the minibatches of {len(received)} ranks where there were {world_size}")
    return ResumeSegment(world_layout, tuple(_check_integer(n, 0) for n in received))


def _check_integer(value: Any, minimum: int, maximum: int = MAX_COUNT) -> int:
    if not is_integer(value) or not minimum <= value <= maximum:
        raise TypeError(f"{value!r} is not an integer from {minimum} to {maximum}")
    return int(value)


def _compare(saved: Mapping[str, Any], own: Fingerprint) -> None:
    differing = [name for name in own if saved.get(name) != own[name]]
    if differing:
        name = differing[0]
        also = f" ({', '.join(differing[1:])} differ as well)" if len(differing) > 1 else ""
        raise StateError(
            f"the state was saved with {name}={_short(saved.get(name))}, and this dataset has "
            f"{name}={own[name]!r}{also}: make the dataset with the same experiment, queries and parameters, or begin "
            f"without the state"
        )
