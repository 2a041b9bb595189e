"""Find the best policy for a model, a text and a budget, and use it."""

import subprocess
import sys
from pathlib import Path

from lacache import LaCache
from lacache.corpora import load_document
from lacache.models import load_model

# A scene, to be quick; give it all that you have. Ten minutes are the most that it takes.
Path("scene.txt").write_text(load_document("shakespeare:hamlet").content[:3500])
policies = "--policy ladder:evict_batch=0.25 --policy balanced:evict_batch=0.25"
options = f"--text scene.txt --budget 128 --length 256 {policies} --save-policy policy.txt"
subprocess.run([sys.executable, "-m", "lacache", "tune", *options.split()], check=True)

cache = LaCache(load_model("default").model, 128, "@policy.txt")
print(cache.policy)
