"""The start of an instance: its start function, then `_initialize`, as WASI asks of reactors."""

from __future__ import annotations

from typing import final

from .._core.errors import GuestError
from .._core.policy.shares import CALL_FUEL
from .._engine.base import UNDER_WAY, GuestInstance
from .activity import Activity
from .module import INITIALIZE


@final
class Start(Activity):
    """The start of one new instance, after which it can be called."""

    _fuel = 0  # burnt by what ran before

    async def run(
        self, native: GuestInstance, fuel: int, *, initialize: bool, load_fuel: int
    ) -> None:
        """Run the start function of a new instance, and then, with `initialize`, `_initialize`.

        Args:
            native: the new instance.
            fuel: units that each of the two may burn.
            initialize: whether it exports `_initialize`.
            load_fuel: units that making it costs beside that.

        Raises:
            GuestError: it trapped, ran out of fuel, or exited.

        **Checkpoint:** between slices.
        **Cancellation:** the guest is stopped; the instance can only be closed.
        """
        budget, limits = self.share.budget, self.runner.cpu_limits
        try:
            over = native.poll() if budget is None else limits.metered(self.share, native.poll)()
            burnt = fuel - native.fuel_left()
            self.share.charge(burnt, CALL_FUEL + load_fuel)
            if not over:
                await self._drive(native, fuel, burnt)
            native.started()
            guests = [native.start_function()]
            if initialize:
                guests.append(native.function(INITIALIZE))
            for guest in guests:
                if guest is None:
                    continue
                self._fuel += fuel - native.fuel_left()
                begin = guest.begin if budget is None else limits.metered(self.share, guest.begin)
                if begin((), fuel) is UNDER_WAY:
                    await self._drive(native, fuel, 0)
                    guest.finish()
                else:
                    self.share.charge(fuel - native.fuel_left())
        except GuestError as error:
            error.output = self.output()
            error.refused_memory = native.refused_memory()
            raise
        finally:
            if self._keep is not None:
                self.end_session()
        if self.ended:
            raise self.error()

    @property
    def fuel_before(self) -> int:
        return self._fuel

    async def _drive(self, native: GuestInstance, fuel: int, burnt: int) -> None:
        job = self.new_job(native, fuel, burnt)
        try:
            job.charge()
            await self.runner.drive(job)
        finally:
            self.job_over(job)
