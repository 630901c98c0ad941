"""Which events of a batch are new. Pure; who stores them stores the new last number in the same transaction."""

from __future__ import annotations

from dataclasses import dataclass

from skerry.messages import Batch


@dataclass(frozen=True)
class Intake:
    """What to do with a batch.

    Attributes:
        skip: events at its beginning that are here already.
        take: events behind those that are new.
        lost: events that the device says are gone for ever, and that were not known to be.
        last: the last number that is here, or known to be lost, afterwards: what the ack says.
    """

    skip: int
    take: int
    lost: int
    last: int


def take_in(last: int, batch: Batch) -> Intake:
    """Compares a batch with the last number of its stream (0 if the stream is new).

    Older events are here already. A hole is taken only if the device says that the outbox lost what was in it; any
    other hole means that a batch is still to come, and the ack tells where to go on from.
    """
    expected = last + 1
    if batch.last_seq < expected:
        return Intake(skip=len(batch.events), take=0, lost=0, last=last)
    if batch.first_seq - batch.lost > expected:
        return Intake(skip=0, take=0, lost=0, last=last)
    skip = max(0, expected - batch.first_seq)
    lost = max(0, batch.first_seq - expected)
    return Intake(skip=skip, take=len(batch.events) - skip, lost=lost, last=batch.last_seq)
