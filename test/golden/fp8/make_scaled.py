"""Golden quantized matrices: scales amax / 448 by tensor, row and 128 x 128 block, and the E4M3 codes of w / scale, by PyTorch.
Writes scaled.json with hashes. The weights are made of the words of make.py's generator, as the test makes them."""
import hashlib, json, os
import numpy as np, torch
from make import xorshift

N, K = 200, 300
words = xorshift(N * K, 88172645)
# 24 random bits to [-1, 1), cubed (a few large values), rows of different sizes. Exact in f32 up to the last product.
u = (words >> np.uint32(8)).astype(np.float32) / np.float32(2**23) - np.float32(1)
w = (u * u * u).reshape(N, K) * (np.float32(2.0) ** (np.arange(N, dtype=np.float32) % 7 - 3))[:, None]
w = torch.from_numpy(w.astype(np.float32))
out = {"shape": [N, K], "weights": hashlib.sha256(w.numpy().tobytes()).hexdigest()}
def expand(s):
    return s.repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)[:, :K]
blocks = torch.zeros(2, 3)
for i in range(2):
    for j in range(3):
        blocks[i, j] = w[128 * i : 128 * i + 128, 128 * j : 128 * j + 128].abs().max()
for name, amax, full in (("tensor", w.abs().max().reshape(1), lambda s: s), ("channel", w.abs().amax(1), lambda s: s[:, None]), ("block128", blocks, expand)):
    scales = (amax / 448).float()
    codes = (w / full(scales)).to(torch.float8_e4m3fn).view(torch.uint8)
    out[name] = {"scales": hashlib.sha256(scales.numpy().tobytes()).hexdigest(), "codes": hashlib.sha256(codes.numpy().tobytes()).hexdigest()}
with open(os.path.join(os.path.dirname(__file__), "scaled.json"), "w") as f:
    json.dump(out, f, indent=1)
    f.write("\n")
