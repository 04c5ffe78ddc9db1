"""Train parts of a network at a time: the schedules, and the engine for one of your own.

``Trainer(callbacks=[SlimFit(freezing_rate=0.95)])`` works with any LightningModule. A schedule of
one's own is a subclass of :class:`Freezing` with :meth:`Freezing.choose`::

    class OneByOne(Freezing):
        def choose(self, now):
            return [now.step % len(now.units)]
"""

from core.freezing.autofreeze import AutoFreeze
from core.freezing.blocks import LISA, BlockCoordinate
from core.freezing.engine import Freezing, Moment
from core.freezing.prefixes import FreezeOut, GradualUnfreezing, Static
from core.freezing.slimfit import SlimFit
from core.freezing.units import Layout, Unit

__all__ = [
    "LISA",
    "AutoFreeze",
    "BlockCoordinate",
    "FreezeOut",
    "Freezing",
    "GradualUnfreezing",
    "Layout",
    "Moment",
    "SlimFit",
    "Static",
    "Unit",
]

for _public in (SlimFit, GradualUnfreezing, FreezeOut, AutoFreeze, LISA, BlockCoordinate, Static):
    _public.__module__ = __name__  # the name that configurations and the index know them by
