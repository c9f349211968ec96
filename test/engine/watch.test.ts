/** `sluice cdi generate --watch` as a process, on fixture hosts that change on a real disk. */

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { Spec } from "../../src/cdi/spec.ts";
import { DRIVER, HOSTS, type HostName } from "../fixtures/hosts/hosts.ts";
import { folder, needs, run } from "../support/machine.ts";
import { SLUICE } from "../support/simulated-host.ts";
import { writeTree } from "../support/tree-on-disk.ts";

const options = needs("root", "build");
const NEXT = "580.82.07";
const LIB = "usr/lib/x86_64-linux-gnu";
/** Milliseconds. Far more than any machine needs: how soon it is, is not what these tests say. */
const PATIENCE = 30_000;

interface Watched {
  readonly root: string;
  readonly out: string;
  /** The spec's path. */
  readonly spec: string;
  readonly arguments: string[];
  /** Processes that end with the test, before its folder goes. */
  readonly children: ChildProcess[];
}

function lay(t: TestContext, name: HostName): Watched {
  const children: ChildProcess[] = [];
  t.after(async () => {
    for (const child of children) child.kill("SIGKILL");
    await Promise.all(children.map(ended));
  });
  const dir = folder(t);
  const [root, out] = [path.join(dir, "root"), path.join(dir, "cdi")];
  fs.mkdirSync(root);
  fs.mkdirSync(out);
  writeTree(root, HOSTS[name]().tree);
  const spec = path.join(out, "sluice-nvidia.com-gpu.json");
  const own = ["cdi", "generate", "--root", root, "--output", out, "--hook", SLUICE];
  return { root, out, spec, arguments: own, children };
}

/** Starts the command; `said` is what it has written so far. */
function start(host: Watched, ...more: string[]): { child: ChildProcess; said: () => string } {
  const child = spawn(SLUICE, [...host.arguments, ...more], { stdio: ["ignore", "pipe", "pipe"] });
  host.children.push(child);
  let said = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
  }
  return { child, said: () => said };
}

function ended(child: ChildProcess): Promise<{ code: number | null; signal: NodeJS.Signals | null }> {
  if (child.exitCode !== null || child.signalCode !== null) {
    return Promise.resolve({ code: child.exitCode, signal: child.signalCode });
  }
  return new Promise((resolve) => child.on("exit", (code, signal) => resolve({ code, signal })));
}

function read(file: string): Spec | undefined {
  return fs.existsSync(file) ? (JSON.parse(fs.readFileSync(file, "utf8")) as Spec) : undefined;
}

const devices = (spec: Spec | undefined): string[] => (spec?.devices ?? []).map((device) => device.name);
const mounts = (spec: Spec | undefined): string[] =>
  (spec?.containerEdits?.mounts ?? []).map((mount) => mount.hostPath);

/** Waits until the spec on disk is as it should be. */
async function until(what: string, { spec }: Watched, said: () => string, isSo: (spec: Spec | undefined) => boolean) {
  const end = Date.now() + PATIENCE;
  while (!isSo(read(spec))) {
    assert.ok(Date.now() < end, `${what}; it said:\n${said()}`);
    await delay(20);
  }
}

/** Waits until it has said so: it does after the spec is written. */
async function untilSaid(said: () => string, line: RegExp): Promise<void> {
  const end = Date.now() + PATIENCE;
  while (!line.test(said())) {
    assert.ok(Date.now() < end, `it never said ${line}, but:\n${said()}`);
    await delay(20);
  }
}

/** Asserts that spec and origin belong together: the command finds nothing to do, and leaves nothing. */
function assertSettled(host: Watched): void {
  const r = run(SLUICE, host.arguments);
  assert.equal(r.code, 0, r.err);
  const again = run(SLUICE, host.arguments);
  assert.match(again.out, /^nvidia\.com\/gpu +\S+ +unchanged /m, again.out + again.err);
  const own = ["sluice-nvidia.com-gpu.json", "sluice-nvidia.com-gpu.origin"];
  assert.deepEqual(fs.readdirSync(host.out).sort(), [".sluice.lock", ...own]);
}

test(
  "a driver's upgrade, a lost GPU and a deleted spec are put right within the process's life",
  options,
  async (t) => {
    const host = lay(t, "h100x8");
    const { child, said } = start(host, "--watch");
    await until("it writes the spec", host, said, (spec) => devices(spec).includes("1"));
    assert.ok(mounts(read(host.spec)).includes(`/${LIB}/libcuda.so.${DRIVER}`));

    const lib = path.join(host.root, LIB);
    for (const name of fs.readdirSync(lib).filter((one) => one.endsWith(`.so.${DRIVER}`))) {
      fs.renameSync(path.join(lib, name), path.join(lib, name.replace(DRIVER, NEXT)));
    }
    fs.writeFileSync(path.join(host.root, "sys/module/nvidia/version"), `${NEXT}\n`);
    await until("the libraries are the new ones", host, said, (spec) => {
      return mounts(spec).includes(`/${LIB}/libcuda.so.${NEXT}`);
    });
    assert.deepEqual(
      mounts(read(host.spec)).filter((file) => file.endsWith(DRIVER)),
      [],
    );
    await untilSaid(said, new RegExp(`^driver ${DRIVER} -> ${NEXT}$`, "m"));

    const before = devices(read(host.spec));
    const config = Object.keys(HOSTS.h100x8().tree).find((file) => file.endsWith("/0000:43:00.0/config")) as string;
    fs.writeFileSync(path.join(host.root, config), Buffer.alloc(64, 0xff));
    await until(
      "the lost GPU's device is gone",
      host,
      said,
      (spec) => spec !== undefined && !devices(spec).includes("1"),
    );
    assert.deepEqual(
      before.filter((name) => !devices(read(host.spec)).includes(name)),
      ["1", "GPU-0ee276b1-2ee5-d107-4d85-66b1f79b2343"],
    );

    fs.unlinkSync(host.spec);
    await until("the spec is back", host, said, (spec) => devices(spec).includes("0"));
    assert.equal(child.exitCode, null);
    child.kill("SIGTERM");
    assert.deepEqual(await ended(child), { code: null, signal: "SIGTERM" });
    assertSettled(host);
  },
);

test("a MIG device that is cut comes", options, async (t) => {
  const host = lay(t, "a100-mig-2-uncut");
  const { said } = start(host, "--watch");
  await until("it writes the spec", host, said, (spec) => devices(spec).includes("1:0"));
  const at = path.join(host.root, "proc/driver/nvidia/capabilities/gpu0/mig/gi7");
  fs.mkdirSync(path.join(at, "ci0"), { recursive: true });
  fs.writeFileSync(path.join(at, "access"), "DeviceFileMinor: 66\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
  fs.writeFileSync(path.join(at, "ci0/access"), "DeviceFileMinor: 67\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
  await until("its device is there", host, said, (spec) => devices(spec).includes("0:0"));
  assert.ok(devices(read(host.spec)).includes("1:0"));
});

test("killed at any moment of writing, it leaves a spec that is whole, and nothing that stays", options, async (t) => {
  const host = lay(t, "h100x8");
  const config = path.join(
    host.root,
    Object.keys(HOSTS.h100x8().tree).find((file) => file.endsWith("/0000:43:00.0/config")) as string,
  );
  const good = fs.readFileSync(config);
  let written = 0;
  for (let i = 0; i < 60; i++) {
    // Each process finds a spec that is not right.
    fs.writeFileSync(config, i % 2 === 0 ? Buffer.alloc(64, 0xff) : good);
    const { child } = start(host, "--watch");
    await delay(2 * i);
    child.kill("SIGKILL");
    await ended(child);
    const names = devices(read(host.spec));
    if (names.length > 0) written++;
    assert.ok(names.length === 0 || names.includes("all"));
  }
  assert.ok(written > 0, "some had the time to write");
  fs.writeFileSync(config, good);
  assertSettled(host);
});

test("two at once leave a spec and an origin that belong together", options, async (t) => {
  const host = lay(t, "h100x8");
  start(host, "--watch");
  for (let i = 0; i < 10; i++) {
    fs.rmSync(host.spec, { force: true });
    const both = [0, 1].map(() => start(host));
    for (const { child, said } of both) assert.deepEqual(await ended(child), { code: 0, signal: null }, said());
    assertSettled(host);
  }
});
