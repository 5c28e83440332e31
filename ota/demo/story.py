"""What the demo does, step by step: convert, enrol, ship, serve, quantize, ship, learn, ship again, measure."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgert import host, profiles
from edgert.accuracy import top1
from edgert.errors import CheckError, LinkError
from edgert.files import write_durable
from edgert.samples import Samples, load
from ota.demo import broker, data
from ota.demo.processes import Processes

__all__ = ["DEVICES", "MODEL", "Outcome", "Say", "tell"]

MODEL = "digits"
DEVICES = ("box1", "box2", "box3")
_FLOAT, _INT8, _FEDERATED = 1, 2, 3
_WAIT_S = 60

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo measured.

    Args:
        accuracy_float, accuracy_int8, accuracy_federated: fractions of the test digits that the models installed on
            the devices got right, asked over HTTP.
        size_float_bytes, size_int8_bytes: of the artifacts.
        latency_float_ms, latency_int8_ms: median of one inference, measured in a child process by the conversion.
        wire_bytes: MQTT payload bytes received and sent by all devices together.
        broker: ``mosquitto``, or ``amqtt`` which checks no client certificates.
        devices: id, version, phase and endpoint of each.
        seconds: how long everything took.
        curl: a command that asks the first device.
    """

    accuracy_float: float
    accuracy_int8: float
    accuracy_federated: float
    size_float_bytes: int
    size_int8_bytes: int
    latency_float_ms: float
    latency_int8_ms: float
    wire_bytes: int
    broker: str
    devices: tuple[dict[str, Any], ...]
    test_samples: int
    seconds: float
    curl: str

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def tell(folder: Path, say: Say, *, embedded: bool, stack: ExitStack) -> Outcome:
    """Run the whole loop in `folder`.

    Args:
        say: shows one line of progress.
        embedded: use the embedded broker even where Mosquitto is installed.
        stack: the daemons live until it is closed, so that the endpoints can be tried.

    Raises:
        EdgeRTError: any step failed.
    """
    return _Story(folder, say, stack.enter_context(Processes(folder / "logs"))).run(embedded)


class _Story:
    def __init__(self, folder: Path, say: Say, processes: Processes) -> None:
        self._folder = folder
        self._home = folder / "fleet"
        self._say = say
        self._processes = processes
        self._profile = next((match.name for match in profiles.match(host.detect()) if match.fits), "generic-cpu")
        self._started = time.monotonic()

    def run(self, embedded: bool) -> Outcome:
        split = data.split(self._folder / "data", len(DEVICES))
        test = load(split.test)
        self._train(split)
        quantized = self._convert(split, "float32", "float.edgert"), self._convert(split, "int8", "int8.edgert")
        used = self._bring_up(embedded, split)
        accuracy_float = self._ship(self._folder / "float.edgert", _FLOAT, "float32", test)
        accuracy_int8 = self._ship(self._folder / "int8.edgert", _INT8, "int8", test)
        accuracy_federated = self._learn(test)
        devices = self._devices()
        report = quantized[1]
        return Outcome(
            accuracy_float=accuracy_float,
            accuracy_int8=accuracy_int8,
            accuracy_federated=accuracy_federated,
            size_float_bytes=int(report["size_float_bytes"]),
            size_int8_bytes=int(report["size_bytes"]),
            latency_float_ms=float(report["latency_float_ms"]),
            latency_int8_ms=float(report["latency_ms"]),
            wire_bytes=sum(int(row["received_bytes"]) + int(row["sent_bytes"]) for row in devices),
            broker=used,
            devices=tuple(_summary(row) for row in devices),
            test_samples=len(test),
            seconds=round(time.monotonic() - self._started, 1),
            curl=self._curl(devices[0], test),
        )

    def _train(self, split: data.Split) -> None:
        self._say(f"make the network digits-cnn and train it on {len(load(split.start))} handwritten digits")
        self._processes.verb("models", "make", "digits-cnn", "-o", self._folder / "untrained.onnx")
        fit = ("--train", split.start, "--epochs", "10", "-o", self._folder / "digits.onnx")
        self._processes.verb("fit", self._folder / "untrained.onnx", *fit)

    def _convert(self, split: data.Split, precision: str, name: str) -> dict[str, Any]:
        self._say(f"convert it to {precision}, with a training graph: parity, accuracy and latency are measured")
        options = ("--calibrate", split.start, "--evaluate", split.evaluate, "--precision", precision, "--train")
        return self._processes.verb(
            "convert", self._folder / "digits.onnx", "--name", MODEL, "--profile", self._profile,
            *options, "--max-drop", "2", "-o", self._folder / name,
        )  # fmt: skip

    def _bring_up(self, embedded: bool, split: data.Split) -> str:
        self._say("make the fleet: TUF keys, certificate authority, broker configuration")
        port = broker.free_port()
        user = ("--broker-user", "root") if os.geteuid() == 0 else ()
        self._processes.verb("ota", "init", self._home, "--host", "127.0.0.1", "--port", str(port), *user)
        used = broker.start(self._processes, self._home, port, self._say, embedded=embedded)
        self._processes.edgert("server", "ota", "serve", self._home)
        self._say(f"enrol {len(DEVICES)} devices: each makes its own key and spends its own claim certificate")
        for device, examples in zip(DEVICES, split.examples, strict=True):
            kit = self._folder / "kits" / device
            self._processes.verb("ota", "claims", "new", self._home, "--device", device, "-o", kit)
            self._processes.edgert(
                device, "agent", "run", "--kit", kit, "--state", self._folder / "devices" / device,
                "--profile", self._profile, "--serve-port", "0", "--examples", f"{MODEL}={examples}",
            )  # fmt: skip
        self._until(lambda rows: len(rows) == len(DEVICES) and all(row["online"] for row in rows), "devices to enrol")
        return used

    def _ship(self, bundle: Path, version: int, precision: str, test: Samples) -> float:
        self._say(f"publish release {version} ({precision}), signed, and roll it out through MQTT")
        self._processes.verb("ota", "publish", self._home, bundle)
        self._processes.verb("ota", "rollout", self._home, "--model", MODEL, "--version", str(version), "--wait")
        return self._measure(version, test)

    def _learn(self, test: Samples) -> float:
        self._say("one federated round: train on the devices, average, convert with the same recipe, check, release 3")
        options = ("--participants", str(len(DEVICES)), "--rounds", "1", "--epochs", "5", "--learning-rate", "0.02")
        self._processes.verb("federate", "start", self._home, "--model", MODEL, *options, "--wait")
        return self._measure(_FEDERATED, test)

    def _measure(self, version: int, test: Samples) -> float:
        rows = self._until(
            lambda rows: all(row["version"] == version and row["phase"] == "IDLE" for row in rows),
            f"devices to serve release {version}",
        )
        answers = {str(row["device"]): _accuracy(str(row["endpoint"]), version, test) for row in rows}
        self._say(
            f"release {version} answers on every device: "
            + ", ".join(f"{device} {value:.1%}" for device, value in answers.items())
            + f" of {len(test)} unseen digits"
        )
        if len(set(answers.values())) != 1:
            raise CheckError(
                f"the devices disagree about release {version}: {answers}", hint=f"logs are in {self._folder / 'logs'}"
            )
        return next(iter(answers.values()))

    def _devices(self) -> list[dict[str, Any]]:
        rows = []
        for row in self._processes.verb("ota", "devices", self._home)["devices"]:
            model = row["models"].get(MODEL, {})
            rows.append(row | {"version": model.get("version", 0), "phase": model.get("phase", "IDLE")})
        return sorted(rows, key=lambda row: str(row["device"]))

    def _until(self, arrived: Callable[[list[dict[str, Any]]], bool], what: str) -> list[dict[str, Any]]:
        deadline = time.monotonic() + _WAIT_S
        while time.monotonic() < deadline:
            rows = self._devices()
            if arrived(rows):
                return rows
            time.sleep(0.5)
        raise LinkError(f"waited {_WAIT_S} s for the {what}", hint=f"logs are in {self._folder / 'logs'}")

    def _curl(self, device: dict[str, Any], test: Samples) -> str:
        sample = self._folder / "sample.json"
        write_durable(sample, _request(test.take(slice(0, 1))))
        return f"curl -s {device['endpoint']}/v2/models/{MODEL}/infer -d @{sample}"


def _summary(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["device"], "version": row["version"], "phase": row["phase"], "endpoint": row["endpoint"]}


def _request(samples: Samples) -> bytes:
    images = samples.inputs["image"]
    tensor = {"name": "image", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def _accuracy(endpoint: str, version: int, test: Samples) -> float:
    url = f"{endpoint}/v2/models/{MODEL}/versions/{version}/infer"
    try:
        with urllib.request.urlopen(url, data=_request(test), timeout=30) as answer:  # noqa: S310 - our own endpoint
            (scores,) = json.load(answer)["outputs"]
    except (urllib.error.URLError, ValueError, KeyError) as e:
        raise CheckError(f"{url} did not answer: {e}", hint="the log of the device says why") from e
    if test.labels is None:
        raise CheckError("the test digits have no labels")
    return top1(np.array(scores["data"], np.float32).reshape(scores["shape"]), test.labels)
