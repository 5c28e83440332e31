"""What a device may say reaches the database, logs and terminals of others: numbers and words are bounded."""

import base64

import pytest

from edgert.errors import MessageError, RefusedError
from edgert.identity import make_key, make_request, request_key_digest
from edgert.wire.messages.device import Event
from edgert.wire.messages.federated import decode_up
from edgert.wire.twin import Reported

_HUGE = 1 << 70


def test_a_number_that_fits_no_database_column_is_no_event() -> None:
    payload = b'{"model":"digits","version":1,"revision":99,"phase":"DOWNLOAD","done_bytes":%d}' % _HUGE
    with pytest.raises(MessageError, match="done_bytes"):
        Event.decode(payload)


@pytest.mark.parametrize("field", ["examples", "update_bytes", "round"])
def test_a_number_that_fits_no_database_column_is_no_offer(field: str) -> None:
    values = {"examples": 1, "update_bytes": 1, "round": 1} | {field: _HUGE}
    rest = ",".join(f'"{name}":{value}' for name, value in values.items())
    digest = "sha256:" + "0" * 64
    with pytest.raises(MessageError):
        decode_up(f'{{"kind":"offer","job":"j","update":"{digest}","loss":0.5,{rest}}}'.encode())


def test_words_cannot_steer_a_terminal() -> None:
    reported = Reported(device="box1", agent="\x1b[31m" + "x" * 5000, profile="x86-64", endpoint="a\nb")
    assert "\x1b" not in reported.agent
    assert len(reported.agent) == 2000
    assert reported.endpoint == "a b"


def test_a_request_for_a_key_nobody_knows_is_refused() -> None:
    pem = make_request(make_key(), "box1")
    der = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
    strange = der.replace(bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030106"))
    assert strange != der
    hostile = (
        b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(strange) + b"-----END CERTIFICATE REQUEST-----\n"
    )
    with pytest.raises(RefusedError):
        request_key_digest(hostile)
