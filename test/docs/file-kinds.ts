/** What a JSON block of a page can be said to be, and the function of ours that reads such a file. */
import { parseClusterConfig } from "../../src/config/cluster.ts";
import { completeLayout, parseLayout } from "../../src/config/layout.ts";
import { fromHuggingFaceConfig } from "../../src/config/model-huggingface.ts";
import { parseRunConfig } from "../../src/config/run.ts";
import { parseUpcycleOptions } from "../../src/upcycle/index.ts";

/** Each throws where the value is not what it should be. */
export const fileKinds: Readonly<Record<string, (value: unknown, what: string) => void>> = {
  layout: (value, what) => void completeLayout(parseLayout(value, what), what),
  "run configuration": (value, what) => void parseRunConfig(value, what),
  "cluster file": (value, what) => void parseClusterConfig(value, what),
  "model configuration": (value, what) => void fromHuggingFaceConfig(value, what),
  "file of upcycling options": (value, what) => void parseUpcycleOptions({ numExperts: 8, topK: 2, ...(value as object) }, what),
};
