"""Save a session, load it in another engine, and continue it in two ways."""

from pathlib import Path
from tempfile import TemporaryDirectory

from lacache import Engine
from lacache.models import load_model

loaded = load_model("default")
model, tokenizer = loaded.model, loaded.tokenizer


def tokens(text: str) -> list[int]:
    return tokenizer(text).input_ids


with TemporaryDirectory() as folder:
    path = Path(folder) / "story.safetensors"
    with Engine(model, budget=128).open() as session:
        story = list(session.generate(tokens("The old lighthouse"), max_new_tokens=40))
        session.save(path)
    print(f"{path.stat().st_size / 2**20:.1f} MiB, bounded for text of any length")

    engine = Engine(model, budget=128, max_sequences=2)
    with engine.load(path) as by_day, by_day.fork() as by_night:
        print("The old lighthouse" + tokenizer.decode(story))
        for session, turn in ((by_day, " In the morning,"), (by_night, " At night,")):
            more = session.generate(tokens(turn), max_new_tokens=25)
            print("..." + turn + tokenizer.decode(list(more)))
