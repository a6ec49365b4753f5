/** `moe generate`: text after a prompt, on the terminal. */
import { Option, type Command } from "commander";
import { generateText } from "../../generate/index.ts";
import { encodeChat } from "../../tokenizer/chat.ts";
import { MoeError } from "../../util/errors.ts";
import { decimal, wholeNumber } from "../options.ts";
import { Output } from "../output.ts";
import { modelDtype, openSession } from "../session.ts";

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
  readonly cacheDtype?: "f32" | "bf16" | "fp8";
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
    .addOption(new Option("--cache-dtype <type>", "type of the KV cache (default: the model's)").choices(["f32", "bf16", "fp8"]))
    .option("--json", "print one JSON object")
    .action(generate);
}

async function generate(path: string, flags: GenerateFlags): Promise<void> {
  // Checked here, because commander would look for it before it looks at a misspelt --promt.
  if (flags.prompt === undefined) throw new MoeError("usage", "generate: expected --prompt <text>, got none");
  const output = new Output({ json: flags.json === true });
  using session = await openSession(path, modelDtype(flags.dtype));
  const { model, tokenizer } = session;
  const message = [{ role: "user", content: flags.prompt }];
  const prompt = flags.chat === true ? encodeChat(tokenizer, message, { addGenerationPrompt: true }) : tokenizer.encode(flags.prompt);
  const { maxTokens, temperature, topP, topK, repetitionPenalty, seed, stop, cacheDtype } = flags;
  const { maxPositions } = model.config;
  if (prompt.length + maxTokens > maxPositions) {
    output.log(`${prompt.length} prompt tokens and ${maxTokens} new ones exceed the ${maxPositions} positions the model was made for`);
  }
  const result = generateText(
    model,
    tokenizer,
    prompt,
    { maxTokens, temperature, topP, topK, repetitionPenalty, seed, ...(stop && { stop }), ...(cacheDtype && { cacheDtype }) },
    (text) => {
      output.stream(text);
    },
  );
  const tokensPerSecond = result.ids.length > 1 ? (result.ids.length - 1) / result.decodeSeconds : null;
  const prefillTokensPerSecond = result.promptTokens / result.prefillSeconds;
  output.result({ ...result, tokensPerSecond, prefillTokensPerSecond }, "");
  output.log(
    `${result.promptTokens} prompt tokens at ${prefillTokensPerSecond.toFixed(0)}/s, ${result.ids.length} new at ${tokensPerSecond?.toFixed(1) ?? "-"}/s (${result.finishReason})`,
  );
}
