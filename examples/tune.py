"""Find the best plan for a model, a text and a budget, and use it."""

import subprocess
from pathlib import Path

from lacache import LaCache
from lacache.core.plan_record import load_plan
from lacache.models import load_model

# Ten minutes, its default, are better. What is in tune.jsonl is not measured again.
command = "lacache tune --text shakespeare:hamlet --budget 64 --length 128 --minutes 1.5"
subprocess.run([*command.split(), "--save-plan", "plan.json"], check=True)

plan = load_plan(Path("plan.json"))
cache = LaCache.from_model(load_model("default").model, plan)
print(cache.policy)
