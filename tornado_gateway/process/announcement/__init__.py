"""Announcements to operators, at every LOG_LEVEL: the banner of the start, problems, and the summary of the stop.

Only this package knows how they are worded. The parent and its workers use it.
"""
