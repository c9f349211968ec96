/** What a test needs of the machine it runs on, and folders and processes that it leaves nothing of. */

import { spawn, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import type { TestContext } from "node:test";
import { SLUICE } from "./simulated-host.ts";

/**
 * Whether to skip a test here, with the reason; for the `skip` option of `test`. In CI, which has everything, a missing
 * piece is a failure.
 */
export function needs(...what: ("root" | "build" | "runc" | "busybox" | "strace" | "file" | "valgrind" | "cc")[]): {
  skip: string | false;
} {
  const missing = what.filter((need) => {
    if (need === "root") return process.geteuid?.() !== 0;
    if (need === "build") return !fs.existsSync(SLUICE);
    if (need === "busybox") return !fs.existsSync("/bin/busybox");
    return spawnSync("sh", ["-c", `command -v ${need}`]).status !== 0;
  });
  if (missing.length === 0) return { skip: false };
  const reason = `needs ${missing.join(", ")} (run \`make test\` as root)`;
  if (process.env["CI"] === "true") throw new Error(`CI lacks what a test needs: ${reason}`);
  return { skip: reason };
}

/** A folder that goes with the test. Under /tmp, also where that is on the same file system as everything else. */
export function folder(t: TestContext): string {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "sluice-test-"));
  t.after(() => fs.rmSync(dir, { recursive: true, force: true }));
  return dir;
}

let count = 0;

/** A container id that no other test has, removed with the test. */
export function containerId(t: TestContext): string {
  const id = `sluice-test-${process.pid}-${count++}`;
  t.after(() => {
    spawnSync("runc", ["delete", "--force", id]);
    fs.rmSync(receiptOf(id), { force: true });
  });
  return id;
}

/** DESIGN.md section 5, Files. */
export function receiptOf(id: string): string {
  return `/run/sluice/receipts/${id}.json`;
}

export interface Result {
  code: number | null;
  signal: NodeJS.Signals | null;
  out: string;
  err: string;
}

/**
 * Runs a program to its end. Its output goes to files: a container that it creates keeps a pipe open, and a reader of
 * that would wait for the container.
 */
export function run(command: string, args: string[], options: { env?: NodeJS.ProcessEnv; cwd?: string } = {}): Result {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), "sluice-run-"));
  const [out, err] = [path.join(dir, "out"), path.join(dir, "err")];
  const stdio = ["ignore", fs.openSync(out, "w"), fs.openSync(err, "w")] as const;
  try {
    const env = { ...process.env, ...options.env };
    const r = spawnSync(command, args, { ...options, env, stdio: [...stdio], timeout: 60_000 });
    if (r.error !== undefined) throw r.error;
    return { code: r.status, signal: r.signal, out: fs.readFileSync(out, "utf8"), err: fs.readFileSync(err, "utf8") };
  } finally {
    for (const fd of stdio.slice(1)) fs.closeSync(fd as number);
    fs.rmSync(dir, { recursive: true });
  }
}

/** A /run/sluice of a test's own, which others neither see nor change. */
export interface PrivateState {
  /** Put before a command, runs it there. */
  readonly enter: readonly string[];
  /** The folder as it is seen from outside. */
  readonly dir: string;
}

export function privateState(t: TestContext): PrivateState {
  const setup =
    "mount --make-rprivate / && mkdir -p /run/sluice && mount -t tmpfs -o mode=755 none /run/sluice && echo ready && read _";
  const holder = spawn("unshare", ["--mount", "sh", "-c", setup], { stdio: ["pipe", "pipe", "inherit"] });
  t.after(() => holder.stdin.end());
  const pid = String(holder.pid);
  // The shell's `mount` is over when the new mount is seen; a synchronous wait keeps the tests plain.
  for (let i = 0; !/ \/run\/sluice .* tmpfs /.test(fs.readFileSync(`/proc/${pid}/mountinfo`, "utf8")); i++) {
    if (i > 1000) throw new Error("no private /run/sluice after 10 seconds");
    spawnSync("sleep", ["0.01"]);
  }
  return { enter: ["nsenter", "--target", pid, "--mount"], dir: `/proc/${pid}/root/run/sluice` };
}
