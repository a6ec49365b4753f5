/**
 * Builds the WebAssembly engine: the same kernel files as the native library, as one more instruction set (simd128), with the pool's
 * atomics and a shared memory that the host brings. The artifact is committed (native/prebuilt/moe.wasm) because few machines
 * have clang; MANIFEST.json beside it says what it was made from. Usage:
 *
 *   node native/build-wasm.mjs           builds and writes moe.wasm and MANIFEST.json
 *   node native/build-wasm.mjs --check   builds elsewhere and compares bytes and hashes with what is committed
 *   --keep-going                         leaves out kernel files that do not compile; never writes a manifest that --check accepts
 *
 * The bytes depend on the compiler's version and the sources alone: paths are relative, nothing of the machine is written down.
 * No relaxed SIMD: its results differ between processors.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { commonFlags, hashFile, kernelFiles, rootDir, runtimeFiles, sha256, sourceHashes } from "./sources.mjs";

const prebuiltDir = join(rootDir, "native", "prebuilt");
const artifactPath = join(prebuiltDir, "moe.wasm");
const manifestPath = join(prebuiltDir, "MANIFEST.json");
const clangMajor = 19;

const compileFlags = [
  "--target=wasm32-unknown-unknown",
  ...commonFlags,
  "-nostdlibinc",
  "-msimd128",
  "-matomics",
  "-mbulk-memory",
  "-mmutable-globals",
];
const stackBytes = 1 << 20;
/** Holds stack and data; the heap takes its own. The host must bring a memory of the same limits (src/backend/wasm/instance.ts). */
const initialMemoryBytes = 4 << 20;
/** 4 GiB, the most that 32-bit addresses reach. */
const maxMemoryBytes = 65536 * 65536;
const linkFlags = [
  "--no-entry",
  "--import-memory",
  "--shared-memory",
  `--initial-memory=${initialMemoryBytes}`,
  `--max-memory=${maxMemoryBytes}`,
  "--stack-first",
  "-z",
  `stack-size=${stackBytes}`,
  "--export-dynamic",
  "--export=__stack_pointer",
  "--export-if-defined=__wasm_init_tls",
  "--export-if-defined=__tls_size",
  "--export-if-defined=__tls_align",
  "--gc-sections",
  "--strip-all",
];

function fail(message) {
  console.error(message);
  process.exit(1);
}

function findTool(candidates) {
  for (const command of candidates) {
    const result = spawnSync(command, ["--version"], { encoding: "utf8" });
    // "Debian clang version 19.1.7 (3+b1)" and "Debian LLD 19.1.7": the packager and the package revision do not change the bytes.
    const version = result.status === 0 ? /(\d+)\.\d+\.\d+/.exec(result.stdout) : null;
    if (version !== null && Number(version[1]) === clangMajor) return { command, version: version[0] };
  }
  return fail(
    `native/build-wasm.mjs: expected clang and wasm-ld of version ${clangMajor} (Debian: clang-${clangMajor} lld-${clangMajor}), found none of ${candidates.join(", ")}`,
  );
}

/** Compiles and links into `output`. Returns the files that were left out (--keep-going). */
function build(clang, linker, output, keepGoing) {
  const directory = join(rootDir, "build", "wasm");
  mkdirSync(directory, { recursive: true });
  const units = [
    ...runtimeFiles.map((name) => ({ name, flags: [] })),
    { name: "wasm/libc.c", flags: ["-fno-builtin"] },
    ...kernelFiles().map((name) => ({ name, flags: ["-DMOE_ISA=simd128"] })),
  ];
  const objects = [];
  const leftOut = [];
  for (const { name, flags } of units) {
    const object = join("build", "wasm", `${name.replaceAll("/", "-")}.${process.pid}.o`);
    const args = [...compileFlags, ...flags, "-c", `native/${name}`, "-o", object];
    const result = spawnSync(clang.command, args, { cwd: rootDir, encoding: "utf8" });
    if (result.stderr) process.stderr.write(result.stderr);
    if (result.status === 0) objects.push(object);
    else if (keepGoing) leftOut.push(name);
    else fail(`native/build-wasm.mjs: native/${name} does not compile`);
  }
  const result = spawnSync(linker.command, [...linkFlags, ...objects, "-o", output], { cwd: rootDir, encoding: "utf8" });
  for (const object of objects) rmSync(join(rootDir, object));
  if (result.status !== 0) fail(`native/build-wasm.mjs: linking failed\n${result.stderr}`);
  return leftOut;
}

function manifestOf(clang, linker, output) {
  return {
    artifact: "moe.wasm",
    sha256: hashFile(output),
    compiler: `clang ${clang.version}, lld ${linker.version}`,
    compileFlags: [...compileFlags, "-DMOE_ISA=simd128"],
    linkFlags,
    sources: sourceHashes(["wasm"]),
  };
}

const known = ["--check", "--keep-going"];
const args = process.argv.slice(2);
const unknown = args.find((arg) => !known.includes(arg));
if (unknown !== undefined) {
  console.error(`native/build-wasm.mjs: unknown argument ${unknown}; known are ${known.join(", ")}`);
  process.exit(2);
}
const clang = findTool(process.env.WASM_CC ? [process.env.WASM_CC] : [`clang-${clangMajor}`, "clang"]);
const linker = findTool(process.env.WASM_LD ? [process.env.WASM_LD] : [`wasm-ld-${clangMajor}`, "wasm-ld"]);
const temporary = join(rootDir, "build", `moe.${process.pid}.wasm`);
mkdirSync(join(rootDir, "build"), { recursive: true });
const leftOut = build(clang, linker, temporary, args.includes("--keep-going"));
const manifest = manifestOf(clang, linker, temporary);
if (leftOut.length > 0) manifest.leftOut = leftOut;
const text = `${JSON.stringify(manifest, null, 2)}\n`;
if (args.includes("--check")) {
  const committed = readFileSync(artifactPath);
  rmSync(temporary);
  if (sha256(committed) !== manifest.sha256)
    fail(
      `native/prebuilt/moe.wasm: expected the bytes that the sources give (${manifest.sha256}), got ${sha256(committed)}; run npm run build:wasm and commit`,
    );
  if (readFileSync(manifestPath, "utf8") !== text)
    fail("native/prebuilt/MANIFEST.json: expected the hashes and flags of this build; run npm run build:wasm and commit");
  console.log(`native/prebuilt/moe.wasm: the sources give these bytes (${committed.length} bytes, ${manifest.compiler})`);
} else {
  mkdirSync(prebuiltDir, { recursive: true });
  renameSync(temporary, artifactPath);
  writeFileSync(manifestPath, text);
  console.log(
    `${relative(rootDir, artifactPath)}: ${readFileSync(artifactPath).length} bytes (${manifest.compiler})${leftOut.length > 0 ? `, without ${leftOut.join(", ")}` : ""}`,
  );
}
