"""A device that is not there: its tensors lie on the CPU, but may not meet the CPU's own."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")  # the one device besides the CPU that every torch knows


class Held(torch.Tensor):
    """A tensor that says it lies elsewhere."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype,
            device=ELSEWHERE, requires_grad=False,
        )  # fmt: skip

    def __init__(self, held):
        self.held = held

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        return carried_out(function, arguments, options or {})


class Elsewhere(TorchDispatchMode):
    """While it is on, `.to("meta")` and `device="meta"` make tensors of that device."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return carried_out(function, arguments, options or {})


def carried_out(function, arguments, options):
    """Does an operation on the CPU; mixed devices are an error, as CUDA has it."""
    name = function.overloadpacket.__name__
    flat = [x for x in tree_flatten((arguments, options))[0] if isinstance(x, torch.Tensor)]
    there = [x for x in flat if isinstance(x, Held)]
    here = [x for x in flat if not isinstance(x, Held) and x.dim()]
    # As on CUDA: copies may cross, and an index may lie on the CPU.
    if there and here and name not in ("copy_", "_to_copy", "index", "index_put_"):
        raise RuntimeError(f"{name}: tensors of two devices, {[tuple(x.shape) for x in here]}")
    to = options.get("device")
    leaves = ELSEWHERE if there and name != "copy_" else torch.device("cpu")
    leaves = torch.device(to) if to is not None else leaves
    if name in ("copy_", "index_put_", "index"):
        leaves = arguments[0].device
    if to is not None:
        options = options | {"device": torch.device("cpu")}
    plain = tree_map(lambda x: x.held if isinstance(x, Held) else x, (arguments, options))
    made = function(*plain[0], **plain[1])
    if function._schema.is_mutable and flat and isinstance(arguments[0], torch.Tensor):
        if made is plain[0][0]:
            return arguments[0]
    if leaves != ELSEWHERE:
        return made
    return tree_map(lambda x: Held(x) if isinstance(x, torch.Tensor) else x, made)
