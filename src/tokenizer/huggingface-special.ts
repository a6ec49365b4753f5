/** The special tokens of a Hugging Face repository: which ids mean bos, eos, pad and unknown, which ids end a
 * generation, and what the post-processor puts around a text. Several files say it; the order of trust is
 * tokenizer_config.json, special_tokens_map.json, then the model itself. */

import { fileError, MoeError } from "../util/errors.ts";
import { asArray, asIndex, asObject, asString, describe, type JsonObject, optional } from "./json.ts";
import type { SpecialIds } from "./tokenizer.ts";

/** A token as text or as an added-token object. */
function contentOf(value: unknown): string | undefined {
  if (typeof value === "string") return value;
  if (typeof value === "object" && value !== null && "content" in value && typeof value.content === "string") return value.content;
  return undefined;
}

export function readSpecialIds(
  config: JsonObject,
  specialTokensMap: unknown,
  model: JsonObject,
  idOf: (content: string) => number | undefined,
  origin: string,
): SpecialIds {
  const map = optional(specialTokensMap, asObject, `${origin}: special_tokens_map.json`) ?? {};
  const find = (key: string): number | undefined => {
    const content = contentOf(config[key]) ?? contentOf(map[key]);
    return content === undefined ? undefined : idOf(content);
  };
  const modelUnk = contentOf(model["unk_token"]);
  const unigramUnk = typeof model["unk_id"] === "number" ? model["unk_id"] : undefined;
  return {
    bosId: find("bos_token"),
    eosId: find("eos_token"),
    padId: find("pad_token"),
    unkId: find("unk_token") ?? (modelUnk === undefined ? unigramUnk : idOf(modelUnk)),
  };
}

/** eos of the tokenizer and all of generation_config.json's `eos_token_id`. */
export function readEndIds(special: SpecialIds, generationConfig: unknown, vocabSize: number, origin: string): Set<number> {
  const ends = new Set<number>();
  if (special.eosId !== undefined) ends.add(special.eosId);
  const at = `${origin}: generation_config.json: eos_token_id`;
  const value = optional(generationConfig, asObject, `${origin}: generation_config.json`)?.["eos_token_id"];
  if (value === undefined || value === null) return ends;
  for (const id of Array.isArray(value) ? value : [value]) ends.add(asIndex(id, vocabSize, at));
  return ends;
}

export interface Around {
  readonly prefixIds: readonly number[];
  readonly suffixIds: readonly number[];
}

/** Ids before and after a single text. */
export function readAround(value: unknown, vocabSize: number, origin: string): Around {
  const at = `${origin}: post_processor`;
  const json = optional(value, asObject, at);
  if (json === undefined) return { prefixIds: [], suffixIds: [] };
  const type = asString(json["type"], `${at}.type`);
  switch (type) {
    case "ByteLevel":
      return { prefixIds: [], suffixIds: [] };
    case "TemplateProcessing":
      return template(json, vocabSize, at);
    case "BertProcessing":
    case "RobertaProcessing": {
      const id = (key: string): number => asIndex(asArray(json[key], `${at}.${key}`)[1], vocabSize, `${at}.${key}[1]`);
      return { prefixIds: [id("cls")], suffixIds: [id("sep")] };
    }
    case "Sequence": {
      const parts = asArray(json["processors"], `${at}.processors`).map((part, i) => readAround(part, vocabSize, `${at}.processors[${i}]`));
      return { prefixIds: parts.toReversed().flatMap((part) => part.prefixIds), suffixIds: parts.flatMap((part) => part.suffixIds) };
    }
    default:
      throw new MoeError("unsupported", `${at}: post-processor ${describe(type)} is not supported`);
  }
}

function template(json: JsonObject, vocabSize: number, at: string): Around {
  const special = asObject(json["special_tokens"] ?? {}, `${at}.special_tokens`);
  const prefixIds: number[] = [];
  const suffixIds: number[] = [];
  let numTexts = 0;
  asArray(json["single"], `${at}.single`).forEach((entry, i) => {
    const item = asObject(entry, `${at}.single[${i}]`);
    if (item["Sequence"] !== undefined) {
      numTexts++;
      return;
    }
    const name = asString(asObject(item["SpecialToken"], `${at}.single[${i}].SpecialToken`)["id"], `${at}.single[${i}].SpecialToken.id`);
    const token = asObject(special[name], `${at}.special_tokens[${describe(name)}]`);
    for (const id of asArray(token["ids"], `${at}.special_tokens[${describe(name)}].ids`)) {
      (numTexts === 0 ? prefixIds : suffixIds).push(asIndex(id, vocabSize, `${at}.special_tokens[${describe(name)}].ids`));
    }
  });
  if (numTexts !== 1) throw fileError(`${at}.single`, "the text once", `${numTexts} times`);
  return { prefixIds, suffixIds };
}
