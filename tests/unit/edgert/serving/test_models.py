import pytest

from edgert.errors import ServeError, UsageError
from edgert.serving.models import Served, Table


def table_with(version: int = 1) -> tuple[Table[str], Served[str]]:
    table: Table[str] = Table()
    served = Served("m", version, f"v{version}")
    assert table.answer(served) is None
    return table, served


def test_unknown_model_is_named_with_the_known_ones() -> None:
    table, _ = table_with()
    with pytest.raises(UsageError, match="no model 'x'") as refusal:
        table.find("x")
    assert "m" in refusal.value.hint


def test_wrong_version_is_named_with_the_one_that_answers() -> None:
    table, served = table_with(3)
    assert table.find("m", "3") is served
    with pytest.raises(UsageError, match="no version '2'") as refusal:
        table.find("m", "2")
    assert "3" in refusal.value.hint


def test_model_that_is_being_loaded_is_not_ready() -> None:
    table: Table[str] = Table()
    assert table.ready()
    table.begin("m")
    assert not table.ready()
    with pytest.raises(ServeError, match="being loaded"):
        table.find("m")


def test_model_that_failed_says_why_until_one_answers() -> None:
    table: Table[str] = Table()
    table.begin("m")
    table.fail("m", "out of luck")
    assert not table.ready()
    with pytest.raises(ServeError, match="out of luck"):
        table.find("m")
    table.answer(Served("m", 2, "v2"))
    assert table.ready()
    assert table.find("m").value == "v2"


def test_failed_load_leaves_the_old_version_answering() -> None:
    table, served = table_with()
    table.begin("m")
    assert table.ready()
    table.fail("m", "broken")
    assert table.ready()
    assert table.find("m") is served


def test_idle_old_version_is_released_at_the_flip() -> None:
    table, old = table_with()
    assert table.answer(Served("m", 2, "v2")) is old


def test_old_version_in_use_is_released_by_its_last_user() -> None:
    table, old = table_with()
    first, second = table.take("m"), table.take("m")
    assert table.answer(Served("m", 2, "v2")) is None
    assert table.take("m").value == "v2"
    assert not table.give(first)
    assert table.give(second)
    assert first is old


def test_removed_model_is_unknown_and_released_once() -> None:
    table, old = table_with()
    taken = table.take("m")
    assert table.remove("m") is None
    with pytest.raises(UsageError):
        table.find("m")
    assert table.give(taken)
    assert table.remove("m") is None
    assert old.draining
