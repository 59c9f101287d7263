"""The configuration: one table of options, read once at start into a frozen `Config` that is passed around.

Only this room reads the environment. Used by `process` and `cli`.
"""

from tornado_gateway.config.environments import EnvironmentConfig, environments_of
from tornado_gateway.config.kinds import Option, mask
from tornado_gateway.config.options import OPTIONS, Account, Config, secrets_of
from tornado_gateway.config.render import OptionRow, described, described_environments
from tornado_gateway.config.sources.env_file import fits_env_file
from tornado_gateway.config.sources.flags import add_flags, given_flags
from tornado_gateway.config.sources.load import Examined, examine, load
from tornado_gateway.config.tokens import read_tokens, unknown_environments
from tornado_gateway.errors import ConfigError, SettingsFileError

__all__ = [
    "OPTIONS",
    "Account",
    "Config",
    "ConfigError",
    "EnvironmentConfig",
    "Examined",
    "Option",
    "OptionRow",
    "SettingsFileError",
    "add_flags",
    "described",
    "described_environments",
    "environments_of",
    "examine",
    "fits_env_file",
    "given_flags",
    "load",
    "mask",
    "read_tokens",
    "secrets_of",
    "unknown_environments",
]
