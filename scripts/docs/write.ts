/** Writes the generated pages of `docs/reference` that are committed. Usage: node scripts/docs/write.ts */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { generatedPages } from "./pages.ts";

for (const { url, text } of await generatedPages()) {
  const path = fileURLToPath(url);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}
