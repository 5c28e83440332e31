"""One line per event on standard error, with the time in UTC."""

import logging
import sys
import time

__all__ = ["setup"]


def setup(level: str = "INFO", *, process: str = "") -> None:
    """Send the logs of this process to standard error.

    Args:
        level: DEBUG (steps), INFO (changes of state), WARNING (degraded) or ERROR (someone must act).
        process: a name put into every line, for consoles that show several processes.
    """
    name = f" {process}" if process else ""
    formatter = logging.Formatter(f"%(asctime)s.%(msecs)03dZ %(levelname)s{name} %(name)s: %(message)s")
    formatter.datefmt = "%Y-%m-%dT%H:%M:%S"
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
