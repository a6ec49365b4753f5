"""Data-parallel steps of a transformers model: DistributedDataParallel over gloo, one thread a process, SDPA attention, fused AdamW, clipping.

Argument: JSON {"shape", "ranks"}. Reads "step" a line, writes the seconds of a step of all ranks.
"""

import json
import os
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM


def worker(rank: int, ranks: int, shape: dict, pipe) -> None:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    settings = dict(shape["config"])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings, use_cache=False)
    model = DistributedDataParallel(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train())
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.randint(0, config.vocab_size, (shape["batch"] // ranks, shape["sequence"]))
    while pipe.recv() == "step":
        dist.barrier()
        started = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        dist.barrier()
        pipe.send(time.perf_counter() - started)
    dist.destroy_process_group()


def main() -> None:
    job = json.loads(sys.argv[1])
    os.environ["MASTER_PORT"] = str(29500 + os.getpid() % 2000)
    context = mp.get_context("spawn")
    pipes = []
    for rank in range(job["ranks"]):
        ours, theirs = context.Pipe()
        context.Process(target=worker, args=(rank, job["ranks"], job["shape"], theirs), daemon=True).start()
        pipes.append(ours)
    for line in sys.stdin:
        command = line.strip()
        for pipe in pipes:
            pipe.send(command)
        if command != "step":
            break
        print(max(pipe.recv() for pipe in pipes), flush=True)


if __name__ == "__main__":
    main()
