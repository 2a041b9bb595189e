"""Calibrate a model once: measure its head profile, with progress, and keep it in a file."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import PreTrainedTokenizerBase

from lacache.calibration.measure import Settings, measure_profile
from lacache.calibration.store import (
    delete_journals,
    delete_refusal,
    journal_path,
    lock_path,
    profile_path,
    save_profile,
)
from lacache.common.lock import waiting_lock
from lacache.common.records import validate_replaceable
from lacache.errors import ConfigError, InputError, ModelError, UnsupportedOperationError
from lacache.models.arithmetic import fast_arithmetic
from lacache.models.fingerprint import fingerprint, model_profile
from lacache.models.model_info import model_info
from lacache.policies.head_profile import HeadProfile, read_profile


def calibrate(
    model: Any,
    tokenizer: Any,
    *,
    haystack: str | None = None,
    settings: Settings | None = None,
    name: str | None = None,
    path: str | Path | None = None,
    again: bool = False,
    progress: bool = True,
    note: str = "",
) -> HeadProfile:
    """Find the retrieval heads of a model, once, and store them as its head profile.

    Caches and engines that are made from then on for a model with the same weights use the
    profile, in this process and in others. It takes about a minute for 135 million weights on one
    core, and resumes after an interruption. Of two processes that calibrate the same model, one
    measures while the other waits, and then uses that profile. The model is left as it was.

        lacache.calibrate(model, tokenizer)
        cache = LaCache(model, budget=512)

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        haystack: running text to hide probes in; None samples it from the model.
        settings: of the probes; None for the defaults.
        name: display name of the model; None takes it from its configuration.
        path: file of the profile; None is the user's folder, where profiles are looked up.
        again: whether to measure even if these weights have a profile, also one that another
            process has just measured.
        progress: whether to show the expected time and a progress bar on stderr.
        note: added to the line with the expected time.

    Returns:
        The profile that was measured, or else the one that these weights have.

    Raises:
        ConfigError: no tokenizer, or probes of such a length leave no room for text, or are longer
            than what the model was trained on.
        InputError: the haystack is too short, or a file cannot be read or written.
        ModelError: the model's losses are not finite, or no text can be sampled from it.
        NoDistantTokensError: windows cost the model nothing, so it needs no profile.
        UnsupportedModelError: attention that cannot be given windows.
        UnsupportedOperationError: an attention implementation that cannot.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(
            f"tokenizer={tokenizer!r} must be the model's tokenizer, of transformers; give "
            "AutoTokenizer.from_pretrained(...)"
        )
    model_fingerprint = fingerprint(model)
    name = name or Path(str(model.config.name_or_path)).name or type(model).__name__
    settings = settings or Settings()
    target = profile_path(model_fingerprint) if path is None else Path(path)
    # Keep the present stderr, since libraries redirect it.
    console = Console(file=sys.stderr, quiet=not progress, markup=False, highlight=False)
    with _locked(model_fingerprint, console):
        if not again:
            known = (
                model_profile(model, model_fingerprint) if path is None else _read_existing(target)
            )
            if known is not None and known.matches(model_fingerprint):
                return known
        validate_replaceable(target)
        profile = _measure(
            model, tokenizer, haystack, settings, name, model_fingerprint, console, note
        )
        save_profile(profile, target)
        delete_journals(model_fingerprint)
        delete_refusal(model_fingerprint)
    return profile


def _measure(
    model: Any,
    tokenizer: Any,
    haystack: str | None,
    settings: Settings,
    name: str,
    model_fingerprint: str,
    console: Console,
    note: str,
) -> HeadProfile:
    num_steps = settings.num_steps(model_info(model).num_heads)
    journal = journal_path(model_fingerprint, f"{settings} {haystack}")
    try:
        with (
            _progress(console, num_steps) as (bar, on_step),
            fast_arithmetic(model),
            torch.inference_mode(False),  # which keeps nothing for derivatives
        ):

            def on_start(seconds: float) -> None:
                console.print(f"Calibrating {name}: {_about(seconds)}{note}", soft_wrap=True)
                bar.start()

            return measure_profile(
                model,
                tokenizer,
                haystack,
                name=name,
                journal=journal,
                settings=settings,
                on_sample=lambda: console.print(f"Sampling text from {name}", soft_wrap=True),
                on_start=on_start,
                on_step=on_step,
            )
    except KeyboardInterrupt:
        kept = "The measurements are kept: the next calibration with the same settings resumes."
        console.print(kept, soft_wrap=True)
        raise
    except (ConfigError, ModelError, UnsupportedOperationError):
        with suppress(OSError):
            journal.unlink(missing_ok=True)
        raise


@contextmanager
def _locked(model_fingerprint: str, console: Console) -> Iterator[None]:
    path = lock_path(model_fingerprint)
    waiting = "Another process is calibrating this model: waiting for it."
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(waiting_lock(path, lambda: console.print(waiting)))
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror or error}; set LACACHE_HOME to a folder "
                "that can be written"
            ) from error
        yield


@contextmanager
def _progress(console: Console, num_steps: int) -> Iterator[tuple[Progress, Callable[[int], None]]]:
    """Yield a progress bar that is not shown yet, and a function that advances it."""
    columns = (
        TextColumn("probing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console)
    task = bar.add_task("probing", total=num_steps)
    try:
        yield bar, lambda count: bar.advance(task, count)
    finally:
        if bar.live.is_started:
            bar.stop()


def _about(seconds: float) -> str:
    """Return a duration with one or two digits."""
    if seconds < 100:
        return f"about {max(1, round(seconds, -1 if seconds > 20 else None)):.0f} s"
    if seconds < 6000:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.0f} h"


def _read_existing(path: Path) -> HeadProfile | None:
    return read_profile(path) if path.exists() else None
