"""A user's program, checked by `mypy --strict` against the installed package."""

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
    parse_policy,
    stream,
)
from lacache.errors import LaCacheError
from lacache.models import LoadedModel, load_model
from lacache.policies import KeptTokens, Policy, kept_after


def use(path: Path) -> Iterator[int]:
    loaded = load_model(path)
    assert_type(loaded, LoadedModel)
    ladder = Ladder(span=15, overlap=0)
    cache = LaCache(loaded.model, 512, ladder)
    assert_type(cache, LaCache)
    assert_type(cache.report(), CacheReport)
    assert_type(cache.report().bytes, int)
    assert_type(cache.kept_tokens(0), list[int])
    assert_type(parse_policy(str(ladder)), Policy)
    groups = Groups((Group(Streaming(), (0, (1, 2)), 64),))
    engine = Engine(loaded.model, policy=groups, max_sequences=2)
    try:
        with engine.open(Sampling(temperature=0.5)) as session:
            assert_type(session, Session)
            yield from session.generate([1, 2, 3], max_new_tokens=5)
    except LaCacheError as error:
        print(error)
    assert_type(kept_after(ladder.schedule(30, 512), num_seen=99), KeptTokens)
    yield from stream(
        loaded.model, loaded.tokenizer("x", return_tensors="pt").input_ids, cache=cache
    )


# Wrong uses: mypy must refuse each, or its `unused-ignore` ends the check.
Ladder(span="15", overlap=0)  # type: ignore[arg-type]
LaCache(object(), budget=[512])  # type: ignore[arg-type]
Sampling(temprature=0.5)  # type: ignore[call-arg]
