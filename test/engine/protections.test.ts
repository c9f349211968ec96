/** What holds pods back while sluiced is away: the snippets of packaging/ in real engines, and what the doctor says. */

import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import type { Finding } from "../../src/cli/doctor-checks.ts";
import { type Container, CriError, type Pod } from "../lab/cri.ts";
import { admit, allocated, assertHas, ENGINES, type Engine, run, type Scene, start, uuid } from "../lab/pods.ts";
import { ROOT } from "../support/simulated-host.ts";

const SNIPPETS = path.join(ROOT, "packaging");
const IMPORTS = 'imports = ["/etc/containerd/conf.d/*.toml"]';

/** The engine of a name, or a test that is skipped with its reason. */
function engineNamed(name: string): Engine {
  const engine = ENGINES.find((one) => one.name === name);
  assert.ok(engine !== undefined);
  return engine;
}

/** Installs sluice as a package does; the lab has its link already. */
function install({ machine }: Scene): void {
  machine.write("/usr/bin/sluice", "", 0o755);
  fs.copyFileSync(path.join(ROOT, "build/sluice"), path.join(machine.dir, "usr/bin/sluice"));
}

/** Puts a snippet where containerd imports it, and starts the engine with it. */
async function importing({ machine, engine, cri, sluiced }: Scene, snippet: string): Promise<void> {
  const file = path.join(machine.dir, "etc/containerd/config.toml");
  fs.writeFileSync(file, fs.readFileSync(file, "utf8").replace(/^version = \d$/m, `$&\n${IMPORTS}`));
  const text = fs.readFileSync(path.join(SNIPPETS, "containerd", snippet), "utf8");
  machine.write(`/etc/containerd/conf.d/${snippet}`, text);
  const times = sluiced.registrations();
  engine.restart();
  await cri.ready();
  await sluiced.registered(times + 1);
}

/** CRI-O of the lab has one file of settings; tables that the snippet has too give way to it. */
async function including({ machine, engine, cri, sluiced }: Scene, snippet: string): Promise<void> {
  const file = path.join(machine.dir, "etc/crio/crio.conf");
  const text = fs.readFileSync(path.join(SNIPPETS, "crio", snippet), "utf8");
  const own = fs
    .readFileSync(file, "utf8")
    .replace(/\[crio\.runtime\.runtimes\.sluice\]\n(?:.+\n)*/, "")
    .replace(/^default_runtime = .*$/m, /^default_runtime = .*$/m.exec(text)?.[0] ?? "$&");
  fs.writeFileSync(file, own + text.replace(/^\[crio\.runtime\]\n(?:.+\n)*/m, ""));
  const times = sluiced.registrations();
  engine.restart();
  await cri.ready();
  await sluiced.registered(times + 1);
}

interface Doctor {
  /** Of the findings that are of Kubernetes: `warning nri-fails-open`. */
  readonly codes: readonly string[];
  readonly holds: string;
}

function doctor({ machine }: Scene, engine: string): Doctor {
  const { out } = machine.run("sluice", "doctor", "--json", "--engine", engine);
  const { findings, checked } = JSON.parse(out) as { findings: Finding[]; checked: string[] };
  return {
    codes: findings.flatMap(({ severity, code }) =>
      /^(?:sluiced|nri|kubelet|pods|plugin|no-runtime-door)/.test(code) ? [`${severity} ${code}`] : [],
    ),
    holds: checked.find((line) => line.startsWith("what holds pods")) ?? "",
  };
}

/** A pod to whose container GPU 0 was allocated, and to another one nothing. */
function bring(scene: Scene): Promise<Pod> {
  return admit(scene, { containers: { main: allocated(uuid(0)), again: allocated(uuid(0)), plain: {} } });
}

const asking = (scene: Scene, p: Pod, name: string, attempt = 0): Promise<Container> =>
  run(scene, p, { name, attempt, env: { NVIDIA_VISIBLE_DEVICES: "all" } });

async function assertRefused(attempt: Promise<Container>, by: RegExp): Promise<void> {
  await assert.rejects(attempt, (error: unknown) => {
    assert.ok(error instanceof CriError, String(error));
    assert.match(error.details, by);
    return true;
  });
}

/** One that hangs is cut off by the engine, and answers the runtime door no more than the engine. */
async function whileStopped({ sluiced }: Scene, act: () => Promise<void>): Promise<void> {
  const pid = sluiced.pid();
  process.kill(pid, "SIGSTOP");
  try {
    await act();
  } finally {
    // nsenter, which has started it, stops when its child does, and has it go on when it does.
    const parent = /^PPid:\s+(\d+)$/m.exec(fs.readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
    process.kill(Number(parent), "SIGCONT");
  }
}

/** All pods go through the runtime door: those with a GPU are held back, and no others. */
async function theDoorHolds(scene: Scene, engine: string): Promise<void> {
  assert.deepEqual(doctor(scene, engine).codes, []);
  assert.match(
    doctor(scene, engine).holds,
    /: sluiced, asked by NRI of .*, sluice-runtime, the runtime of all pods of /,
  );
  const p = await bring(scene);
  await assertHas(scene, await asking(scene, p, "main"), [0]);

  await whileStopped(scene, async () => {
    await assertRefused(asking(scene, p, "again"), /E_NO_EVIDENCE|validator plugin 90-sluice failed/);
    await run(scene, p, { name: "plain" });
  });
  await scene.sluiced.kill();

  await assertRefused(asking(scene, p, "again", 1), /E_NO_EVIDENCE: .*sluiced cannot be asked/);
  await run(scene, p, { name: "other" });
  const away = doctor(scene, engine);
  assert.deepEqual(away.codes, ["error sluiced-away"]);
  assert.match(away.holds, /: sluice-runtime, the runtime of all pods/);

  await scene.sluiced.start();
  await assertHas(scene, await asking(scene, p, "again", 2), [0]);
}

async function scene(t: TestContext, engine: Engine): Promise<Scene> {
  const made = await start(t, engine);
  install(made);
  return made;
}

{
  const engine = engineNamed("containerd 2.1");
  test("containerd 2.1 without anything fails open, as the doctor says", engine.options, async (t) => {
    const made = await scene(t, engine);
    const all = ["warning nri-fails-open", "note no-runtime-door", "note plugin-not-required"];
    assert.deepEqual(doctor(made, "containerd").codes, all);
    const p = await bring(made);
    await made.sluiced.kill();
    await assertHas(made, await asking(made, p, "main"), []);
    assert.deepEqual(doctor(made, "containerd").codes, ["error sluiced-away", ...all]);
  });

  test("containerd 2.1 with packaging's runtime door", engine.options, async (t) => {
    const made = await scene(t, engine);
    await importing(made, "sluice-runtime-2.toml");
    await theDoorHolds(made, "containerd");
  });
}

{
  const engine = engineNamed("containerd 1.7");
  test("packaging's settings switch NRI on in containerd 1.7", engine.options, async (t) => {
    const made = await scene(t, engine);
    const file = path.join(made.machine.dir, "etc/containerd/config.toml");
    fs.writeFileSync(
      file,
      fs.readFileSync(file, "utf8").replace(/\[plugins\."io\.containerd\.nri\.v1\.nri"\]\n(?:.+\n)*/, ""),
    );
    made.engine.restart();
    await made.cri.ready();
    // sluiced waits for a socket that never comes.
    assert.deepEqual(doctor(made, "containerd").codes, ["error nri-not-registered", "error nri-off"]);
    await importing(made, "sluice-nri-1.7.toml");
    assert.ok(!doctor(made, "containerd").codes.some((code) => /nri-(?:off|not-registered)/.test(code)));
    await assertHas(made, await asking(made, await bring(made), "main"), [0]);
  });
}

{
  const engine = engineNamed("CRI-O");
  test("CRI-O with packaging's runtime door", engine.options, async (t) => {
    const made = await scene(t, engine);
    await including(made, "91-sluice-runtime.conf");
    await theDoorHolds(made, "cri-o");
  });

  test("CRI-O that requires the plugin creates nothing without it", engine.options, async (t) => {
    const made = await scene(t, engine);
    await including(made, "91-sluice-required.conf");
    assert.deepEqual(doctor(made, "cri-o").codes, []);
    const p = await bring(made);
    await assertHas(made, await asking(made, p, "main"), [0]);

    await made.sluiced.kill();
    // The first after its end is refused since sluiced is a validator, the others since it is required.
    for (const name of ["again", "plain", "other"]) {
      await assertRefused(
        asking(made, p, name),
        /required plugin "sluice" not present|validator plugin 90-sluice failed/,
      );
    }
    assert.deepEqual(doctor(made, "cri-o").codes, ["error sluiced-away"]);
    await made.sluiced.start();
    await whileStopped(made, async () => {
      for (const attempt of [1, 2]) {
        await assertRefused(asking(made, p, "again", attempt), /required plugin "sluice" not present|90-sluice failed/);
      }
    });
    await made.sluiced.registered(2);
    await assertHas(made, await asking(made, p, "again", 3), [0]);
  });
}
