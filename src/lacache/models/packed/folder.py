"""A packed model as a directory: written once, then loaded as it is."""

import json
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, final

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lacache.common.packages import require_modules
from lacache.errors import CompilerError, ModelError
from lacache.kernels.build import load_kernels
from lacache.models.packed.layers import PackedEmbedding, PackedLinear, PackedModule
from lacache.models.packed.rounding import to_int4, to_int8
from lacache.models.packed.weight import TENSORS, PackedWeight

PACKED = "packed.safetensors"
"""The file of all weights."""

Pack = Callable[[Tensor], PackedWeight | None]
"""(weight [O, I]) -> the packed weight, or None to leave it as it is."""


@torch.no_grad()
def pack_model(model: nn.Module, pack: Pack) -> None:
    """Replace linear layers and embeddings by packed ones.

    Args:
        model: of transformers, in bfloat16.
        pack: packs one weight, a parameter; called once where two modules share it.
    """
    known: dict[int, PackedWeight | None] = {}
    for name, module in list(model.named_modules()):
        if type(module) not in (nn.Linear, nn.Embedding):
            continue
        weight: Any = module.weight
        if id(weight) not in known:
            known[id(weight)] = pack(weight)
        packed = known[id(weight)]
        if packed is not None:
            _replace(model, name, packed, weight.dtype)


def round_model(model: Any) -> None:
    """Round the weights of a model: to 4 bits, embeddings and head to 8.

    Matrices whose columns are no multiple of 32 stay as they are.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    in_8_bits = {id(module.weight) for module in ends if module is not None}

    def pack(weight: Tensor) -> PackedWeight | None:
        groups = to_int8(weight) if id(weight) in in_8_bits else to_int4(weight)
        return None if groups is None else PackedWeight.pack(groups)

    pack_model(model, pack)
    use_kernels()


@final
class PackedTensors:
    """The tensors of a packed model, added one part of the model at a time."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._packed: dict[str, Any] = {}

    def add(self, model: Any, pack: Pack, missing: Collection[str] = ()) -> None:
        """Pack a model, of whose weights some may be missing, and add the others.

        Args:
            model: of transformers, in bfloat16; its layers are replaced.
            pack: packs one weight.
            missing: names of parameters and buffers without content.

        Raises:
            ModelError: a tensor was already added.
        """
        absent = _absent(model, missing)
        empty = set(absent.values())
        pack_model(model, lambda weight: None if id(weight) in empty else pack(weight))
        tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
        owners: dict[int, str] = {}
        for name, module in model.named_modules():
            if isinstance(module, PackedModule):
                weight = module.packed
                owner = owners.setdefault(weight.low.data_ptr(), name)
                self._packed[name] = {"owner": owner, **weight.metadata()}
                if owner == name:
                    tensors |= {f"{name}.{key}": value for key, value in weight.tensors().items()}
            else:
                persistent = module.state_dict(keep_vars=True).keys()
                for key, buffer in module.named_buffers(prefix=name, recurse=False):
                    if key.removeprefix(f"{name}.") in persistent:
                        tensors[key] = buffer
        tensors = {name: tensor for name, tensor in tensors.items() if name not in absent}
        if twice := self._tensors.keys() & tensors.keys():
            raise ModelError(f"two parts of the file have {min(twice)}; use weights='model'")
        self._tensors |= tensors

    def write(self, model: Any, folder: Path) -> None:
        """Write all tensors, and a model's configuration, into a directory."""
        packed = {
            name: self._packed[name] for name, _ in model.named_modules() if name in self._packed
        }
        save_file(self._tensors, folder / PACKED, metadata={"packed": json.dumps(packed)})
        model.config.save_pretrained(folder)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)


def read_packed(folder: Path, config: Any, dtype: str | torch.dtype = "auto") -> Any:
    """Load a model that `PackedTensors` wrote. Its weights are packed all the time.

    Args:
        folder: the directory.
        config: its configuration.
        dtype: of the other weights and of the results; "auto" is what was written.

    Returns:
        The model in evaluation mode, with kernels if they can be compiled.

    Raises:
        MissingExtraError: accelerate is not installed.
        ModelError: weights are missing.
    """
    require_modules("accelerate", why="a packed model", extra="gguf")
    from accelerate import init_empty_weights

    like: torch.dtype = config.dtype if isinstance(dtype, str) else dtype
    loader: Any = transformers.AutoModelForCausalLM
    with init_empty_weights(include_buffers=False):
        model = loader.from_config(config, dtype=like)
    with safe_open(folder / PACKED, framework="pt") as file:
        packed = json.loads(file.metadata()["packed"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights: dict[str, PackedWeight] = {}
    for name, about in packed.items():
        owner = about.pop("owner")
        if owner == name:
            keys = {field: f"{name}.{field}" for field in TENSORS}
            parts = {field: tensors.pop(key) for field, key in keys.items() if key in tensors}
            weights[name] = PackedWeight.from_tensors(parts, about)
        _replace(model, name, weights[owner], like)
    others = {
        name: tensor.to(like) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    model.load_state_dict(others, strict=False, assign=True)
    if any(parameter.is_meta for parameter in model.parameters()):
        model.tie_weights()
    lost = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if lost:
        raise ModelError(f"{folder} lacks the weights {', '.join(lost[:3])}; delete the folder")
    generation = folder / "generation_config.json"
    if generation.is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    model.config.name_or_path = str(folder)
    use_kernels()
    return model.eval()


def use_kernels() -> None:
    """Load the kernels; warn if they cannot be compiled."""
    try:
        load_kernels()
    except CompilerError as error:
        warnings.warn(f"{error}; until then packed weights are slow", stacklevel=3)


def _absent(model: nn.Module, missing: Collection[str]) -> dict[str, int]:
    """Return the ids of missing parameters and buffers by name, with those tied to them."""
    ids = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    empty = {ids[name] for name in missing if name in ids}
    return {name: number for name, number in ids.items() if number in empty}


def _replace(model: nn.Module, name: str, weight: PackedWeight, dtype: torch.dtype) -> None:
    module = model.get_submodule(name)
    if isinstance(module, nn.Linear):
        model.set_submodule(name, PackedLinear(weight, module.bias, dtype))
    else:
        model.set_submodule(name, PackedEmbedding(weight, dtype))
