"""SmolLM2's GGUF as a folder in Hugging Face format with f32 weights, for lm-evaluation-harness.

    python make-model.py SMOLLM2.gguf TOKENIZER.json OUT

The weights are de-quantized by transformers, not by us. TOKENIZER.json is SmolLM2's tokenizer in Hugging Face format; the
one in a folder that `moe upcycle` or `saveModel` wrote from this GGUF does (transformers' own conversion from GGUF leaves
out the splitting of digits, so its ids differ).
"""
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

gguf, tokenizer, out = map(Path, sys.argv[1:])
loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
config = loaded.config.to_dict()
config.pop("quantization_config", None)
plain = LlamaForCausalLM(LlamaConfig(**config))  # the loaded one calls itself quantized and refuses to be saved
plain.load_state_dict(loaded.state_dict())
plain.tie_weights()
plain.save_pretrained(out)
special = dict(bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>", pad_token="<|im_end|>")
PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), clean_up_tokenization_spaces=False, **special).save_pretrained(out)
