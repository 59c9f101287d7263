"""python -m tornado_gateway, and the command tornado-gateway."""

import signal
import sys


def main() -> int:
    """Run one command. Return the exit code."""
    if sys.argv[1:2] == ["serve"]:
        # Before the other modules are loaded, which takes a third of a second: for the PID 1 of a container the kernel
        # drops signals that are neither handled nor blocked. `supervisor` handles those that arrive in the meantime.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    from tornado_gateway.cli.main import main as run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
