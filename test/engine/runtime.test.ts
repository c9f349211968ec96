import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { applyPlan } from "../../src/plan/inject.ts";
import type { Plan } from "../../src/plan/plan.ts";
import type { Receipt } from "../../src/plan/receipt.ts";
import { waitFor } from "../lab/machine.ts";
import { containerId, folder, needs, receiptOf, run } from "../support/machine.ts";
import { DRIVER, makeBundle, makeHost, RUNTIME, SLUICE } from "../support/simulated-host.ts";

const NEEDED = ["root", "build", "runc", "busybox"] as const;
const options = needs(...NEEDED);

/** Opens a node and says so: reading from a stand-in could block, opening cannot. */
const OPENS = (node: string) =>
  `if (exec 3<${node}) 2>/dev/null; then echo ${node} opens; else echo ${node} refused; fi`;

const GPU0 = { annotations: { "gpu.sluice.dev": "nvidia.com/gpu=0" } };

test(
  "a container that asks for a GPU opens its node, sees the driver's files, and cannot open another GPU's",
  options,
  (t) => {
    const dir = folder(t);
    const host = makeHost(path.join(dir, "host"));
    const bundle = makeBundle(path.join(dir, "bundle"), {
      script: `${OPENS("/dev/nvidia0")}; ${OPENS("/dev/nvidiactl")}; ${OPENS("/stray/nvidia1")}; ls /dev/nvidia*; nvidia-smi;
      cat /usr/lib/x86_64-linux-gnu/libcuda.so.${DRIVER}; echo visible=$NVIDIA_VISIBLE_DEVICES`,
      ...GPU0,
    });
    // The node of the GPU that was not granted, as a hostile image might hold it.
    fs.mkdirSync(path.join(bundle, "rootfs/stray"));
    const stray = path.join(bundle, "rootfs/stray/nvidia1");
    const { rdev } = fs.statSync(path.join(host.dir, "dev/nvidia1"));
    execFileSync("mknod", ["-m", "666", stray, "c", String(rdev >> 8), String(rdev & 0xff)]);

    const r = run(RUNTIME, ["run", "--bundle", bundle, containerId(t)], host);
    assert.equal(r.err, "");
    assert.equal(r.code, 0);
    assert.deepEqual(r.out.trim().split("\n"), [
      "/dev/nvidia0 opens",
      "/dev/nvidiactl opens",
      "/stray/nvidia1 refused",
      "/dev/nvidia0",
      "/dev/nvidiactl",
      `GPU 0: simulated, driver ${DRIVER}`,
      `simulated libcuda.so ${DRIVER}`,
      "visible=void",
    ]);
  },
);

test("without Sluice the same container has none of it", options, (t) => {
  const dir = folder(t);
  const bundle = makeBundle(dir, { script: "ls /dev/nvidia0 /usr/bin/nvidia-smi 2>&1; echo $?", ...GPU0 });
  const r = run("runc", ["run", "--bundle", bundle, containerId(t)]);
  assert.match(r.out, /^ls: \/dev\/nvidia0: No such file/);
});

test("each way of asking gives the container its device", options, (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const script = "ls /dev/nvidia[0-9]* 2>/dev/null | cat; true";
  const table: [string, Parameters<typeof makeBundle>[1], string][] = [
    ["gpu.sluice.dev", { script, annotations: { "gpu.sluice.dev": "nvidia.com/gpu=1" } }, "/dev/nvidia1\n"],
    ["cdi.k8s.io", { script, annotations: { "cdi.k8s.io/x_1": "nvidia.com/gpu=1" } }, "/dev/nvidia1\n"],
    ["index", { script, env: ["NVIDIA_VISIBLE_DEVICES=1"] }, "/dev/nvidia1\n"],
    ["duplicates", { script, env: ["NVIDIA_VISIBLE_DEVICES=1,1"] }, "/dev/nvidia1\n"],
    ["all", { script, env: ["NVIDIA_VISIBLE_DEVICES=all"] }, "/dev/nvidia0\n/dev/nvidia1\n"],
    ["none", { script: `${script}; nvidia-smi`, env: ["NVIDIA_VISIBLE_DEVICES=none"] }, ""],
    ["void", { script, env: ["NVIDIA_VISIBLE_DEVICES=void"] }, ""],
    ["nothing", { script }, ""],
  ];
  for (const [name, bundle, expected] of table) {
    const r = run(RUNTIME, ["run", "-b", makeBundle(path.join(dir, name), bundle), containerId(t)], host);
    assert.deepEqual([r.err, r.out, r.code], ["", expected, 0], name);
  }
});

test("what `sluice plan --json` says is what the container then gets", options, (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const bundle = makeBundle(path.join(dir, "bundle"), { script: "true" });
  const file = path.join(bundle, "config.json");
  const plan = run(SLUICE, ["plan", "--spec", file, "--device", "nvidia.com/gpu=0", "--json"], host);
  assert.equal(plan.err, "");
  const before = JSON.parse(fs.readFileSync(file, "utf8"));
  const expected = applyPlan(before, JSON.parse(plan.out) as Plan);

  before.annotations = { "gpu.sluice.dev": "nvidia.com/gpu=0" };
  fs.writeFileSync(file, JSON.stringify(before));
  const id = containerId(t);
  const created = run(RUNTIME, ["create", "--bundle", bundle, id], host);
  assert.deepEqual([created.err, created.code], ["", 0]);
  const after = JSON.parse(fs.readFileSync(file, "utf8"));
  // The annotation that asks, in place of the option, is the one difference; it stands in the reasons and the digest.
  for (const config of [after, expected]) config.annotations = {};
  assert.deepEqual(after, expected);
  assert.equal(run("runc", ["delete", "--force", id]).code, 0);
});

test(
  "a container that asks for nothing keeps its config.json, to the byte and the inode, and has no receipt",
  options,
  (t) => {
    const dir = folder(t);
    const host = makeHost(path.join(dir, "host"));
    const bundle = makeBundle(path.join(dir, "bundle"), { script: "true" });
    const file = path.join(bundle, "config.json");
    const before = fs.readFileSync(file);
    const { ino, mtimeNs } = fs.statSync(file, { bigint: true });
    const id = containerId(t);
    assert.equal(run(RUNTIME, ["run", "--bundle", bundle, id], host).code, 0);
    const after = fs.statSync(file, { bigint: true });
    assert.deepEqual([after.ino, after.mtimeNs, fs.readFileSync(file)], [ino, mtimeNs, before]);
    assert.equal(fs.existsSync(receiptOf(id)), false);
  },
);

test("a device that is not there keeps the container from starting, and the engine's log says why", options, (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const annotations = { "gpu.sluice.dev": "nvidia.com/gpu=7" };
  const bundle = makeBundle(path.join(dir, "bundle"), { script: "true", annotations });
  const before = fs.readFileSync(path.join(bundle, "config.json"));
  const id = containerId(t);
  const log = path.join(dir, "log.json");
  const r = run(RUNTIME, ["--log", log, "--log-format", "json", "create", "--bundle", bundle, id], host);
  assert.equal(r.code, 1);
  assert.match(r.err, /^sluice: E_CDI_UNKNOWN_DEVICE: .*nvidia\.com\/gpu=7.*; .*\n$/);
  const entry = JSON.parse(fs.readFileSync(log, "utf8"));
  assert.deepEqual([entry.level, `${entry.msg}\n`], ["error", r.err]);
  assert.ok(Math.abs(Date.parse(entry.time) - Date.now()) < 60_000, entry.time);
  assert.notEqual(run("runc", ["state", id]).code, 0);
  assert.deepEqual(fs.readFileSync(path.join(bundle, "config.json")), before);
  assert.equal(fs.existsSync(receiptOf(id)), false);
});

test("the receipt says what was given and why, only root can read it, and delete releases it", options, (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const bundle = makeBundle(path.join(dir, "bundle"), { script: "true", ...GPU0 });
  const id = containerId(t);
  assert.equal(run(RUNTIME, ["create", "--bundle", bundle, id], host).code, 0);
  const receipt = JSON.parse(fs.readFileSync(receiptOf(id), "utf8")) as Receipt;
  assert.equal(fs.statSync(receiptOf(id)).mode & 0o777, 0o600);
  assert.equal(fs.statSync(path.dirname(receiptOf(id))).mode & 0o777, 0o700);
  assert.deepEqual([receipt.id, receipt.door, receipt.devices[0]?.name], [id, "runtime", "nvidia.com/gpu=0"]);
  assert.ok(
    receipt.edits.every((edit) => edit.reason !== "" && edit.source.spec === path.join(host.cdi, "nvidia.json")),
  );
  const config = JSON.parse(fs.readFileSync(path.join(bundle, "config.json"), "utf8"));
  assert.equal(config.annotations["sluice.dev/plan"], receipt.digest);

  assert.notEqual(run(RUNTIME, ["delete", `${id}-other`], host).code, 0);
  assert.ok(fs.existsSync(receiptOf(id)), "another container's delete leaves it");
  assert.equal(run(RUNTIME, ["delete", "--force", id], host).code, 0);
  assert.equal(fs.existsSync(receiptOf(id)), false);
});

test("a delete that fails keeps the receipt, and gives the runtime's own exit code", options, (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const bundle = makeBundle(path.join(dir, "bundle"), { script: "sleep 60", ...GPU0 });
  const id = containerId(t);
  assert.equal(run(RUNTIME, ["create", "--bundle", bundle, id], host).code, 0);
  assert.equal(run(RUNTIME, ["start", id], host).code, 0);
  const ours = run(RUNTIME, ["delete", id], host);
  const plain = run("runc", ["delete", id]);
  // A second may pass between the two.
  const said = (text: string): string => text.replace(/time="[^"]*"/, "");
  assert.deepEqual([ours.code, said(ours.err)], [plain.code, said(plain.err)]);
  assert.notEqual(ours.code, 0);
  assert.ok(fs.existsSync(receiptOf(id)));
});

test("the receipt of a container that has ended goes without a child to wait for", needs(...NEEDED, "strace"), (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const bundle = makeBundle(path.join(dir, "bundle"), { script: "true", ...GPU0 });
  const id = containerId(t);
  assert.equal(run(RUNTIME, ["create", "--bundle", bundle, id], host).code, 0);
  assert.equal(run(RUNTIME, ["start", id], host).code, 0);
  const state = () => run("runc", ["state", id]).out;
  waitFor(() => JSON.parse(state()).status === "stopped", "the end of the container", state);
  const trace = path.join(dir, "trace");
  assert.equal(run("strace", ["-o", trace, RUNTIME, "delete", id], host).code, 0);
  // It became runc: what forks in the trace is runc.
  const calls = fs.readFileSync(trace, "utf8").split("\n");
  const became = calls.findLastIndex((call) => call.startsWith("execve("));
  assert.ok(calls.slice(0, became).some((call) => call.startsWith("unlink") && call.includes(receiptOf(id))));
  assert.ok(!calls.slice(0, became).some((call) => /^(?:vfork|fork|clone3?)\(/.test(call)));
  assert.equal(fs.existsSync(receiptOf(id)), false);
});

test(
  "run in the foreground releases its receipt when the container ends, with the container's exit code",
  options,
  (t) => {
    const dir = folder(t);
    const host = makeHost(path.join(dir, "host"));
    const bundle = makeBundle(path.join(dir, "bundle"), { script: "exit 42", ...GPU0 });
    const id = containerId(t);
    assert.equal(run(RUNTIME, ["run", "--bundle", bundle, id], host).code, 42);
    assert.equal(fs.existsSync(receiptOf(id)), false);
  },
);

test("a second injection is recognised and adds nothing", options, (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const bundle = makeBundle(path.join(dir, "bundle"), { script: "true", ...GPU0 });
  const file = path.join(bundle, "config.json");
  const id = containerId(t);
  assert.equal(run(RUNTIME, ["create", "--bundle", bundle, id], host).code, 0);
  assert.equal(run("runc", ["delete", "--force", id]).code, 0);
  const once = fs.readFileSync(file, "utf8");
  // Also where the specs are gone by now: what was given stands in the receipt.
  fs.rmSync(path.join(host.cdi, "nvidia.json"));
  assert.equal(run(RUNTIME, ["create", "--bundle", bundle, id], host).code, 0);
  assert.equal(fs.readFileSync(file, "utf8"), once);
});

test("a forged stamp counts for nothing", options, (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const annotations = { ...GPU0.annotations, "sluice.dev/plan": "0".repeat(32) };
  const bundle = makeBundle(path.join(dir, "bundle"), { script: "ls /dev/nvidia0", annotations });
  const r = run(RUNTIME, ["run", "--bundle", bundle, containerId(t)], host);
  assert.deepEqual([r.out, r.code], ["/dev/nvidia0\n", 0]);
});

test("a stamped container whose edits were taken away does not start", options, (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const bundle = makeBundle(path.join(dir, "bundle"), { script: "true", ...GPU0 });
  const file = path.join(bundle, "config.json");
  const id = containerId(t);
  assert.equal(run(RUNTIME, ["create", "--bundle", bundle, id], host).code, 0);
  assert.equal(run("runc", ["delete", "--force", id]).code, 0);
  const config = JSON.parse(fs.readFileSync(file, "utf8"));
  config.linux.devices = [];
  fs.writeFileSync(file, JSON.stringify(config));
  const r = run(RUNTIME, ["create", "--bundle", bundle, id], host);
  assert.equal(r.code, 1);
  assert.match(r.err, /^sluice: E_STAMP: .*config\.json.*\/dev\/nvidia/);
});

test("`sluice apply` does to a bundle on disk what the runtime would do, and plain runc then runs it", options, (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const id = containerId(t);
  const bundle = makeBundle(path.join(dir, id), { script: "ls /dev/nvidia[0-9]*" });
  const applied = run(SLUICE, ["apply", "--bundle", bundle, "--annotation", "gpu.sluice.dev=nvidia.com/gpu=1"], host);
  assert.deepEqual([applied.err, applied.code], ["", 0]);
  assert.match(applied.out, /device node {2}\/dev\/nvidia1 c \d+:\d+ rwm/);
  assert.equal(run("runc", ["run", "--bundle", bundle, id]).out, "/dev/nvidia1\n");
});

test("the bundle of `sluice apply` may be the working folder", options, (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const id = containerId(t);
  const bundle = makeBundle(path.join(dir, id), { script: "true" });
  const r = run(SLUICE, ["apply", "--bundle", ".", "--device", "nvidia.com/gpu=1"], { ...host, cwd: bundle });
  assert.deepEqual([r.err, r.code], ["", 0]);
  assert.ok(fs.existsSync(receiptOf(id)));
});

test("`sluice cdi list` says which devices are hidden or unusable, and why", options, (t) => {
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const high = path.join(dir, "high");
  fs.mkdirSync(high);
  const spec = { ...host.spec, containerEdits: {}, devices: host.spec.devices.slice(0, 1) };
  fs.writeFileSync(path.join(high, "one.json"), JSON.stringify(spec));
  const folders = ["--cdi-dir", host.cdi, "--cdi-dir", high];
  const hidden = run(SLUICE, ["cdi", "list", ...folders], host);
  assert.match(hidden.out, /nvidia\.com\/gpu=0 +\S+nvidia\.json +hidden by \S+one\.json\n/);
  assert.match(hidden.out, /nvidia\.com\/gpu=1 +\S+nvidia\.json +usable\n/);
  assert.equal(hidden.code, 0);
  fs.writeFileSync(path.join(high, "two.json"), JSON.stringify(spec));
  const conflict = run(SLUICE, ["cdi", "list", ...folders], host);
  assert.match(conflict.out, /nvidia\.com\/gpu=0 +\S+one\.json +unusable: also in \S+two\.json\n/);
  assert.match(conflict.err, /^sluice: E_CDI_CONFLICT: /);
  assert.equal(conflict.code, 1);
});

test("fifty containers created at once all get their device", options, async (t) => {
  const { spawn } = await import("node:child_process");
  const dir = folder(t);
  const host = makeHost(path.join(dir, "host"));
  const results = await Promise.all(
    Array.from({ length: 50 }, (_, i) => {
      const bundle = makeBundle(path.join(dir, `bundle${i}`), {
        script: "ls /dev/nvidia[0-9]*",
        annotations: { "gpu.sluice.dev": `nvidia.com/gpu=${i % 2}` },
      });
      const child = spawn(RUNTIME, ["run", "--bundle", bundle, containerId(t)], {
        env: { ...process.env, ...host.env },
      });
      let out = "";
      child.stdout.on("data", (data) => (out += data));
      child.stderr.on("data", (data) => (out += data));
      return new Promise<string>((resolve) => child.on("close", () => resolve(out)));
    }),
  );
  for (const [i, out] of results.entries()) assert.equal(out, `/dev/nvidia${i % 2}\n`);
});
