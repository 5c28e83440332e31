"""Profiles: EdgeRT's own, and those people write."""

from pathlib import Path

import pytest

from edgert import plugins, profiles
from edgert.errors import ConfigError, UsageError
from edgert.host import Host
from edgert.values import is_name

PI4 = Host("aarch64", frozenset({"fp", "asimd"}), 4, 4 << 30, ("raspberrypi,4-model-b", "brcm,bcm2711"))
PC = Host("x86_64", frozenset({"avx2", "sse2"}), 8, 16 << 30)
GATEWAY = Host("armv7l", frozenset({"neon"}), 1, 250 << 20)


def written(folder: Path, name: str, text: str) -> str:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return str(path)


def fitting(host: Host) -> list[str]:
    return [row.name for row in profiles.match(host) if row.fits]


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_loads_and_names_only_what_exists(name: str) -> None:
    profile = profiles.load(name)
    assert profile.name == name
    assert is_name(name)
    assert set(profile.backends) <= set(plugins.names("edgert.backends"))
    assert len(profile.description) > 10
    folder = Path(profiles.__file__).parent.parent / "firmware_profiles"
    assert len((folder / f"{name}.toml").read_text().splitlines()) <= 45


def test_extending_replaces_keys_and_merges_tables(tmp_path: Path) -> None:
    written(tmp_path, "base", 'description = "base"\ncores = 4\nisa = ["a", "b"]\n[limits]\nmodel_bytes = 5\n')
    child = 'extends = "base.toml"\ndescription = "child"\nisa = ["c"]\n[limits]\ntrial_memory_bytes = 7\n'
    profile = profiles.load(written(tmp_path, "child", child))
    assert (profile.name, profile.description, profile.cores, profile.isa) == ("child", "child", 4, ("c",))
    assert (profile.limits.model_bytes, profile.limits.trial_memory_bytes) == (5, 7)


def test_a_file_may_extend_a_profile_that_edgert_brings(tmp_path: Path) -> None:
    profile = profiles.load(written(tmp_path, "mine", 'extends = "raspberry-pi-5"\ncores = 2\n'))
    assert (profile.arch, profile.cores) == ("aarch64", 2)
    assert "asimddp" in profile.isa


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "a", 'extends = "b.toml"\n')
    written(tmp_path, "b", 'extends = "a.toml"\n')
    with pytest.raises(ConfigError, match="extends itself"):
        profiles.load(str(tmp_path / "a.toml"))


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ('description = "x"\nmemory = 5\n', "memory", "memory_bytes"),
        ('description = "x"\n[limits]\nram = 5\n', "ram", "trial_memory_bytes"),
        ('description = "x"\n[[speed]]\nclaim = "fast"\n', "measured", "measured"),
        ('description = "x"\narch = "mips"\n', "arch", "arch"),
        ('description = "x"\nprecisions = ["int4"]\n', "precisions", "precisions"),
        ('description = "x"\ncores = 0\n', "cores", "cores"),
        ("cores = 1\n", "description", "description"),
    ],
)
def test_a_wrong_key_is_named_and_the_known_ones_are_told(tmp_path: Path, text: str, words: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        profiles.load(written(tmp_path, "mine", text))
    assert hint in caught.value.hint


@pytest.mark.parametrize("text", ["= =", 'description = "x\n', "\x00", 'extends = ["a", "b"]\n', 'name = "other"\n'])
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        profiles.load(written(tmp_path, "mine", text))


def test_a_file_whose_name_is_no_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="file's name"):
        profiles.load(written(tmp_path, "My Box", 'description = "x"\n'))


def test_an_unknown_profile_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no profile 'raspberry-pi4'") as caught:
        profiles.load("raspberry-pi4")
    assert "did you mean raspberry-pi-4?" in caught.value.hint
    with pytest.raises(ConfigError, match="there is no file"):
        profiles.load(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("text", "reduced"),
    [
        ('arch = "x86_64"', True),
        ('arch = "x86_64"\nisa = ["avx2", "avx_vnni"]', False),
        ('arch = "x86_64"\nisa = ["avx512_vnni"]', False),
        ('arch = "aarch64"', False),
        ('arch = "armv7l"', False),
        ('arch = "any"', True),
    ],
)
def test_weights_keep_to_seven_bits_unless_the_profile_promises_better(
    tmp_path: Path, text: str, reduced: bool
) -> None:
    assert profiles.load(written(tmp_path, "mine", f'description = "x"\n{text}\n')).reduce_range is reduced


def test_the_most_specific_profile_comes_first() -> None:
    assert fitting(PI4) == ["raspberry-pi-4", "generic-cpu"]
    assert fitting(PC) == ["x86-64", "generic-cpu"]
    assert fitting(GATEWAY) == ["gateway-256mb", "generic-cpu"]


def test_what_does_not_fit_says_why() -> None:
    reasons = {row.name: "; ".join(row.reasons) for row in profiles.match(PI4)}
    assert "asimddp" in reasons["raspberry-pi-5"]
    assert "x86_64" in reasons["x86-64"]
    assert "256 MiB" in reasons["gateway-256mb"]
    assert not reasons["generic-cpu"]
