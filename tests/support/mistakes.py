"""Typical mistakes of a first installation: how each is made, and the messages that an operator gets.

`tests/cli/test_mistakes.py` makes each of them and runs the real commands. {dir} is the directory of the test; {port}
the port of a server that is no gateway; {free} a port without a server; {vendor} a stand-in for VWO that rejects every
key; {redis} a Redis without persistence whose password is right-password; {node} a node of a Redis Cluster; {sample}
the settings of the sample account.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ACCOUNT = {"ACCOUNT_ID": "123456", "SDK_KEY": "0123456789abcdef0123456789abcdef"}
OFFLINE = {"SETTINGS_FILE": "{sample}"}
REDIS = OFFLINE | {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": "{redis}"}
RUNS = None  # instead of an exit code: the gateway serves on, with the message in its log


class Mistake(NamedTuple):
    """`message` is a line of the command, without the bullet in front of it. `doctor` is a line of the doctor."""

    id: str
    message: str
    doctor: str
    options: Mapping[str, str]
    code: int | None = 2
    command: str = "serve"
    env_file: Sequence[str] = ()
    flags: Sequence[str] = ()
    files: Mapping[str, str] = {}
    doctor_code: int = 1


def invalid(name: str, message: str, options: Mapping[str, str], command: str = "serve", **made: Any) -> Mistake:
    """A mistake in the configuration: the doctor has the same message as the start."""
    return Mistake(name, message, f"fail  configuration   {message}", options, command=command, **made)


KEEPS_QUOTES = "docker keeps the quotes, systemd and Compose remove them"
MISTAKES = (
    # --- The account ---
    invalid(
        "nothing is configured",
        "No account configured. Set ACCOUNT_ID and SDK_KEY, or SETTINGS_FILE to run offline.",
        {},
    ),
    invalid(
        "account without key",
        "SDK_KEY (not set): expected a value, because ACCOUNT_ID is set, got nothing",
        {"ACCOUNT_ID": "123456"},
    ),
    invalid(
        "account and key mixed up",
        'ACCOUNT_ID (environment): expected a whole number, at least 1, got "0123456789abcdef"',
        {"ACCOUNT_ID": "0123456789abcdef", "SDK_KEY": "123456"},
    ),
    Mistake(
        "rejected key",
        "No settings loaded yet: VWO rejected the SDK key (401). Check ACCOUNT_ID and SDK_KEY. Retrying in 1 s.",
        "fail  upstream        VWO rejected the SDK key (401)",
        ACCOUNT | {"UPSTREAM_URL": "{vendor}"},
        RUNS,
    ),
    Mistake(
        "VWO that cannot be reached",
        "No settings loaded yet: VWO could not be reached (Failed to connect to 127.0.0.1:{free}: Connection refused).",
        "fail  upstream        VWO could not be reached (Failed to connect to 127.0.0.1:{free}: Connection refused)",
        ACCOUNT | {"UPSTREAM_URL": "http://127.0.0.1:{free}"},
        RUNS,
    ),
    # --- Placeholders ---
    invalid(
        "placeholder of the documentation",
        'SDK_KEY (environment): expected your own value, got the placeholder "your_sdk_key"',
        {"ACCOUNT_ID": "123456", "SDK_KEY": "your_sdk_key"},
    ),
    invalid(
        "placeholder of conf/kubernetes",
        'ADMIN_TOKEN (environment): expected your own value, got the placeholder "put-a-long-random-token-here"',
        ACCOUNT | {"ADMIN_TOKEN": "put-a-long-random-token-here"},
        "check",
    ),
    invalid(
        "reference that docker did not replace",
        'SDK_KEY (file {dir}/gateway.env:1): expected your own value, got the placeholder "<sdk key>"',
        {"ACCOUNT_ID": "123456"},
        env_file=["SDK_KEY=<sdk key>"],
    ),
    invalid(
        "short token",
        'ADMIN_TOKEN (environment): expected at least 16 characters without blanks, and no placeholder, got "****"',
        ACCOUNT | {"ADMIN_TOKEN": "secret"},
    ),
    # --- The env file ---
    invalid(
        "env file that does not exist",
        '--env-file (flag): expected a text file that can be read, got "{dir}/none.env" (No such file or directory)',
        {},
        flags=["--env-file", "{dir}/none.env"],
    ),
    invalid(
        "quotes in the env file",
        f"{{dir}}/gateway.env line 2: expected LOG_LEVEL=VALUE without quotes: {KEEPS_QUOTES}",
        ACCOUNT,
        env_file=["# log", 'LOG_LEVEL="INFO"'],
    ),
    invalid(
        "comment behind a value",
        "{dir}/gateway.env line 1: expected PORT=VALUE, and the comment on a line of its own: systemd and docker make"
        " it a part of the value",
        ACCOUNT,
        "check",
        env_file=["PORT=8000 # the default"],
    ),
    invalid(
        "export in the env file",
        "{dir}/gateway.env line 1: expected PORT=VALUE without export: systemd ignores such a line, and docker rejects"
        " the file",
        ACCOUNT,
        env_file=["export PORT=8000"],
    ),
    invalid(
        "YAML instead of an env file",
        "{dir}/gateway.env line 1: expected SDK_KEY=VALUE: the line has a colon instead of =",
        {"ACCOUNT_ID": "123456"},
        env_file=["SDK_KEY: 0123456789abcdef"],
    ),
    invalid(
        "misspelt option in the env file",
        "{dir}/gateway.env line 1: unknown option POLLING_TIM. Did you mean POLLING_TIME?",
        ACCOUNT,
        env_file=["POLLING_TIM=5000"],
    ),
    # --- The environment ---
    invalid(
        "quotes that docker keeps",
        "SDK_KEY (environment): expected a value without quotes (docker --env-file and Kubernetes keep them), got a"
        " value in quotes",
        {"ACCOUNT_ID": "123456", "SDK_KEY": '"0123456789abcdef"'},
    ),
    invalid(
        "misspelt variable that is needed",
        "SDKKEY (environment): unknown option. Did you mean SDK_KEY?",
        {"ACCOUNT_ID": "123456", "SDKKEY": "0123456789abcdef"},
    ),
    Mistake(
        "misspelt variable that has a default",
        "POLL_TIME (environment): unknown option. Did you mean POLLING_TIME?",
        "warn  variables       POLL_TIME (environment): unknown option. Did you mean POLLING_TIME?",
        OFFLINE | {"POLL_TIME": "5000"},
        command="check",
        doctor_code=0,
    ),
    Mistake(
        "misspelt password",
        "environment variable ignored: REDIS_PASS (environment): unknown option. Did you mean REDIS_PASSWORD?",
        "warn  variables       REDIS_PASS (environment): unknown option. Did you mean REDIS_PASSWORD?",
        REDIS | {"REDIS_PASS": "right-password"},
        RUNS,
    ),
    Mistake(
        "service link of Kubernetes",
        "REDIS_PORT is a service link of Kubernetes; its port is used. Set `enableServiceLinks: false` in the"
        " pod specification, so that a service of the namespace cannot set options.",
        "warn  variables       REDIS_PORT is a service link of Kubernetes; its port is used.",
        OFFLINE | {"REDIS_PORT": "tcp://10.0.0.1:6379"},
        0,
        "check",
        doctor_code=0,
    ),
    invalid(
        "unit behind a number",
        'POLLING_TIME (environment): expected a number from 100 to 86400000 (ms), got "60s"',
        ACCOUNT | {"POLLING_TIME": "60s"},
        "check",
    ),
    invalid(
        "misspelt flag",
        "unknown flag --prot. Did you mean --port?",
        ACCOUNT,
        flags=["--prot", "8000"],
    ),
    invalid(
        "invalid origin",
        "CORS_ALLOWED_ORIGINS (environment): expected * or origins such as"
        ' https://shop.example,https://*.shop.example,https://admin.example:8443, got "shop.example/"',
        ACCOUNT | {"CORS_ALLOWED_ORIGINS": "shop.example/"},
    ),
    # --- Files ---
    invalid(
        "wrong path",
        'SETTINGS_FILE (environment): expected a file that can be read, got "{dir}/none.json"',
        {"SETTINGS_FILE": "{dir}/none.json"},
        "check",
    )._replace(code=1),
    Mistake(
        "invalid JSON",
        "{dir}/bad.json: the settings document is not JSON: unexpected character, expected a string key: line 1 column"
        " 2 (char 1)",
        "fail  upstream        The settings cannot be used: the settings document is not JSON: unexpected character,"
        " expected a string key: line 1 column 2 (char 1)",
        {"SETTINGS_FILE": "{dir}/bad.json"},
        1,
        "check",
        files={"bad.json": "{not json"},
    ),
    Mistake(
        "data directory in the way of a file",
        "the gateway cannot start: {dir}/file/data cannot be used: Not a directory. Make DATA_DIR a directory that the"
        " gateway's user may write to.",
        "fail  data directory  {dir}/file/data cannot be written to: Not a directory",
        OFFLINE | {"DATA_DIR": "{dir}/file/data"},
        1,
        files={"file": ""},
    ),
    Mistake(
        "invalid location database",
        "{dir}/bad.mmdb: not a MaxMind database, or cut off (Error opening database file. Is this a valid MaxMind DB"
        " file?)",
        "fail  geoip           {dir}/bad.mmdb: not a MaxMind database, or cut off (Error opening database file. Is this"
        " a valid MaxMind DB file?)",
        OFFLINE | {"MAXMIND_DB_PATH": "{dir}/bad.mmdb"},
        RUNS,
        files={"bad.mmdb": "no database"},
    ),
    invalid(
        "certificate without its key",
        "TLS_KEY_PATH (not set): expected a value, because TLS_CERT_PATH is set, got nothing",
        ACCOUNT | {"TLS_CERT_PATH": "{dir}/expired.pem"},
        "check",
    ),
    Mistake(
        "expired certificate",
        "{dir}/expired.pem (TLS_CERT_PATH): certificate has expired",
        "fail  certificate     {dir}/expired.pem (TLS_CERT_PATH): certificate has expired",
        OFFLINE | {"TLS_CERT_PATH": "{dir}/expired.pem", "TLS_KEY_PATH": "{dir}/expired.key"},
        RUNS,
    ),
    # --- Ports and Redis ---
    Mistake(
        "port in use",
        "cannot listen on 127.0.0.1:{port}: Address already in use. Use another HOST or PORT, or end the"
        " process that listens there.",
        "fail  port            http://127.0.0.1:{port} responds, but is not a gateway",
        OFFLINE | {"PORT": "{port}"},
        1,
    ),
    Mistake(
        "Redis that is down",
        "Redis at 127.0.0.1:{free}: Error 111 connecting to 127.0.0.1:{free}. Connection refused.",
        "fail  redis           Redis at 127.0.0.1:{free}: Error 111 connecting to 127.0.0.1:{free}. Connect call failed"
        " ('127.0.0.1', {free}).",
        OFFLINE | {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": "{free}"},
        RUNS,
    ),
    Mistake(
        "Redis with another password",
        "Redis at 127.0.0.1:{redis}: the user name or password was rejected (REDIS_USERNAME, REDIS_PASSWORD)",
        "fail  redis           Redis at 127.0.0.1:{redis}: the user name or password was rejected (REDIS_USERNAME,"
        " REDIS_PASSWORD)",
        REDIS | {"REDIS_PASSWORD": "wrong-password"},
        RUNS,
    ),
    Mistake(
        "Redis without persistence",
        "Redis has no persistence (appendonly no, no save points): a restart loses all events",
        "warn  redis           Redis has no persistence (appendonly no, no save points): a restart loses all events",
        REDIS | {"REDIS_PASSWORD": "right-password"},
        RUNS,
        doctor_code=0,
    ),
    Mistake(
        "Redis that is no cluster",
        "Redis Cluster at 127.0.0.1:{redis}: it is not a node of a cluster (REDIS_CLUSTER)",
        "fail  redis           Redis Cluster at 127.0.0.1:{redis}: it is not a node of a cluster (REDIS_CLUSTER)",
        REDIS | {"REDIS_PASSWORD": "right-password", "REDIS_CLUSTER": "true"},
        RUNS,
    ),
    Mistake(
        "Redis Cluster that is not configured as one",
        "Redis at 127.0.0.1:{node}: the account's slot is on another node: it is a cluster (REDIS_CLUSTER)",
        "fail  redis           Redis at 127.0.0.1:{node}: the account's slot is on another node: it is a cluster"
        " (REDIS_CLUSTER)",
        OFFLINE | {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": "{node}"},
        RUNS,
    ),
    invalid(
        "URL instead of the host of Redis",
        'REDIS_HOST (environment): expected a host name or an IP address, got "redis://****@redis:6379"',
        OFFLINE | {"REDIS_HOST": "redis://:hush@redis:6379"},
    ),
    invalid(
        "REDIS_URL of other programs",
        "REDIS_URL (environment): not an option. Set REDIS_HOST, REDIS_PORT, REDIS_USERNAME, REDIS_PASSWORD and"
        " REDIS_ENABLE_TLS instead.",
        OFFLINE | {"REDIS_URL": "redis://redis:6379/0"},
    ),
)
