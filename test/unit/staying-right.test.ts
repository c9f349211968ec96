/**
 * Specs of ours that a machine has outgrown, and what a container's start makes of them: each way in which a spec goes
 * stale without anybody touching it.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { cli } from "../../src/cli/cli.ts";
import { differences, readMade } from "../../src/host/difference.ts";
import { makeMachineSpecs } from "../../src/host/generate.ts";
import { originPath } from "../../src/host/origin.ts";
import { specText } from "../../src/host/publish.ts";
import { staleSpecs } from "../../src/host/stale.ts";
import { planFor } from "../../src/plan/inject.ts";
import { openMachine } from "../../src/plan/machine.ts";
import type { Plan } from "../../src/plan/plan.ts";
import { SluiceError } from "../../src/sys/error.ts";
import { a100Mig2, DRIVER, HOSTS, type Host, type HostName, MIG_LAYOUTS } from "../fixtures/hosts/hosts.ts";
import { dir, link, type MemorySys, memory, socket } from "../support/memory-files.ts";

const SPEC = "/var/run/cdi/sluice-nvidia.com-gpu.json";
const LIBRARIES = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/i386-linux-gnu"];
const LIB = LIBRARIES[0];
const NEXT = "580.82.07";
const MIG = "/proc/driver/nvidia/capabilities/gpu1/mig";
/** GPU 1 of the machine with eight. */
const ADDRESS = "0000:43:00.0";
const UUID = "GPU-0ee276b1-2ee5-d107-4d85-66b1f79b2343";

/** A machine with the specs that `sluice cdi generate` has written there, ten seconds ago. */
function generated(name: HostName): MemorySys {
  const { tree, smi } = HOSTS[name]();
  const sys = memory({ ...tree, "/proc/self/exe": link("/usr/bin/sluice"), "/run/cdi": dir(), "/run/sluice": dir() });
  if (smi !== undefined) sys.answers.set("/usr/bin/nvidia-smi -L", { code: 0, out: smi });
  assert.equal(generate(sys), 0, sys.errors);
  return sys;
}

function generate(sys: MemorySys, ...args: string[]): number {
  sys.args.splice(0, sys.args.length, "sluice", "cdi", "generate", ...args);
  const code = cli(sys);
  sys.clock += 10_000;
  return code;
}

/** What a container's start plans. @param env of the container */
function start(sys: MemorySys, device: string, env: string[] = []): Plan {
  const plan = planFor(openMachine(sys), {
    ociVersion: "1.2.0",
    process: { env },
    annotations: { "gpu.sluice.dev": `nvidia.com/gpu=${device}` },
  });
  sys.clock += 10_000;
  assert.ok(plan !== undefined);
  return plan;
}

/** The first start makes the index of specs, the second one keeps its plan. */
function startThrice(sys: MemorySys, device: string): void {
  for (const isKept of [false, false, true]) assert.equal(start(sys, device).ready !== undefined, isKept);
}

/** The code and message of the refusal of a start; a defect of ours is thrown. */
function refusal(sys: MemorySys, device: string, env: string[] = []): string {
  try {
    start(sys, device, env);
  } catch (thrown) {
    if (thrown instanceof SluiceError) return thrown.message;
    throw thrown;
  }
  return "";
}

/** What has changed, exactly. */
function lines(sys: MemorySys): string[] {
  const was = readMade(sys, SPEC);
  assert.ok(was !== undefined);
  const { specs } = makeMachineSpecs(sys, was.origin.options);
  return differences(sys, was, specs.find(({ spec }) => spec.kind === was.spec.kind)?.spec);
}

/** Asserts that the spec on disk is what it would be made now. */
function assertRight(sys: MemorySys): void {
  assert.deepEqual(staleSpecs(sys, [SPEC]), []);
  const options = readMade(sys, SPEC)?.origin.options;
  assert.ok(options !== undefined);
  const [made] = makeMachineSpecs(sys, options).specs;
  assert.equal(sys.text(SPEC), made && specText(made));
}

/** The package manager's part of an upgrade. */
function replaceLibraries(sys: MemorySys): void {
  for (const folder of LIBRARIES) {
    for (const name of sys.names(folder).filter((one) => one.endsWith(`.so.${DRIVER}`))) {
      const bytes = sys.readBytes(`${folder}/${name}`, 0, 1 << 20);
      sys.remove(`${folder}/${name}`);
      sys.put(`${folder}/${name.replace(DRIVER, NEXT)}`, { kind: "file", bytes });
    }
  }
}

function upgrade(sys: MemorySys): void {
  replaceLibraries(sys);
  sys.put("/sys/module/nvidia/version", `${NEXT}\n`);
}

/** Xid 79: it has fallen off the bus. */
function lose(sys: MemorySys): void {
  const config = Object.keys(HOSTS.h100x8().tree).find((path) => path.endsWith(`/${ADDRESS}/config`));
  sys.put(config as string, { kind: "file", bytes: "\xff".repeat(64) });
}

function unplug(sys: MemorySys): void {
  sys.remove(`/proc/driver/nvidia/gpus/${ADDRESS}`);
  sys.remove(`/sys/bus/pci/devices/${ADDRESS}`);
}

/** Makes the machine another one, file by file. */
function become(sys: MemorySys, from: Host, to: Host): void {
  for (const path of Object.keys(from.tree)) if (!Object.hasOwn(to.tree, path)) sys.remove(path);
  for (const [path, node] of Object.entries(to.tree)) {
    if (JSON.stringify(node) !== JSON.stringify(from.tree[path])) sys.put(path, node);
  }
  sys.answers.set("/usr/bin/nvidia-smi -L", { code: 0, out: to.smi ?? "" });
}

function cutMig(sys: MemorySys): void {
  for (const path of [`${MIG}/gi9`, `${MIG}/gi10`]) sys.remove(path);
  const half = [
    { profile: "3g.40gb", gi: 2, ci: [0] },
    { profile: "2g.20gb", gi: 3, ci: [0] },
  ];
  become(sys, a100Mig2(), a100Mig2([MIG_LAYOUTS.default[0], half]));
}

/** The module is loaded anew, and the kernel gives it another major; nobody has made its nodes yet. */
function renumber(sys: MemorySys): void {
  const text = sys.text("/proc/devices") ?? "";
  sys.put("/proc/devices", text.replace(/^195 nvidia/gm, "240 nvidia"));
}

interface Way {
  readonly what: string;
  readonly host: HostName;
  readonly change: (sys: MemorySys) => void;
  readonly differences: readonly string[];
  /** A device that is there before and after. */
  readonly stays: string;
  /** One that is not there any more. */
  readonly goes?: string;
}

const WAYS: readonly Way[] = [
  {
    what: "the driver is upgraded",
    host: "h100x8",
    change: upgrade,
    differences: [
      `driver ${DRIVER} -> ${NEXT}`,
      `${LIB}/libcuda.so.${DRIVER} and 48 other files are gone`,
      // Its firmware and VDPAU's libraries, which are still there.
      `${LIB}/vdpau/libvdpau_nvidia.so.${DRIVER} and 3 other files are not the driver's any more`,
      `${LIB}/libcuda.so.${NEXT} and 48 other files are new`,
    ],
    stays: "1",
  },
  {
    what: "a GPU is lost",
    host: "h100x8",
    change: lose,
    differences: [
      `GPU ${ADDRESS} is lost`,
      "nvidia.com/gpu=1 is gone",
      `nvidia.com/gpu=${UUID} is gone`,
      "nvidia.com/gpu=all has other nodes",
    ],
    stays: "0",
    goes: "1",
  },
  {
    what: "a GPU is unplugged",
    host: "h100x8",
    change: unplug,
    differences: [
      `GPU ${ADDRESS} is gone`,
      "nvidia.com/gpu=1 has other nodes",
      `nvidia.com/gpu=${UUID} is gone`,
      ...[2, 3, 4, 5, 6].map((index) => `nvidia.com/gpu=${index} has other nodes`),
      "nvidia.com/gpu=7 is gone",
      "nvidia.com/gpu=all has other nodes",
    ],
    stays: "0",
    goes: UUID,
  },
  {
    what: "MIG is cut anew",
    host: "a100-mig-2",
    change: cutMig,
    differences: [
      "MIG of /dev/nvidia1 is cut anew: gi10 gi2 gi3 gi9 -> gi2 gi3",
      ...[219, 220, 228, 229].map((minor) => `/dev/nvidia-caps/nvidia-cap${minor} is gone`),
      "nvidia.com/gpu=1:2 is gone",
      "nvidia.com/gpu=MIG-0fd9ed13-145f-4f6d-2585-98f7b504e3b5 is gone",
      "nvidia.com/gpu=1:3 is gone",
      "nvidia.com/gpu=MIG-76316661-d88f-9dc9-74f7-c6f5f4b013e5 is gone",
      "nvidia.com/gpu=all has other nodes",
    ],
    stays: "0:0",
    goes: "1:3",
  },
  {
    what: "the nodes' major changes",
    host: "fresh-boot",
    change: renumber,
    differences: ["nvidiactl", "nvidia0", "nvidia1"].map((name, i) => {
      const minor = [255, 0, 1][i];
      return `/dev/${name} has the numbers 240:${minor}, and had 195:${minor}`;
    }),
    stays: "0",
  },
  {
    what: "a library is deleted",
    host: "h100x8",
    change: (sys) => sys.remove(`${LIB}/libnvidia-ml.so.${DRIVER}`),
    differences: [`${LIB}/libnvidia-ml.so.${DRIVER} is gone`],
    stays: "0",
  },
  {
    what: "nvidia-smi is deleted",
    host: "h100x8",
    change: (sys) => sys.remove("/usr/bin/nvidia-smi"),
    differences: ["/usr/bin/nvidia-smi is gone"],
    stays: "0",
  },
  {
    what: "a daemon's socket comes",
    host: "fresh-boot",
    change: (sys) => sys.put("/run/nvidia-persistenced/socket", socket()),
    differences: ["/run/nvidia-persistenced/socket is there now", "/run/nvidia-persistenced/socket is new"],
    stays: "0",
  },
];

for (const { what, host, change, differences: expected, stays, goes } of WAYS) {
  test(`${what}: a start sees it, and puts the spec right`, () => {
    const sys = generated(host);
    assert.deepEqual(staleSpecs(sys, [SPEC]), []);
    assert.deepEqual(lines(sys), []);
    startThrice(sys, stays);
    change(sys);
    sys.clock += 10_000;
    assert.deepEqual(staleSpecs(sys, [SPEC]), [SPEC]);
    assert.deepEqual(lines(sys), expected);

    const plan = start(sys, stays);
    assertRight(sys);
    const anew = generated(host);
    change(anew);
    assert.equal(generate(anew), 0, anew.errors);
    assert.equal(sys.text(SPEC), anew.text(SPEC), "as the command would have made it");
    assert.equal(plan.text, start(anew, stays).text, "the plan is from the new spec");
    assert.equal(start(sys, stays).text, plan.text);
    assert.equal(
      sys.names("/run/cdi").join(" "),
      ".sluice.lock sluice-nvidia.com-gpu.json sluice-nvidia.com-gpu.origin",
    );
    assert.equal(sys.locks.size, 0);
  });

  test(`${what}: a start that may not write goes on where it is given the same, and names the difference where not`, () => {
    for (const [call, path] of [
      ["createFile", `${SPEC}.new`],
      ["lock", "/var/run/cdi/.sluice.lock"],
    ] as const) {
      const sys = generated(host);
      const before = start(sys, stays);
      change(sys);
      sys.clock += 10_000;
      sys.fail(call, path, "EACCES");
      const [first = ""] = expected;
      const stale = `E_CDI_STALE: the spec ${SPEC} is no longer right: ${first}`;
      const told = refusal(sys, stays);
      if (goes === undefined) assert.ok(told.startsWith(stale), `${told}\n${stale}`);
      else assert.equal(start(sys, stays).text, before.text, told);
      if (goes !== undefined) assert.ok(refusal(sys, goes).startsWith(stale), refusal(sys, goes));
      assert.equal(sys.locks.size, 0);
    }
  });

  if (goes !== undefined) {
    test(`${what}: a start with what is gone is refused, and told what has changed`, () => {
      const sys = generated(host);
      startThrice(sys, goes);
      change(sys);
      sys.clock += 10_000;
      const told = refusal(sys, goes);
      assert.match(told, /^E_CDI_UNKNOWN_DEVICE: there is no CDI device /);
      assert.ok(told.includes(` (since its spec was made: ${expected[0]}`), told);
      assertRight(sys);
    });
  }
}

test("a driver that is half upgraded is refused with what to do, and is served once it is whole", () => {
  const sys = generated("h100x8");
  startThrice(sys, "0");
  replaceLibraries(sys);
  sys.clock += 10_000;
  assert.equal(
    refusal(sys, "0"),
    `E_CDI_STALE: the spec ${SPEC} is no longer right: driver ${DRIVER} is loaded, and libcuda.so.${DRIVER} is gone: ` +
      `there is that of ${NEXT}; restart the machine, or unload the driver's modules and load those of the new version`,
  );
  sys.put("/sys/module/nvidia/version", `${NEXT}\n`);
  start(sys, "0");
  assertRight(sys);
});

test("a compute instance that is made after its GPU instance is seen", () => {
  const sys = memory({ ...HOSTS["a100-mig-2-compute"]().tree, "/run/cdi": dir(), "/run/sluice": dir() });
  assert.equal(generate(sys, "--hook", "/usr/bin/sluice"), 0, sys.errors);
  const place = `${MIG}/gi2/ci0/access`;
  sys.put(place, "DeviceFileMinor: 157\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
  assert.deepEqual(staleSpecs(sys, [SPEC]), [SPEC]);
  assert.deepEqual(lines(sys).slice(0, 1), ["GPU instance 2 of /dev/nvidia1 is cut anew: none -> ci0"]);
  start(sys, "1:1");
  assertRight(sys);
});

test("a GPU's UUID, unknown until somebody uses it, becomes a name of its device", () => {
  const sys = generated("fresh-boot");
  const place = "/proc/driver/nvidia/gpus/0000:3b:00.0/information";
  sys.put(place, (sys.text(place) ?? "").replace("GPU-????????-????-????-????-????????????", UUID));
  assert.deepEqual(lines(sys), [`nvidia.com/gpu=${UUID} is new`]);
  start(sys, UUID);
  assertRight(sys);
});

test("a spec that was deleted is named where its device is asked for", () => {
  const sys = generated("h100x8");
  startThrice(sys, "0");
  sys.unlink(SPEC);
  assert.match(
    refusal(sys, "0"),
    /^E_CDI_UNKNOWN_DEVICE: .* \(the spec \/var\/run\/cdi\/sluice-nvidia\.com-gpu\.json was deleted\); run: sluice cdi generate$/,
  );
  assert.equal(generate(sys), 0);
  start(sys, "0");
});

test("a spec that somebody has changed, or whose origin is gone, counts as it stands", () => {
  for (const change of [
    (sys: MemorySys) => sys.overwrite(SPEC, (sys.text(SPEC) ?? "").replace("NVIDIA_VISIBLE_DEVICES=void", "THEIRS=1")),
    (sys: MemorySys) => sys.unlink(originPath(SPEC)),
  ]) {
    const sys = generated("h100x8");
    change(sys);
    const text = sys.text(SPEC);
    lose(sys);
    start(sys, "0");
    assert.equal(sys.text(SPEC), text);
  }
});

test("an origin that is damaged is no defect of ours: its spec counts as it stands, or is refused, until it is made anew", () => {
  const whole = generated("h100x8").text(originPath(SPEC)) ?? "";
  const [head = "", facts = "", rest = ""] = whole.split("\n");
  const cut = [0, 1, 30, head.length - 1, head.length, head.length + 1, head.length + 40, whole.length - 1];
  const bad = ["", "null", "[]", "7", "[7]", '{"options":{}}', rest.slice(0, 40), '{"options":{"hook":1}}'];
  const damage = `E_CDI_STALE: ${originPath(SPEC)} is damaged: what its spec was made from cannot be read; run: sluice cdi generate`;
  const damaged: readonly (readonly [text: string, told: string])[] = [
    ...cut.map((end) => [whole.slice(0, end), ""] as const),
    ...bad.map((line) => [`${line}\n${facts}\n${rest}\n`, ""] as const),
    ...bad.map((line) => [`${head}\n${facts}\n${line}\n`, damage] as const),
  ];
  for (const [text, told] of damaged) {
    const sys = generated("h100x8");
    assert.equal(sys.text(originPath(SPEC)), whole, "a machine in memory gives the same stamps each time");
    sys.overwrite(originPath(SPEC), text);
    const env = ["NVIDIA_DRIVER_CAPABILITIES=compute"];
    assert.equal(refusal(sys, "0", env), told, text);
    assert.equal(refusal(sys, "0"), "");
    lose(sys);
    assert.equal(refusal(sys, "0"), told, text);
    assert.equal(generate(sys), 0, sys.errors);
    assertRight(sys);
    start(sys, "0", env);
  }
});

test("what somebody who was killed has left is removed, also where the spec is right", () => {
  const sys = generated("h100x8");
  const all = sys.names("/run/cdi");
  for (const path of [SPEC, originPath(SPEC)]) sys.createFile(`${path}.new`, "{", 0o644);
  assert.equal(generate(sys), 0, sys.errors);
  assert.deepEqual(sys.names("/run/cdi"), all);
});
