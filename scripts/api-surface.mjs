/**
 * The public types of the package as one text: the declarations of every module that `src/api/index.ts` exports from, without
 * comments. Compared with `test/golden/api-surface.txt`, so that a change of the interface is seen in review; `--write` renews it.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const rootDir = dirname(dirname(fileURLToPath(import.meta.url)));
const snapshot = join(rootDir, "test", "golden", "api-surface.txt");

/** Modules re-exported from a declaration file, followed through index files. */
function modulesOf(path) {
  const text = readFileSync(path, "utf8");
  const targets = [...text.matchAll(/^export .* from "(\.[^"]+)";$/gm)].map(([, target]) =>
    join(dirname(path), target.replace(/\.(ts|js)$/, ".d.ts")),
  );
  return targets.flatMap((target) => (target.endsWith("index.d.ts") ? modulesOf(target) : [target]));
}

function surface() {
  const entry = join(rootDir, "dist", "api", "index.d.ts");
  const withoutComments = (path) =>
    readFileSync(path, "utf8")
      .replaceAll(/\/\*\*[\s\S]*?\*\//g, "")
      .replaceAll(/\/\/# sourceMappingURL.*/g, "")
      .replaceAll(/\n\s*\n/g, "\n")
      .trim();
  const modules = [...new Set(modulesOf(entry))].toSorted((a, b) => a.localeCompare(b, "en"));
  return [entry, ...modules].map((path) => `// ${relative(join(rootDir, "dist"), path)}\n${withoutComments(path)}\n`).join("\n");
}

const text = surface();
if (process.argv.includes("--write")) writeFileSync(snapshot, text);
else if (readFileSync(snapshot, "utf8") !== text) {
  console.error("the public interface differs from test/golden/api-surface.txt; if that is meant: node scripts/api-surface.mjs --write");
  process.exit(1);
}
