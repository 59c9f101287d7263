"""Findings of the doctor, and the remedy for each code. docs/operating.md repeats the remedies."""

from typing import NamedTuple

from tornado_gateway.telemetry import problems

OK, WARN, FAIL = "ok", "warn", "fail"

REMEDIES = {
    **problems.REMEDIES,
    "configuration": "Correct the option named above. `tornado-gateway config` shows the source of each value.",
    "variable-misspelt": "Correct the name, or remove the variable: it has no effect.",
    "service-link": "Set `enableServiceLinks: false` in the pod specification, so that a service of the namespace"
    " cannot set options.",
    "key-previous": "Create the key in VWO, or correct sdk_key in ENVIRONMENTS_FILE. A running gateway uses the"
    " previous key meanwhile.",
    "collector-unreachable": "Check COLLECT_URL from this machine: name, firewall, route. A running gateway keeps"
    " events meanwhile.",
    "clock": "Set the clock with NTP (`timedatectl set-ntp true`): event times and TLS certificates depend on it.",
    "redis-loses": "Set `maxmemory-policy noeviction` and `appendonly yes` in redis.conf: Redis stores events that were"
    " acknowledged to clients and not delivered yet.",
    "redis-channels": "Allow the channel: `ACL SETUSER NAME '&{fme:*'`. Until then, other workers use changed settings"
    " some seconds later.",
    "geo-wanted": "Features ask for the location: set MAXMIND_DB_PATH, or MAXMIND_USER_ID and MAXMIND_LICENSE_KEY.",
    "data-dir": "Make DATA_DIR writable for the gateway's user: `chown tornado-gateway: DATA_DIR`. In a container,"
    " mount a volume there.",
    "data-temporary": "Mount a persistent volume with a name at DATA_DIR (/data in the image), which user 10001 can"
    " write. Otherwise undelivered events, the admin token and the location database are lost with the container.",
    "admin-token": "Fix the file as described, or set ADMIN_TOKEN. The gateway does not start without a token.",
    "admin-token-exposed": "Run `chmod 600 DATA_DIR/admin-token`; the next start does it as well. If other users have"
    " used the machine, delete the file and restart the gateway: it creates a new token.",
    "disk-full": "Free space on the disk of DATA_DIR now; without it events cannot be stored and are rejected with"
    " 503.",
    "disk-low": "Free space on the disk of DATA_DIR, or move it: while VWO is down, every event needs about 1 KB.",
    "open-files": "Raise the limit: LimitNOFILE in the service unit, `ulimits` of a container, `ulimit -n` in a shell."
    " Every connection needs one.",
    "port-taken": "Find the program that uses the port with `ss -ltnp`. Stop it, or choose another PORT.",
    "port-forbidden": "Ports below 1024 need CAP_NET_BIND_SERVICE; HOST must be an address of this machine.",
    "events-unreadable": "If a gateway runs, give this command its HOST, PORT and ADMIN_TOKEN; if none does, check"
    " the files in DATA_DIR.",
}


class Finding(NamedTuple):
    """One line of the report. `code` is "ok" or a key of REMEDIES; `own_remedy` replaces the one of the code."""

    check: str
    state: str
    code: str
    message: str
    own_remedy: str | None = None

    @property
    def remedy(self) -> str:
        return REMEDIES.get(self.code, "") if self.own_remedy is None else self.own_remedy

    def as_json(self) -> dict[str, str]:
        shown = {"check": self.check, "state": self.state, "code": self.code, "message": self.message}
        return {**shown, "remedy": self.remedy}
