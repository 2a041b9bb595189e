"""A stand-in for the default model: few random weights under its tokenizer, layers and heads."""

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lacache.models import model_folder
from lacache.models.files import MANIFEST, write_manifest
from lacache.models.fingerprint import fingerprint
from lacache.policies.head_profile import SHIPPED

HEAD_DIM = 8


def lay_stand_in(home: Path) -> Path:
    """Lay it with a head profile into an $LACACHE_HOME, where the default model is looked for."""
    real = model_folder(progress=False)
    assert real is not None
    folder = home / "models" / real.name
    shutil.copytree(real, folder, ignore=shutil.ignore_patterns("*.safetensors", MANIFEST))
    config = AutoConfig.from_pretrained(real)
    config.head_dim = HEAD_DIM
    config.hidden_size = config.intermediate_size = HEAD_DIM * config.num_attention_heads
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    write_manifest(folder)
    (profile,) = SHIPPED.glob("smollm2-135m-*.json")
    content = json.loads(profile.read_text()) | {"fingerprint": fingerprint(model)}
    (home / "profiles").mkdir()
    (home / "profiles" / f"{content['fingerprint']}.json").write_text(json.dumps(content))
    return folder
