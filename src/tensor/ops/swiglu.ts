/** SwiGLU (arXiv 2002.05202): silu(gate) * up, with silu(g) = g / (1 + exp(-g)). The two products around it are `linear`. */
import type { Tensor } from "../tensor.ts";
import { computeCode, expectLike } from "./check.ts";

/** silu(gate) * up, elementwise; shape and dtype of the operands. Throws `shape`. */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  expectLike("swiglu", "up", up, gate);
  const { engine } = gate;
  const { kernels } = engine.backend;
  const code = computeCode("swiglu", "gate", gate);
  const out = engine.empty(gate.shape, gate.dtype);
  kernels.swigluForward(out.ptr, gate.ptr, up.ptr, gate.size, code);
  const { tape } = engine;
  tape?.record([gate, up], out, [gate, up], (dOut, [savedGate, savedUp]) => {
    // Where the tape holds the last reference, the gradients take the place of what they were computed from.
    const dGate = savedGate.storage.references === 1 ? savedGate : engine.empty(gate.shape, gate.dtype);
    const dUp = savedUp.storage.references === 1 ? savedUp : engine.empty(up.shape, up.dtype);
    kernels.swigluBackward(dGate.ptr, dUp.ptr, dOut.ptr, savedGate.ptr, savedUp.ptr, savedGate.size, code, 0);
    tape.addGrad(gate, dGate);
    tape.addGrad(up, dUp);
  });
  return out;
}
