"""The broker of the demo: Mosquitto with the configuration that `edgert ota init` wrote, or the embedded amqtt."""

import importlib.util
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edgert.errors import LinkError, UsageError
from edgert.values import canonical_json
from ota.demo.processes import Processes

__all__ = ["BrokerName", "free_port", "start"]

BrokerName = Literal["mosquitto", "amqtt"]
_READY_TIMEOUT_S = 15


def free_port() -> int:
    """A TCP port on the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    processes: Processes, home: Path, port: int, say: Callable[[str], None], *, embedded: bool = False
) -> BrokerName:
    """Start a TLS broker for the fleet in `home` and wait until it accepts connections.

    Args:
        say: is told when the broker checks no client certificates.
        embedded: use amqtt even where Mosquitto is installed. It checks no client certificates.

    Raises:
        UsageError: neither program is installed.
        LinkError: the broker did not come up.
    """
    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if mosquitto and not embedded:
        processes.daemon("broker", mosquitto, "-c", home / "broker" / "mosquitto.conf")
        name: BrokerName = "mosquitto"
    elif importlib.util.find_spec("amqtt"):
        processes.daemon("broker", Path(sys.executable).parent / "amqtt", "-c", _amqtt_config(home, port))
        say("Mosquitto is not used: the embedded broker amqtt does NOT check client certificates")
        name = "amqtt"
    else:
        raise UsageError("there is no MQTT broker here", hint="apt-get install mosquitto, or install the extra `demo`")
    _wait(processes, port)
    return name


def _amqtt_config(home: Path, port: int) -> Path:
    listener = {
        "type": "tcp",
        "bind": f"127.0.0.1:{port}",
        "max_connections": 50,
        "ssl": True,
        "cafile": str(home / "broker" / "ca.pem"),
        "certfile": str(home / "broker" / "server.pem"),
        "keyfile": str(home / "broker" / "server.key"),
    }
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    path = home / "broker" / "amqtt.yaml"  # JSON is YAML
    path.write_bytes(canonical_json({"listeners": {"default": listener}, "plugins": plugins}))
    return path


def _wait(processes: Processes, port: int) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline:
        processes.check()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise LinkError(f"the broker did not answer on port {port} within {_READY_TIMEOUT_S} s", hint="run the demo again")
