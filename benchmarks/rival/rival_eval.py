"""lm-evaluation-harness on PyTorch: its own CMMLU task files over local rows, multiple choice, no few-shot examples.

Only the evaluation itself is timed: the model and the tasks are there before. Tasks are built anew for each pass, outside the clock.
"""

import time
from pathlib import Path

import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

state = {}


def local(manager: TaskManager, subject: str, data: Path):
    files = {"dev": str(data / "dev" / f"{subject}.csv"), "test": str(data / "test" / f"{subject}.csv")}
    overrides = {"dataset_path": "csv", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    return manager._factory.build(manager._entry(f"cmmlu_{subject}"), overrides=overrides, registry=manager._index)


def setup(model: str, data: str, subjects: list, threads: int, batch_size: int, dtype: str) -> dict:
    torch.set_num_threads(threads)
    state["lm"] = HFLM(pretrained=model, device="cpu", dtype=dtype, batch_size=batch_size)
    state["manager"] = TaskManager()
    state["data"] = Path(data)
    state["subjects"] = subjects
    return {}


def run(limit: int) -> dict:
    tasks = [local(state["manager"], subject, state["data"]) for subject in state["subjects"]]
    started = time.perf_counter()
    result = simple_evaluate(model=state["lm"], tasks=tasks, limit=limit, num_fewshot=0, bootstrap_iters=0, task_manager=state["manager"], log_samples=False)
    seconds = time.perf_counter() - started
    rows = sum(n["effective"] for n in result["n-samples"].values())
    correct = sum(result["results"][name]["acc,none"] * n["effective"] for name, n in result["n-samples"].items())
    return {"seconds": seconds, "rows": rows, "accuracy": correct / rows}
