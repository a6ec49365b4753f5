/** `moe quantize`: a model's matrices into FP8, with a report of the error. */
import { readFileSync } from "node:fs";
import { Option, type Command } from "commander";
import { fp8Scalings, type Fp8Scaling } from "../../backend/kernels.ts";
import { copyTokenizer, loadTokenizer } from "../../checkpoint/tokenizer.ts";
import {
  compareOutputs,
  quantizeModel,
  suggestions,
  type ExpertLayout,
  type OutputErrors,
  type QuantizeReport,
} from "../../model/index.ts";
import { fp8Layouts, recordedActivations, type Fp8Layout, type RecordedActivations } from "../../quant/index.ts";
import { systemError } from "../../util/files.ts";
import { collected } from "../options.ts";
import { formatBytes, Output } from "../output.ts";
import { openEngine } from "../session.ts";

interface QuantizeFlags {
  readonly format: "fp8";
  readonly scales: Fp8Scaling;
  readonly layout?: Fp8Layout;
  readonly experts: ExpertLayout;
  readonly activations: RecordedActivations;
  readonly ignore: readonly string[];
  readonly probe?: string;
  readonly report: boolean;
  readonly json?: boolean;
}

export function addQuantize(program: Command): void {
  program
    .command("quantize")
    .description("matrices of layers to FP8 (E4M3), with a report of the error")
    .argument("<model>", "folder with safetensors, or GGUF file")
    .argument("<out>", "folder to write; must not exist")
    .addOption(new Option("--format <format>", "format of the weights").choices(["fp8"]).default("fp8"))
    .addOption(new Option("--scales <kind>", "what one scale belongs to").choices(Object.keys(fp8Scalings)).default("channel"))
    .addOption(
      new Option("--layout <layout>", "names and configuration (default: compressed-tensors for channel, else huggingface)").choices(
        fp8Layouts,
      ),
    )
    .addOption(
      new Option("--experts <how>", "experts one by one, or fused as transformers has them in memory (layout huggingface)")
        .choices(["per-expert", "fused"])
        .default("per-expert"),
    )
    .addOption(
      new Option(
        "--activations <how>",
        "what the files say of activations: rounded dynamically as the layout has it, by tensor, or not at all",
      )
        .choices(recordedActivations)
        .default("dynamic"),
    )
    .option("--ignore <pattern>", "modules that stay bf16, such as '*.o_proj' or 'model.layers.0.*'; repeatable", collected, [])
    .option("--probe <file>", "text that both models are compared on (default: a page of English and Chinese)")
    .option("--no-report", "do not compare the outputs of both models afterwards")
    .option("--json", "print one JSON object: the report")
    .action(run);
}

/** Tokens of a probe file that are used. */
const maxProbeTokens = 8192;

async function run(model: string, out: string, flags: QuantizeFlags): Promise<void> {
  const output = new Output({ json: flags.json === true });
  const text = flags.probe === undefined ? defaultProbe : readProbe(flags.probe);
  const tokenizer = await loadTokenizer(model);
  using engine = await openEngine();
  const progress = output.progress("quantizing", 100);
  const { scales, layout, experts, activations, ignore } = flags;
  const onProgress = (done: number, total: number): void => {
    progress.update(Math.floor((100 * done) / total), "%");
  };
  const options = { scales, experts, activations, ignore, onProgress, ...(layout === undefined ? {} : { layout }) };
  const report = quantizeModel(engine, model, out, options, (folder) => {
    copyTokenizer(model, folder, tokenizer);
  });
  progress.stop();
  const ids = tokenizer.encode(text).subarray(0, maxProbeTokens);
  const outputs = flags.report ? compareOutputs(engine, model, out, ids) : null;
  const advice = suggestions(report, outputs);
  output.result({ ...report, outputs, suggestions: advice }, describe(report, outputs, advice));
}

function readProbe(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw systemError(path, "a text to probe with", error);
  }
}

/** The report for people. */
function describe(report: QuantizeReport, outputs: OutputErrors | null, advice: readonly string[]): string {
  const { tensors, ignored, quantizedBytes, bf16Bytes, numBytes } = report;
  const known = tensors.flatMap(({ sqnrDb }) => (sqnrDb === null ? [] : [sqnrDb]));
  const worst = tensors.toSorted((a, b) => (a.sqnrDb ?? Infinity) - (b.sqnrDb ?? Infinity)).slice(0, 3);
  const last = outputs?.layers.at(-1);
  return [
    `${report.out}: ${tensors.length} matrices in FP8 (E4M3), ${report.scales} scales, layout ${report.layout}; ${ignored.length} kept in bf16 by --ignore`,
    `${formatBytes(quantizedBytes)} with scales, ${((100 * quantizedBytes) / bf16Bytes).toFixed(2)}% of bf16; ${formatBytes(numBytes)} in all`,
    `SQNR ${Math.min(...known).toFixed(1)} to ${Math.max(...known).toFixed(1)} dB; lowest: ${worst.map(({ name, sqnrDb }) => `${name} ${(sqnrDb ?? Infinity).toFixed(1)}`).join(", ")}`,
    ...(outputs === null || last === undefined
      ? ["outputs not compared"]
      : [
          `perplexity on ${outputs.numTokens} tokens: ${outputs.perplexityBefore.toFixed(4)} before, ${outputs.perplexityAfter.toFixed(4)} after (${(100 * (outputs.perplexityAfter / outputs.perplexityBefore - 1)).toFixed(2)}%)`,
          ...(outputs.perplexityRounded === null
            ? []
            : [`with activations rounded to FP8, as engines with FP8 matrix units do: ${outputs.perplexityRounded.toFixed(4)}`]),
          `error of the hidden states, layer by layer: ${outputs.layers.map(({ relativeError }) => `${(100 * relativeError).toFixed(1)}%`).join(" ")}`,
          `divergence of the output with one layer in FP8, 1e-6 nats a token: ${outputs.layers.map(({ divergence }) => (1e6 * divergence).toFixed(0)).join(" ")}`,
        ]),
    ...advice.map((line) => `suggestion: ${line}`),
  ].join("\n");
}

const defaultProbe = `The lighthouse stood at the end of a long spit of sand, and for most of the year nobody came there but the keeper and the gulls. In the
evening she climbed the ninety-one steps, cleaned the glass, and wrote the weather into a book whose first pages were older than the village. "Wind from
the north-west, sea rough, visibility good." When the electric lamp was installed she was asked whether she would miss the oil. She said that she would
not, because a light is for those who see it and not for those who tend it.

A mixture of experts replaces one large network by several smaller ones and a router that decides, for every token, which of them shall answer. The cost
of a token then depends on how many experts it visits and not on how many there are. What has to be learned is a division of labour: if the router sends
everything to one expert, the others learn nothing, and if it spreads the tokens without regard to what they mean, the experts stay alike.

In 1969 two people walked on the Moon for about two and a half hours; they collected 21.5 kg of rock and dust. The surface was firmer than some had
expected. Water boils at 100 degrees Celsius at sea level, at about 93 degrees in a town 2000 metres higher, because the air presses less on its surface.

函数的极限描述了自变量接近某一点时函数值的变化趋势。春天来了,河边的柳树发出了新芽,孩子们在田野里放风筝。`;
