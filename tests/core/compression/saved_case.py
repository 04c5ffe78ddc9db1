"""What autograd keeps of a forward pass, for the tests beside."""

import torch
from torch.nn import functional as F


def kept(module, run):
    """Bytes of all storages that ``run()`` leaves for the backward pass, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor.detach()  # an operation that kept its own result would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    return sum(size for size, _ in found.values()), out


def gradients(module, out):
    """Each parameter's gradient of a fixed random combination of the outputs."""
    module.zero_grad()
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(7))).sum().backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def cosines(found, exact):
    """The cosine of each gradient to the exact one; of those that rounding alone gave, none."""
    assert set(found) == set(exact)
    most = max(float(g.norm()) for g in exact.values())
    return {
        name: float(F.cosine_similarity(found[name].flatten(), g.flatten(), 0))
        for name, g in exact.items()
        if g.norm() > 1e-5 * most
    }
