"""Judging the instance: which conditions are problems now, and since when. `telemetry/problems.py` has the table.

Used by `process` for /status, and by the metrics.
"""
