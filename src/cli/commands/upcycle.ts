/** `moe upcycle`: a dense checkpoint becomes a MoE checkpoint. */
import { Option, type Command } from "commander";
import { loadModel } from "../../model/index.ts";
import { copyTokenizer, loadTokenizer } from "../../checkpoint/tokenizer.ts";
import { upcycle, upcycleGap, upcycleTargets, type UpcycleTarget } from "../../upcycle/index.ts";
import { decimal, wholeNumber } from "../options.ts";
import { formatCount, Output } from "../output.ts";
import { openEngine } from "../session.ts";

interface UpcycleFlags {
  readonly experts: number;
  readonly topK: number;
  readonly target: UpcycleTarget;
  readonly gateNorm: boolean;
  readonly routerStd: number;
  readonly every: number;
  readonly seed: number;
  readonly dtype?: "f32" | "bf16";
  readonly verify: boolean;
  readonly json?: boolean;
}

export function addUpcycle(program: Command): void {
  program
    .command("upcycle")
    .description("dense checkpoint to MoE checkpoint, with a receipt")
    .argument("<dense>", "folder with safetensors, or GGUF file")
    .argument("<out>", "folder to write; must not exist")
    .option("--experts <n>", "experts of a layer", wholeNumber(1), 8)
    .option("--top-k <k>", "experts that a token goes through", wholeNumber(1), 2)
    .addOption(new Option("--target <family>", "family of the output").choices(upcycleTargets).default("skywork_moe"))
    .option("--no-gate-norm", "leave gating logit normalization out (skywork_moe)")
    .option("--router-std <x>", "standard deviation of the router's initial weights", decimal(0), 0.02)
    .option("--every <k>", "experts in every k-th layer", wholeNumber(1), 1)
    .option("--seed <n>", "seed of the router", wholeNumber(0), 1)
    .addOption(
      new Option(
        "--dtype <type>",
        "element type of the output (default: bf16 for a source in bf16, else f32, which keep it exactly)",
      ).choices(["f32", "bf16"]),
    )
    .option("--no-verify", "do not compare the logits of both models afterwards")
    .option("--json", "print one JSON object")
    .action(run);
}

/** Text on which the two models are compared. */
const probe = "The expert knows more and more about less and less until, at last, it knows everything about nothing. 专家 12345";

async function run(dense: string, out: string, flags: UpcycleFlags): Promise<void> {
  const output = new Output({ json: flags.json === true });
  const tokenizer = await loadTokenizer(dense);
  const { experts: numExperts, topK, target, routerStd, every: layerInterval, seed, dtype } = flags;
  const receipt = upcycle(
    dense,
    out,
    {
      numExperts,
      topK,
      target,
      routerStd,
      layerInterval,
      seed,
      ...(flags.gateNorm ? {} : { gateNormalization: false }),
      ...(dtype && { dtype }),
    },
    (folder) => {
      copyTokenizer(dense, folder, tokenizer);
    },
  );
  const gap = flags.verify ? await verify(dense, out, tokenizer.encode(probe)) : null;
  const { tensors, ...summary } = receipt;
  const lines = [
    `${receipt.dense.architecture} of ${formatCount(receipt.dense.numParams)} parameters became ${receipt.moe.architecture} of ${formatCount(receipt.moe.numParams)}, ${formatCount(receipt.moe.numActiveParams)} active a token`,
    `${tensors.length} tensors written to ${out}; origins in upcycle-receipt.json`,
    gap === null
      ? "not compared with the dense model"
      : `largest difference of logits over the largest logit, in f32: ${gap.maxGap.toExponential(2)} (${gap.numTokens} tokens${flags.dtype === "bf16" ? "; includes rounding the weights to bf16, unless they had that type" : ""})`,
  ];
  output.result(
    { ...summary, numTensors: tensors.length, out, ...(gap === null ? {} : { upcycleMaxGap: gap.maxGap, upcycleMeanGap: gap.meanGap }) },
    lines.join("\n"),
  );
}

async function verify(dense: string, out: string, ids: Int32Array): Promise<ReturnType<typeof upcycleGap>> {
  using engine = await openEngine();
  using before = loadModel(engine, dense, { dtype: "f32" });
  using after = loadModel(engine, out, { dtype: "f32" });
  return upcycleGap(before, after, ids);
}
