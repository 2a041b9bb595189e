"""A program of someone else, checked by `mypy --strict` against the installed package."""

from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

from lacache import (
    CacheReport,
    Engine,
    Group,
    Groups,
    LaCache,
    Ladder,
    Sampling,
    Session,
    Streaming,
    stream,
)
from lacache.errors import LaCacheError
from lacache.models import LoadedModel, load_model
from lacache.policies import KeptTokens, kept_after


def use(path: Path) -> Iterator[int]:
    loaded = load_model(path)
    assert_type(loaded, LoadedModel)
    plan = Ladder(capacity=512, span=15, overlap=0)
    cache = LaCache.from_model(loaded.model, plan)
    assert_type(cache, LaCache)
    assert_type(cache.report(), CacheReport)
    assert_type(cache.report().bytes, int)
    assert_type(cache.kept_tokens(0), list[int])
    groups = Groups((Group(Streaming(64), (0, (1, 2))),))
    engine = Engine.from_model(loaded.model, groups, max_sequences=2)
    try:
        with engine.open(Sampling(temperature=0.5)) as session:
            assert_type(session, Session)
            yield from session.generate([1, 2, 3], max_new_tokens=5)
    except LaCacheError as error:
        print(error)
    assert_type(kept_after(plan.bind(30), num_seen=99), KeptTokens)
    yield from stream(
        loaded.model, loaded.tokenizer("x", return_tensors="pt").input_ids, cache=cache
    )


# Wrong uses: mypy must refuse each, or its `unused-ignore` ends the check.
Ladder(capacity="512", span=15, overlap=0)  # type: ignore[arg-type]
LaCache.from_model(object(), budget=[512])  # type: ignore[arg-type]
Sampling(temprature=0.5)  # type: ignore[call-arg]
