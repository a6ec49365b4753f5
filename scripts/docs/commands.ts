/** The command reference, `docs/reference/commands.md`: every verb, argument and option that the program has, with the examples of its help. */
import type { Argument, Command, Option } from "commander";
import { examplesOf } from "../../src/cli/examples.ts";
import { createProgram } from "../../src/cli/program.ts";
import { generatedNote } from "./generated-note.ts";
import { escaped } from "./schema-tables.ts";

/** The page. */
export async function commandsPage(): Promise<string> {
  const { commands } = await createProgram();
  const overview = commands.map(
    (command) => `| [\`moe ${command.name()}\`](#moe-${command.name()}) | ${text(sentence(command.description()))} |`,
  );
  return `# Command reference

${generatedNote("the program itself (`src/cli`)")}

\`npx moe <verb>\` where the package is installed, \`npm run moe -- <verb>\` in a clone. Every verb has \`--help\`. Where there is \`--json\`, exactly one JSON object goes to standard
output; progress and messages go to standard error. An unknown verb or option is an error that names the nearest known one. Exit codes: 0 success, 1 failure, 2 wrong usage.

| verb | does |
| --- | --- |
${overview.join("\n")}

${commands.map((command) => section(command, "moe")).join("\n\n")}

## Environment

| variable | what |
| --- | --- |
| \`MOE_ENGINE\` | \`native\`, \`wasm\` or \`reference\`; without it the best that works ([platforms](../platforms.md)) |
| \`MOE_ISA\` | instruction set of the native kernels: \`avx2\`, \`avx512\`, \`avx512bf16\`, \`amx\`, \`neon\`; without it the fastest here |
| \`MOE_THREADS\` | threads of one engine, 1 to 256; without it as many as the machine runs at once |
| \`HF_ENDPOINT\`, \`HF_TOKEN\` | the Hub that \`moe pull\` asks, and the token that it shows |
`;
}

function section(command: Command, parent: string): string {
  const name = `${parent} ${command.name()}`;
  const examples = examplesOf(command.name()).map(({ command: line, what }) => `# ${what}\n${line}`);
  const parts = [
    `${parent === "moe" ? "##" : "###"} ${name}`,
    text(sentence(command.description())),
    `\`\`\`\n${[name, ...command.registeredArguments.map(placeholder), "[options]"].join(" ")}\n\`\`\``,
    table(["argument", "what"], command.registeredArguments.map(argumentRow)),
    table(["option", "default", "what"], command.options.filter(({ hidden }) => !hidden).map(optionRow)),
    parent === "moe" && examples.length > 0 ? `\`\`\`sh\n${examples.join("\n")}\n\`\`\`` : "",
    ...command.commands.map((inner) => section(inner, name)),
  ];
  return parts.filter((part) => part !== "").join("\n\n");
}

function sentence(text: string): string {
  return text.endsWith(".") ? text : `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}

function placeholder(argument: Argument): string {
  const name = `${argument.name()}${argument.variadic ? "..." : ""}`;
  return argument.required ? `<${name}>` : `[${name}]`;
}

function argumentRow(argument: Argument): string[] {
  return [`\`${placeholder(argument)}\``, [text(argument.description), ...choices(argument.argChoices)].join("; ")];
}

function optionRow(option: Option): string[] {
  const { mandatory, defaultValue, argChoices, flags } = option;
  // Some say their default in words: it belongs into its column.
  const [, before, words] = /^(.*) \((required|default: .*)\)$/.exec(option.description) ?? [];
  const standard = mandatory || words === "required" ? "**required**" : words === undefined ? "" : text(words.replace("default: ", ""));
  const value = defaultValue === undefined ? standard : valueText(defaultValue);
  return [`\`${flags}\``, value, [text(before ?? option.description), ...choices(argChoices)].join("; ")];
}

/** Words of the help as Markdown: pages that they name become links. */
function text(words: string): string {
  return escaped(words).replaceAll(/\bdocs\/([\w./-]+\.md)/g, "[docs/$1](../$1)");
}

function choices(of: readonly string[] | undefined): string[] {
  return of === undefined ? [] : [of.map((choice) => `\`${choice}\``).join(", ")];
}

/** A switch is off by default, which says nothing. */
function valueText(value: unknown): string {
  if (value === undefined || value === false || (Array.isArray(value) && value.length === 0)) return "";
  return `\`${typeof value === "string" ? value : JSON.stringify(value)}\``;
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  if (rows.length === 0) return "";
  return [head, head.map(() => "---"), ...rows].map((row) => `| ${row.join(" | ")} |`).join("\n");
}
