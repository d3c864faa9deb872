"""Two processes on loopback keep identical masks, though their data and first weights differ."""

import torch
from torch import distributed, multiprocessing
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from gossamer.testing.training import tiny_network
from gossamer.training import RigL, attach


def worker(rank, path, results):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    try:
        for storage in ("masked", "sparse"):
            model = tiny_network(seed=rank)
            optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
            method = RigL(0.3, every=2, until=8)
            model = DistributedDataParallel(model)  # gives all ranks the weights of rank 0
            first = None
            if storage == "sparse":  # its parameters must be there before
                model = model.module
            attachment = attach(model, optimizer, method, storage=storage)
            if storage == "sparse":
                model = DistributedDataParallel(model)
            first = attachment.masks()
            for step in range(7):
                generator = torch.Generator().manual_seed(100 * step + rank)
                x = torch.randn(8, 4, 6, 6, generator=generator).double()
                y = torch.randint(5, (8,), generator=generator)
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            masks = attachment.masks()
            moved = any(not torch.equal(mask, first[name]) for name, mask in masks.items())
            bits = [mask.flatten().tolist() for mask in masks.values()]
            attachment.detach()
            inner = model.module
            results.put((storage, rank, moved, bits, inner[4].weight.detach().tolist()))
    finally:
        distributed.destroy_process_group()


def test_ranks_agree(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=worker, args=(r, tmp_path / "init", results)) for r in (0, 1)]
    for process in ranks:
        process.start()
    found = {(s, r): (moved, bits, weight) for s, r, moved, bits, weight in _take(results, 4)}
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    for storage in ("masked", "sparse"):
        moved, bits, weight = found[storage, 0]
        assert moved and found[storage, 1] == (moved, bits, weight)
    assert found["masked", 0][1] == found["sparse", 0][1]


def _take(results, count):
    return [results.get(timeout=120) for _ in range(count)]
