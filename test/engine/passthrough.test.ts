import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { containerId, folder, needs, receiptOf, run } from "../support/machine.ts";
import { makeBundle, makeHost, RUNTIME, SLUICE } from "../support/simulated-host.ts";

const options = needs("root", "build", "runc", "busybox");
const GPU0 = { annotations: { "gpu.sluice.dev": "nvidia.com/gpu=0" } };

/** A low-level runtime that writes down what it is given, and settings that name it. */
function fakeRuntime(dir: string, script: string): { env: { SLUICE_CONFIG: string }; seen: string } {
  const seen = path.join(dir, "seen");
  const file = path.join(dir, "fake-runc");
  fs.writeFileSync(file, `#!/bin/sh\nseen=${seen}\n${script}\n`, { mode: 0o755 });
  const config = path.join(dir, "fake.toml");
  fs.writeFileSync(config, `[runtime]\nruntimes = [${JSON.stringify(file)}]\n`);
  return { env: { SLUICE_CONFIG: config }, seen };
}

test("arguments, environment, working folder and exit code of a pass-through are what they would be", options, (t) => {
  const dir = folder(t);
  const script = 'printf "%s\\n" "$@" "pwd=$(pwd)" "x=$X" "n=$#" >"$seen"; exit 37';
  const { env, seen } = fakeRuntime(dir, script);
  const args = ["--root", "/r", "--log=/l", "state", "--weird", "a b\n", "", "é"];
  const r = run(RUNTIME, args, { env: { ...env, X: "y" }, cwd: dir });
  assert.deepEqual([r.code, r.out, r.err], [37, "", ""]);
  const lines = [...args, `pwd=${fs.realpathSync(dir)}`, "x=y", `n=${args.length}`].join("\n");
  assert.equal(fs.readFileSync(seen, "utf8"), `${lines}\n`);
});

test("arguments that are not UTF-8 reach the runtime as the bytes that they are", options, (t) => {
  const dir = folder(t);
  const { env, seen } = fakeRuntime(dir, 'printf "%s" "$2" >"$seen"');
  // A shell makes the bytes: Node's own arguments are text.
  const call = `exec ${RUNTIME} state "$(printf '\\377\\376x')"`;
  assert.equal(spawnSync("sh", ["-c", call], { env: { ...process.env, ...env } }).status, 0);
  assert.deepEqual([...fs.readFileSync(seen)], [0xff, 0xfe, 0x78]);
});

test("`sluice runtime` and `sluice-runtime` are the same, without a word of their own", options, () => {
  const plain = run("runc", ["--version"]);
  for (const [command, args] of [
    [RUNTIME, ["--version"]],
    [SLUICE, ["runtime", "--version"]],
  ] as const) {
    assert.deepEqual(run(command, [...args]), plain);
  }
});

test("an unknown command, an unknown container and help are answered by the runtime itself", options, () => {
  for (const args of [
    ["no-such-command"],
    ["state", "no-such-container"],
    ["create", "--help"],
    ["delete", "no-such"],
    [],
  ]) {
    assert.deepEqual(run(RUNTIME, args), run("runc", args), args.join(" "));
  }
});

test("descriptors that we are given reach the runtime, and none of ours", options, (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const { seen } = fakeRuntime(
    dir,
    'ls -l /proc/self/fd | sed -n "s/.* \\([0-9]* -> .*\\)/\\1/p" >"$seen"; cat <&7 >>"$seen"',
  );
  fs.appendFileSync(host.env.SLUICE_CONFIG, `[runtime]\nruntimes = [${JSON.stringify(path.join(dir, "fake-runc"))}]\n`);
  const bundle = makeBundle(path.join(dir, "b"), {
    script: "true",
    annotations: { "gpu.sluice.dev": "nvidia.com/gpu=0" },
  });
  fs.writeFileSync(path.join(dir, "gift"), "a gift\n");
  const id = containerId(t);
  const call = `exec 7<${dir}/gift ${RUNTIME} create --preserve-fds 5 --bundle ${bundle} ${id}`;
  const r = spawnSync("bash", ["-c", call], { env: { ...process.env, ...host.env }, encoding: "utf8" });
  assert.deepEqual([r.stderr, r.status], ["", 0]);
  const lines = fs.readFileSync(seen, "utf8").trim().split("\n");
  assert.equal(lines.pop(), "a gift");
  const numbers = lines.map((line) => Number.parseInt(line, 10)).filter((fd) => fd > 2);
  // 7 is the gift; ls has its own for the folder that it lists.
  assert.ok(numbers.includes(7), lines.join("; "));
  assert.equal(
    lines.filter((line) => /sluice-test.*(config\.json|cdi|host)|\/run\/sluice/.test(line)).length,
    0,
    lines.join("; "),
  );
  assert.ok(fs.existsSync(receiptOf(id)));
});

test(
  "a signal to `run` in the foreground reaches the container, and its death by signal is ours",
  options,
  async (t) => {
    const dir = folder(t);
    const host = makeHost(path.join(dir, "host"));
    const script = 'trap "echo caught; exit 5" TERM; echo ready; while :; do sleep 0.1; done';
    const bundle = makeBundle(path.join(dir, "b"), { script, annotations: { "gpu.sluice.dev": "nvidia.com/gpu=0" } });
    const id = containerId(t);
    const child = spawn(RUNTIME, ["run", "--bundle", bundle, id], { env: { ...process.env, ...host.env } });
    let out = "";
    child.stdout.on("data", (data) => {
      out += data;
      if (String(data).includes("ready")) child.kill("SIGTERM");
    });
    const code = await new Promise((resolve) => child.on("close", resolve));
    assert.deepEqual([out, code], ["ready\ncaught\n", 5]);

    const fake = fakeRuntime(dir, "kill -KILL $$");
    fs.appendFileSync(
      host.env.SLUICE_CONFIG,
      `[runtime]\nruntimes = [${JSON.stringify(path.join(dir, "fake-runc"))}]\n`,
    );
    assert.ok(fake.seen);
    const r = run(RUNTIME, ["run", "--bundle", bundle, containerId(t)], host);
    assert.deepEqual([r.code, r.signal], [null, "SIGKILL"]);
  },
);

test("killing us while we wait for the runtime kills it too", options, async (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const { seen } = fakeRuntime(dir, 'echo $$ >"$seen"; exec sleep 60');
  fs.appendFileSync(host.env.SLUICE_CONFIG, `[runtime]\nruntimes = [${JSON.stringify(path.join(dir, "fake-runc"))}]\n`);
  const bundle = makeBundle(path.join(dir, "b"), {
    script: "true",
    annotations: { "gpu.sluice.dev": "nvidia.com/gpu=0" },
  });
  const child = spawn(RUNTIME, ["run", "--bundle", bundle, containerId(t)], { env: { ...process.env, ...host.env } });
  const pid = await until(() => (fs.existsSync(seen) ? fs.readFileSync(seen, "utf8").trim() : ""));
  child.kill("SIGKILL");
  await until(() => (isAlive(pid) ? "" : "gone"));
});

test("broken settings keep a container from starting, not from being looked at and deleted", options, (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const bundle = makeBundle(path.join(dir, "b"), { script: "sleep 60", ...GPU0 });
  const id = containerId(t);
  assert.equal(run(RUNTIME, ["create", "--bundle", bundle, id], host).code, 0);
  fs.appendFileSync(host.env.SLUICE_CONFIG, "broken");
  assert.deepEqual(
    [run(RUNTIME, ["state", id], host).code, run(RUNTIME, ["delete", "--force", id], host).code],
    [0, 0],
  );
  assert.equal(fs.existsSync(receiptOf(id)), false);
  const again = run(RUNTIME, ["create", "--bundle", bundle, id], host);
  assert.equal(again.code, 1);
  assert.match(again.err, /^sluice: E_CONFIG_SYNTAX: /);
});

function isAlive(pid: string): boolean {
  return fs.existsSync(`/proc/${pid}`) && !/^State:\tZ/m.test(fs.readFileSync(`/proc/${pid}/status`, "utf8"));
}

/** Waits for a condition, for as long as a busy machine may need. */
async function until(condition: () => string): Promise<string> {
  for (let i = 0; i < 1000; i++) {
    const value = condition();
    if (value !== "") return value;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error("waited for 20 seconds in vain");
}

test(
  "without a low-level runtime the error says where it was looked for; a link to ourselves is not taken",
  options,
  (t) => {
    const dir = folder(t);
    fs.symlinkSync(SLUICE, path.join(dir, "runc"));
    const r = run(RUNTIME, ["state", "x"], { env: { PATH: dir } });
    assert.equal(r.code, 1);
    assert.match(r.err, /^sluice: E_RUNTIME_NOT_FOUND: .*runc, crun.*; install runc/);
    const found = run(RUNTIME, ["--version"], { env: { PATH: `${dir}:${process.env["PATH"]}` } });
    assert.match(found.out, /^runc version/);
  },
);
