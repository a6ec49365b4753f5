/**
 * The lab of expert strategies: `node recipes/lab/edp/run.ts [steps]` runs EDP, EP, ETP and TP on four ranks of one model, compares what their collectives were given with the
 * closed forms, measures how much of the exchange hides, and writes docs/lab/edp.md with the traces beside it (in the temporary folder).
 */
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { completeLayout, parseLayout, type LayoutInput } from "../../../src/config/layout.ts";
import { modelPresets } from "../../../src/config/model-presets.ts";
import type { ModelConfig } from "../../../src/config/model.ts";
import { layoutOf } from "../../../src/config/run.ts";
import { stepBytes, type AxisBytes } from "./formulas.ts";
import { runOf, sizes, type LabResult } from "./job.ts";
import { runLab, strategies, writeTokens } from "./lab.ts";
import { measureOverlap, type OverlapResult } from "./overlap.ts";

const axes = ["tp", "block", "dp", "edp"] as const;
const megabytes = (bytes: number): string => (bytes / 1e6).toFixed(3);

function measuredRow({ name, bytes, seconds, stepSeconds }: LabResult, expected: AxisBytes): string {
  const cells = axes.map(
    (axis) => `${megabytes(bytes[axis] ?? 0)}${(bytes[axis] ?? 0) === expected[axis] ? "" : ` (formula ${megabytes(expected[axis])})`}`,
  );
  const inCalls = Object.values(seconds).reduce((a, b) => a + b, 0);
  return `| ${name} | ${cells.join(" | ")} | ${(1000 * stepSeconds).toFixed(0)} | ${(1000 * inCalls).toFixed(0)} |`;
}

/** Activation bytes a token of one layer's experts: what strategies differ in, beside the gradients. */
function perToken(model: ModelConfig, layoutInput: LayoutInput): number {
  const layout = completeLayout(parseLayout(layoutInput), "lab");
  const one = { ...model, numLayers: 1 };
  const numTokens = 4096;
  const { tp, block } = stepBytes(one, layout, { numTokens, numMicroBatches: 1 });
  return (tp + block) / (layout.dp * numTokens);
}

const shapes: readonly { readonly name: string; readonly model: ModelConfig; readonly dp: number; readonly tp: number }[] = [
  { name: "Skywork-MoE, 16 experts, top-2", model: modelPresets["skywork-moe"], dp: 4, tp: 4 },
  { name: "Mixtral 8x7B, 8 experts, top-2", model: modelPresets["mixtral-8x7b"], dp: 2, tp: 4 },
  ...[1, 8].map((topK) => ({
    name: `64 experts, top-${topK}`,
    model: { ...modelPresets["mixtral-8x7b"], moe: { ...modelPresets["mixtral-8x7b"].moe, numExperts: 64, topK } },
    dp: 4,
    tp: 4,
  })),
];

function winsRow({ name, model, dp, tp }: (typeof shapes)[number]): string {
  const kinds = (["EDP", "TP", "EP", "ETP"] as const).flatMap((strategy) =>
    [false, true].map((sequenceParallel) => {
      const ep = strategy === "EP" ? { ep: Math.min(dp * tp, model.moe?.numExperts ?? 1) } : {};
      return {
        label: `${strategy}${sequenceParallel ? "+SP" : ""}`,
        bytes: perToken(model, { dp, tp, strategy, sequenceParallel, ...ep }),
      };
    }),
  );
  const best = kinds.toSorted((a, b) => a.bytes - b.bytes)[0]?.label ?? "";
  return `| ${name}, dp ${dp} x tp ${tp} | ${kinds.map(({ bytes }) => (bytes / 1e3).toFixed(0)).join(" | ")} | ${best} |`;
}

function overlapText({ link, waiting, turns, exposed, hidden, inCalls }: OverlapResult): string {
  const ms = (seconds: number): string => `${(1000 * seconds).toFixed(0)} ms`;
  return `Two ranks, EDP with sequence parallelism, over an emulated link of ${link.latencyUs} us and ${link.gigabytesPerSecond.toFixed(4)} GB/s.

| | without the link | over it | inside the exchange's calls, over it |
| --- | --- | --- | --- |
| waiting | ${ms(waiting.withoutLink)} | ${ms(waiting.withLink)} | ${ms(inCalls.waiting)} |
| halves take turns | ${ms(turns.withoutLink)} | ${ms(turns.withLink)} | ${ms(inCalls.turns)} |

Without overlap the link is ${(100 * exposed).toFixed(0)}% of the step; of what it adds, ${(100 * hidden).toFixed(0)}% is hidden where halves take turns.`;
}

/** Bytes of each strategy on the lab's model, from the formulas; tests compare them with what communicators count, to the byte. */
function expectedRow(name: string, layoutInput: LayoutInput): string {
  const config = runOf({ layout: layoutInput, numSteps: 1, size: "small" });
  return `| ${name} | ${axes.map((axis) => megabytes(bytesOf(config)[axis])).join(" | ")} |`;
}
function bytesOf(config: ReturnType<typeof runOf>): AxisBytes {
  const { model, sequenceLength } = sizes.small;
  const layout = layoutOf(config);
  const { batchSequences, microBatchSequences } = config;
  const numMicroBatches = batchSequences / layout.dp / microBatchSequences;
  return stepBytes(model, layout, { numTokens: microBatchSequences * sequenceLength, numMicroBatches });
}

/** Times and shares, which need a machine that nobody else computes on. */
async function measured(numSteps: number): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "moe-lab-edp-"));
  writeTokens(folder);
  const runs = strategies.map((one) => ({ ...one, size: "small" as const, numSteps, link: null }));
  const results = await runLab(folder, runs);
  const rows = results.map((result, i) => measuredRow(result, bytesOf(runOf(runs[i] ?? { layout: {}, numSteps, size: "small" }))));
  const overlap = await measureOverlap(folder, numSteps + 2, [join(folder, "waiting.json"), join(folder, "turns.json")]);
  console.log(`traces in ${folder}`);
  return `## Measured

Bytes as counted (a figure stands alone where it equals the formula to the byte); times are medians of ${numSteps - 1} steps of four threads on this machine's cores, where links cost next to nothing: they say what
bookkeeping costs, and bytes what a cluster would see.

| strategy | tp | block (exchange) | dp | edp | step, ms | inside calls, ms |
| --- | --- | --- | --- | --- | --- | --- |
${rows.join("\n")}

## Hidden behind computation

${overlapText(overlap)}
`;
}

const numSteps = Number(process.argv[2] ?? 0);
const measurements = numSteps > 1 ? await measured(numSteps) : "";
const text = `# Expert strategies: what they move

Written by \`node recipes/lab/edp/run.ts [steps]\` (with steps: times and what is hidden, too). The four strategies of \`src/config/layout.ts\` on the same model (4 layers, hidden 256, 8 experts of 512 columns, top-2), the same batch (16 sequences of 128)
and four ranks. Bytes are the operands of all ranks' collectives in one step, in MB (10^6), by the closed forms of \`recipes/lab/edp/formulas.ts\`; \`test/distributed/edp.test.ts\` runs all nine and asserts that
what communicators count is the same to the byte.

| strategy | tp | block (exchange) | dp | edp |
| --- | --- | --- | --- | --- |
${strategies.map(({ name, layout }) => expectedRow(name, layout)).join("\n")}

## Where each wins

Operand bytes a token of one layer with its share of embedding and head, activations only, in KB (f32):

| model and ranks | EDP | EDP+SP | TP | TP+SP | EP | EP+SP | ETP | ETP+SP | fewest |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
${shapes.map(winsRow).join("\n")}

* **EDP** without sequence parallelism exchanges nothing: the experts' sum is the one that tensor parallelism makes anyway, and a rank holds 1/tp of the experts. With EDP and TP alone, traffic hardly grows with top-k: by the gradient of the combine weights, four bytes a token and choice.
* **EP** spreads experts over dp x tp ranks: their gradients and optimizer need no sum over replicas (edp is 0 above), which pays where experts outweigh activations: many experts, few tokens.
* **ETP** sends each row to all ranks that hold a part of its expert: the exchange grows with tp. It is for experts that are too large for a rank.
* **TP** moves what EDP moves, and its products are narrower; it balances load perfectly, which EDP does not.

${measurements}`;
writeFileSync(new URL("../../../docs/lab/edp.md", import.meta.url), text);
