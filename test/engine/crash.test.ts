import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { folder, needs, type PrivateState, privateState } from "../support/machine.ts";
import { makeBundle, makeHost, RUNTIME } from "../support/simulated-host.ts";

const options = needs("root", "build", "runc", "busybox", "strace");

interface Scene {
  bundle: string;
  id: string;
  env: { SLUICE_CONFIG: string };
  state: PrivateState;
  /** config.json as the engine wrote it, and as it is with the edits but for white space, which differs with a kept plan. */
  before: string;
  after: string;
}

function compact(json: string): string {
  return JSON.stringify(JSON.parse(json));
}

/** A bundle that asks for a GPU, and a low-level runtime that does nothing: what is tested is before it. */
function scene(t: Parameters<typeof folder>[0]): Scene {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  fs.appendFileSync(host.env.SLUICE_CONFIG, '[runtime]\nruntimes = ["/bin/true"]\n');
  const bundle = makeBundle(path.join(dir, "b"), {
    script: "true",
    annotations: { "gpu.sluice.dev": "nvidia.com/gpu=0" },
  });
  const file = path.join(bundle, "config.json");
  const before = fs.readFileSync(file, "utf8");
  const s: Scene = { bundle, id: "crash", env: host.env, state: privateState(t), before, after: "" };
  // Files that have just changed are not cached, and a start that caches makes other system calls than one that has.
  spawnSync("sleep", ["0.2"]);
  for (let i = 0; i < 2; i++) {
    reset(s, false);
    const r = create(s);
    assert.deepEqual([r.stderr, r.status], ["", 0]);
  }
  const after = compact(fs.readFileSync(file, "utf8"));
  assert.notEqual(after, compact(before));
  return { ...s, after };
}

function create({ bundle, id, env, state }: Scene, ...strace: string[]) {
  const [command, ...args] = [...state.enter, ...strace, RUNTIME, "create", "--bundle", bundle, id];
  return spawnSync(command as string, args, { env: { ...process.env, ...env }, encoding: "utf8" });
}

/** The bundle as it was, and no receipt; `cold` also without caches. */
function reset({ bundle, before, state }: Scene, cold: boolean): void {
  fs.writeFileSync(path.join(bundle, "config.json"), before);
  for (const name of cold ? fs.readdirSync(state.dir) : ["receipts"]) {
    fs.rmSync(path.join(state.dir, name), { recursive: true, force: true });
  }
}

interface SystemCall {
  name: string;
  /** The how manieth call of that name it is; strace counts each name by itself. */
  nth: number;
}

/** The system calls of one create, from the program's start to the one that becomes the low-level runtime. */
function systemCalls(s: Scene, cold: boolean): SystemCall[] {
  reset(s, cold);
  const trace = path.join(s.bundle, "trace");
  assert.equal(create(s, "strace", "-o", trace).status, 0);
  const names = fs
    .readFileSync(trace, "utf8")
    .split("\n")
    .map((line) => /^(\w+)\(/.exec(line)?.[1] ?? "");
  fs.rmSync(trace);
  const end = names.lastIndexOf("execve");
  assert.ok(end > 20, "the trace holds a whole create");
  // strace does not count the execve by which it starts the program.
  const counts = new Map<string, number>([["execve", -1]]);
  return names.slice(0, end + 1).map((name) => {
    const nth = (counts.get(name) ?? 0) + 1;
    counts.set(name, nth);
    return { name, nth };
  });
}

for (const cold of [false, true]) {
  const name = `kill -9 at every system call of a create (${cold ? "without" : "with"} caches) leaves a whole config.json`;
  test(`${name}, and the next create is as if nothing was`, options, (t) => {
    const s = scene(t);
    const calls = systemCalls(s, cold);
    const file = path.join(s.bundle, "config.json");
    const bundleFiles = fs.readdirSync(s.bundle).sort();
    let [old, changed] = [0, 0];
    for (const { name, nth } of calls.slice(1)) {
      const at = `${name} ${nth}`;
      reset(s, cold);
      const killed = create(s, "strace", "-o", "/dev/null", "-e", `inject=${name}:signal=KILL:when=${nth}`);
      assert.ok(killed.signal === "SIGKILL" || killed.status === 137, `${at}: ${killed.status}`);
      const text = fs.readFileSync(file, "utf8");
      assert.ok(text === s.before || compact(text) === s.after, `a kill at ${at} left another config.json`);
      if (text === s.before) old++;
      else changed++;
      const next = create(s);
      assert.deepEqual([next.stderr, next.status], ["", 0], `the create after a kill at ${at}`);
      assert.equal(compact(fs.readFileSync(file, "utf8")), s.after, `after a kill at ${at}`);
      assert.deepEqual(fs.readdirSync(s.bundle).sort(), bundleFiles, `stray files after a kill at ${at}`);
      assert.deepEqual(fs.readdirSync(path.join(s.state.dir, "receipts")), [`${s.id}.json`], `receipts after ${at}`);
    }
    // Kills on both sides of the replacement, or the loop has not been where it matters.
    assert.ok(old > 10 && changed > 0, `${old} kills before the change, ${changed} after`);
  });
}

test(
  "a full disk, at every write of a create, is an error that names the file, and nothing is half-written",
  options,
  (t) => {
    const s = scene(t);
    const writing = systemCalls(s, true).filter((call) => ["write", "rename", "mkdir", "chmod"].includes(call.name));
    const seen = new Set<string>();
    const file = path.join(s.bundle, "config.json");
    const bundleFiles = fs.readdirSync(s.bundle).sort();
    for (const { name, nth } of writing) {
      const at = `${name} ${nth}`;
      reset(s, true);
      const r = create(s, "strace", "-qq", "-o", "/dev/null", "-e", `inject=${name}:error=ENOSPC:when=${nth}`);
      const text = fs.readFileSync(file, "utf8");
      if (r.status === 0) {
        // Only what is not needed, a cache, may fail without a word.
        assert.equal(compact(text), s.after, at);
      } else {
        assert.match(r.stderr, /^sluice: E_(?:RECEIPT|BUNDLE_WRITE): .*ENOSPC.*; \w/, at);
        assert.equal(text, s.before, at);
        assert.deepEqual(fs.readdirSync(s.bundle).sort(), bundleFiles, at);
        seen.add(/E_[A-Z_]+/.exec(r.stderr)?.[0] ?? "");
      }
    }
    assert.deepEqual([...seen].sort(), ["E_BUNDLE_WRITE", "E_RECEIPT"]);
  },
);
