/**
 * Builds the native library: every kernel file once per instruction set, the runtime once, linked into
 * build/native/<platform>-<arch>/libmoe.so (libmoe.dylib on macOS). Usage:
 *
 *   node native/build.mjs                   the library; does nothing where nothing changed
 *   node native/build.mjs --sanitize        with AddressSanitizer and UBSan, into build/native/<platform>-<arch>-sanitize/
 *   node native/build.mjs --target aarch64  the NEON kernels and their C harness, run under qemu-aarch64 where it is installed
 *   node native/build.mjs --keep-going      leaves out kernel files that do not compile (their kernels throw when called)
 * Where mpicc is, libmoempi.so too, from native/ranks/mpi.c: communicators between processes. Without it nothing is missing on one machine.
 *
 *   --werror: warnings are errors; --quiet: only errors
 *
 * An instruction set that the compiler does not know is left out. Objects and library are written under a temporary name and
 * renamed: two builds at once are wasteful, not wrong, and a running program keeps the library that it has mapped.
 * Plain JavaScript for any Node from 20 on, because installing the package runs it.
 */
import { execFile, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, isAbsolute, join, relative } from "node:path";
import { promisify } from "node:util";
import {
  commonFlags,
  hashFile,
  instructionSets,
  kernelFiles,
  mpiFiles,
  nativeOnlyFiles,
  rootDir,
  runtimeFiles,
  sha256,
} from "./sources.mjs";

const run = promisify(execFile);
const parallelJobs = 2;
const sanitizeFlags = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"];

function fail(message) {
  console.error(message);
  process.exit(1);
}

function parseArguments(args) {
  const options = { sanitize: false, keepGoing: false, werror: false, quiet: false, target: "" };
  for (let i = 0; i < args.length; i++) {
    if (args[i] === "--sanitize") options.sanitize = true;
    else if (args[i] === "--keep-going") options.keepGoing = true;
    else if (args[i] === "--werror") options.werror = true;
    else if (args[i] === "--quiet") options.quiet = true;
    else if (args[i] === "--target" && args[i + 1] === "aarch64") options.target = args[++i];
    else {
      console.error(
        `native/build.mjs: unknown argument ${args[i]}; known are --sanitize, --keep-going, --werror, --quiet, --target aarch64`,
      );
      process.exit(2);
    }
  }
  return options;
}

/** The compiler's first version line, or null where it does not run. */
function versionOf(compiler) {
  const result = spawnSync(compiler, ["--version"], { encoding: "utf8" });
  return result.status === 0 ? result.stdout.split("\n")[0] : null;
}

/** CC of the environment, else the usual names. */
function findCompiler(candidates) {
  for (const command of candidates) {
    const version = versionOf(command);
    if (version !== null) return { command, version };
  }
  return null;
}

function supports(compiler, flags) {
  return spawnSync(compiler.command, [...flags, "-Werror", "-fsyntax-only", "-x", "c", "-"], { input: "int x;\n" }).status === 0;
}

/** One compilation. `stamp` records what went in, so that the next build can tell whether anything changed. */
function makeUnit(compiler, source, set, flags, objectDir) {
  const object = join(objectDir, `${basename(source, ".c")}${set === "" ? "" : `.${set}`}.o`);
  return { source, set, flags, object, stamp: `${object}.json`, key: sha256(JSON.stringify([compiler.version, flags])) };
}

function isFresh(unit) {
  try {
    const stamp = JSON.parse(readFileSync(unit.stamp, "utf8"));
    if (stamp.key !== unit.key || !existsSync(unit.object)) return false;
    return Object.entries(stamp.inputs).every(([path, hash]) => hashFile(join(rootDir, path)) === hash);
  } catch {
    return false;
  }
}

/** Paths of this repository in a make rule `object: a b \ c`. */
function parseDependencies(text) {
  return text
    .slice(text.indexOf(":") + 1)
    .replaceAll("\\\n", " ")
    .split(/\s+/)
    .filter((path) => path !== "")
    .map((path) => relative(rootDir, isAbsolute(path) ? path : join(rootDir, path)))
    .filter((path) => !path.startsWith(".."));
}

async function compile(compiler, unit, quiet) {
  const temporary = `${unit.object}.${process.pid}`;
  const args = [...unit.flags, "-MMD", "-MF", `${temporary}.d`, "-c", unit.source, "-o", temporary];
  const { stderr } = await run(compiler.command, args, { cwd: rootDir, maxBuffer: 1 << 26 });
  if (stderr !== "" && !quiet) process.stderr.write(stderr);
  const inputs = parseDependencies(readFileSync(`${temporary}.d`, "utf8"));
  renameSync(temporary, unit.object);
  writeFileSync(
    unit.stamp,
    JSON.stringify({ key: unit.key, inputs: Object.fromEntries(inputs.map((path) => [path, hashFile(join(rootDir, path))])) }),
  );
  rmSync(`${temporary}.d`);
}

/** Compiles what is stale, a few at a time. Returns the units that failed with the compiler's words. */
async function compileAll(compiler, units, quiet) {
  const stale = units.filter((unit) => !isFresh(unit));
  const failures = [];
  let next = 0;
  async function worker() {
    while (next < stale.length) {
      const unit = stale[next++];
      try {
        await compile(compiler, unit, quiet);
      } catch (error) {
        failures.push({ unit, text: error.stderr || error.message });
      }
    }
  }
  await Promise.all(Array.from({ length: parallelJobs }, worker));
  return { numCompiled: stale.length, failures };
}

/** A file of native/, from the root: what the compiler is told, so that no absolute path ends up in an object. */
function inNative(name) {
  return join("native", name);
}

function plan(compiler, sets, extraFlags, objectDir) {
  const base = [...commonFlags, "-fPIC", "-pthread", ...extraFlags];
  const units = [...runtimeFiles, ...nativeOnlyFiles].map((name) => makeUnit(compiler, inNative(name), "", base, objectDir));
  for (const [set, flags] of Object.entries(sets)) {
    for (const name of kernelFiles())
      units.push(makeUnit(compiler, inNative(name), set, [...base, ...flags, `-DMOE_ISA=${set}`], objectDir));
  }
  return units;
}

function link(compiler, output, args) {
  const temporary = `${output}.${process.pid}`;
  const result = spawnSync(compiler.command, ["-o", temporary, ...args], { encoding: "utf8", cwd: rootDir });
  if (result.status !== 0) fail(`native/build.mjs: linking ${relative(rootDir, output)} failed\n${result.stderr ?? result.error}`);
  renameSync(temporary, output);
}

function report(failures, keepGoing) {
  for (const { unit, text } of failures)
    console.error(`native/build.mjs: ${unit.source}${unit.set && ` (${unit.set})`} does not compile\n${text}`);
  if (failures.length > 0 && !keepGoing) process.exit(1);
}

async function buildLibrary(options) {
  const { platform, arch } = process;
  if (platform === "win32" || !(arch in instructionSets))
    fail(`native/build.mjs: no native library for ${platform}-${arch}; the WebAssembly engine works there`);
  const compiler = findCompiler(process.env.CC ? [process.env.CC] : ["cc", "gcc", "clang"]);
  if (compiler === null) fail("native/build.mjs: no C compiler found (tried CC, cc, gcc, clang); the WebAssembly engine works without one");
  const directory = join(rootDir, "build", "native", `${platform}-${arch}${options.sanitize ? "-sanitize" : ""}`);
  const objectDir = join(directory, "objects");
  mkdirSync(objectDir, { recursive: true });
  const sets = Object.fromEntries(Object.entries(instructionSets[arch]).filter(([, flags]) => supports(compiler, flags)));
  const extraFlags = [...(options.sanitize ? sanitizeFlags : []), ...(options.werror ? ["-Werror"] : [])];
  const units = plan(compiler, sets, extraFlags, objectDir);
  const { numCompiled, failures } = await compileAll(compiler, units, options.quiet);
  report(failures, options.keepGoing);
  const broken = new Set(failures.map(({ unit }) => unit));
  const objects = units.filter((unit) => !broken.has(unit)).map((unit) => unit.object);
  const library = join(directory, platform === "darwin" ? "libmoe.dylib" : "libmoe.so");
  const linkStamp = join(directory, "libmoe.json");
  const key = sha256(JSON.stringify([compiler.version, extraFlags, objects.map((object) => [object, hashFile(object)])]));
  const isLinked = existsSync(library) && existsSync(linkStamp) && JSON.parse(readFileSync(linkStamp, "utf8")).key === key;
  if (!isLinked) {
    // nodelete: a thread of the pool may outlive the Node worker that loaded the library. A sanitizer's symbols come from outside.
    const linuxFlags = ["-Wl,-z,nodelete", ...(options.sanitize ? [] : ["-Wl,-z,defs"])];
    link(compiler, library, ["-shared", "-pthread", ...extraFlags, ...(platform === "linux" ? linuxFlags : []), ...objects]);
    writeFileSync(linkStamp, JSON.stringify({ key, compiler: compiler.version, sets: Object.keys(sets) }));
  }
  if (!options.quiet)
    console.log(
      `${relative(rootDir, library)}: ${Object.keys(sets).join(", ")} (${numCompiled} of ${units.length} compiled, ${compiler.version})`,
    );
}

/** libmoempi.so, where MPI can be compiled for: MPICC of the environment, else mpicc. A failure costs a line, not the build. */
async function buildMpi(options) {
  const compiler = findCompiler(process.env.MPICC ? [process.env.MPICC] : ["mpicc"]);
  if (compiler === null) {
    if (!options.quiet) console.log("libmoempi: not built, mpicc was not found (Debian: apt install openmpi-bin libopenmpi-dev)");
    return;
  }
  const { platform, arch } = process;
  const directory = join(rootDir, "build", "native", `${platform}-${arch}`);
  const objectDir = join(directory, "objects", "mpi");
  mkdirSync(objectDir, { recursive: true });
  const flags = [...commonFlags, "-fPIC", "-pthread", ...(options.werror ? ["-Werror"] : [])];
  const units = mpiFiles.map((name) => makeUnit(compiler, inNative(name), "", flags, objectDir));
  const { numCompiled, failures } = await compileAll(compiler, units, options.quiet);
  if (failures.length > 0) return report(failures, true);
  const library = join(directory, platform === "darwin" ? "libmoempi.dylib" : "libmoempi.so");
  const key = sha256(JSON.stringify([compiler.version, units.map(({ object }) => hashFile(object))]));
  const stamp = join(directory, "libmoempi.json");
  if (!existsSync(library) || !existsSync(stamp) || JSON.parse(readFileSync(stamp, "utf8")).key !== key) {
    const linuxFlags = platform === "linux" ? ["-Wl,-z,nodelete"] : [];
    link(compiler, library, ["-shared", "-pthread", ...linuxFlags, ...units.map(({ object }) => object), "-ldl"]);
    writeFileSync(stamp, JSON.stringify({ key, compiler: compiler.version }));
  }
  if (!options.quiet) console.log(`${relative(rootDir, library)} (${numCompiled} of ${units.length} compiled, ${compiler.command})`);
}

/** A C table of the kernels that `objects` define: the program is static and cannot look names up itself. */
function writeKernelTable(nm, objects, path) {
  const result = spawnSync(nm, ["--defined-only", ...objects], { encoding: "utf8", cwd: rootDir });
  if (result.status !== 0) fail(`native/build.mjs: ${nm} failed\n${result.stderr ?? result.error}`);
  const names = [...new Set(Array.from(result.stdout.matchAll(/ T (moe_(?!local_)\w+_neon)$/gm), (match) => match[1]))].toSorted((a, b) =>
    a < b ? -1 : 1,
  );
  const text = [
    ...names.map((name) => `void ${name}(void);`),
    "static const entry kernels[] = {",
    ...names.map((name) => `  {"${name}", ${name}},`),
    "};",
    "",
  ].join("\n");
  if (!existsSync(path) || readFileSync(path, "utf8") !== text) writeFileSync(path, text);
}

/** The NEON kernels as a static program of their own, because a machine that builds is seldom one that has NEON. */
async function buildAarch64Harness(options) {
  const isHere = process.arch === "arm64";
  const compiler = findCompiler(isHere ? ["cc", "gcc", "clang"] : ["aarch64-linux-gnu-gcc"]);
  if (compiler === null) fail("native/build.mjs: --target aarch64 needs aarch64-linux-gnu-gcc (Debian: gcc-aarch64-linux-gnu)");
  const directory = join(rootDir, "build", "native", "aarch64-harness");
  mkdirSync(directory, { recursive: true });
  const extraFlags = options.werror ? ["-Werror"] : [];
  const units = plan(compiler, instructionSets.arm64, extraFlags, directory);
  const compiled = await compileAll(compiler, units, options.quiet);
  report(compiled.failures, false);
  const objects = units.map((unit) => unit.object);
  writeKernelTable(isHere ? "nm" : "aarch64-linux-gnu-nm", objects, join(directory, "neon_kernels.inc"));
  const flags = [...commonFlags, ...extraFlags, "-Inative", `-I${relative(rootDir, directory)}`, "-Wno-cast-function-type"];
  const harness = makeUnit(compiler, join("native", "test", "neon.c"), "", flags, directory);
  report((await compileAll(compiler, [harness], options.quiet)).failures, false);
  const program = join(directory, "neon");
  link(compiler, program, ["-static", "-pthread", ...objects, harness.object, "-lm"]);
  if (!isHere && versionOf("qemu-aarch64") === null) {
    console.log(`${relative(rootDir, program)}: built; not run, because qemu-aarch64 is not installed (Debian: qemu-user)`);
    return;
  }
  const runner = isHere ? [program] : ["qemu-aarch64", program];
  process.exitCode = spawnSync(runner[0], [...runner.slice(1), "--self-test"], { stdio: "inherit" }).status ?? 1;
}

const options = parseArguments(process.argv.slice(2));
await (options.target === "aarch64" ? buildAarch64Harness(options) : buildLibrary(options));
if (options.target === "" && !options.sanitize) await buildMpi(options);
