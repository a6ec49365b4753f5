/** `moe plan`: parallel layout, memory, time and cost of training (or serving) a model on a cluster. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { InvalidArgumentError, Option, type Command } from "commander";
import { withNumDevices } from "../../config/cluster.ts";
import type { ModelConfig } from "../../config/model.ts";
import {
  objectives,
  parseMegatronLayout,
  planServing,
  planTraining,
  softwarePresets,
  type FixedLayout,
  type Objective,
  type PlanResult,
  type SoftwareName,
} from "../../plan/index.ts";
import { MoeError } from "../../util/errors.ts";
import { systemError, writeFileAtomically } from "../../util/files.ts";
import type { PipelineScheduleName } from "../../util/pipeline-schedule.ts";
import { decimal, wholeNumber } from "../options.ts";
import { Output } from "../output.ts";
import { readCluster, readModel } from "../plan-inputs.ts";
import { planFiles } from "../plan-files.ts";
import { describeServing, describeTraining } from "../plan-text.ts";
import { addCalibrate } from "./plan-calibrate.ts";

interface PlanFlags {
  /** Always there; not declared as required, because `plan calibrate` has its own. */
  readonly cluster?: string;
  readonly gpus?: number;
  readonly batch: number;
  readonly sequence?: number;
  readonly objective?: Objective;
  readonly pp?: number;
  readonly dp?: number;
  readonly tp?: number;
  readonly ep?: number;
  readonly etp?: number;
  readonly microBatch?: number;
  readonly interleave?: number;
  readonly zero?: number;
  readonly schedule?: PipelineScheduleName;
  readonly software: SoftwareName;
  readonly layers?: number[];
  readonly recompute?: "auto" | "none" | "full" | "selective" | number[];
  readonly memoryReserve: number;
  readonly tokens?: number;
  readonly price?: number;
  readonly serve?: boolean;
  readonly weights: "fp8" | "bf16" | "f32";
  readonly kv: "bf16" | "fp8";
  readonly promptTokens: number;
  readonly outputTokens: number;
  readonly out?: string;
  readonly json?: boolean;
}

/** 4 Mi tokens: what published models of this kind train with, within a factor of four. */
const usualBatch = 2 ** 22;

export function addPlan(program: Command): void {
  const plan = program
    .command("plan")
    // Options behind `calibrate` are its own.
    .enablePositionalOptions()
    .description("parallel layout, pipeline split, memory, time and cost of training on a cluster that need not exist")
    .argument("<config>", "config.json of a model, a folder with one, or a preset (skywork-moe, skywork-13b, mixtral-8x7b, ...)")
    .option("--cluster <name>", "cluster file (JSON) or preset (a800, a100-80, h800, rtx-4090, cpu, ...)")
    .option("--gpus <n>", "devices to use: whole nodes (default: all of the cluster)", wholeNumber(1))
    .option("--batch <tokens>", "tokens of one optimizer step", wholeNumber(1), usualBatch)
    .option("--sequence <tokens>", "length of a sequence (default: the model's, at most 8192)", wholeNumber(1))
    .addOption(new Option("--objective <what>", "what is best").choices(objectives).default("time"))
    .option("--pp <n>", "pipeline ranks; what is fixed is not searched", wholeNumber(1))
    .option("--dp <n>", "data-parallel ranks", wholeNumber(1))
    .option("--tp <n>", "tensor-parallel ranks", wholeNumber(1))
    .option("--ep <n>", "ranks that the experts are spread over", wholeNumber(1))
    .option("--etp <n>", "ranks that each expert is cut over", wholeNumber(1))
    .option("--micro-batch <n>", "sequences of a micro-batch", wholeNumber(1))
    .option("--interleave <n>", "stages of a pipeline rank", wholeNumber(1))
    .option("--zero <stage>", "0: nothing is sharded over data-parallel ranks, 1: optimizer, 2: and gradients, 3: and weights", zeroStage)
    .addOption(new Option("--schedule <name>", "pipeline schedule").choices(["1f1b", "interleaved", "zeroBubble"]))
    .addOption(
      new Option("--software <name>", "training program that is planned for").choices(Object.keys(softwarePresets)).default("megatron"),
    )
    .option("--layers <list>", "layers of each stage: 5,5,5,4 or a Megatron layout such as 'Et*5|(t*5|)*2,t*4L'", layerList)
    .option("--recompute <how>", "auto, none, full, selective, or how many layers of each stage (with --layers)", recomputeOf)
    .option("--memory-reserve <share>", "share of a device's memory that is left free", shareBelowOne, 0.05)
    .option("--tokens <n>", "tokens of the whole run: days, device hours and cost", decimal(1))
    .option("--price <x>", "price of a device for an hour (default: the cluster file's)", decimal(0))
    .option("--serve", "plan serving instead: one tensor-parallel group over all devices")
    .addOption(new Option("--weights <format>", "serving: format of the weights").choices(["fp8", "bf16", "f32"]).default("fp8"))
    .addOption(new Option("--kv <type>", "serving: type of keys and values").choices(["bf16", "fp8"]).default("bf16"))
    .option("--prompt-tokens <n>", "serving: tokens of a prompt", wholeNumber(1), 512)
    .option("--output-tokens <n>", "serving: tokens of an answer", wholeNumber(1), 512)
    .option("--out <folder>", "write layout, Megatron arguments, FlagScale configuration, timeline and report there")
    .option("--json", "print one JSON object")
    .action(run);
  addCalibrate(plan);
}

function shareBelowOne(text: string): number {
  const share = decimal(0)(text);
  if (share >= 1) throw new InvalidArgumentError("expected a number of at least 0 and below 1.");
  return share;
}
function zeroStage(text: string): number {
  const stage = wholeNumber(0)(text);
  if (stage > 3) throw new InvalidArgumentError("expected 0, 1, 2 or 3.");
  return stage;
}
function wholeNumbers(text: string): number[] {
  return text.split(",").map((item) => wholeNumber(0)(item));
}
function layerList(text: string): number[] {
  return /^[\d,\s]+$/.test(text) ? wholeNumbers(text) : parseMegatronLayout(text).map(({ numLayers }) => numLayers);
}
function recomputeOf(text: string): PlanFlags["recompute"] {
  if (text === "auto" || text === "none" || text === "full" || text === "selective") return text;
  if (/^[\d,\s]+$/.test(text)) return wholeNumbers(text);
  throw new InvalidArgumentError("expected auto, none, full, selective or a list of numbers.");
}

function run(source: string, flags: PlanFlags): void {
  const output = new Output({ json: flags.json === true });
  const model = readModel(source);
  if (flags.cluster === undefined) throw new MoeError("usage", "plan: --cluster <name> is missing: a cluster file (JSON) or a preset");
  const whole = readCluster(flags.cluster);
  const cluster = flags.gpus === undefined ? whole : withNumDevices(whole, flags.gpus);
  if (flags.serve === true) {
    const { weights, kv, promptTokens, outputTokens, memoryReserve } = flags;
    const kvElementBytes = kv === "fp8" ? 1 : 2;
    const report = planServing({ model, cluster, weights, kvElementBytes, promptTokens, outputTokens, memoryReserve });
    output.result(report, describeServing(report, { source, weights, kv, promptTokens, outputTokens }));
    return;
  }
  const start = performance.now();
  const result = planTraining({
    model,
    cluster,
    wholeCluster: whole,
    sequenceLength: flags.sequence ?? Math.min(model.maxPositions, 8192),
    batchTokens: flags.batch,
    fixed: fixedOf(flags),
    memoryReserve: flags.memoryReserve,
    software: softwarePresets[flags.software],
    ...given("objective", flags.objective),
    ...given("layers", flags.layers),
    ...given("recompute", flags.recompute),
    ...given("schedule", flags.schedule),
    ...given("targetTokens", flags.tokens),
    ...given("pricePerHour", flags.price),
  });
  const seconds = (performance.now() - start) / 1e3;
  const files = flags.out === undefined ? [] : writeFiles(flags.out, result, model, source);
  output.result({ ...result.report, searchSeconds: seconds, files }, describeTraining(result.report, { seconds, files, source }));
}

/** An option that was given, as a property; nothing otherwise. */
function given<K extends string, T>(key: K, value: T | undefined): { readonly [P in K]?: T } {
  return value === undefined ? {} : ({ [key]: value } as { readonly [P in K]: T });
}

function fixedOf({ pp, dp, tp, ep, etp, microBatch, interleave, zero }: PlanFlags): FixedLayout {
  return {
    ...given("pp", pp),
    ...given("dp", dp),
    ...given("tp", tp),
    ...given("ep", ep),
    ...given("etp", etp),
    ...given("microBatch", microBatch),
    ...given("interleave", interleave),
    ...given("zero", zero as FixedLayout["zero"]),
  };
}

function writeFiles(folder: string, result: PlanResult, model: ModelConfig, source: string): string[] {
  try {
    mkdirSync(folder, { recursive: true });
  } catch (error) {
    throw systemError(folder, "a folder to write the plan to", error);
  }
  return Object.entries(planFiles(result, model, source)).map(([name, text]) => {
    const path = join(folder, name);
    writeFileAtomically(path, text);
    return path;
  });
}
