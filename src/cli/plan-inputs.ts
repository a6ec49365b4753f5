/** What `moe plan` is given as files or names: a model's configuration and a cluster. Nothing of the compute engine is read. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { clusterPresets } from "../config/cluster-presets.ts";
import { findClusterPreset, parseClusterConfig, type ClusterConfig } from "../config/cluster.ts";
import { fromHuggingFaceConfig } from "../config/model-huggingface.ts";
import { modelPresets } from "../config/model-presets.ts";
import type { ModelConfig } from "../config/model.ts";
import { fileError, MoeError } from "../util/errors.ts";
import { systemError } from "../util/files.ts";
import { didYouMean } from "../util/nearest.ts";

/** A preset's name, a folder with config.json, or a file in the form of config.json. Throws `file` and `configuration`. */
export function readModel(source: string): ModelConfig {
  const preset = presetOf(modelPresets, source);
  if (preset !== undefined && !existsSync(source)) return preset;
  if (!existsSync(source)) throw unknownName(source, "a model's config.json, a folder with one or a preset", Object.keys(modelPresets));
  const path = isFolder(source) ? join(source, "config.json") : source;
  return fromHuggingFaceConfig(readJson(path, "a model's config.json"), path);
}

/** A preset's name or a cluster file. Throws `file` and `configuration`. */
export function readCluster(source: string): ClusterConfig {
  if (existsSync(source)) return parseClusterConfig(readJson(source, "a cluster file (JSON)"), source);
  // What looks like a path is one that does not exist; a bare name is a preset, or nearly one.
  if (source.includes("/") || source.endsWith(".json"))
    throw unknownName(source, "a cluster file (JSON) or a preset", Object.keys(clusterPresets));
  return findClusterPreset(source);
}

function presetOf<T>(presets: Readonly<Record<string, T>>, name: string): T | undefined {
  return Object.hasOwn(presets, name) ? presets[name] : undefined;
}

function unknownName(source: string, expected: string, known: readonly string[]): MoeError {
  return fileError(source, expected, `nothing of that name${didYouMean(source, known)}; presets: ${known.join(", ")}`);
}

function isFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}

function readJson(path: string, expected: string): unknown {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw systemError(path, expected, error);
  }
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    throw fileError(path, expected, `text that is not JSON (${error instanceof Error ? error.message : String(error)})`, error);
  }
}
