"""How many ranks a rehearsal has: two would prove nothing (ARCHITECTURE.md, bit-identical resume)."""

from __future__ import annotations

from hpctool import config
from hpctool.launch.limits import num_ranks
from hpctool.launch.submit import Request

#: the first that divides the global batch
_TRIED = (3, 4, 2, 1)


def choose_ranks(request: Request, wanted: int) -> int:
    """As many as `wanted`, else as the resources say; train gets what divides its batch. Raises InputError."""
    cfg = config.compose(request.job, request.overrides, request.config_dirs, request.primary).cfg
    asked = wanted or num_ranks(cfg)
    if asked > 1 or wanted or request.job != "train":
        return asked
    each = int(cfg.loop.accumulate)
    return next(number for number in _TRIED if int(cfg.loop.global_batch_size) % (number * each) == 0)
