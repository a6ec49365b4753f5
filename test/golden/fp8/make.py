"""Golden codes of PyTorch's float8 types. Writes fp8.json: the values of all 256 codes, boundaries, and hashes over a million
random floats (of the generator below, which the test has too), for both formats. Run: python test/golden/fp8/make.py"""
import hashlib, json, os, struct
import numpy as np, torch

def xorshift(n, seed):
    """Words of 32 bits: Marsaglia's xorshift32, as the test computes them."""
    out = np.empty(n, dtype=np.uint32)
    x = seed
    for i in range(n):
        x ^= (x << 13) & 0xFFFFFFFF
        x ^= x >> 17
        x ^= (x << 5) & 0xFFFFFFFF
        out[i] = x
    return out

def encode(values, dtype):
    return torch.from_numpy(values).to(dtype).view(torch.uint8).numpy()

def main():
    result = {"torch": torch.__version__.split("+")[0]}
    million = 1_000_000
    words = xorshift(million, 2463534242)
    for name, dtype, limit, exponents in (("e4m3", torch.float8_e4m3fn, 464.0, (112, 137)), ("e5m2", torch.float8_e5m2, 61440.0, (105, 145))):
        codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype).float().numpy()
        # Random words with exponents that the format covers, so that every binade, subnormal and tie region is met; those out of range are skipped.
        span = exponents[1] - exponents[0]
        bits = (words & np.uint32(0x807FFFFF)) | (((words >> np.uint32(23)) & np.uint32(255)) % np.uint32(span) + np.uint32(exponents[0])) << np.uint32(23)
        values = bits.astype(np.uint32).view(np.float32)
        values = values[np.abs(values) < limit]
        # Boundaries: every value, every middle between neighbours, and the floats next to these.
        finite = np.unique(np.abs(codes[np.isfinite(codes)]))
        middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
        edges = np.concatenate([finite, middles])
        edges = np.concatenate([edges, np.nextafter(edges, np.float32(np.inf)), np.nextafter(edges, np.float32(-np.inf))]).astype(np.float32)
        edges = np.concatenate([edges, -edges, np.float32([0.0, -0.0, 1e-45, -1e-45, 1e-38])]).astype(np.float32)
        result[name] = {
            "values": [None if not np.isfinite(v) else float(v) for v in codes],
            "count": int(len(values)),
            "codesSha256": hashlib.sha256(encode(values, dtype).tobytes()).hexdigest(),
            "boundaryBits": [int(b) for b in edges.view(np.uint32)],
            "boundaryCodes": [int(c) for c in encode(edges, dtype)],
        }
    with open(os.path.join(os.path.dirname(__file__), "fp8.json"), "w") as f:
        json.dump(result, f, separators=(",", ":"))
        f.write("\n")

if __name__ == "__main__":
    main()
