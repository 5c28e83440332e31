"""Claims and devices."""

from pathlib import Path
from typing import Any

from edgert.errors import UsageError
from ota import audit, claims
from ota.devices import describe
from ota.fleet import Fleet
from ota.operations.actor import Actor, Right
from ota.store import claims as claim_rows
from ota.store import devices as device_rows

__all__ = ["claims_list", "claims_new", "devices_list"]


def claims_new(fleet: Fleet, actor: Actor, device: str, kit: Path, *, days: int | None = None) -> dict[str, Any]:
    """Make a claim for one box and the kit it enrols with.

    Args:
        days: until the claim ends; None = as the settings say.

    Raises:
        UsageError: the name is taken or reserved, or the kit folder exists.
    """
    actor.require(Right.ENROL)
    lifetime = fleet.home.settings.claim_days if days is None else days
    if kit.exists():
        raise UsageError(f"{kit} exists", hint="give a new folder")
    with fleet.database.write() as session:
        claim = claims.open_claim(session, device, fleet.clock.now(), lifetime)
        claims.write_kit(fleet, claim, lifetime, kit)
        audit.write(session, fleet.clock, actor.name, "claims new", device, claim=claim.name)
    claims.update_broker(fleet)
    return {"claim": claim.name, "device": device, "kit": str(kit), "expires": claim.expires.isoformat()}


def claims_list(fleet: Fleet, actor: Actor) -> list[dict[str, Any]]:
    """Every claim: ``open``, ``bound`` to a key, ``spent`` or ``expired``."""
    actor.require(Right.READ)
    now = fleet.clock.now()
    with fleet.database.read() as session:
        return [
            {
                "claim": row.name,
                "device": row.device,
                "state": "spent"
                if row.spent
                else "expired"
                if row.expires <= now
                else "open"
                if row.key_digest is None
                else "bound",
                "expires": row.expires.isoformat(),
            }
            for row in claim_rows.every(session)
        ]


def devices_list(fleet: Fleet, actor: Actor) -> list[dict[str, Any]]:
    """Every device: what it should be, and what it said it is."""
    actor.require(Right.READ)
    with fleet.database.read() as session:
        return [describe(row) for row in device_rows.every(session)]
