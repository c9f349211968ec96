/** A tree of test/support/memory-files.ts on a real disk, for tests that run the executable on it. Node only. */

import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import type { FileKind } from "../../src/sys/sys.ts";
import type { NodeSpec, Tree } from "./memory-files.ts";

const LETTER: Partial<Readonly<Record<FileKind, string>>> = { char: "c", block: "b", fifo: "p" };

/**
 * Writes a tree below a folder that exists, with real links, device nodes, FIFOs, sockets, modes and owners. Device
 * nodes and owners other than one's own need root. A spec with a `size` beside its text becomes a sparse file of that size.
 *
 * Nothing is written outside `dir`: no path may lead through a link.
 *
 * @throws Error where something cannot be made, or stands there already
 */
export function writeTree(dir: string, tree: Tree): void {
  const folders = new Set([path.resolve(dir)]);
  const folder = (at: string): void => {
    if (folders.has(at)) return;
    folder(path.dirname(at));
    const there = fs.lstatSync(at, { throwIfNoEntry: false });
    if (there === undefined) fs.mkdirSync(at, { mode: 0o755 });
    else if (!there.isDirectory()) throw new Error(`a path of the tree leads through what is no folder: ${at}`);
    folders.add(at);
  };

  const nodes: string[] = [];
  const sockets: string[] = [];
  const attributes: (readonly [at: string, spec: NodeSpec])[] = [];
  for (const [name, node] of Object.entries(tree)) {
    const spec: NodeSpec & { readonly size?: number } = typeof node === "string" ? { kind: "file", text: node } : node;
    const at = path.join(dir, name);
    const relative = path.relative(dir, at);
    if (relative === "" || relative.startsWith("..")) throw new Error(`a path of the tree leads out of it: ${name}`);
    folder(path.dirname(path.resolve(at)));
    if (spec.kind === "dir") folder(path.resolve(at));
    else if (spec.kind === "link") fs.symlinkSync(spec.target ?? "", at);
    else if (spec.kind === "socket") sockets.push(relative);
    else if (spec.kind === "file") {
      fs.writeFileSync(at, spec.bytes === undefined ? (spec.text ?? "") : Buffer.from(spec.bytes, "latin1"), {
        flag: "wx",
      });
      if (spec.size !== undefined) fs.truncateSync(at, spec.size);
    } else {
      const letter = LETTER[spec.kind];
      if (letter === undefined) throw new Error(`nothing can be made of kind ${spec.kind}: ${name}`);
      const numbers = spec.kind === "fifo" ? ["", ""] : [String(spec.major ?? 0), String(spec.minor ?? 0)];
      nodes.push(relative, letter, ...numbers);
    }
    if (spec.kind !== "link") attributes.push([at, spec]);
  }

  if (nodes.length > 0) makeNodes(dir, nodes);
  if (sockets.length > 0) bindSockets(dir, sockets);
  // Last, and from the bottom up, as a mode may keep its own owner from writing.
  for (const [at, { kind, uid = 0, gid = 0, mode }] of attributes.reverse()) {
    if (uid !== 0 || gid !== 0) fs.chownSync(at, uid, gid);
    fs.chmodSync(at, mode ?? (kind === "dir" || kind === "socket" ? 0o755 : kind === "char" ? 0o666 : 0o644));
  }
}

/** `PATH TYPE MAJOR MINOR` for each node; a shell's process each, which is the price of Node having no mknod. */
function makeNodes(dir: string, nodes: readonly string[]): void {
  const script = 'while [ $# -gt 0 ]; do mknod -- "./$1" "$2" $3 $4 || exit; shift 4; done';
  const r = spawnSync("sh", ["-c", script, "sh", ...nodes], { cwd: dir, encoding: "utf8" });
  if (r.error !== undefined) throw r.error;
  if (r.status !== 0) throw new Error(`device nodes cannot be made in ${dir}: ${r.stderr.trim()}`);
}

/** Binds sockets that nobody listens at: the process that holds them is killed, so that it does not clean up. */
function bindSockets(dir: string, names: readonly string[]): void {
  const script = `
    const net = require("node:net");
    let left = process.argv.length - 1;
    for (const name of process.argv.slice(1)) {
      net.createServer().listen("./" + name, () => { if (--left === 0) process.kill(process.pid, "SIGKILL"); });
    }`;
  const r = spawnSync(process.execPath, ["-e", script, "--", ...names], {
    cwd: dir,
    encoding: "utf8",
    timeout: 30_000,
  });
  if (r.error !== undefined) throw r.error;
  const missing = names.filter((name) => fs.lstatSync(path.join(dir, name), { throwIfNoEntry: false }) === undefined);
  if (missing.length > 0)
    throw new Error(`sockets cannot be made in ${dir}: ${missing.join(", ")}: ${r.stderr.trim()}`);
}
