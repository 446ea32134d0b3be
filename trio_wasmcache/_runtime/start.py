"""The start of an instance: its start function, then `_initialize`, as WASI asks of reactors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from .._core.errors import GuestError
from .._core.policy.shares import CALL_FUEL
from .._engine.base import UNDER_WAY, GuestFunction, GuestInstance, StartCall
from .activity import Activity


@final
class Start(Activity):
    """The start of one new instance, after which it can be called."""

    _fuel = 0  # burnt by what ran before

    async def run(
        self,
        native: GuestInstance,
        fuel: int,
        *,
        initialize: Sequence[StartCall],
        load_fuel: int,
        at_once: bool,
    ) -> None:
        """Run the start function of a new instance, and then the exports of `initialize`.

        Args:
            native: the new instance.
            fuel: units that each of them may burn.
            initialize: exports to call, such as `_initialize`, and their values.
            load_fuel: units that making it costs beside that.
            at_once: whether nothing of it is under way; see `LoadedModule`.

        Raises:
            GuestError: it trapped, ran out of fuel, or exited.

        **Checkpoint:** between slices.
        **Cancellation:** the guest is stopped; the instance can only be closed.
        """
        budget, limits = self.share.budget, self.runner.cpu_limits
        try:
            if at_once:
                self.share.charge(0, CALL_FUEL + load_fuel)
            else:
                poll = native.poll if budget is None else limits.metered(self.share, native.poll)
                over = poll()
                burnt = fuel - native.fuel_left()
                self.share.charge(burnt, CALL_FUEL + load_fuel)
                if not over:
                    await self._drive(native, fuel, burnt)
            native.started()
            guest = native.start_function()
            if guest is not None:
                await self._call(native, guest, (), fuel)
            for export, values in initialize:
                await self._call(native, native.function(export), values, fuel)
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

    async def _call(
        self, native: GuestInstance, guest: GuestFunction, values: tuple[int, ...], fuel: int
    ) -> None:
        self._fuel += fuel - native.fuel_left()
        share, limits = self.share, self.runner.cpu_limits
        begin = guest.begin if share.budget is None else limits.metered(share, guest.begin)
        if begin(values, fuel) is UNDER_WAY:
            await self._drive(native, fuel, 0)
            guest.finish()
        else:
            self.share.charge(fuel - native.fuel_left())

    async def _drive(self, native: GuestInstance, fuel: int, burnt: int) -> None:
        job = self.new_job(native, fuel, burnt)
        try:
            job.charge()
            await self.runner.drive(job)
        finally:
            self.job_over(job)
