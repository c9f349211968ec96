/**
 * The snapshot of the executable (native/memory.h says what it is, and why its blocks have an order): made by the program
 * itself, ordered by what a program like it writes to, and put into the program.
 */

import { execFileSync, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { addToLdCache } from "../src/host/ld-cache.ts";

/**
 * What the program writes that is linked with an empty snapshot: the memory of an engine that has loaded its doors.
 * @param order of its blocks; without one, they lie in the order in which they are made
 */
function makeSnapshot(program: string, order?: readonly Block[]): Buffer {
  const file = `${program}.order`;
  if (order !== undefined) fs.writeFileSync(file, Uint32Array.from(order.flatMap(({ start, size }) => [start, size])));
  const args = order === undefined ? [] : [file];
  const { status, stdout } = spawnSync(program, args, { stdio: ["ignore", "pipe", "inherit"], maxBuffer: 128 << 20 });
  if (order !== undefined) fs.rmSync(file);
  if (status !== 0) throw new Error(`${program}: ${status}`);
  return stdout;
}

function addSnapshot(program: string, snapshot: Buffer, product: string): void {
  const file = `${product}.snapshot`;
  fs.writeFileSync(file, snapshot);
  execFileSync("objcopy", ["--update-section", `.snapshot=${file}`, program, product]);
  fs.rmSync(file);
}

/** A block of the snapshot, in bytes, with its head. */
interface Block {
  readonly start: number;
  readonly size: number;
  /** Whether nothing is in it any more. */
  readonly isFreed: boolean;
}

/** Of memory.c, in bytes: a block's head, where the first block starts, a page. */
const HEAD = 8;
const FIRST_BLOCK = 8;
const PAGE = 4096;
/** In a block's head, that it was freed; in its place, that it is to lie outside of the snapshot. */
const FREED = 1n;
const OUTSIDE = 2 ** 31;

/**
 * Puts the snapshot into the program, its blocks in this order: those to which the CDI hook alone writes, those to which the
 * calls of a container's life write as well, those of these calls alone, and then the rest. So each has its own one behind
 * the other. Which ones these are, the kernel only tells of pages. So in a program of which we have nothing else, each
 * block has pages of its own.
 */
export function addTrainedSnapshot(program: string, trainee: string, product: string): void {
  const blocks = blocksOf(makeSnapshot(trainee));
  let end = 0;
  const spread = blocks.map(({ size, isFreed }): Block => {
    const start = end + FIRST_BLOCK;
    end = Math.ceil((start + size) / PAGE) * PAGE;
    return { start, size, isFreed };
  });
  const dir = `${product}.training`;
  fs.rmSync(dir, { recursive: true, force: true });
  // Modes that are trusted whatever the umask is.
  fs.mkdirSync(dir, { mode: 0o755 });
  const runtime = path.join(dir, "sluice-runtime");
  addSnapshot(trainee, makeSnapshot(trainee, spread), runtime);
  const pages = pagesWritten(runtime, dir);
  const hookPages = pagesWrittenByHook(runtime, path.join(dir, "hook"));
  fs.rmSync(dir, { recursive: true });

  const isIn = (pages: boolean[], { start, size }: Block) =>
    pages.slice(Math.floor(start / PAGE), Math.ceil((start + size) / PAGE)).includes(true);
  const order: Block[] = [];
  end = FIRST_BLOCK;
  for (const [byHook, byRuntime, isFreed] of [
    [true, false],
    [true, true],
    [false, true],
    [false, false],
    [false, false, true],
  ]) {
    if (isFreed) end = OUTSIDE + FIRST_BLOCK;
    for (const [i, block] of spread.entries()) {
      const [hook, runtime] = block.isFreed ? [false, false] : [isIn(hookPages, block), isIn(pages, block)];
      if (hook !== byHook || runtime !== byRuntime || block.isFreed !== (isFreed ?? false)) continue;
      order[i] = { ...block, start: end };
      end += block.size;
    }
  }
  addSnapshot(program, makeSnapshot(program, order), product);
}

/** The blocks of a snapshot without an order. */
function blocksOf(snapshot: Buffer): Block[] {
  const blocks: Block[] = [];
  for (let start = FIRST_BLOCK; ; start += (blocks.at(-1) as Block).size) {
    const word = snapshot.readBigUInt64LE(start);
    if (word === 0n) return blocks;
    blocks.push({ start, size: HEAD + Number(word & ~FREED), isFreed: (word & FREED) !== 0n });
  }
}

/**
 * Which pages of the snapshot are written to in the life of a container that is given a device, of caches that an earlier
 * start has filled. The low-level runtime is /bin/true, and all files are below `dir`: in a user namespace, where Sluice
 * has its state in XDG_RUNTIME_DIR. Where this machine allows none, the container asks for nothing.
 */
function pagesWritten(trainee: string, dir: string): boolean[] {
  const [specs, state, list] = ["cdi", "run", "written"].map((name) => path.join(dir, name)) as [
    string,
    string,
    string,
  ];
  for (const folder of [specs, state]) fs.mkdirSync(folder, { mode: 0o700 });
  const file = (name: string) => ({
    hostPath: `/usr/lib/${name}`,
    containerPath: `/usr/lib/${name}`,
    options: ["ro", "bind"],
  });
  const edits = {
    env: ["A=1"],
    mounts: ["a", "b"].map(file),
    deviceNodes: [{ path: "/dev/gpu", hostPath: "/dev/null" }],
  };
  const spec = { cdiVersion: "0.5.0", kind: "nvidia.com/gpu", devices: [{ name: "0", containerEdits: edits }] };
  fs.writeFileSync(path.join(specs, "spec.json"), JSON.stringify(spec), { mode: 0o644 });
  const settings = path.join(dir, "config.toml");
  fs.writeFileSync(settings, `[runtime]\nruntimes = ["/bin/true"]\n[cdi]\nspec_dirs = [${JSON.stringify(specs)}]\n`, {
    mode: 0o644,
  });
  const inNamespace = ["unshare", "--map-root-user"];
  const canAsk = spawnSync("unshare", ["--map-root-user", "true"]).status === 0;
  const process = { args: ["true"], env: ["PATH=/bin"], user: { uid: 0, gid: 0 } };
  const mounts = [{ destination: "/proc", type: "proc", source: "proc", options: ["nosuid", "noexec", "nodev"] }];
  const annotations = canAsk ? { "gpu.sluice.dev": `${spec.kind}=0` } : {};
  const linux = { resources: { devices: [{ allow: false, access: "rwm" }] }, namespaces: [{ type: "pid" }] };
  const config = JSON.stringify({ ociVersion: "1.1.0", process, root: { path: "rootfs" }, mounts, annotations, linux });
  const run = (...command: string[]): boolean[] => {
    fs.writeFileSync(path.join(dir, "config.json"), config);
    fs.rmSync(list, { force: true });
    const [program = "", ...args] = [...(canAsk ? inNamespace : []), trainee, ...command, "training"];
    const env = { PATH: "/usr/bin:/bin", SLUICE_CONFIG: settings, XDG_RUNTIME_DIR: state, SLUICE_WRITTEN: list };
    const { stderr } = spawnSync(program, args, { encoding: "utf8", env });
    if (!fs.existsSync(list)) throw new Error(`${trainee} ${command}: ${stderr}`);
    return [...fs.readFileSync(list, "utf8")].map((mark) => mark === "1");
  };
  const create = () => {
    // Files that have just been written are not cached.
    execFileSync("sleep", ["0.2"]);
    return run("create", "--bundle", dir);
  };
  for (let i = 0; i < 3; i++) create();
  const runs = [create(), run("state"), run("delete")];
  return (runs[0] ?? []).map((_, page) => runs.some((pages) => pages[page]));
}

/** Which pages of the snapshot the CDI hook writes to, for a container with some libraries that is a folder of ours. */
function pagesWrittenByHook(trainee: string, dir: string): boolean[] {
  const folder = "/usr/lib/x86_64-linux-gnu";
  const names = Array.from({ length: 9 }, (_, i) => `lib${i}.so.1`);
  const cached = addToLdCache("", [{ path: `${folder}/libc.so.6`, flags: 0x303 }]) ?? "";
  const files: Record<string, string> = {
    "/config.json": JSON.stringify({ root: { path: "rootfs" } }),
    "/rootfs/etc/ld.so.cache": cached,
    "/rootfs/etc/ld.so.conf.d/libc.conf": "",
  };
  for (const name of names) files[`/rootfs${folder}/${name}.0`] = "";
  for (const [file, bytes] of Object.entries(files)) {
    fs.mkdirSync(path.dirname(dir + file), { recursive: true });
    fs.writeFileSync(dir + file, bytes, "latin1");
  }
  const hook = path.join(dir, "sluice-cdi-hook");
  fs.symlinkSync(trainee, hook);
  const list = path.join(dir, "written");
  const libraries = `${folder}/${names.map((name) => `${name}.0=${name}`).join(":")}`;
  const links = [`${folder}/lib0.so=lib0.so.1:lib1.so=lib1.so.1`, `${folder}/gbm/gbm.so=../lib0.so.1`];
  const args = ["--driver", "1.0", "--library", libraries, ...links.flatMap((link) => ["--link", link])];
  const input = JSON.stringify({ bundle: dir });
  const env = { SLUICE_WRITTEN_AT_END: list };
  const { status, stderr } = spawnSync(hook, args, { input, env, encoding: "utf8" });
  if (status !== 0) throw new Error(`${hook}: ${status} ${stderr}`);
  return [...fs.readFileSync(list, "utf8")].map((page) => page === "1");
}
