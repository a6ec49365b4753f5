/**
 * Writes what we export of every golden model, for `check_exports.py`: `node test/golden/models/export.ts <folder>`.
 */
import { join } from "node:path";
import { loadBackend } from "../../../src/backend/load.ts";
import { loadModel, saveModel } from "../../../src/model/index.ts";
import { Engine } from "../../../src/tensor/index.ts";
import { goldenFolder, goldenNames } from "./golden.ts";

const [folder] = process.argv.slice(2);
if (folder === undefined) throw new Error("usage: node export.ts <folder>");
using engine = new Engine(await loadBackend());
for (const name of goldenNames) {
  for (const dtype of ["f32", "bf16"] as const) {
    using model = loadModel(engine, goldenFolder(name), { dtype });
    saveModel(model, join(folder, `${name}.${dtype}`));
  }
}
