import assert from "node:assert/strict";
import { test } from "node:test";
import { cli } from "../../src/cli/cli.ts";
import { originPath } from "../../src/host/origin.ts";
import { HOSTS, type HostName } from "../fixtures/hosts/hosts.ts";
import { dir, Killed, link, type MemorySys, memory, type Tree } from "../support/memory-files.ts";

const SPEC = "/var/run/cdi/sluice-nvidia.com-gpu.json";
const RIVAL = "/run/cdi/nvidia.json";
const ADDRESS = "0000:43:00.0";

function machine(name: HostName, more: Tree = {}): MemorySys {
  return memory({ ...HOSTS[name]().tree, "/proc/self/exe": link("/usr/bin/sluice"), "/run/cdi": dir(), ...more });
}

/** What one look has told. */
interface Told {
  readonly output: string;
  readonly errors: string;
}

/** Runs `cdi generate --watch`, does a thing after each look, and kills it after the last; what each look has told. */
function watch(sys: MemorySys, things: readonly (() => void)[], ...args: string[]): Told[] {
  const told: Told[] = [];
  const rest = [...things];
  sys.args.splice(0, sys.args.length, "sluice", "cdi", "generate", "--watch", ...args);
  sys.sleep = (ms) => {
    assert.equal(ms, 500);
    sys.clock += ms;
    told.push({ output: sys.output, errors: sys.errors });
    sys.output = "";
    sys.errors = "";
    const next = rest.shift();
    if (next === undefined) throw new Killed("by its administrator");
    next();
  };
  assert.throws(() => cli(sys), { name: "Killed" });
  return told;
}

const nothing = () => {};
const outputs = (told: readonly Told[]): string[] => told.map(({ output }) => output);

/** Where a PCI function's configuration really lies: beyond the link of its address. */
function configOf(name: HostName, address: string): string {
  return Object.keys(HOSTS[name]().tree).find((path) => path.endsWith(`/${address}/config`)) as string;
}

const lose = (sys: MemorySys) => () => sys.put(configOf("h100x8", ADDRESS), { kind: "file", bytes: "\xff".repeat(64) });
const rival = JSON.stringify({
  cdiVersion: "0.5.0",
  kind: "nvidia.com/gpu",
  devices: [{ name: "0", containerEdits: { env: ["A=b"] } }],
});

test("it reports as the plain command does, then tells each difference once, and nothing as long as nothing changes", () => {
  const plain = machine("h100x8");
  plain.args.push("cdi", "generate");
  assert.equal(cli(plain), 0);
  const sys = machine("h100x8");
  const told = watch(sys, [nothing, nothing, lose(sys), nothing, nothing]);
  assert.equal(told[0]?.output, plain.output);
  assert.deepEqual(outputs(told).slice(1), [
    "",
    "",
    `GPU ${ADDRESS} is lost\nnvidia.com/gpu=1 is gone\n` +
      "nvidia.com/gpu=GPU-0ee276b1-2ee5-d107-4d85-66b1f79b2343 is gone\nnvidia.com/gpu=all has other nodes\n",
    "",
    "",
  ]);
  assert.match(
    told[3]?.errors ?? "",
    /^sluice: NVIDIA GPU 1 \(GPU-0ee276b1\S+\) is lost: it does not answer any more, and is left out\n$/,
  );
  assert.equal(told[4]?.errors, "");
  assert.equal(sys.text(SPEC)?.includes('"name":"1"'), false);
  assert.equal(sys.locks.size, 0);
});

test("a look at a machine where all is right neither takes the lock nor reads a library", () => {
  const sys = machine("h100x8");
  let calls: string[] = [];
  watch(sys, [
    nothing,
    () => sys.calls.splice(0),
    () => {
      calls = [...sys.calls];
    },
  ]);
  assert.ok(calls.length > 20, "it looks");
  assert.deepEqual(
    calls.filter((call) => /^(?:lock|createFile|rename)|^read\S+ .*\.so\./.test(call)),
    [],
  );
});

test("a spec or origin that is deleted or changed comes back", () => {
  for (const path of [SPEC, originPath(SPEC)]) {
    for (const change of [(sys: MemorySys) => sys.unlink(path), (sys: MemorySys) => sys.overwrite(path, "{}")]) {
      const sys = machine("h100x8");
      let before: string | undefined;
      const told = watch(sys, [
        nothing,
        () => {
          before = sys.text(SPEC);
          change(sys);
        },
        nothing,
      ]);
      assert.equal(sys.text(SPEC), before);
      assert.ok(before !== undefined);
      assert.deepEqual(outputs(told).slice(2), [`${path} was changed or deleted, and is written anew\n`, ""]);
    }
  }
});

test("a folder that goes away comes back with the specs", () => {
  const sys = machine("h100x8");
  watch(sys, [nothing, () => sys.remove("/run/cdi")]);
  assert.ok(sys.text(SPEC) !== undefined);
});

test("GPUs that come to a machine without any get a spec, and those that all go take it away", () => {
  const sys = machine("empty");
  const { tree } = HOSTS["fresh-boot"]();
  const told = watch(sys, [
    () => {
      for (const [path, node] of Object.entries(tree)) sys.put(path, node);
    },
    nothing,
    () => sys.remove("/proc/driver/nvidia/gpus"),
  ]);
  assert.equal(told[0]?.output, "No GPUs: nothing to write.\n");
  assert.match(
    told[1]?.output ?? "",
    /^driver 580\.65\.06 is loaded now\nGPU 0000:3b:00\.0 is new\nGPU 0000:86:00\.0 is new\n(?:.*\n)*nvidia\.com\/gpu=0 is new\n/,
  );
  assert.equal(told[2]?.output, "");
  assert.match(
    told[3]?.output ?? "",
    /^GPU 0000:3b:00\.0 is gone\nGPU 0000:86:00\.0 is gone\n(?:.*\n)*nvidia\.com\/gpu=0 is gone\n/,
  );
  assert.deepEqual(sys.names("/run/cdi"), [".sluice.lock"]);
});

test("a machine whose one GPU is lost has no spec, and gets it back when the GPU answers again", () => {
  const sys = machine("debian");
  const config = configOf("debian", "0000:01:00.0");
  const good = sys.readBytes(config, 0, 64);
  const names: boolean[] = [];
  const put = (bytes: string) => () => {
    names.push(sys.text(SPEC) !== undefined);
    sys.put(config, { kind: "file", bytes });
  };
  const told = watch(sys, [put("\xff".repeat(64)), nothing, put(good), nothing]);
  assert.match(told[3]?.output ?? "", /^GPU 0000:01:00\.0 answers again\n/);
  assert.deepEqual(names, [true, false]);
  assert.ok(sys.text(SPEC) !== undefined);
});

test("MIG that is cut on a machine where nothing was cut gives its devices", () => {
  const sys = machine("a100-mig-2-uncut");
  const told = watch(sys, [
    nothing,
    () =>
      sys.put(
        "/proc/driver/nvidia/capabilities/gpu0/mig/gi7/access",
        "DeviceFileMinor: 66\nDeviceFileMode: 292\nDeviceFileModify: 1\n",
      ),
    () =>
      sys.put(
        "/proc/driver/nvidia/capabilities/gpu0/mig/gi7/ci0/access",
        "DeviceFileMinor: 67\nDeviceFileMode: 292\nDeviceFileModify: 1\n",
      ),
  ]);
  assert.match(told[2]?.output ?? "", /^MIG of \/dev\/nvidia0 is cut anew: none -> gi7\n/);
  assert.match(
    told[3]?.output ?? "",
    /^GPU instance 7 of \/dev\/nvidia0 is cut anew: none -> ci0\n(?:.*\n)*nvidia\.com\/gpu=0:0 is new\n/,
  );
});

test("another tool's spec of the same devices is told once, and ours comes back when it is gone", () => {
  const sys = machine("h100x8");
  const told = watch(sys, [nothing, () => sys.put(RIVAL, rival), nothing, () => sys.unlink(RIVAL), nothing]);
  assert.match(told[2]?.errors ?? "", /^sluice: E_CDI_CONFLICT: .*\n$/);
  assert.deepEqual([told[3]?.errors, told[3]?.output], ["", ""]);
  assert.ok(sys.text(SPEC) !== undefined);
  assert.equal(sys.text(RIVAL), undefined);
});

test("what cannot be written is told once, and tried again every five seconds or when the folder changes", () => {
  const sys = machine("h100x8");
  sys.fail("createFile", `${SPEC}.new`, "ENOSPC");
  const told = watch(sys, [
    ...Array(9).fill(nothing),
    () => sys.calls.splice(0),
    ...Array(9).fill(nothing),
    () => sys.heal(),
    ...Array(10).fill(nothing),
  ]);
  assert.match(told[0]?.errors ?? "", /^sluice: E_CDI_WRITE: .* \(ENOSPC\); /);
  assert.deepEqual(
    told.slice(1, 20).filter(({ errors }) => errors !== ""),
    [],
  );
  assert.equal(sys.calls.filter((call) => call.startsWith("createFile") && call.includes(SPEC)).length, 2);
  assert.match(outputs(told).join(""), /^KIND .*\nnvidia\.com\/gpu .* written /);

  const locked = machine("h100x8");
  locked.fail("lock", "/var/run/cdi/.sluice.lock", "EACCES");
  watch(locked, [
    nothing,
    () => {
      locked.heal();
      locked.chmod("/run/cdi", 0o775);
    },
  ]);
  assert.ok(locked.text(SPEC) !== undefined);
});

test("a driver that is half upgraded is told once, and its spec comes with the rest of it", () => {
  const half = HOSTS["half-upgraded"]();
  const sys = machine("half-upgraded");
  const told = watch(sys, [nothing, nothing, () => sys.put("/sys/module/nvidia/version", "580.82.07\n")]);
  assert.match(told[0]?.errors ?? "", /^sluice: E_DRIVER_MISMATCH: /);
  assert.deepEqual([told[1]?.errors, told[2]?.errors], ["", ""]);
  assert.match(told[3]?.output ?? "", /^driver 580\.65\.06 -> 580\.82\.07\n/);
  assert.ok(sys.text(SPEC)?.includes("libcuda.so.580.82.07"), half.name);
});

test("another tree is watched too, and one file", () => {
  const { tree } = HOSTS["h100x8"]();
  const sys = memory({
    ...Object.fromEntries(Object.entries(tree).map(([path, node]) => [`/mnt${path}`, node])),
    "/proc/self/exe": link("/usr/bin/sluice"),
    "/out": dir(),
  });
  const told = watch(
    sys,
    [nothing, () => sys.put("/mnt/sys/module/nvidia/version", "580.82.07\n")],
    "--root=/mnt",
    "--output=/out/gpus.json",
  );
  assert.match(told[2]?.errors ?? "", /E_DRIVER_MISMATCH/);
  assert.match(told[2]?.output ?? "", /^driver 580\.65\.06 -> 580\.82\.07\n/);
});

test("wrong usage is told", () => {
  for (const args of [["--json"], ["--output", "-"], ["extra"]]) {
    const sys = machine("arc");
    sys.args.push("cdi", "generate", "--watch", ...args);
    assert.equal(cli(sys), 2, args.join(" "));
    assert.match(sys.errors, /E_USAGE/);
  }
});
