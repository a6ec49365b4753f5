/** Training on from a checkpoint, dense or MoE: the same command as training from scratch. */
import type { RunConfigInput } from "../config/run.ts";
import { dataOf, required, type RecipeInputs } from "./recipe.ts";

/** SmolLM2-135M, or a model of its size, in bf16 with a small batch and a low constant rate; upcycled or not. */
export function smollm2Finetune(inputs: RecipeInputs): RunConfigInput {
  const name = "smollm2-finetune";
  return {
    model: { from: required(name, inputs, "model") },
    data: dataOf(name, inputs, 512),
    batchSequences: 8,
    microBatchSequences: 2,
    numSteps: 200,
    precision: "bf16",
    optimizer: { learningRate: 1e-4, weightDecay: 0.01 },
    schedule: { name: "constant", warmupSteps: 10 },
    evaluation: { intervalSteps: 50, maxSequences: 32 },
    checkpoint: { intervalSteps: 50, keep: 2 },
  };
}
