/**
 * All parity cases, by kernel. A kernel of the contract without cases is an error of the suite (contract.test.ts).
 */
import type { KernelName } from "../../../src/backend/kernels.ts";
import { kernelSignatures } from "../../../src/backend/kernels.ts";
import type { Case } from "../harness/operands.ts";
import { attentionCases } from "./attention.ts";
import { elementwiseCases } from "./elementwise.ts";
import { fp8Cases } from "./fp8.ts";
import { layerCases } from "./layers.ts";
import { linearCases } from "./linear.ts";
import { moeCases } from "./moe.ts";

export const kernelNames = Object.keys(kernelSignatures) as KernelName[];

export function allCases(): Map<KernelName, Case[]> {
  const cases = new Map<KernelName, Case[]>();
  for (const test of [...linearCases(), ...layerCases(), ...attentionCases(), ...moeCases(), ...elementwiseCases(), ...fp8Cases()]) {
    cases.set(test.kernel, [...(cases.get(test.kernel) ?? []), test]);
  }
  return cases;
}
