/** `moe upcycle`: a dense checkpoint becomes a MoE checkpoint. Options come from a file, from flags, or both (flags win). */
import { readFileSync } from "node:fs";
import { Option, type Command } from "commander";
import { copyTokenizer, loadTokenizer } from "../../checkpoint/tokenizer.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import {
  parseUpcycleOptions,
  probeUpcycled,
  promptRouterRows,
  upcycle,
  upcycleTargets,
  type UpcycleExtras,
  type UpcycleOptions,
  type UpcycleReceipt,
} from "../../upcycle/index.ts";
import { fileError, MoeError } from "../../util/errors.ts";
import { systemError } from "../../util/files.ts";
import { collected, decimal, wholeNumber } from "../options.ts";
import { formatBytes, formatCount, Output } from "../output.ts";
import { openEngine } from "../session.ts";

interface UpcycleFlags {
  readonly config?: string;
  readonly experts?: number;
  readonly topK?: number;
  readonly target?: UpcycleOptions["target"];
  readonly granularity?: number;
  readonly sharedExpert?: number;
  readonly method?: "copy" | "noise" | "drop";
  readonly noiseStd?: number;
  readonly dropRatio?: number;
  readonly expertsFrom: readonly string[];
  readonly router?: "normal" | "zero";
  readonly routerStd?: number;
  readonly gateNorm: boolean;
  readonly every?: number;
  readonly optimizer?: "reset" | "carry";
  readonly seed?: number;
  readonly dtype?: "f32" | "bf16";
  readonly denseTokens?: number;
  readonly budgetTokens?: number;
  readonly probe?: string;
  readonly verify: boolean;
  readonly json?: boolean;
}

export function addUpcycle(program: Command): void {
  program
    .command("upcycle")
    .description("dense checkpoint to MoE checkpoint, with a receipt")
    .argument("<dense>", "folder with safetensors, or GGUF file")
    .argument("<out>", "folder to write; must not exist (a run that was interrupted is continued)")
    .option("--config <file>", "options as a JSON file (see docs/upcycling.md); flags win")
    .option("--experts <n>", "experts of a layer, shards included (default: 8)", wholeNumber(1))
    .option("--top-k <k>", "experts that a token goes through, shards included (default: 2)", wholeNumber(1))
    .addOption(new Option("--target <family>", "family of the output (default: skywork_moe)").choices(upcycleTargets))
    .option("--granularity <g>", "shards that the dense network is cut into (default: 1)", wholeNumber(1))
    .option("--shared-expert <share>", "a shared expert with this part of the dense output, 0 to below 1", decimal(0))
    .addOption(new Option("--method <name>", "how experts start (default: copy)").choices(["copy", "noise", "drop"]))
    .option("--noise-std <x>", "noise, in standard deviations of each matrix (method noise; default: 0.05)", decimal(0))
    .option("--drop-ratio <r>", "dimensions drawn anew (method drop; default: 0.5)", decimal(0))
    .option("--experts-from <path>", "dense model that experts are copied from, in turn; repeatable", collected, [])
    .addOption(new Option("--router <init>", "how routers start (default: normal; prompts: in --config)").choices(["normal", "zero"]))
    .option("--router-std <x>", "standard deviation of a normal router (default: 0.02)", decimal(0))
    .option("--no-gate-norm", "leave gating logit normalization out (skywork_moe)")
    .option("--every <k>", "experts in every k-th layer (default: 1)", wholeNumber(1))
    .addOption(new Option("--optimizer <state>", "moments of a training checkpoint (default: reset)").choices(["reset", "carry"]))
    .option("--seed <n>", "seed of everything random (default: 1)", wholeNumber(0))
    .addOption(
      new Option(
        "--dtype <type>",
        "element type of the output (default: bf16 for a source in bf16, else f32, which keep it exactly)",
      ).choices(["f32", "bf16"]),
    )
    .option("--dense-tokens <n>", "tokens that the dense model was trained on, for the cost rule", decimal(1))
    .option("--budget-tokens <n>", "tokens that the MoE shall be trained on, for the cost rule", decimal(1))
    .option("--probe <file>", "text that both models are compared on (default: a line of English and Chinese)")
    .option("--no-verify", "do not compare the logits of both models afterwards")
    .option("--json", "print one JSON object: the receipt")
    .action(run);
}

/** Text on which the two models are compared. */
const defaultProbe = "The expert knows more and more about less and less until, at last, it knows everything about nothing. 专家 12345";
/** Tokens of a probe file that are used. */
const maxProbeTokens = 512;

function readText(path: string, what: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw systemError(path, what, error);
  }
}
function readOptions(path: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(readText(path, "a file of upcycling options"));
  } catch (error) {
    if (error instanceof MoeError) throw error;
    throw fileError(path, "JSON", error instanceof Error ? error.message : String(error), error);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw fileError(path, "a JSON object of options", typeof value);
  return value as Record<string, unknown>;
}

/** What the flags say, under the names of the options; nothing where they say nothing. */
function optionsOfFlags(flags: UpcycleFlags): Partial<UpcycleOptions> {
  const method = methodOfFlags(flags);
  if (flags.routerStd !== undefined && flags.router === "zero")
    throw new MoeError("usage", "--router-std has no meaning with --router zero");
  const router: UpcycleOptions["router"] =
    flags.router === "zero"
      ? { type: "zero" }
      : flags.router === "normal" || flags.routerStd !== undefined
        ? { type: "normal", ...(flags.routerStd === undefined ? {} : { std: flags.routerStd }) }
        : undefined;
  const given = {
    numExperts: flags.experts,
    topK: flags.topK,
    target: flags.target,
    granularity: flags.granularity,
    sharedExpert: flags.sharedExpert === undefined ? undefined : { share: flags.sharedExpert },
    method,
    expertSources: flags.expertsFrom.length === 0 ? undefined : [...flags.expertsFrom],
    router,
    gateNormalization: flags.gateNorm ? undefined : false,
    layerInterval: flags.every,
    optimizer: flags.optimizer,
    seed: flags.seed,
    dtype: flags.dtype,
    denseTokens: flags.denseTokens,
    budgetTokens: flags.budgetTokens,
  };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
}
function methodOfFlags({ method, noiseStd, dropRatio }: UpcycleFlags): UpcycleOptions["method"] {
  if (noiseStd !== undefined && method !== "noise")
    throw new MoeError("usage", `--noise-std needs --method noise, got ${method ?? "none"}`);
  if (dropRatio !== undefined && method !== "drop")
    throw new MoeError("usage", `--drop-ratio needs --method drop, got ${method ?? "none"}`);
  if (method === "noise") return { type: "noise", std: noiseStd ?? 0.05 };
  if (method === "drop") return { type: "drop", ratio: dropRatio ?? 0.5 };
  return method === undefined ? undefined : { type: "copy" };
}

async function run(dense: string, out: string, flags: UpcycleFlags): Promise<void> {
  const output = new Output({ json: flags.json === true });
  const fromFile = flags.config === undefined ? {} : readOptions(flags.config);
  const merged = { numExperts: 8, topK: 2, ...fromFile, ...optionsOfFlags(flags) };
  const options = parseUpcycleOptions(merged, flags.config ?? "upcycle");
  const tokenizer = await loadTokenizer(dense);
  const copy = (folder: string): void => {
    copyTokenizer(dense, folder, tokenizer);
  };
  const text = flags.probe === undefined ? defaultProbe : readText(flags.probe, "a text to probe with");
  const ids = tokenizer.encode(text).subarray(0, maxProbeTokens);
  if (ids.length === 0) throw fileError(flags.probe ?? "probe", "a text with at least one token", "none");
  const extras = await makeExtras(dense, options, tokenizer, flags.verify ? ids : null, output);
  try {
    const receipt = upcycle(dense, out, options, copy, extras);
    const { tensors, ...summary } = receipt;
    output.result({ ...summary, numTensors: tensors.length, out }, describe(receipt, out));
  } finally {
    extras.dispose();
  }
}

/** An engine only where something is computed. */
async function makeExtras(
  dense: string,
  { router }: ReturnType<typeof parseUpcycleOptions>,
  tokenizer: Tokenizer,
  ids: Int32Array | null,
  output: Output,
): Promise<UpcycleExtras & { dispose: () => void }> {
  const progress = output.progress("writing", 100);
  const onProgress = (done: number, total: number): void => {
    progress.update(Math.floor((100 * done) / total), "%");
    if (done >= total) progress.stop();
  };
  if (ids === null && router.type !== "prompts") return { onProgress, dispose: () => undefined };
  const engine = await openEngine();
  const rows =
    router.type === "prompts"
      ? promptRouterRows(
          engine,
          dense,
          router.prompts.map((list) => list.map((prompt) => tokenizer.encode(prompt))),
          router.norm,
        )
      : null;
  return {
    onProgress,
    ...(rows && { promptRows: rows }),
    ...(ids && { probe: (folder) => probeUpcycled(engine, dense, folder, ids) }),
    dispose: () => {
      engine[Symbol.dispose]();
    },
  };
}

/** The receipt for people. */
function describe(receipt: UpcycleReceipt, out: string): string {
  const { probe, memory, exactness } = receipt;
  const loads = probe?.routing.map(({ load }) => load) ?? [];
  const shares = loads.map((load) => (Math.max(...load) * load.length) / load.reduce((a, b) => a + b, 0));
  return [
    `${receipt.sourceArchitecture} of ${formatCount(receipt.numParamsBefore)} parameters became ${receipt.architecture} of ${formatCount(receipt.numParamsAfter)}, ${formatCount(receipt.numActiveParams)} active a token`,
    `${receipt.tensors.length} tensors written to ${out}${receipt.numTensorsResumed > 0 ? ` (${receipt.numTensorsResumed} were there from before)` : ""}; origins and hashes in upcycling.json`,
    `${exactness.verdict}: ${exactness.reasons.join("; ")}`,
    probe === null
      ? "not compared with the dense model"
      : `logits in f32 on ${probe.numTokens} tokens: largest difference ${probe.maxOutputGap.toExponential(2)} of the largest logit, mean ${probe.meanOutputGap.toExponential(2)}`,
    ...(probe === null
      ? []
      : [
          `routing of the probe text, busiest expert over its share: ${Math.min(...shares).toFixed(2)} to ${Math.max(...shares).toFixed(2)} over ${loads.length} layers`,
        ]),
    ...receipt.warnings.map((warning) => `warning: ${warning}`),
    `memory of its state: ${formatBytes(memory.trainingF32Bytes)} to train in f32 with AdamW, ${formatBytes(memory.trainingBf16Bytes)} in bf16; ${formatBytes(memory.servingFp8Bytes)} to serve in FP8`,
    `cost: ${receipt.cost.advice}`,
  ].join("\n");
}
