"""Golden rounded activations: x as E4M3 with dynamic scales amax / 448 of a row, of 128 values of a row, and of all, multiplied by the
scale again, by PyTorch; and a product with E4M3 weights of channel scales. Writes activations.json: hashes of the f32 bits (zeros without
sign), and the product in f64. The values are those of make_scaled.py's words, which the test makes too."""
import hashlib, json, os
import numpy as np, torch
from make import xorshift

M, K, N = 9, 300, 5
words = xorshift(M * K + N * K, 88172645)
u = (words >> np.uint32(8)).astype(np.float32) / np.float32(2**23) - np.float32(1)
cubed = (u * u * u).astype(np.float32)
x = torch.from_numpy(cubed[: M * K].reshape(M, K) * (np.float32(2.0) ** (np.arange(M, dtype=np.float32) % 7 - 3))[:, None])
w = torch.from_numpy(cubed[M * K :].reshape(N, K))
w_scale = (w.abs().amax(1) / 448).float()
w_codes = (w / w_scale[:, None]).to(torch.float8_e4m3fn)
def rounded(scale):
    return (x / scale).to(torch.float8_e4m3fn).float() * scale
groups = torch.stack([x[:, k : k + 128].abs().amax(1) / 448 for k in range(0, K, 128)], 1).float()
schemes = {
    "token": (x.abs().amax(1) / 448).float()[:, None],
    "group128": groups.repeat_interleave(128, 1)[:, :K],
    "tensor": (x.abs().max() / 448).float(),
}
out = {"shape": [M, K, N], "schemes": {}}
for name, scale in schemes.items():
    r = rounded(scale)
    product = (r.double() @ w_codes.double().T) * w_scale.double()
    bits = (r + 0.0).numpy().tobytes()
    out["schemes"][name] = {"rounded": hashlib.sha256(bits).hexdigest(), "product": product.flatten().tolist()}
with open(os.path.join(os.path.dirname(__file__), "activations.json"), "w") as f:
    json.dump(out, f, indent=1)
    f.write("\n")
