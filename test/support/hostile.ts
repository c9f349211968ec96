/**
 * Hostile files, names and command lines, as data: what is done to a good machine, and what must come of it. For the
 * product (test/engine/hostile.test.ts) and its sanitizer build (test/engine/sanitizer.test.ts).
 */

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { checkRefusal, isPrintable } from "./fuzz.ts";
import { folder, type needs, type PrivateState, privateState } from "./machine.ts";

export interface Program {
  readonly sluice: string;
  readonly runtime: string;
  readonly env?: Readonly<Record<string, string>>;
}

/** Milliseconds after which a program has hung. */
const HUNG = 20_000;

interface Scene {
  readonly dir: string;
  /** The bundle; a case may choose another. */
  bundle: string;
  /** Its config.json, which asks for x.com/gpu=0. */
  readonly config: string;
  /** The spec folder: gpu.json has that device. */
  readonly cdi: string;
  readonly toml: string;
  readonly state: PrivateState;
  /** There once the low-level runtime was called. */
  readonly started: string;
  id: string;
  /** Before the runtime's command. */
  flags: string[];
  env: Record<string, string>;
}

interface Case {
  readonly name: string;
  prepare(scene: Scene): void;
  /**
   * The code of the refusal. Without one the case is harmless: the container starts with its device. `untouched`: it
   * starts, and its config.json is as it was.
   */
  readonly refused?: string;
  readonly untouched?: true;
  /** All three where absent. */
  readonly doors?: readonly Door[];
  /** Costs seconds already without sanitizers. */
  readonly slow?: true;
  /** The engine itself leaks (test/quickjs/leaks.supp). */
  readonly leaks?: true;
}

type Door = "plan" | "apply" | "runtime";

const CONFIG = {
  ociVersion: "1.2.0",
  process: { args: ["true"], env: ["PATH=/bin"] },
  root: { path: "rootfs" },
  annotations: { "gpu.sluice.dev": "x.com/gpu=0" } as Record<string, string>,
};

function specOf(kind: string, name: string, edits: object = { env: ["FROM=sluice"] }): string {
  return JSON.stringify({ cdiVersion: "0.6.0", kind, devices: [{ name, containerEdits: edits }] });
}

const GOOD_SPEC = specOf("x.com/gpu", "0", {
  env: ["FROM=sluice"],
  deviceNodes: [{ path: "/dev/gpu0", type: "c", major: 10, minor: 200 }],
  mounts: [{ hostPath: "/lib/gpu.so", containerPath: "/lib/gpu.so", options: ["ro", "rbind"] }],
});

function makeScene(t: TestContext): Scene {
  const dir = folder(t);
  const [bundle, cdi] = [path.join(dir, "bundle"), path.join(dir, "cdi")];
  const [toml, started, fake] = [path.join(dir, "config.toml"), path.join(dir, "started"), path.join(dir, "fake-runc")];
  for (const made of [bundle, cdi]) fs.mkdirSync(made);
  fs.writeFileSync(path.join(cdi, "gpu.json"), GOOD_SPEC);
  fs.writeFileSync(path.join(bundle, "config.json"), JSON.stringify(CONFIG));
  fs.writeFileSync(fake, `#!/bin/sh\nprintf '%s\\n' "$@" >${started}\n`, { mode: 0o755 });
  const list = (item: string) => `[${JSON.stringify(item)}]`;
  fs.writeFileSync(toml, `[cdi]\nspec_dirs = ${list(cdi)}\n[runtime]\nruntimes = ${list(fake)}\n`);
  const env = { PATH: process.env["PATH"] ?? "", SLUICE_CONFIG: toml };
  const state = privateState(t);
  return {
    dir,
    bundle,
    config: path.join(bundle, "config.json"),
    cdi,
    toml,
    state,
    started,
    id: "web",
    flags: [],
    env,
  };
}

/** The case's container asks for this device in place of the good one. */
function ask(s: Scene, annotations: Record<string, unknown>): void {
  fs.writeFileSync(s.config, JSON.stringify({ ...CONFIG, annotations }));
}

/** Runs to the end, or fails the test: nothing that a program of ours is given may hang it or crash it. */
export function runBounded(command: string, args: readonly string[], env: Readonly<Record<string, string>>) {
  const r = spawnSync(command, args, {
    env,
    timeout: HUNG,
    killSignal: "SIGKILL",
    encoding: "utf8",
    maxBuffer: 1 << 26,
  });
  if ((r.error as NodeJS.ErrnoException | undefined)?.code === "ETIMEDOUT")
    assert.fail(`hung: ${args.join(" ").slice(0, 300)}`);
  if (r.error !== undefined) throw r.error;
  assert.equal(r.signal, null, r.stderr.slice(-2000));
  return { code: r.status, out: r.stdout, err: r.stderr };
}

/** What a door does, as a run of a program. */
function enter(s: Scene, program: Program, door: Door) {
  const command =
    door === "runtime"
      ? [program.runtime, ...s.flags, "create", "--bundle", s.bundle, s.id]
      : [program.sluice, door, "--bundle", s.bundle];
  const [first, ...rest] = [...s.state.enter, ...command];
  return runBounded(first as string, rest, { ...s.env, ...program.env });
}

/** Standard error of a refusal: lines `sluice: E_CODE: what; what to do`, and no stack. Gives their codes. */
export function refusals(err: string): string[] {
  const lines = err.split("\n");
  assert.equal(lines.pop(), "", `standard error is cut: ${err.slice(-300)}`);
  return lines.map((line) => {
    const [, code, message = ""] = /^sluice: (E_\w+): (.+; .+)$/.exec(line) ?? [];
    assert.ok(
      code !== undefined,
      `not a line of a refusal: ${JSON.stringify(line.slice(0, 500))} in\n${err.slice(0, 2000)}`,
    );
    checkRefusal(code, message);
    return code;
  });
}

/** Everything below a folder with what tells whether it was written to. */
function tree(dir: string): string[] {
  return fs
    .readdirSync(dir, { recursive: true, encoding: "latin1" })
    .sort()
    .map((name) => {
      const { ino, mtimeNs, size, mode } = fs.lstatSync(Buffer.from(path.join(dir, name), "latin1"), { bigint: true });
      return [name, ino, mtimeNs, size, mode].join(" ");
    });
}

function receipts(s: Scene): string[] {
  const dir = path.join(s.state.dir, "receipts");
  return fs.lstatSync(dir, { throwIfNoEntry: false })?.isDirectory() ? fs.readdirSync(dir) : [];
}

function runCase(t: TestContext, program: Program, c: Case, door: Door): void {
  const s = makeScene(t);
  c.prepare(s);
  const before = tree(s.dir);
  const r = enter(s, program, door);
  const said = r.err.slice(0, 1000);
  if (c.refused !== undefined) {
    assert.equal(r.code, 1, said);
    assert.equal(refusals(r.err).at(-1), c.refused, said);
    assert.deepEqual(tree(s.dir), before);
    assert.deepEqual(
      receipts(s).filter((name) => name.includes(s.id)),
      [],
    );
    return;
  }
  assert.deepEqual([r.err, r.code], ["", 0]);
  assert.ok(isPrintable(r.out), JSON.stringify(r.out));
  assert.equal(fs.existsSync(s.started), door === "runtime");
  if (c.untouched || door === "plan") {
    assert.deepEqual(receipts(s), []);
    fs.rmSync(s.started, { force: true });
    assert.deepEqual(tree(s.dir), before);
    return;
  }
  const config = JSON.parse(fs.readFileSync(path.join(s.bundle, "config.json"), "utf8"));
  assert.deepEqual(config.process.env, ["PATH=/bin", "FROM=sluice"]);
  assert.equal(receipts(s).length, 1);
}

/** One test for each case and door; `quick`, for the sanitizers, leaves out some, and takes one door for each. */
export function testHostile(program: Program, skip: ReturnType<typeof needs>, quick: boolean): void {
  for (const c of CASES) {
    if (quick && (c.slow || c.leaks)) continue;
    const doors = c.doors ?? ["plan", "apply", "runtime"];
    for (const door of quick ? doors.slice(-1) : doors) {
      const outcome = c.refused ?? (c.untouched ? "passed on as it is" : "harmless");
      test(`${c.name}: ${outcome} (${door})`, skip, (t) => runCase(t, program, c, door));
    }
  }
  for (const spec of SPECS) {
    if (spec.slow && quick) continue;
    test(`${spec.name} in the spec folder: ${spec.code || "ignored"}, and the good spec beside it works`, skip, (t) => {
      testSpec(t, program, spec, quick);
    });
  }
}

/*
 * Spec files.
 */

interface HostileSpec {
  readonly name: string;
  /** Of the file. */
  readonly file: string;
  put(file: string, dir: string): void;
  /** Of the problem that `sluice cdi list` tells; empty for what is no spec file at all. */
  readonly code: string;
  /** What `sluice cdi validate` says, if that is another one. */
  readonly checked?: string;
  readonly slow?: true;
}

function testSpec(t: TestContext, program: Program, spec: HostileSpec, quick: boolean): void {
  const s = makeScene(t);
  const file = path.join(s.cdi, spec.file);
  spec.put(file, s.dir);
  const env = { ...s.env, ...program.env };
  const [first = "", ...entering] = s.state.enter;
  // Twice: without the index and with it.
  for (let i = 0; i < (quick ? 1 : 2); i++) {
    const listed = runBounded(first, [...entering, program.sluice, "cdi", "list"], env);
    const said = listed.err.slice(0, 1000);
    assert.equal(listed.code, spec.code === "" ? 0 : 1, said);
    assert.deepEqual([...new Set(refusals(listed.err))], spec.code === "" ? [] : [spec.code], said);
    assert.match(listed.out, /^x\.com\/gpu=0 /m);
  }
  if (spec.code !== "" && !quick) {
    const checked = runBounded(program.sluice, ["cdi", "validate", file], env);
    assert.equal(checked.code, 1);
    assert.deepEqual([...new Set(refusals(checked.err))], [spec.checked ?? spec.code], checked.err.slice(0, 1000));
  }
  ask(s, { "gpu.sluice.dev": "bad.com/x=0" });
  const before = fs.readFileSync(s.config);
  const refused = enter(s, program, "runtime");
  assert.equal(refused.code, 1);
  assert.deepEqual(refusals(refused.err), ["E_CDI_UNKNOWN_DEVICE"]);
  if (spec.code !== "") assert.ok(refused.err.includes(spec.code), refused.err.slice(0, 1000));
  assert.ok(fs.readFileSync(s.config).equals(before) && !fs.existsSync(s.started));
  if (quick) return;
  ask(s, CONFIG.annotations);
  const given = enter(s, program, "runtime");
  assert.deepEqual([given.err, given.code], ["", 0]);
  assert.ok(fs.existsSync(s.started));
}

const BAD = "bad.com/x";
const MEGABYTE = 1 << 20;

/** Every alias stands for nine of the one before it. */
function aliasBomb(): string {
  const lines = ["a0: &a0 x"];
  for (let i = 1; i < 30; i++)
    lines.push(
      `a${i}: &a${i} [${Array(9)
        .fill(`*a${i - 1}`)
        .join(", ")}]`,
    );
  return `${lines.join("\n")}\n`;
}

const write =
  (text: string | Buffer, mode = 0o644) =>
  (file: string) => {
    fs.writeFileSync(file, text);
    fs.chmodSync(file, mode); // whatever the umask is
  };

const SPECS: readonly HostileSpec[] = [
  ...(
    [
      ["a device name of 1 MB with a slash", specOf(BAD, `0${"x".repeat(MEGABYTE)}/0`), "E_CDI_NAME"],
      ["a kind of 1 MB", specOf(`bad.com/${"x".repeat(MEGABYTE)}`, "0"), "E_CDI_NAME"],
      ["a field of 1 MB", specOf(BAD, "0", { [`\u001b[2J${"x".repeat(MEGABYTE)}`]: 1 }), "E_CDI_SPEC"],
      ["a qualified name as a device's own", specOf(BAD, "a/b=c"), "E_CDI_NAME"],
      ["a name with NUL", specOf(BAD, "0\0"), "E_CDI_SPEC"],
      ["a name that drives a terminal", specOf(BAD, "0\u001b[2J\u202e"), "E_CDI_NAME"],
      ["a path with NUL", specOf(BAD, "0", { deviceNodes: [{ path: "/dev/x\0" }] }), "E_CDI_SPEC"],
      ["a variable with NUL", specOf(BAD, "0", { env: ["A=\0"] }), "E_CDI_SPEC"],
      ["a key __proto__", specOf(BAD, "0").replace('"env"', '"__proto__"'), "E_CDI_SPEC"],
      ["half a surrogate pair", specOf(BAD, "0\ud800"), "E_CDI_NAME"],
      ["bytes that are not UTF-8", Buffer.from(specOf(BAD, "\xff\xfe"), "latin1"), "E_CDI_SYNTAX"],
      ["an overlong NUL", Buffer.from(specOf(BAD, "\xc0\x80"), "latin1"), "E_CDI_SYNTAX"],
      ["a NUL byte", specOf(BAD, "0").replace(":", ":\0"), "E_CDI_SYNTAX"],
      ["nothing", "", "E_CDI_SYNTAX"],
      ["JSON cut off", specOf(BAD, "0").slice(0, -4), "E_CDI_SYNTAX"],
      ["a list", "[]", "E_CDI_SPEC"],
      ["100,000 open brackets", `{"a":${"[".repeat(100_000)}`, "E_CDI_SYNTAX"],
      ["100,000 nested objects", `${'{"a":'.repeat(100_000)}1${"}".repeat(100_000)}`, "E_CDI_SYNTAX"],
      ["10 MB", specOf(BAD, "0", { env: [`A=${"x".repeat(10 * MEGABYTE)}`] }), "E_CDI_TOO_LARGE"],
    ] as const
  ).map(([name, text, code]) => ({ name, file: "bad.json", put: write(text), code })),
  ...(
    [
      ["an alias bomb", aliasBomb(), "E_CDI_SYNTAX"],
      ["YAML nested 100,000 deep in flow style", "[".repeat(100_000), "E_CDI_SYNTAX"],
      ["YAML nested 100,000 deep in block style", "- ".repeat(100_000), "E_CDI_SYNTAX"],
      [
        "YAML indented 1,400 deep",
        Array.from({ length: 1400 }, (_, i) => `${" ".repeat(i)}a:\n`).join(""),
        "E_CDI_SYNTAX",
      ],
      ["an alias in itself", "a: &a [*a]\n", "E_CDI_SYNTAX"],
      ["a YAML tag", "!!js/function 'x'\n", "E_CDI_SYNTAX"],
      ["a YAML document of 1 MB of anchors", "&a ".repeat(300_000), "E_CDI_SYNTAX"],
      ["YAML of 2 MB", `a: ${"x".repeat(2 * MEGABYTE)}`, "E_CDI_TOO_LARGE"],
      ["YAML that is not UTF-8", Buffer.from("kind: \xff", "latin1"), "E_CDI_SYNTAX"],
    ] as const
  ).map(([name, text, code]) => ({ name, file: "bad.yaml", put: write(text), code })),
  {
    name: "many YAML documents",
    file: "bad.yaml",
    put: write("---\n".repeat(20_000)),
    code: "E_CDI_SYNTAX",
    slow: true,
  },
  {
    name: "a file that everyone may write to",
    file: "bad.json",
    put: write(specOf(BAD, "0"), 0o666),
    code: "E_CDI_UNTRUSTED",
  },
  { name: "a FIFO", file: "bad.json", put: (file) => execFileSync("mkfifo", [file]), code: "E_CDI_READ" },
  {
    name: "a character device",
    file: "bad.json",
    put: (file) => execFileSync("mknod", [file, "c", "1", "5"]),
    code: "E_CDI_READ",
  },
  { name: "a folder called x.json", file: "x.json", put: (file) => fs.mkdirSync(file), code: "" },
  { name: "a link to a folder", file: "x.json", put: (file) => fs.symlinkSync("/etc", file), code: "E_CDI_READ" },
  { name: "a link to itself", file: "bad.json", put: (file) => fs.symlinkSync("bad.json", file), code: "E_CDI_READ" },
  { name: "a link to nothing", file: "bad.json", put: (file) => fs.symlinkSync("/no/such", file), code: "E_CDI_READ" },
  {
    name: "a link to /dev/zero",
    file: "bad.json",
    put: (file) => fs.symlinkSync("/dev/zero", file),
    code: "E_CDI_READ",
  },
  {
    name: "a link to /etc/passwd",
    file: "bad.json",
    put: (file) => fs.symlinkSync("/etc/passwd", file),
    code: "E_CDI_SPEC",
  },
  {
    name: "a link into a folder that everyone may write to",
    file: "bad.json",
    put: (file, dir) => {
      const open = path.join(dir, "open");
      fs.mkdirSync(open);
      fs.chmodSync(open, 0o777);
      fs.writeFileSync(path.join(open, "spec.json"), specOf(BAD, "0"));
      fs.symlinkSync(path.join(open, "spec.json"), file);
    },
    code: "E_CDI_UNTRUSTED",
  },
  { name: "a file's name that drives a terminal", file: "\u001b[2J\u202e.json", put: write("{"), code: "E_CDI_SYNTAX" },
  {
    name: "a file's name of two lines",
    file: "a\nb.json",
    put: write("{"),
    code: "E_CDI_READ",
    checked: "E_CDI_SYNTAX",
  },
];

/*
 * Everything else.
 */

/** A config.json with this content. */
function config(name: string, content: string | Buffer, refused: string, more: Partial<Case> = {}): Case {
  return { name, prepare: (s) => fs.writeFileSync(s.config, content), refused, ...more };
}

/** Another thing in config.json's place. */
function configIs(name: string, put: (file: string, dir: string) => void, refused?: string): Case {
  return {
    name,
    prepare: (s) => {
      fs.rmSync(s.config);
      put(s.config, s.dir);
    },
    ...(refused === undefined ? {} : { refused }),
  };
}

function annotated(
  name: string,
  annotations: Record<string, unknown>,
  refused: string,
  more: Partial<Case> = {},
): Case {
  return { name, prepare: (s) => ask(s, annotations), refused, ...more };
}

/** A settings file with this content. */
function settings(name: string, content: string | Buffer, refused: string): Case {
  return { name, prepare: (s) => fs.writeFileSync(s.toml, content), refused };
}

function settingsAre(name: string, put: (file: string) => void, refused: string): Case {
  return {
    name,
    prepare: (s) => {
      fs.rmSync(s.toml);
      put(s.toml);
    },
    refused,
  };
}

/** Something in the state folder before the door opens. */
function state(name: string, put: (dir: string, s: Scene) => void, refused?: string): Case {
  const doors = ["apply", "runtime"] as const; // a plan writes no receipt
  return { name, prepare: (s) => put(s.state.dir, s), doors, ...(refused === undefined ? {} : { refused }) };
}

/** What two earlier starts left in the state folder, the spec index among it. */
function warm(s: Scene, name: string, replace: (file: string) => void): void {
  const cache = path.join(s.state.dir, "cdi");
  fs.mkdirSync(cache);
  fs.chmodSync(cache, 0o755);
  replace(path.join(cache, name));
}

function runtime(name: string, change: (s: Scene) => void, refused?: string): Case {
  return { name, prepare: change, doors: ["runtime"], ...(refused === undefined ? {} : { refused }) };
}

const asking = '"annotations":{"gpu.sluice.dev":"x.com/gpu=0"}';

const CASES: readonly Case[] = [
  configIs("no config.json", () => {}, "E_BUNDLE_MISSING"),
  configIs("a folder as config.json", (file) => fs.mkdirSync(file), "E_BUNDLE_FILE"),
  configIs("a FIFO as config.json", (file) => execFileSync("mkfifo", [file]), "E_BUNDLE_FILE"),
  configIs("a device as config.json", (file) => execFileSync("mknod", [file, "c", "1", "5"]), "E_BUNDLE_FILE"),
  configIs("config.json as a link to itself", (file) => fs.symlinkSync("config.json", file), "E_BUNDLE_FILE"),
  configIs("config.json as a link to nothing", (file) => fs.symlinkSync("/no/such", file), "E_BUNDLE_MISSING"),
  configIs("config.json as a link to /dev/zero", (file) => fs.symlinkSync("/dev/zero", file), "E_BUNDLE_FILE"),
  configIs("config.json as a link to /etc/passwd", (file) => fs.symlinkSync("/etc/passwd", file), "E_BUNDLE_JSON"),
  configIs(
    "config.json as a link to our environment",
    (file) => fs.symlinkSync("/proc/self/environ", file),
    "E_BUNDLE_JSON",
  ),
  configIs("config.json as a link to a good one", (file, dir) => {
    fs.writeFileSync(path.join(dir, "real.json"), JSON.stringify(CONFIG));
    fs.symlinkSync("../real.json", file);
  }),
  config("an empty config.json", "", "E_BUNDLE_JSON"),
  config("config.json with a list", "[]", "E_BUNDLE_FIELD"),
  config("config.json with nothing but null", "null", "E_BUNDLE_FIELD"),
  config("config.json cut off", `{${asking},"process":{"env":["A`, "E_BUNDLE_JSON"),
  config("config.json with a byte order mark", `\ufeff{${asking}}`, "E_BUNDLE_JSON"),
  config("config.json with a NUL byte", `{${asking}\0}`, "E_BUNDLE_JSON"),
  config("config.json that is not UTF-8", Buffer.from(`{${asking},"x":"\xff"}`, "latin1"), "E_BUNDLE_UTF8"),
  config(
    "config.json nested 100,000 deep",
    `{${asking},"x":${"[".repeat(100_000)}${"]".repeat(100_000)}}`,
    "E_BUNDLE_JSON",
  ),
  config("config.json of 17 MB", `{${asking},"x":"${"x".repeat(17 * MEGABYTE)}"}`, "E_BUNDLE_SIZE"),
  config("config.json of 15 MB cut off", `{${asking},"x":[${"1,".repeat(7 * MEGABYTE)}`, "E_BUNDLE_JSON", {
    doors: ["runtime"],
    slow: true,
  }),
  config("config.json with annotations twice", `{"annotations":{},${asking}}`, "E_JSON_DUPLICATE_KEY", {
    doors: ["apply", "runtime"],
  }),
  config("config.json with variables that are numbers", `{${asking},"process":{"env":[1]}}`, "E_BUNDLE_FIELD"),
  {
    name: "config.json with everything null",
    prepare: (s) =>
      fs.writeFileSync(s.config, '{"annotations":null,"process":null,"mounts":null,"hooks":null,"linux":null}'),
    untouched: true,
  },
  ...["", "é"].map((letter): Case => {
    return {
      name: `config.json with 100,000 objects and lists${letter === "" ? "" : ", not in ASCII"}`,
      prepare: (s) => {
        const mounts = Array.from({ length: 50_000 }, (_, i) => `{"destination":"/a/b/${i}"}`);
        const unknown = Array.from({ length: 50_000 }, (_, i) => `"k${i}":[{}]`);
        const linux = `"linux":{${unknown.join(",")}},"x":"${letter}"`;
        fs.writeFileSync(
          s.config,
          `{${asking},"process":{"env":["PATH=/bin"]},"mounts":[${mounts.join(",")}],${linux}}`,
        );
      },
      doors: ["runtime"],
      slow: true,
    };
  }),
  annotated("a name that is a number", { "gpu.sluice.dev": 0 }, "E_BUNDLE_FIELD"),
  annotated("an asked name of 1 MB", { "gpu.sluice.dev": `x.com/gpu=${"0".repeat(MEGABYTE)}` }, "E_REQUEST_SYNTAX"),
  annotated("a CDI name of 1 MB", { "cdi.k8s.io/x": `x.com/gpu=${"0".repeat(MEGABYTE)}` }, "E_CDI_UNKNOWN_DEVICE"),
  annotated(
    "a CDI name of 1 MB with a bad end",
    { "cdi.k8s.io/x": `x.com/gpu=${"0".repeat(MEGABYTE)}/` },
    "E_CDI_ANNOTATION",
  ),
  annotated(
    "70,000 CDI names",
    { "cdi.k8s.io/x": Array(70_000).fill("x.com/gpu=9").join(",") },
    "E_CDI_UNKNOWN_DEVICE",
    { slow: true },
  ),
  annotated(
    "an annotation's key of 1 MB",
    { [`gpu.sluice.dev/${"x".repeat(MEGABYTE)}`]: "x.com/gpu=0" },
    "E_REQUEST_ANNOTATION",
  ),
  annotated("a name with NUL", { "gpu.sluice.dev": "x.com/gpu=0\0" }, "E_CDI_NAME"),
  annotated("a CDI name with NUL", { "cdi.k8s.io/x": "x.com/gpu=\0" }, "E_CDI_ANNOTATION"),
  annotated("a name that leaves its folder", { "gpu.sluice.dev": "x.com/gpu=../../0" }, "E_CDI_NAME"),
  annotated("a name with two =", { "gpu.sluice.dev": "a/b=c=d" }, "E_CDI_NAME"),
  annotated("a name that drives a terminal", { "gpu.sluice.dev": "x.com/gpu=\u001b[2J\u202e\n" }, "E_CDI_NAME"),
  annotated("a key that drives a terminal", { "gpu.sluice.dev/\u001b[2J\n": "x.com/gpu=0" }, "E_REQUEST_ANNOTATION"),
  annotated("a CDI key that drives a terminal", { "cdi.k8s.io/\u001b[2J\n": "x.com/gpu=9" }, "E_CDI_UNKNOWN_DEVICE"),
  annotated(
    "a container's name that drives a terminal",
    { "io.kubernetes.cri.container-name": "\u001b[2J", "gpu.sluice.dev/container.\u001b[2J": "x.com/gpu=" },
    "E_CDI_NAME",
  ),
  {
    name: "a good request under a CDI key that drives a terminal",
    prepare: (s) => ask(s, { "cdi.k8s.io/\u001b[2J\n": "x.com/gpu=0" }),
  },
  {
    name: "NVIDIA_VISIBLE_DEVICES of 1 MB",
    prepare: (s) => {
      const env = ["PATH=/bin", `NVIDIA_VISIBLE_DEVICES=${"0,".repeat(MEGABYTE / 2)}0`];
      fs.writeFileSync(s.config, JSON.stringify({ ...CONFIG, annotations: {}, process: { env } }));
    },
    refused: "E_REQUEST_ENV",
  },
  {
    name: "70,000 variables in a spec",
    prepare: (s) => {
      const env = [...Array.from({ length: 70_000 }, (_, i) => `V${i}=`), "FROM=sluice"];
      fs.writeFileSync(path.join(s.cdi, "gpu.json"), specOf("x.com/gpu", "0", { env }));
    },
    doors: ["plan"],
    slow: true,
  },
  {
    name: "a spec folder that everyone may write to",
    prepare: (s) => fs.chmodSync(s.cdi, 0o777),
    refused: "E_CDI_UNKNOWN_DEVICE",
  },
  {
    name: "a spec folder that is a file",
    prepare: (s) => {
      fs.rmSync(s.cdi, { recursive: true });
      fs.writeFileSync(s.cdi, "");
    },
    refused: "E_CDI_UNKNOWN_DEVICE",
  },
  {
    name: "a spec folder that is a link to itself",
    prepare: (s) => {
      fs.rmSync(s.cdi, { recursive: true });
      fs.symlinkSync("cdi", s.cdi);
    },
    refused: "E_CDI_UNKNOWN_DEVICE",
  },

  settings("settings that are not UTF-8", Buffer.from("# \xff", "latin1"), "E_CONFIG_SYNTAX"),
  settings("settings with a NUL byte", "a = 1\0", "E_CONFIG_SYNTAX"),
  settings("settings with a key that drives a terminal", '"\\u001b[2J\\n" = 1', "E_CONFIG_KEY"),
  settings("settings nested 50,000 deep", `cdi.spec_dirs = ${"[".repeat(50_000)}`, "E_CONFIG_SYNTAX"),
  settings("settings of 1 MB", `# ${"x".repeat(MEGABYTE)}`, "E_CONFIG_READ"),
  { ...settings("a settings key of 200 KB", `${"k".repeat(200 << 10)} = 1`, "E_CONFIG_KEY"), leaks: true },
  settingsAre("no settings where some are named", () => {}, "E_CONFIG_MISSING"),
  settingsAre("settings in a folder's place", (file) => fs.mkdirSync(file), "E_CONFIG_READ"),
  settingsAre("settings in a FIFO", (file) => execFileSync("mkfifo", [file]), "E_CONFIG_READ"),
  settingsAre("settings in a link to itself", (file) => fs.symlinkSync("config.toml", file), "E_CONFIG_READ"),
  settingsAre("settings that everyone may write to", write("", 0o666), "E_CONFIG_UNTRUSTED"),
  {
    name: "a settings file's name that drives a terminal",
    prepare: (s) => Object.assign(s.env, { SLUICE_CONFIG: "/no/\u001b[2J\nsuch" }),
    refused: "E_CONFIG_MISSING",
  },

  state("an index of garbage", (_, s) => warm(s, "index", write("\0\xff{[".repeat(1000)))),
  state("an index that is a folder", (_, s) => warm(s, "index", (file) => fs.mkdirSync(file))),
  state("an index that is a FIFO", (_, s) => warm(s, "index", (file) => execFileSync("mkfifo", [file]))),
  state("an index that is a link to /etc/passwd", (_, s) => {
    warm(s, "index", (file) => fs.symlinkSync("/etc/passwd", file));
  }),
  state("a half-written index that is a link to the bundle", (_, s) => {
    warm(s, ".index.new", (file) => fs.symlinkSync(s.config, file));
  }),
  state("an index of another user", (_, s) => {
    warm(s, "index", (file) => {
      fs.writeFileSync(file, "x");
      fs.chownSync(file, 1000, 1000);
    });
  }),
  state("an index in a folder of another user", (dir, s) => {
    warm(s, "index", write("x"));
    fs.chownSync(path.join(dir, "cdi"), 1000, 1000);
  }),
  state("an index in a folder that is a link", (dir) => fs.symlinkSync("/tmp", path.join(dir, "cdi"))),
  state("a state folder of another user", (dir) => fs.chownSync(dir, 1000, 1000)),
  state("a state folder that everyone may write to", (dir) => fs.chmodSync(dir, 0o777)),
  state("receipts in a link", (dir) => fs.symlinkSync("/tmp", path.join(dir, "receipts")), "E_RECEIPT"),
  state("receipts in a file", (dir) => fs.writeFileSync(path.join(dir, "receipts"), ""), "E_RECEIPT"),
  state("receipts in a folder that others may read", (dir) => fs.mkdirSync(path.join(dir, "receipts")), "E_RECEIPT"),
  state(
    "receipts in a folder of another user",
    (dir) => {
      fs.mkdirSync(path.join(dir, "receipts"), { mode: 0o700 });
      fs.chownSync(path.join(dir, "receipts"), 1000, 1000);
    },
    "E_RECEIPT",
  ),
  runtime("a half-written receipt that is a link to the bundle", (s) => {
    fs.mkdirSync(path.join(s.state.dir, "receipts"), { mode: 0o700 });
    fs.symlinkSync(s.config, path.join(s.state.dir, "receipts/.web.new"));
  }),
  runtime("a receipt of garbage for a stamped container", (s) => {
    fs.mkdirSync(path.join(s.state.dir, "receipts"), { mode: 0o700 });
    fs.writeFileSync(
      path.join(s.state.dir, "receipts/web.json"),
      '{"version":1,"id":"web","digest":"0","edits":[null]}',
    );
    ask(s, { ...CONFIG.annotations, "sluice.dev/plan": "0" });
  }),

  ...["../../etc/x", "a/b", "", "x".repeat(300), ".", "..", "a\u001b[2J\n", "a b"].map((id) =>
    runtime(`a container called ${JSON.stringify(id.slice(0, 20))}`, (s) => Object.assign(s, { id }), "E_RECEIPT"),
  ),
  ...["a b\n\"c\" 'd' $(e) `f`", "é\u202e😀", "-x"].map((name): Case => {
    return {
      name: `a bundle in ${JSON.stringify(name)}`,
      prepare: (s) => {
        const bundle = path.join(s.dir, name);
        fs.renameSync(s.bundle, bundle);
        s.bundle = bundle;
      },
      doors: ["runtime", "plan"],
    };
  }),
  {
    name: "a bundle whose name has 5,000 characters",
    prepare: (s) => Object.assign(s, { bundle: `/\u001b[2J\n${"x".repeat(5000)}` }),
    refused: "E_BUNDLE_FILE",
  },
  runtime("a log that cannot be written, of a container that starts", (s) => s.flags.push("--log", "/no/such/log")),
  ...["/no/such/log", "/no/\u001b[2J\nsuch", "/dev/full", "/etc", ""].map((log) =>
    runtime(
      `a refusal with --log ${JSON.stringify(log)}`,
      (s) => {
        ask(s, { "gpu.sluice.dev": "x.com/gpu=9" });
        s.flags.push("--log", log, "--log-format", "json");
      },
      "E_CDI_UNKNOWN_DEVICE",
    ),
  ),
];
