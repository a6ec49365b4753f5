/** The configuration reference, `docs/reference/configuration.md`: every field of every schema of `src/config`. */
import { readdirSync, readFileSync } from "node:fs";
import { z } from "zod";
import { clusterPresets, devicePresets, linkPresets } from "../../src/config/cluster-presets.ts";
import { parseClusterConfig } from "../../src/config/cluster.ts";
import { layoutSchema } from "../../src/config/layout.ts";
import { modelPresets } from "../../src/config/model-presets.ts";
import { parseModelConfig } from "../../src/config/model.ts";
import { runSchema } from "../../src/config/run.ts";
import { recipes } from "../../src/recipes/index.ts";
import { schemaComments, type SchemaComments } from "./comments.ts";
import { fieldTexts } from "./field-texts.ts";
import { generatedNote } from "./generated-note.ts";
import { schemaTables, type PartSchema } from "./schema-tables.ts";

const config = new URL("../../src/config/", import.meta.url);

interface Part extends PartSchema {
  readonly name: keyof typeof fieldTexts;
  readonly title: string;
  readonly intro: string;
}

function parts(): Part[] {
  return [
    {
      name: "run",
      title: "Run",
      intro: `What \`moe train\` reads, and what a run folder keeps, complete, as \`config.json\`. A recipe (${names(recipes)}) is a function that returns one; \`--set optimizer.learningRate=0.001\` changes a field. Source: [src/config/run.ts](../../src/config/run.ts), [run-moe.ts](../../src/config/run-moe.ts).`,
      schema: runSchema,
      elsewhere: { layout: "Layout" },
    },
    {
      name: "layout",
      title: "Layout",
      intro:
        "How a run is spread over ranks: `layout` of a run, and what `moe train --layout` reads and `moe plan --out` writes. Every field has a default; all of them together are one rank. How they go together is in [parallel training](../design/parallel.md). Source: [src/config/layout.ts](../../src/config/layout.ts).",
      schema: layoutSchema,
    },
    {
      name: "model",
      title: "Model",
      intro: `A model in our own form: what a program gives to \`parseModelConfig\`, and what a Hugging Face \`config.json\` is read into (which is what files hold; \`model.config\` of a run is in that form, too). Every field is given, null where the model does not have the thing. Presets: ${names(modelPresets)}. Source: [src/config/model.ts](../../src/config/model.ts), [model-huggingface.ts](../../src/config/model-huggingface.ts).`,
      schema: schemaBehind(parseModelConfig),
    },
    {
      name: "cluster",
      title: "Cluster",
      intro: `What \`moe plan --cluster\` reads: a file, or the name of a preset (${names(clusterPresets)}). Devices (${names(devicePresets)}) and links (${names(linkPresets)}) may be given by name, too; numbers of the presets are in [cluster-presets.ts](../../src/config/cluster-presets.ts). Source: [src/config/cluster.ts](../../src/config/cluster.ts).`,
      schema: schemaBehind(parseClusterConfig),
    },
  ];
}

function names(of: Readonly<Record<string, unknown>>): string {
  return Object.keys(of)
    .map((name) => `\`${name}\``)
    .join(", ");
}

/** The schema that `parse` checks with: zod names it where a value is refused. Exported, it would be a part of the package's interface. */
function schemaBehind(parse: (value: unknown) => unknown): z.ZodType {
  let schema: unknown;
  z.config({
    customError: ({ inst }) => {
      schema ??= inst;
      return undefined;
    },
  });
  try {
    parse(null);
  } catch {
    // It refuses null, as it should.
  } finally {
    z.config({ customError: undefined });
  }
  if (schema instanceof z.ZodType) return schema;
  throw new Error(`${parse.name} accepts null: no schema to describe`);
}

/** Comments of all schemas of `src/config`. */
function allComments(): Map<string, SchemaComments> {
  const files = readdirSync(config).filter((name) => name.endsWith(".ts") && !name.endsWith(".test.ts"));
  return schemaComments(files.map((name) => readFileSync(new URL(name, config), "utf8")).join("\n"));
}

/** The page. Throws for a field that nothing describes, and for a text that is no longer needed. */
export function configurationPage(): string {
  const comments = allComments();
  const sections = parts().map(({ name, title, intro, ...part }) => {
    const texts: Readonly<Record<string, string>> = fieldTexts[name];
    const { markdown, usedTexts } = schemaTables(part, { comments, texts });
    const idle = Object.keys(texts).filter((path) => !usedTexts.includes(path));
    if (idle.length > 0)
      throw new Error(
        `scripts/docs/field-texts.ts: ${name} ${idle.join(", ")}: a comment describes the field, or there is none of that name`,
      );
    return `## ${title}\n\n${intro}\n\n${markdown}`;
  });
  return `# Configuration reference

${generatedNote("the schemas of `src/config`")}

Files are JSON. An unknown key is an error that names the nearest known one; so is a value out of its bounds, and values that contradict each other,
which are all printed. An option without an effect is a warning. "required" fields have no default; "none" is optional and absent by default.

${sections.join("\n\n")}
`;
}
