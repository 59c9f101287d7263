"""The files that `init` writes: the env file, secrets that it cannot hold, a systemd unit and a Compose file."""

import argparse
import getpass
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tornado_gateway import __version__
from tornado_gateway.config import OPTIONS, Config, ConfigError, Examined, fits_env_file, kinds

_SECRETS = {option.name: option for option in OPTIONS if option.secret}
_FILES = frozenset(
    [option.file_name for option in _SECRETS.values()]
    + [option.name for option in OPTIONS if option.kind in (kinds.file, kinds.path) and option.name != "DATA_DIR"]
)
IMAGE = f"tornado-gateway:{__version__}"  # in no registry: the Dockerfile of the repository makes it
WORKERS = 2  # of a container if the option is not set, because its memory limit depends on their number
_HEAD = """\
# Written by tornado-gateway init. `tornado-gateway serve --help-all` lists all options, docs/configuration.md the
# grammar: a line is NAME=VALUE without quotes, or a comment that begins with #.
"""
_UNIT = """\
[Unit]
Description=Gateway for VWO/Wingify Feature Management & Experimentation
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} serve --env-file {env_file}
# A rolling restart, without a rejected connection.
ExecReload=kill -HUP $MAINPID
Restart=always
RestartSec=1s
WatchdogSec=30s
TimeoutStartSec=90s
# More than DRAIN_SECONDS and SHUTDOWN_SECONDS, in which requests are finished and events are delivered.
TimeoutStopSec={stop_seconds}s
KillMode=mixed
User={user}
# DATA_DIR and other relative paths start here.
WorkingDirectory={directory}
UMask=0077
LimitNOFILE=65536
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=full

[Install]
WantedBy=multi-user.target
"""
# Like docker-compose.yaml and conf/tornado-gateway.service, which are not installed. A test compares them.
_COMPOSE = """\
services:
  gateway:
    image: {image}
    restart: unless-stopped
    ports:
      - "{port}:{port}"
    volumes:
      - gateway-data:/data
{mounts}    env_file: {env_file}
    environment:
      DATA_DIR: /data
      # All addresses of the container, so that its published port can be reached.
      HOST: "0.0.0.0"
      PORT: "{port}"
      WORKERS: "${{WORKERS:-{workers}}}"
    # 64 MB + 256 MB for each worker and one more, because a reload starts the next worker before it stops one.
    mem_limit: "${{MEMORY_LIMIT:-{megabytes}m}}"
    healthcheck:
      test: ["CMD", "tornado-gateway", "health"]
      interval: 10s
      timeout: 5s
      start_period: 30s
      retries: 3
    # More than DRAIN_SECONDS and SHUTDOWN_SECONDS, in which requests are finished and events are delivered.
    stop_grace_period: {stop_seconds}s
    read_only: true
    tmpfs:
      - /tmp
    cap_drop: [ALL]
    security_opt:
      - no-new-privileges:true
    ulimits:
      nofile: 65536

volumes:
  gateway-data:
"""


class Written(NamedTuple):
    """The values of an env file, and the texts of files for secrets that a line cannot hold."""

    values: dict[str, str]
    secrets: dict[Path, str]

    def files(self) -> list[str]:
        """Return the paths of all files that options name."""
        return sorted({value for name, value in self.values.items() if name in _FILES})


def written(path: Path, examined: Examined) -> Written:
    """Return all options that were given. Paths of files are absolute, for a service with another directory."""
    values: dict[str, str] = {}
    secrets: dict[Path, str] = {}
    for name, text in examined.given.items():
        value = text if name in _SECRETS else text.strip()
        value = str(Path(value).absolute()) if name in _FILES else value
        if fits_env_file(name, value):
            values[name] = value
        elif name in _SECRETS:
            file = path.absolute().with_name(name.lower())
            secrets[file] = f"{value}\n"
            values[_SECRETS[name].file_name] = str(file)
        else:
            raise ConfigError([f"{name}: expected a value without quotes, \\, $ and comments, for the env file"])
    return Written(values, secrets)


def env_file(values: Mapping[str, str]) -> str:
    return _HEAD + "".join(f"{name}={value}\n" for name, value in values.items())


def unit(path: Path, config: Config) -> str:
    return _UNIT.format(
        program=" ".join(map(_unit_word, _program())),
        env_file=_unit_word(str(path.absolute())),
        stop_seconds=_stop_seconds(config),
        user=getpass.getuser(),
        directory=str(Path.cwd()).replace("%", "%%"),
    )


def _unit_word(text: str) -> str:
    """Return a word of a command in a unit, where % and $ have a meaning."""
    text = text.replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if " " in text else text


def compose(path: Path, config: Config, mounted: Iterable[str]) -> str:
    """Return a Compose file that mounts these files under the same paths."""
    workers = config.workers or WORKERS
    return _COMPOSE.format(
        image=IMAGE,
        port=config.port,
        workers=workers,
        megabytes=64 + 256 * (workers + 1),
        mounts="".join(f"      - {_yaml_text(f'{file}:{file}:ro')}\n" for file in mounted),
        env_file=_yaml_text(str(path.absolute())),
        stop_seconds=_stop_seconds(config),
    )


def _yaml_text(text: str) -> str:
    """Return a text in quotes, in which Compose replaces nothing."""
    return json.dumps(text.replace("$", "$$"))


def _stop_seconds(config: Config) -> int:
    return int(config.drain_seconds + config.shutdown_seconds) + 15


def _program() -> list[str]:
    """Return the command that runs this program, with absolute paths."""
    script = Path(sys.executable).with_name("tornado-gateway")
    return [str(script)] if script.exists() else [sys.executable, "-m", "tornado_gateway"]


def start_commands(arguments: argparse.Namespace) -> list[str]:
    if arguments.compose is not None:
        return [
            f"docker build -t {IMAGE} .   # in a clone of the repository; or name the image of your registry",
            f"docker compose -f {shlex.quote(str(arguments.compose.absolute()))} up -d",
        ]
    if arguments.unit is not None:
        return [f"sudo systemctl enable --now {shlex.quote(str(arguments.unit.absolute()))}"]
    return [f"tornado-gateway serve --env-file {shlex.quote(str(arguments.output))}"]


def write(path: Path, text: str, mode: int, *, replaces: bool) -> None:
    """Write a file as a whole. Without `replaces`, raise FileExistsError if it exists."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}-")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
        if replaces:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
