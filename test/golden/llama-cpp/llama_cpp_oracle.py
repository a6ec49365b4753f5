"""What llama.cpp makes of GGUF files: ids of a prompt, the tokens it chooses greedily, and its logits.

Reads jobs from standard input, a JSON array of {model, prompt, numTokens, logits}; writes a JSON array of
{promptIds, ids, top, logits}: `top` has, for each chosen token, the five largest logits as [id, logit], and `logits` (asked for
with "logits": true) those after the whole prompt. Everything in f32 where the file is: f32 KV cache, no flash attention, one
thread. Needs llama-cpp-python.
"""

import json
import sys

import llama_cpp
import numpy as np

F32 = 0  # GGML_TYPE_F32


def run(job):
    model = llama_cpp.Llama(
        job["model"], n_ctx=256, n_threads=1, n_threads_batch=1, type_k=F32, type_v=F32, flash_attn=False, logits_all=True, verbose=False
    )
    prompt_ids = model.tokenize(job["prompt"].encode(), add_bos=True, special=True)
    ids, top, logits = [], [], None
    step = prompt_ids
    for _ in range(max(job["numTokens"], 1)):
        model.eval(step)
        row = model.scores[model.n_tokens - 1]
        if logits is None:
            logits = row.copy()
        if len(ids) == job["numTokens"]:
            break
        best = np.argsort(-row, kind="stable")[:5]
        ids.append(int(best[0]))
        top.append([[int(i), float(row[i])] for i in best])
        step = [ids[-1]]
    vocab_size = model.n_vocab()
    model.close()
    return dict(promptIds=prompt_ids, ids=ids, top=top, vocabSize=vocab_size, logits=[float(x) for x in logits] if job.get("logits") else None)


json.dump([run(job) for job in json.load(sys.stdin)], sys.stdout)
