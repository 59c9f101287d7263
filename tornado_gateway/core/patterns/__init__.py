"""Regular expressions of a settings document, matched against texts of visitors in bounded time.

The result is that of Python's `re`. Used by the conditions of the core (decision engine 4.2.4).
"""

from tornado_gateway.core.patterns.search import Search, compile_pattern
from tornado_gateway.core.patterns.time_limit import TIME_LIMIT

__all__ = ["TIME_LIMIT", "Search", "compile_pattern"]
