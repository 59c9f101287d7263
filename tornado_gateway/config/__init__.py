"""The configuration: one table of options, read once at start into a frozen `Config` that is passed around.

Only this room reads the environment. Used by `store`, `process` and `cli`.
"""

from tornado_gateway.config.options import (
    OPTIONS,
    Config,
    Option,
    Row,
    add_flags,
    described,
    given_flags,
    load,
    mask,
    render_env_file,
    render_markdown,
)

__all__ = [
    "OPTIONS",
    "Config",
    "Option",
    "Row",
    "add_flags",
    "described",
    "given_flags",
    "load",
    "mask",
    "render_env_file",
    "render_markdown",
]
