"""The time of loads in a what-if: making an instance, and loading its module first if necessary.

A module that is loaded already costs nothing more; one that another lease is loading costs the rest
of that time. A load takes the time that it took in the log, if it had to do the same there; if not,
the usual time of such a load for the function.
"""

from __future__ import annotations

from attrs import Factory, define

from ..._core.policy.instances import Step
from ..._core.policy.records import Instance, Module
from .tasks import Acquire, Application


@define(eq=False)
class Loading:
    """Which modules are loaded, or when they will be."""

    application: Application
    ready: dict[Module, float] = Factory(dict)
    """{module in the books: time from which on it is loaded}."""
    _usual: dict[tuple[tuple[str, str], bool], float] = Factory(dict)

    def begin(self, acquire: Acquire, instance: Instance, now: float) -> float:
        """Begin a load; return the seconds that it takes."""
        module = instance.module
        ready = self.ready.get(module)
        if ready is not None:
            return max(0.0, ready - now) + self._seconds(acquire, cold=False)
        seconds = self._seconds(acquire, cold=True)
        self.ready[module] = now + seconds - self._usual_seconds(acquire.name, False)
        return seconds

    def failed(self, instance: Instance, now: float) -> None:
        """End a load without an instance; the work on its module is lost."""
        module = instance.module
        if instance.loads_module and self.ready.get(module, now) > now:
            del self.ready[module]

    def act(self, step: Step) -> None:
        """Unload modules, except those that were requested again within the step."""
        for module in step.unloaded:
            if not module.users:
                self.ready.pop(module, None)

    def _seconds(self, acquire: Acquire, cold: bool) -> float:
        if acquire.load_seconds is not None and acquire.cold == cold:
            return acquire.load_seconds
        return self._usual_seconds(acquire.name, cold)

    def _usual_seconds(self, name: tuple[str, str], cold: bool) -> float:
        key = name, cold
        if key not in self._usual:
            self._usual[key] = self.application.load_seconds(name, cold)
        return self._usual[key]
