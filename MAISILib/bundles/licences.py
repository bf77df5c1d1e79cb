"""Which licences the user has accepted, remembered in ``licences.json`` of the data folder."""

from __future__ import annotations

import json
from datetime import datetime, timezone

from MAISILib.bundles.catalogue import data_folder
from MAISILib.bundles.manifest import Licence
from MAISILib.errors import LicenceError
from MAISILib.files.atomic import write_text


def is_accepted(licence: Licence) -> bool:
    """Whether these terms need no acceptance, or have been accepted before."""
    return not licence.must_accept or _key(licence) in _accepted()


def accept(licence: Licence) -> None:
    """Remembers that the user has accepted these terms.

    Raises:
        BundleError: The data folder cannot be written to.
    """
    accepted = _accepted()
    if licence.must_accept and _key(licence) not in accepted:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        accepted[_key(licence)] = {"name": licence.name, "url": licence.url, "accepted": now}
        write_text(data_folder() / "licences.json", json.dumps(accepted, indent=2) + "\n")


def require(licence: Licence, bundle: str, accept_licence: bool, command: str) -> None:
    """Goes on if the licence is accepted, now or before.

    Args:
        licence: The terms.
        bundle: Name of the bundle, for the message.
        accept_licence: The user accepts now.
        command: What to type after reading the terms, for the message.

    Raises:
        LicenceError: Not accepted.
    """
    if accept_licence:
        accept(licence)
    if not is_accepted(licence):
        raise LicenceError(
            f"The weights of '{bundle}' come under the {licence.name} ({licence.url}). Read it; if you accept it, run "
            f"'{command} --accept-licence'."
        )


def _key(licence: Licence) -> str:
    return licence.url or licence.name


def _accepted() -> dict[str, dict[str, str]]:
    try:
        data = json.loads((data_folder() / "licences.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
