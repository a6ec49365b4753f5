/**
 * The reference backend: every kernel of `../kernels.ts` as naive loops in plain TypeScript.
 *
 * It is the oracle of the tests and the definition to read beside a fast kernel. Where the contract says f32 accumulation it
 * sums in f64 and rounds once to the output's type, so it is closer to the true value than what it judges; operations with
 * exact semantics (cast, copies, dispatchPlan, argmax) are exact. Its memory checks every access (see `memory.ts`), and
 * calls are checked against the signature table. It is not for speed: one thread, a thousand times slower than the C.
 */
import type { Backend } from "../backend.ts";
import type { KernelName, Kernels } from "../kernels.ts";
import { kernelSignatures } from "../kernels.ts";
import { MoeError } from "../../util/errors.ts";
import { swigluBackward, swigluForward } from "./activation.ts";
import { attentionBackward, attentionForward, attentionPagedForward } from "./attention.ts";
import { combineBackward, combineForward, dispatchPlan, permuteBackward } from "./dispatch.ts";
import { accumulate, add, addBias, allFinite, cast, copyRows, fillF32, gatherRows, scale, sumSquares } from "./elementwise.ts";
import { embeddingBackward, embeddingForward } from "./embedding.ts";
import { castFromFp8, castToFp8, groupedLinearFp8Forward, linearFp8Forward, linearFp8ForwardMany, roundRowsToFp8 } from "./fp8.ts";
import { jitter, sigmoidGateBackward, sigmoidGateForward, tanhBackward, tanhForward } from "./gate.ts";
import {
  groupedLinearBackwardInput,
  groupedLinearBackwardWeight,
  groupedLinearForward,
  linearBackwardBias,
  linearBackwardInput,
  linearBackwardWeight,
  linearForward,
  linearForwardMany,
} from "./linear.ts";
import { argmaxRows, crossEntropy, softmaxRows } from "./loss.ts";
import { ReferenceMemory } from "./memory.ts";
import { rmsNormBackward, rmsNormForward } from "./norm.ts";
import { adamwStep } from "./optim.ts";
import { ropeApply, ropeTable } from "./rope.ts";
import { routerBackward, routerForward, routerStatistics, routerZLoss } from "./router.ts";

type Implementations = { readonly [Name in KernelName]: (memory: ReferenceMemory, ...args: Parameters<Kernels[Name]>) => void };

/** Every kernel as a function of memory and the arguments of the contract. */
export const referenceKernels = {
  linearForward,
  linearForwardMany,
  linearBackwardInput,
  linearBackwardWeight,
  linearBackwardBias,
  groupedLinearForward,
  groupedLinearBackwardInput,
  groupedLinearBackwardWeight,
  linearFp8Forward,
  linearFp8ForwardMany,
  groupedLinearFp8Forward,
  rmsNormForward,
  rmsNormBackward,
  ropeTable,
  ropeApply,
  swigluForward,
  swigluBackward,
  embeddingForward,
  embeddingBackward,
  attentionForward,
  attentionPagedForward,
  attentionBackward,
  crossEntropy,
  routerForward,
  routerBackward,
  routerZLoss,
  routerStatistics,
  jitter,
  tanhForward,
  tanhBackward,
  sigmoidGateForward,
  sigmoidGateBackward,
  dispatchPlan,
  permuteBackward,
  combineForward,
  combineBackward,
  add,
  scale,
  accumulate,
  addBias,
  cast,
  castToFp8,
  castFromFp8,
  roundRowsToFp8,
  fillF32,
  copyRows,
  gatherRows,
  sumSquares,
  allFinite,
  adamwStep,
  argmaxRows,
  softmaxRows,
} satisfies Implementations;

/** One argument as C would receive it. Throws `internal` where the C call would have misread it. */
function convert(name: KernelName, position: number, code: string, value: number): number {
  const whole = Number.isSafeInteger(value);
  const valid = code === "f" ? typeof value === "number" : code === "i" ? whole && (value | 0) === value : whole && value >= 0;
  if (!valid)
    throw new MoeError("internal", `${name}: expected argument ${position} of code "${code}" (kernelSignatures), got ${String(value)}`);
  return code === "f" ? Math.fround(value) : value;
}

function bind(memory: ReferenceMemory): Kernels {
  const bound = Object.entries(kernelSignatures).map(([key, signature]) => {
    const name = key as KernelName;
    const implementation = referenceKernels[name] as (memory: ReferenceMemory, ...args: number[]) => void;
    const kernel = (...args: number[]): void => {
      if (args.length !== signature.length)
        throw new MoeError("internal", `${name}: expected ${signature.length} arguments, got ${args.length}`);
      implementation(memory, ...args.map((value, i) => convert(name, i, signature.charAt(i), value)));
    };
    return [name, kernel];
  });
  return Object.fromEntries(bound) as Kernels;
}

/**
 * A reference backend with memory of its own.
 * @example
 * const backend = createReferenceBackend();
 * const x = backend.alloc(8);
 * backend.write(x, Float32Array.of(1, 2));
 * backend.kernels.scale(x, x, 2, 10, 0); // x is now 10, 20
 * backend.free(x);
 */
export function createReferenceBackend(): Backend {
  const memory = new ReferenceMemory();
  return {
    name: "reference",
    isa: "scalar",
    numThreads: 1,
    kernels: bind(memory),
    alloc: (byteLength) => memory.alloc(byteLength),
    free: (ptr) => memory.free(ptr),
    get liveBytes() {
      return memory.liveBytes;
    },
    get peakBytes() {
      return memory.peakBytes;
    },
    resetPeak: () => memory.resetPeak(),
    trim: () => {},
    read(target, ptr) {
      if (target.byteLength === 0) return;
      new Uint8Array(target.buffer, target.byteOffset, target.byteLength).set(memory.bytes(ptr, target.byteLength));
    },
    write(ptr, source) {
      if (source.byteLength === 0) return;
      memory.bytes(ptr, source.byteLength).set(new Uint8Array(source.buffer, source.byteOffset, source.byteLength));
    },
    view: (ptr, byteLength) => memory.bytes(ptr, byteLength),
    canView: true,
    mapFile: () => null,
    dispose: () => memory.dispose(),
  };
}
