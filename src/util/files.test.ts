import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MoeError } from "./errors.ts";
import {
  AtomicFile,
  openForReading,
  readFully,
  removeTemporaries,
  temporaryName,
  writeDirectoryAtomically,
  writeFileAtomically,
  writeFully,
} from "./files.ts";

let directory = "";
beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), "moe-files-"));
});
afterEach(() => {
  fs.rmSync(directory, { recursive: true, force: true });
});

function caught(run: () => unknown): MoeError {
  try {
    run();
  } catch (error) {
    if (error instanceof MoeError) return error;
    throw error;
  }
  throw new Error("expected an error, got none");
}

describe("an atomic file", () => {
  it("has its name and its content only after commit", () => {
    const target = path.join(directory, "a.bin");
    using file = new AtomicFile(target);
    file.write(new Uint8Array([1, 2]), 1);
    expect(fs.existsSync(target)).toBe(false);
    file.commit();
    expect([...fs.readFileSync(target)]).toEqual([0, 1, 2]);
    expect(fs.readdirSync(directory)).toEqual(["a.bin"]);
  });

  it("leaves the older file alone and nothing behind when it is not committed", () => {
    const target = path.join(directory, "a.bin");
    writeFileAtomically(target, "old");
    {
      using file = new AtomicFile(target);
      file.write(new Uint8Array(10), 0);
      file.seal();
    }
    expect(fs.readFileSync(target, "utf8")).toBe("old");
    expect(fs.readdirSync(directory)).toEqual(["a.bin"]);
  });

  it("cannot be written to or committed after it was aborted", () => {
    using file = new AtomicFile(path.join(directory, "a.bin"));
    file.abort();
    expect(caught(() => file.write(new Uint8Array(1), 0)).kind).toBe("internal");
    expect(caught(() => file.commit()).kind).toBe("internal");
  });

  it("names the file when its folder does not exist", () => {
    const target = path.join(directory, "no", "a.bin");
    const error = caught(() => writeFileAtomically(target, "x"));
    expect(error.kind).toBe("file");
    expect(error.message).toContain(target);
    expect(error.message).toContain("ENOENT");
  });

  it("a killed writer leaves a temporary that is found and swept, and no file", () => {
    const target = path.join(directory, "a.bin");
    const script = `import { AtomicFile } from ${JSON.stringify(path.join(import.meta.dirname, "files.ts"))};
      const file = new AtomicFile(${JSON.stringify(target)}); file.write(new Uint8Array(100), 0); process.kill(process.pid, "SIGKILL");`;
    const child = spawnSync(process.execPath, ["--input-type=module", "-e", script]);
    expect(child.signal).toBe("SIGKILL");
    expect(fs.existsSync(target)).toBe(false);
    expect(fs.readdirSync(directory)).toHaveLength(1);
    expect(removeTemporaries(directory, "other.bin")).toBe(0);
    expect(removeTemporaries(directory, "a.bin")).toBe(1);
    expect(fs.readdirSync(directory)).toEqual([]);
  });

  it("what another process that runs is writing is not swept", () => {
    const theirs = path.join(directory, `.a.bin.${process.ppid}-0123abcd.tmp`);
    fs.writeFileSync(theirs, "half");
    expect(removeTemporaries(directory, "a.bin")).toBe(0);
    expect(fs.existsSync(theirs)).toBe(true);
  });
});

describe("a disk that refuses", () => {
  it.runIf(fs.existsSync("/dev/full"))("a full disk is an error of kind resource that names the file and says so", () => {
    const fd = fs.openSync("/dev/full", "w");
    const error = caught(() => writeFully(fd, new Uint8Array(8), 0, "weights.bin"));
    fs.closeSync(fd);
    expect(error.kind).toBe("resource");
    expect(error.exitCode).toBe(1);
    expect(error.message).toMatch(/^weights\.bin: expected to write 8 bytes at offset 0 \(0 written\), but no space left on the disk/);
  });

  // `ulimit -f` makes the system refuse at a real position in a real file, the way a full disk does, half-way through a write.
  it.runIf(process.platform === "linux")("a write that stops half-way leaves neither the file nor a temporary", () => {
    const target = path.join(directory, "a.bin");
    const script = `import { writeFileAtomically } from ${JSON.stringify(path.join(import.meta.dirname, "files.ts"))};
      try { writeFileAtomically(${JSON.stringify(target)}, new Uint8Array(1 << 20)); } catch (error) { console.log(error.kind + ": " + error.message); }`;
    const child = spawnSync("sh", ["-c", `ulimit -f 64; exec "$0" --input-type=module -e "$1"`, process.execPath, script], {
      encoding: "utf8",
    });
    expect(child.stdout).toMatch(
      /^resource: .*a\.bin: expected to write 1048576 bytes at offset 0 \(\d+ written\), but the file is larger/,
    );
    expect(fs.readdirSync(directory)).toEqual([]);
  });
});

describe("reading", () => {
  it("refuses a folder, a missing file and a pipe instead of waiting for it", () => {
    expect(caught(() => openForReading(directory)).message).toContain("a regular file");
    expect(caught(() => openForReading(path.join(directory, "none"))).message).toContain("nothing of that name (ENOENT)");
    if (process.platform !== "win32") {
      const pipe = path.join(directory, "pipe");
      spawnSync("mkfifo", [pipe]);
      expect(caught(() => openForReading(pipe)).kind).toBe("file");
    }
  });

  it("says where a file ended too early", () => {
    const target = path.join(directory, "short");
    writeFileAtomically(target, "abc");
    const { fd, size } = openForReading(target);
    expect(size).toBe(3);
    const error = caught(() => readFully(fd, new Uint8Array(4), 1, target));
    fs.closeSync(fd);
    expect(error.kind).toBe("file");
    expect(error.message).toContain("expected 4 bytes at offset 1, got the end of the file after 2 of them");
  });
});

describe("an atomic folder", () => {
  it("replaces an older folder as a whole", () => {
    const target = path.join(directory, "checkpoint");
    writeDirectoryAtomically(target, (d) => fs.writeFileSync(path.join(d, "old"), "1"));
    const result = writeDirectoryAtomically(target, (d) => {
      fs.mkdirSync(path.join(d, "sub"));
      fs.writeFileSync(path.join(d, "sub", "new"), "2");
      expect(fs.readdirSync(target)).toEqual(["old"]);
      return 7;
    });
    expect(result).toBe(7);
    expect(fs.readdirSync(target)).toEqual(["sub"]);
    expect(fs.readdirSync(directory)).toEqual(["checkpoint"]);
  });

  it("leaves the older folder alone when filling fails", () => {
    const target = path.join(directory, "checkpoint");
    writeDirectoryAtomically(target, (d) => fs.writeFileSync(path.join(d, "old"), "1"));
    const error = caught(() =>
      writeDirectoryAtomically(target, () => {
        throw new MoeError("resource", "full");
      }),
    );
    expect(error.message).toBe("full");
    expect(fs.readdirSync(target)).toEqual(["old"]);
    expect(fs.readdirSync(directory)).toEqual(["checkpoint"]);
  });
});

describe("a temporary name", () => {
  it("is hidden, beside its target and different each time", () => {
    const a = temporaryName("/x/model.safetensors");
    expect(path.dirname(a)).toBe("/x");
    expect(path.basename(a)).toMatch(/^\.model\.safetensors\..+\.tmp$/);
    expect(temporaryName("/x/model.safetensors")).not.toBe(a);
  });
});
