"""The head profile that a command's policies need: measured once, before the model's first use."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from lacache.errors import (
    HeadProfileWarning,
    InputError,
    NoDistantTokensError,
    UnsupportedModelError,
)
from lacache.policies import Policy

if TYPE_CHECKING:
    from lacache.models import LoadedModel
    from lacache.policies import HeadProfile


def ensure_profile(loaded: LoadedModel, policies: Iterable[Policy], *, calibrate: bool) -> None:
    """Calibrate a model if a policy needs a head profile, and these weights have none.

    A model that cannot be calibrated is used without a profile. The reason is printed. It is
    remembered if it lies in the weights or the architecture.

    Args:
        loaded: the model, before anything is made from it.
        policies: what will run.
        calibrate: whether to do it; else the policies work without, and one line is printed
            unless LACACHE_CALIBRATE is set.

    Raises:
        InputError: the model's profile cannot be read.
    """
    needing = next((str(policy) for policy in policies if policy.needs_profile), None)
    if needing is None:
        return

    from rich.console import Console

    from lacache.models.fingerprint import fingerprint, model_profile

    model_fingerprint = fingerprint(loaded.model)
    profile = model_profile(loaded.model, model_fingerprint)
    if profile is not None and profile.matches(model_fingerprint):
        return
    # The line below replaces the library's warning. A command is the whole process, and no other
    # warning has this category, so the filter may stay.
    warnings.filterwarnings("ignore", category=HeadProfileWarning)
    if calibrate:
        reason = _calibrate(loaded, model_fingerprint, needing)
    else:
        # A variable is set once, and the line would come at every start.
        reason = None if "LACACHE_CALIBRATE" in os.environ else "--no-calibrate"
    if reason is not None:
        console = Console(stderr=True, markup=False, highlight=False)
        console.print(
            f"{loaded.name} has no head profile ({reason}): {_without(needing, profile)}",
            soft_wrap=True,
        )


def _calibrate(loaded: LoadedModel, model_fingerprint: str, policy: str) -> str | None:
    """Return why the model could not be calibrated, or None if it was."""
    from lacache.calibration.calibrate import calibrate
    from lacache.calibration.store import read_refusal, write_refusal
    from lacache.models.third_party import first_line

    reason = read_refusal(model_fingerprint)
    if reason is not None:
        return reason
    note = f" once, since policy {policy} needs its retrieval heads; --no-calibrate skips it"
    try:
        calibrate(loaded.model, loaded.tokenizer, name=loaded.name, note=note)
    except (NoDistantTokensError, UnsupportedModelError) as error:
        with suppress(InputError):
            write_refusal(model_fingerprint, str(error))
        return str(error)
    except Exception as error:  # a command must not end for what it can do without
        return first_line(error)
    return None


def _without(policy: str, profile: HeadProfile | None) -> str:
    if profile is None:
        return f"policy {policy} works without knowing its retrieval heads"
    return f"policy {policy} uses that of {profile.model}, of equal shape"
