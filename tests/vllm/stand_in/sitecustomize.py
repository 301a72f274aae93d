"""Makes vLLM's build for processors take weights by gloo where it calls NCCL.

Python imports this at its start, in all processes of a server that has this folder in PYTHONPATH.
Only the communicator is another one, and PyTorch's questions for the current GPU and its stream
have an answer. What the server does with the weights is its own.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULE = "vllm.distributed.device_communicators.pynccl"


class Patcher:
    """Finds the module with vLLM's communicator, and changes it once it is loaded."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            change(module)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


def change(module: Any) -> None:
    import gloo_ranks
    import torch

    class Communicator:
        """A worker's rank; adds up one number first, as vLLM's own does."""

        def __init__(self, name: bytes, rank: int, world_size: int, device: int) -> None:
            assert len(name) == module.NCCL_UNIQUE_ID_BYTES
            self.group = gloo_ranks.init_rank(world_size, name, rank)
            gloo_ranks.all_reduce([torch.zeros(1)], comms=[self.group])

        def broadcast(self, tensor: torch.Tensor, src: int, stream: object) -> None:
            assert src == 0
            gloo_ranks.broadcast([tensor], comms=[self.group])

        def destroy(self) -> None:
            self.group = None

    module.PyNcclCommunicator.from_unique_id_bytes = Communicator
    torch.accelerator.current_device_index = lambda: 0
    torch.cuda.current_stream = lambda *_: None  # type: ignore[assignment, return-value]


sys.meta_path.insert(0, Patcher())  # type: ignore[arg-type]
