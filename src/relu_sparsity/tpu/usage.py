"""What jobs have used of slices: hours, those of work that was lost, and what they cost."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from relu_sparsity.plan import Plan
from relu_sparsity.tpu.slices import SliceParams


def _steady() -> float:
    # Only Linux has one that counts sleep, as clouds do.
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


_ZERO = time.time() - _steady()


def now() -> float:
    """Seconds since 1970 by a clock that does not jump while this process lives.

    When somebody sets the machine's clock, no slice gets cheaper or dearer.
    """
    return _ZERO + _steady()


@dataclass(frozen=True)
class SliceUse:
    """One slice of one job. Times are in seconds since 1970.

    Attributes:
      accelerator_type: Kind and size.
      hourly_price: Of the slice, in the currency of slices.yaml; None where that has no price.
      asked: When it was asked for.
      active: When its hosts started; None where they never did.
      gone: When it was deleted; None while it is there.
      lost_seconds: Of work after a checkpoint that had to be done again, as far as the run's
        progress tells.
    """

    accelerator_type: str
    hourly_price: float | None
    asked: float
    active: float | None = None
    gone: float | None = None
    lost_seconds: float = 0.0

    def marked(self, event: Literal["active", "gone"]) -> "SliceUse":
        """The same with now as the time of an event, unless that was known before."""
        known: dict[str, Any] = {event: getattr(self, event) or now()}
        return replace(self, **known)


@dataclass(frozen=True)
class Usage:
    """What some slices have used so far.

    Attributes:
      slices: How many there were.
      slice_hours: From the start of the hosts to the end: what is paid for.
      waiting_hours: From asking to the start.
      lost_hours: Of the slice-hours, those of work that had to be done again.
      cost: In the currency of slices.yaml; None where a slice had no price.
    """

    slices: int
    slice_hours: float
    waiting_hours: float
    lost_hours: float
    cost: float | None

    @classmethod
    def of(cls, use: SliceUse) -> "Usage":
        """Of one slice."""
        end = use.gone or now()
        start = use.active or end
        hours = _hours(start, end)
        cost = None if use.hourly_price is None else hours * use.hourly_price
        return cls(1, hours, _hours(use.asked, start), use.lost_seconds / 3600, cost)

    @classmethod
    def sum(cls, used: Sequence["Usage"]) -> "Usage":
        """Of several slices or jobs."""
        costs = [each.cost for each in used]
        return cls(
            slices=sum(each.slices for each in used),
            slice_hours=sum(each.slice_hours for each in used),
            waiting_hours=sum(each.waiting_hours for each in used),
            lost_hours=sum(each.lost_hours for each in used),
            cost=None if None in costs else sum(cost or 0.0 for cost in costs),
        )

    def __str__(self) -> str:
        cost = "" if self.cost is None else f", {self.cost:,.2f} at slices.yaml's price"
        return (
            f"{self.slices} slice{'s'[: self.slices != 1]}, {self.slice_hours:.2f} slice-hours "
            f"({self.lost_hours:.2f} of them for work that was lost) after "
            f"{self.waiting_hours:.2f} hours of waiting{cost}"
        )


def _hours(start: float, end: float) -> float:
    # The launchers that saw the two may have had clocks that differ.
    return max(0.0, end - start) / 3600


def planned_lines(plan: Plan, settings: SliceParams) -> Iterator[str]:
    """What a plan takes on slices, in words."""
    hours, cost = _planned(plan, settings)
    told = f"On slices {settings.accelerator_type}: about {hours:,.3g} slice-hours"
    if cost is None:
        yield f"{told}. For their cost set price_per_chip_hour in slices.yaml."
    else:
        yield (
            f"{told}, {cost:,.0f} at {settings.price_per_chip_hour:g} per chip-hour and "
            f"{settings.num_chips} chips a slice."
        )


def planned_json(plan: Plan, settings: SliceParams) -> dict[str, Any]:
    """What a plan takes on slices, as values that JSON knows."""
    hours, cost = _planned(plan, settings)
    return {"accelerator_type": settings.accelerator_type, "slice_hours": hours, "cost": cost}


def _planned(plan: Plan, settings: SliceParams) -> tuple[float, float | None]:
    hours = plan.total().device_hours / plan.speed.num_devices
    return hours, None if settings.hourly_price is None else hours * settings.hourly_price
