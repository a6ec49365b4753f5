/** `moe generate`: text after a prompt, on the terminal. */
import { Option, type Command } from "commander";
import { loadTokenizer } from "../../checkpoint/tokenizer.ts";
import { generateText, type Generation } from "../../generate/index.ts";
import { describePlan, generateOverProcesses, generateParallel, gigabytes, planModel, type RankReport } from "../../generate/parallel.ts";
import { cacheDtypes, type ActivationChoice, type CacheDType } from "../../model/index.ts";
import { encodeChat } from "../../tokenizer/chat.ts";
import { runMpiRank, type CommName, type RankContext } from "../../parallel/index.ts";
import { MoeError } from "../../util/errors.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import { complain } from "../complain.ts";
import { decimal, numbers, wholeNumber } from "../options.ts";
import { chooseTensorRanks, commOption } from "../tensor-ranks.ts";
import { Output } from "../output.ts";
import { activationsOption, modelDtype, openSession } from "../session.ts";

interface GenerateFlags {
  readonly prompt?: string;
  readonly chat?: boolean;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly topP: number;
  readonly topK: number;
  readonly repetitionPenalty: number;
  readonly seed: number;
  readonly stop?: string[];
  readonly dtype?: string;
  readonly kvDtype?: CacheDType;
  readonly activations: ActivationChoice;
  readonly tp?: number;
  readonly comm: CommName;
  readonly tpWeights?: number[];
  readonly tpMemory?: number[];
  readonly json?: boolean;
}

export function addGenerate(program: Command): void {
  program
    .command("generate")
    .description("text after a prompt")
    .argument("<model>", "folder with safetensors, or GGUF file")
    .option("--prompt <text>", "the prompt (required)")
    .option("--chat", "put the prompt into the model's chat template as a user's turn")
    .option("--max-tokens <n>", "tokens to generate at most", wholeNumber(1), 128)
    .option("--temperature <t>", "0: always the most probable token", decimal(0), 0)
    .option("--top-p <p>", "keep the most probable tokens up to this sum", decimal(0), 1)
    .option("--top-k <k>", "keep the k most probable tokens; 0: all", wholeNumber(0), 0)
    .option("--repetition-penalty <x>", "1: none", decimal(0), 1)
    .option("--seed <n>", "seed of the sampler", wholeNumber(0), 0)
    .option("--stop <text...>", "end before this text")
    .option("--dtype <type>", "compute in f32 or bf16 (default: as stored)")
    .addOption(new Option("--kv-dtype <type>", "type of the KV cache (default: the model's)").choices(cacheDtypes))
    .addOption(activationsOption())
    .option(
      "--tp <n>",
      "cut the model over n ranks, threads of this process or processes that mpirun started, and print the plan",
      wholeNumber(1),
    )
    .addOption(commOption())
    .option("--tp-weights <list>", "relative speed of each rank, for example 2,1,1 (default: equal)", numbers(0))
    .option("--tp-memory <list>", "GB that each rank can hold, for example 24,24,16 (default: no limit)", numbers(0))
    .option("--json", "print one JSON object")
    .action(generate);
}

async function generate(path: string, flags: GenerateFlags): Promise<void> {
  // Checked here, because commander would look for it before it looks at a misspelt --promt.
  if (flags.prompt === undefined) throw new MoeError("usage", "generate: expected --prompt <text>, got none");
  const output = new Output({ json: flags.json === true });
  const choice = chooseTensorRanks(flags);
  if (choice.comm === "mpi") {
    const { launcher } = choice;
    const body = async (context: RankContext): Promise<void> => {
      const quiet = launcher.rank > 0;
      const result = await generateOnRanks(path, flags, launcher.size, output, context);
      if (!quiet) tell(result, output);
    };
    return await runMpiRank(launcher, body, { data: null, emit: () => undefined, complain });
  }
  tell(
    flags.tp === undefined
      ? { ...(await generateAlone(path, flags, output)), ranks: undefined }
      : await generateOnRanks(path, flags, flags.tp, output),
    output,
  );
}

function tell({ ranks, ...result }: Generation & { readonly ranks: readonly RankReport[] | undefined }, output: Output): void {
  const tokensPerSecond = result.ids.length > 1 ? (result.ids.length - 1) / result.decodeSeconds : null;
  const prefillTokensPerSecond = result.promptTokens / result.prefillSeconds;
  output.result({ ...result, tokensPerSecond, prefillTokensPerSecond, ...(ranks && { ranks }) }, "");
  if (ranks !== undefined)
    output.log(`weights held, rank by rank: ${ranks.map(({ weightBytes }) => `${gigabytes(weightBytes)} GB`).join(", ")}`);
  output.log(
    `${result.promptTokens} prompt tokens at ${prefillTokensPerSecond.toFixed(0)}/s, ${result.ids.length} new at ${tokensPerSecond?.toFixed(1) ?? "-"}/s (${result.finishReason})`,
  );
}

async function generateAlone(path: string, flags: GenerateFlags, output: Output): Promise<Generation> {
  if (flags.tpWeights !== undefined || flags.tpMemory !== undefined)
    throw new MoeError("usage", "generate: --tp-weights and --tp-memory are of the ranks of --tp <n>, which is not given");
  using session = await openSession(path, modelDtype(flags.dtype), flags.activations);
  const { model, tokenizer } = session;
  const prompt = encodePrompt(tokenizer, flags);
  const { maxPositions } = model.config;
  if (prompt.length + flags.maxTokens > maxPositions) {
    output.log(
      `${prompt.length} prompt tokens and ${flags.maxTokens} new ones exceed the ${maxPositions} positions the model was made for`,
    );
  }
  return generateText(model, tokenizer, prompt, generateOptions(flags), (text) => {
    output.stream(text);
  });
}

/** The plan goes to the log before anything is loaded. */
async function generateOnRanks(
  path: string,
  flags: GenerateFlags,
  ranks: number,
  output: Output,
  process: RankContext | null = null,
): Promise<Generation & { ranks: readonly RankReport[] }> {
  const { tpWeights: weights, tpMemory, kvDtype: cacheDtype } = flags;
  for (const [option, list] of Object.entries({ "--tp-weights": weights, "--tp-memory": tpMemory })) {
    if (list !== undefined && list.length !== ranks)
      throw new MoeError("usage", `generate: ${option}: expected a number for each of ${ranks} ranks, got ${list.length}`);
  }
  const prompt = encodePrompt(await loadTokenizer(path), flags);
  const dtype = modelDtype(flags.dtype);
  const cut = planModel(path, {
    ranks,
    cacheTokens: prompt.length + flags.maxTokens,
    ...(weights && { weights }),
    ...(tpMemory && { memoryBytes: tpMemory.map((gigabytes) => gigabytes * 1e9) }),
    ...(dtype && { dtype }),
    activations: flags.activations,
    ...(cacheDtype && { cacheDtype }),
  });
  if (process === null || process.communicator.rank === 0) for (const line of describePlan(cut.plan)) output.log(line);
  const onText = (text: string): void => output.stream(text);
  const options = generateOptions(flags);
  const { generation, ranks: held } = await (process === null
    ? generateParallel(cut, prompt, options, onText)
    : generateOverProcesses(process, cut, prompt, options, onText));
  return { ...generation, ranks: held };
}

function encodePrompt(tokenizer: Tokenizer, { prompt = "", chat }: GenerateFlags): ArrayLike<number> {
  return chat === true
    ? encodeChat(tokenizer, [{ role: "user", content: prompt }], { addGenerationPrompt: true })
    : tokenizer.encode(prompt);
}
function generateOptions(flags: GenerateFlags) {
  const { maxTokens, temperature, topP, topK, repetitionPenalty, seed, stop, kvDtype: cacheDtype } = flags;
  return { maxTokens, temperature, topP, topK, repetitionPenalty, seed, ...(stop && { stop }), ...(cacheDtype && { cacheDtype }) };
}
