"""The files that `init` writes: the env file, secrets that it cannot hold, a systemd unit and a Compose file."""

import argparse
import getpass
import os
import shlex
import sys
import tempfile
from pathlib import Path

from tornado_gateway.config import OPTIONS, Config, ConfigError, Examined, fits_env_file

_SECRETS = {option.name: option for option in OPTIONS if option.secret}
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
_COMPOSE = """\
services:
  gateway:
    image: tornado-gateway
    restart: unless-stopped
    ports:
      - "{port}:{port}"
    volumes:
      - gateway-data:/data
{mounts}    env_file: {env_file}
    environment:
      DATA_DIR: /data
      HOST: "0.0.0.0"
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


def env_files(path: Path, examined: Examined) -> dict[Path, str]:
    """Return the env file with all options that were given, and a file for each secret that a line cannot hold."""
    texts: dict[Path, str] = {}
    lines = []
    for name, text in examined.given.items():
        value = text if name in _SECRETS else text.strip()
        if not fits_env_file(name, value):
            if name not in _SECRETS:
                raise ConfigError([f"{name}: expected a value without quotes, \\, $ and comments, for the env file"])
            secret = path.absolute().with_name(name.lower())
            texts[secret] = f"{value}\n"
            name, value = _SECRETS[name].file_name, str(secret)
        lines.append(f"{name}={value}\n")
    return {path: _HEAD + "".join(lines), **texts}


def unit(env_file: Path, config: Config) -> str:
    return _UNIT.format(
        program=_program(),
        env_file=env_file.absolute(),
        stop_seconds=_stop_seconds(config),
        user=getpass.getuser(),
        directory=Path.cwd(),
    )


def compose(env_file: Path, config: Config) -> str:
    """Return a Compose file that mounts the files which options name, under the same paths."""
    paths = {str(path.absolute()) for path in _named_files(config)}
    return _COMPOSE.format(
        port=config.port,
        mounts="".join(f"      - {path}:{path}:ro\n" for path in sorted(paths)),
        env_file=env_file.absolute(),
        stop_seconds=_stop_seconds(config),
    )


def _named_files(config: Config) -> list[Path]:
    values = [(option, getattr(config, option.attribute)) for option in OPTIONS if option.name != "DATA_DIR"]
    return [value for _, value in values if isinstance(value, Path)]


def _stop_seconds(config: Config) -> int:
    return int(config.drain_seconds + config.shutdown_seconds) + 15


def _program() -> str:
    """Return the command that runs this program, as absolute path."""
    script = Path(sys.executable).with_name("tornado-gateway")
    return str(script) if script.exists() else f"{sys.executable} -m tornado_gateway"


def start_command(arguments: argparse.Namespace) -> str:
    if arguments.compose is not None:
        return f"docker compose -f {shlex.quote(str(arguments.compose))} up -d"
    if arguments.unit is not None:
        return f"sudo systemctl enable --now {shlex.quote(str(arguments.unit.absolute()))}"
    return f"tornado-gateway serve --env-file {shlex.quote(str(arguments.output))}"


def write(path: Path, text: str, mode: int, *, replaces: bool) -> None:
    """Write a file as a whole. Without `replaces`, raise FileExistsError if it exists."""
    descriptor, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}-")
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
