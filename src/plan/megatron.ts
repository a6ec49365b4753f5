/**
 * Megatron-LM's `--pipeline-model-parallel-layout`: which layers lie on which pipeline stage, as a string. `E` embedding, `t` a decoder
 * layer, `m` a multi-token-prediction layer, `L` the loss; stages are separated by `|`, in the order of the model (stage i on pipeline rank i mod pp);
 * `x*n` repeats one letter and `(...)*n` a group without parentheses inside; commas mean nothing.
 * Grammar: `parse_str_to_list` in `megatron/core/transformer/pipeline_parallel_layer_layout.py` (NVIDIA/Megatron-LM, read in 2026).
 */
import { MoeError } from "../util/errors.ts";

/** What one stage has. */
export interface MegatronStage {
  readonly embedding: boolean;
  readonly numLayers: number;
  readonly loss: boolean;
}

/** `[5, 5, 5, 2]` as `Et*5|(t*5|)*2,t*2L`. */
export function megatronLayout(layers: readonly number[]): string {
  const stages = layers.map((n, s) => {
    const decoder = n === 0 ? "" : n === 1 ? "t" : `t*${n}`;
    return `${s === 0 ? "E" : ""}${decoder}${s === layers.length - 1 ? "L" : ""}`;
  });
  const parts: string[] = [];
  for (let s = 0; s < stages.length;) {
    let end = s + 1;
    while (end < stages.length - 1 && stages[end] === stages[s]) end++;
    const stage = `${stages[s] ?? ""}${end === stages.length ? "" : "|"}`;
    parts.push(end - s > 1 ? `(${stage})*${end - s}` : stage);
    s = end;
  }
  // A comma behind a count keeps its digits apart from what follows, for people.
  return parts.reduce((text, part) => (/\d$/.test(text) ? `${text},${part}` : text + part), "");
}

/** Reads a layout as Megatron does. Throws `configuration` for letters that it does not know or this program does not build. */
export function parseMegatronLayout(text: string): MegatronStage[] {
  const refuse = (problem: string): never => {
    throw new MoeError("configuration", `pipeline layout "${text}": ${problem}`);
  };
  const repeat = (_: string, what: string, count: string): string => {
    if (Number(count) > 10_000) refuse(`${count} repetitions`);
    return what.repeat(Number(count));
  };
  const unrolled = text
    .replaceAll(",", "")
    .replaceAll(/\(([^)]+)\)\*(\d+)/g, repeat)
    .replaceAll(/(.)\*(\d+)/g, repeat);
  const stages = unrolled.split("|").map((stage): MegatronStage => {
    const odd = /[^EtL]/.exec(stage)?.[0];
    if (odd === "m") refuse("has multi-token-prediction layers (m), which this program does not build");
    if (odd !== undefined)
      refuse(`unknown letter "${odd}"; E embedding, t decoder layer, L loss, | between stages, x*n and (...)*n repeat`);
    return { embedding: stage.includes("E"), numLayers: stage.split("t").length - 1, loss: stage.includes("L") };
  });
  const flat = unrolled.replaceAll("|", "");
  if (!/^Et*L$/.test(flat)) refuse("expected one E at the beginning, one L at the end and decoder layers between");
  return stages;
}
