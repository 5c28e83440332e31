from pathlib import Path

import pytest

from edgert.errors import UsageError
from ota.config import held, is_held


def test_only_one_process_holds_the_place_of_the_server(tmp_path: Path) -> None:
    assert not is_held(tmp_path, "server")
    with held(tmp_path, "server"):
        assert is_held(tmp_path, "server")
        with pytest.raises(UsageError, match="running already"), held(tmp_path, "server"):
            pass
    assert not is_held(tmp_path, "server")
