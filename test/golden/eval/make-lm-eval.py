"""Golden numbers of lm-evaluation-harness: its own task files, over local data, on SmolLM2-135M-Instruct in f32.

    python make-lm-eval.py MODEL DATA [part ...]

MODEL is a folder in Hugging Face format with f32 weights; make it with `python make-model.py GGUF TOKENIZER OUT`. DATA is the
folder with gsm8k-test.jsonl, cmmlu/ and tinyshakespeare.txt (MOE_SHARED_DATA of the tests). Each part is written to
lm-eval/<part>.json when it is done, so a part can be made again by itself. One thread, batch 1, no padding: nothing but
the prompt and the weights decides a number.

What is kept per sample: lm-evaluation-harness's own hash of the prompt, the log-likelihood of each continuation, what was
generated and extracted, the metrics; and of each run the result JSON without what depends on the machine. CMMLU is
CC BY-NC-SA: of it only hashes and numbers are written. Prompts in full are kept of questions of our own alone.

The GSM8K rows hold the test split only, so rows 100 to 199 stand in for the training split from which the few-shot
examples are drawn (rows 0 to 49 are asked).
"""
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from lm_eval.api.task import Task
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

HERE = Path(__file__).parent
CMMLU = ["agronomy", "anatomy", "ancient_chinese", "astronomy", "college_medicine", "computer_science", "high_school_mathematics", "world_history"]


MANAGER = TaskManager()


def local(task: str, kind: str = "json", **files: Path) -> Task:
    """The harness's own task file `task` reading these files, one a split; everything else stays as the file says."""
    where = {"dataset_path": kind, "dataset_name": None, "dataset_kwargs": {"data_files": {k: str(v) for k, v in files.items()}}}
    return MANAGER._factory.build(MANAGER._entry(task), overrides=where, registry=MANAGER._index)


def gsm8k(data: Path, tmp: Path) -> list[Task]:
    lines = (data / "gsm8k-test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp / "train.jsonl").write_text("".join(lines[100:200]), encoding="utf-8")
    (tmp / "test.jsonl").write_text("".join(lines[:50]), encoding="utf-8")
    return [local("gsm8k", train=tmp / "train.jsonl", test=tmp / "test.jsonl")]


def cmmlu(data: Path, _tmp: Path) -> list[Task]:
    return [local(f"cmmlu_{s}", "csv", dev=data / "cmmlu/dev" / f"{s}.csv", test=data / "cmmlu/test" / f"{s}.csv") for s in CMMLU]


def mmlu(_data: Path, _tmp: Path) -> list[Task]:
    d = HERE / "data"
    return [local(f"mmlu_{s}", dev=d / f"mmlu-{s}-dev.jsonl", test=d / f"mmlu-{s}-test.jsonl") for s in ["astronomy", "high_school_mathematics"]]


def ceval(_data: Path, _tmp: Path) -> list[Task]:
    d = HERE / "data"
    return [local(f"ceval-valid_{s}", dev=d / f"ceval-{s}-dev.jsonl", val=d / f"ceval-{s}-val.jsonl") for s in ["logic", "middle_school_geography"]]


def math(task: str):
    def make(_data: Path, _tmp: Path) -> list[Task]:
        rows = HERE / "data" / "math-algebra-test.jsonl"
        return [local(task, train=rows, test=rows)]

    return make


def shakespeare(data: Path) -> list[tuple[int, str]]:
    text = (data / "tinyshakespeare.txt").read_text(encoding="utf-8")
    pages = [(start, text[start : start + 1500]) for start in range(0, len(text) - 1500, 10000)]
    return [(start, page) for start, page in pages if wikitext_detokenizer({"page": page}) == page][:50]


def perplexity(data: Path, tmp: Path) -> list[Task]:
    """50 documents of 1500 characters; with at most 256 tokens at once each takes several windows.

    The harness's perplexity task is WikiText's, which undoes that set's spaces around punctuation before it scores; taken
    are texts that this leaves alone.
    """
    pages = [page for _, page in shakespeare(data)]
    (tmp / "pages.jsonl").write_text("".join(json.dumps({"page": p}) + "\n" for p in pages), encoding="utf-8")
    return [local("wikitext", train=tmp / "pages.jsonl", validation=tmp / "pages.jsonl", test=tmp / "pages.jsonl")]


# part -> (tasks, few-shot examples or None for the task's own number, limit per task, longest input in tokens)
PARTS = {
    "mmlu": (mmlu, 5, None, None),
    "mmlu-0shot": (mmlu, 0, None, None),
    "ceval": (ceval, 5, None, None),
    "hendrycks_math": (math("hendrycks_math_algebra"), None, None, None),
    "perplexity": (perplexity, None, None, 256),
    "cmmlu-0shot": (cmmlu, 0, 7, None),
    "gsm8k": (gsm8k, None, 50, None),
    "minerva_math": (math("minerva_math_algebra"), None, None, None),
    "cmmlu": (cmmlu, 5, 7, None),
}


def sample(row: dict, output_type: str, keep_text: bool) -> dict:
    """What the test compares. `arguments` are (prompt, continuation) pairs, (prompt, options), or (text,)."""
    out = {"doc_id": row["doc_id"], "prompt_hash": row["prompt_hash"], "filter": row["filter"]}
    for metric in row["metrics"]:
        out[metric] = row[metric]
    first = row["arguments"][0][0]
    out["prompt_characters"] = len(first)
    if output_type == "multiple_choice":
        out["continuations"] = [a[1] for a in row["arguments"]]
        out["loglikelihoods"] = [r[0][0] for r in row["resps"]]
        out["greedy"] = [r[0][1] for r in row["resps"]]
        out["target"] = row["target"]
    elif output_type == "generate_until":
        out["generated"] = row["resps"][0][0]
        out["extracted"] = row["filtered_resps"][0]
        out["options"] = row["arguments"][0][1]
        out["target_hash"] = row["target_hash"]
    else:
        r = row["resps"][0]
        out["loglikelihood"] = r[0] if isinstance(r, (list, tuple)) else r
    if keep_text and row["doc_id"] < 2:
        out["prompt"] = first
    return out


def run(part: str, lm_path: str, data: Path) -> None:
    make, num_fewshot, limit, max_length = PARTS[part]
    with tempfile.TemporaryDirectory() as tmp:
        lm = HFLM(pretrained=lm_path, device="cpu", dtype="float32", batch_size=1, **({} if max_length is None else {"max_length": max_length}))
        start = time.perf_counter()
        result = simple_evaluate(model=lm, tasks=make(data, Path(tmp)), num_fewshot=num_fewshot, limit=limit, log_samples=True, task_manager=MANAGER, bootstrap_iters=100)
        seconds = time.perf_counter() - start
    tasks = {}
    for name, rows in result["samples"].items():
        config = result["configs"][name]
        tasks[name] = {
            "metrics": result["results"][name],
            "version": result["versions"][name],
            "n-shot": result["n-shot"][name],
            "higher_is_better": result["higher_is_better"][name],
            "n-samples": result["n-samples"][name],
            "samples": [sample(r, config["output_type"], part.startswith(("mmlu", "ceval", "hendrycks"))) for r in rows],
        }
    record = {
        "harness": version("lm_eval"), "transformers": version("transformers"), "torch": version("torch"),
        "seconds": round(seconds, 1), "num_fewshot": num_fewshot, "limit": limit, "max_length": max_length, "page_starts": [start for start, _ in shakespeare(data)] if part == "perplexity" else None, "tasks": tasks,
    }
    (HERE / "lm-eval").mkdir(exist_ok=True)
    (HERE / "lm-eval" / f"{part}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(part, f"{seconds:.0f} s", {k: v["metrics"] for k, v in tasks.items()}, flush=True)


def main() -> None:
    torch.set_num_threads(1)
    lm_path, data, *parts = sys.argv[1:]
    for part in parts or PARTS:
        run(part, lm_path, Path(data))


main()
