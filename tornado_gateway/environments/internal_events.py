"""Events of SDKs about themselves, which INTERNAL_EVENTS keeps from VWO.

The gateway itself makes one kind of them: the debug event of a decision about a feature with a debugger.
"""

import zlib
from typing import Final

DEBUG: Final = "vwo_sdkDebug"
NAMES: Final = frozenset({"vwo_sdkUsageStats", DEBUG, "vwo_fmeSdkInit"})
# The values of INTERNAL_EVENTS.
FORWARD: Final = "forward"
SAMPLE: Final = "sample"
DROP: Final = "drop"
SAMPLE_EVERY: Final = 10  # with SAMPLE, one of so many is forwarded


def is_discarded(policy: str, name: str, document: bytes) -> bool:
    """Return whether an event is not forwarded.

    The share depends on the document alone, so all workers decide the same, also when a client sends an event again.
    """
    if policy == FORWARD or name not in NAMES:
        return False
    return policy == DROP or zlib.crc32(document) % SAMPLE_EVERY != 0
