import assert from "node:assert/strict";
import { test } from "node:test";
import { cli } from "../../src/cli/cli.ts";
import { makeSpecs } from "../../src/host/cdi-spec.ts";
import { changedFacts, originPath, readOrigin, type SpecOptions } from "../../src/host/origin.ts";
import { specText } from "../../src/host/publish.ts";
import { HOSTS, type HostName } from "../fixtures/hosts/hosts.ts";
import { dir, file, link, type MemorySys, memory, type Tree } from "../support/memory-files.ts";

const OPTIONS: SpecOptions = { hook: "/usr/bin/sluice", params: "", features: [] };
const SPEC = "/var/run/cdi/sluice-nvidia.com-gpu.json";

function machine(name: HostName, more: Tree = {}): MemorySys {
  return memory({ ...HOSTS[name]().tree, "/proc/self/exe": link("/usr/bin/sluice"), "/run/cdi": dir(), ...more });
}

/** Runs a command; its exit code. */
function run(sys: MemorySys, ...args: string[]): number {
  sys.args.splice(0, sys.args.length, "sluice", ...args);
  return cli(sys);
}

const generate = (sys: MemorySys, ...args: string[]): number => run(sys, "cdi", "generate", ...args);

const rival = (device: string): string =>
  JSON.stringify({
    cdiVersion: "0.5.0",
    kind: "nvidia.com/gpu",
    devices: [{ name: device, containerEdits: { env: ["A=b"] } }],
  });

test("the specs of a machine are written beside the facts that they rest on", () => {
  const sys = machine("h100x8");
  assert.equal(generate(sys), 0, sys.errors);
  const [made] = makeSpecs(sys, { ...OPTIONS, params: "/run/sluice/cdi/nvidia-params" }).specs;
  assert.ok(made !== undefined);
  assert.equal(sys.readText(SPEC, 1 << 20), specText(made));
  const origin = readOrigin(sys, SPEC);
  assert.equal(origin?.driver, "580.65.06");
  assert.deepEqual(changedFacts(sys, origin?.facts ?? []), []);
  assert.match(sys.readText("/run/sluice/cdi/nvidia-params", 9999), /^ModifyDeviceFiles: 0$/m);
  assert.match(
    sys.output,
    /^nvidia\.com\/gpu +\/var\/run\/cdi\/sluice-nvidia\.com-gpu\.json +written +0 GPU-.* 7 GPU-\S+ all$/m,
  );
});

test("what is right already is not touched", () => {
  const sys = machine("h100x8");
  generate(sys);
  const before = [SPEC, originPath(SPEC)].map((path) => sys.stat(path)?.stamp);
  sys.clock += 1000;
  sys.output = "";
  assert.equal(generate(sys), 0);
  assert.deepEqual(
    [SPEC, originPath(SPEC)].map((path) => sys.stat(path)?.stamp),
    before,
  );
  assert.match(sys.output, / unchanged +0 /);
});

test("a spec that somebody has changed is theirs: its facts count no more", () => {
  const sys = machine("h100x8");
  generate(sys);
  sys.clock += 1000;
  sys.unlink(SPEC);
  sys.createFile(SPEC, rival("0"), 0o644);
  assert.equal(readOrigin(sys, SPEC), undefined);
});

test("features get specs only where the settings allow them", () => {
  const sys = machine("h100x8");
  generate(sys);
  assert.equal(sys.stat("/run/cdi/sluice-nvidia.com-gds.json"), undefined);
  const config = file('[policy]\nfeatures = ["gds", "imex"]\n');
  const allowed = machine("h100x8", { "/etc/sluice/config.toml": config });
  assert.equal(generate(allowed), 0, allowed.errors);
  assert.ok(allowed.stat("/run/cdi/sluice-nvidia.com-gds.json") !== undefined);
  assert.ok(allowed.stat("/run/cdi/sluice-nvidia.com-imex-channel.json") !== undefined);
  assert.equal(allowed.stat("/run/cdi/sluice-nvidia.com-nvswitch.json"), undefined);
});

test("of a kind that the machine has no more, our spec goes; others' stay", () => {
  const ours = "/run/cdi/sluice-amd.com-gpu.json";
  const theirs = "/run/cdi/amd.json";
  const sys = machine("arc", { [ours]: "{}", [originPath(ours)]: "[]", [theirs]: "{}" });
  assert.equal(generate(sys), 0, sys.errors);
  assert.equal(sys.stat(ours), undefined);
  assert.equal(sys.stat(originPath(ours)), undefined);
  assert.ok(sys.stat(theirs) !== undefined);
  assert.match(sys.output, /^amd\.com\/gpu +\S+ +removed +-$/m);
});

test("another tool's spec of the same devices is not fought: ours stays out, or moves it aside when told to", () => {
  const theirs = "/run/cdi/nvidia.json";
  const sys = machine("h100x8");
  generate(sys);
  sys.clock += 1000;
  sys.createFile(theirs, rival("0"), 0o644);
  assert.equal(generate(sys), 1);
  assert.equal(sys.stat(SPEC), undefined, "ours would take theirs away");
  assert.match(
    sys.errors,
    /^sluice: E_CDI_CONFLICT: the spec of nvidia\.com\/gpu was left out: \/var\/run\/cdi\/nvidia\.json has .*--replace/m,
  );
  assert.equal(generate(sys, "--replace"), 0);
  assert.equal(sys.stat(theirs), undefined);
  assert.equal(sys.readText(`${theirs}.replaced-by-sluice`, 9999), rival("0"));
  assert.ok(sys.stat(SPEC) !== undefined);
});

test("a spec of other devices, or in a lower folder, is no conflict, and one that ours hides is told", () => {
  const sys = machine("h100x8", { "/run/cdi/more.json": rival("mine"), "/etc/cdi/nvidia.json": rival("1") });
  assert.equal(generate(sys), 0, sys.errors);
  assert.ok(sys.stat(SPEC) !== undefined);
  assert.match(
    sys.errors,
    /^sluice: \/etc\/cdi\/nvidia\.json has devices of the same names; those of \/var\/run\/cdi count$/m,
  );
});

test("one spec goes to standard output or a file of any name; several do not", () => {
  const sys = machine("arc");
  assert.equal(generate(sys, "--output", "-"), 0);
  assert.equal(JSON.parse(sys.output).kind, "intel.com/gpu");
  assert.equal(generate(sys, "--output", "/etc/gpus.json"), 0, sys.errors);
  assert.equal(JSON.parse(sys.readText("/etc/gpus.json", 9999)).kind, "intel.com/gpu");
  const config = file('[policy]\nfeatures = ["gds"]\n');
  const many = machine("h100x8", { "/etc/sluice/config.toml": config });
  assert.throws(
    () => generate(many, "--output", "-"),
    /E_GENERATE_KIND.*nvidia\.com\/gpu, nvidia\.com\/gds; choose one with --kind/,
  );
  assert.equal(generate(many, "--output", "-", "--kind", "nvidia.com/gds"), 0);
  assert.equal(JSON.parse(many.output).kind, "nvidia.com/gds");
});

test("wrong usage is told", () => {
  for (const args of [
    ["extra"],
    ["--output", "/etc/gpus.txt"],
    ["--hook", "sluice"],
    ["--hook", "/usr/bin/sluice", "--no-hook"],
    ["--root", "/mnt"],
  ]) {
    const sys = machine("arc", { "/mnt": dir() });
    assert.equal(generate(sys, ...args), 2, args.join(" "));
    assert.match(sys.errors, /E_USAGE/);
  }
});

test("without a hook the links are mounts, and no file of ours is named", () => {
  const sys = machine("debian");
  assert.equal(generate(sys, "--no-hook"), 0, sys.errors);
  const { containerEdits } = JSON.parse(sys.readText(SPEC, 1 << 20));
  assert.equal(containerEdits.hooks, undefined);
  const paths = containerEdits.mounts.map((mount: { containerPath: string }) => mount.containerPath);
  for (const name of ["libcuda.so.550.163.01", "libcuda.so.1", "libcuda.so"]) {
    assert.ok(paths.includes(`/usr/lib/x86_64-linux-gnu/${name}`), name);
  }
  assert.equal(sys.stat("/run/sluice"), undefined);
});

test("a spec that outlives the boot names no file that does not", () => {
  const sys = machine("debian", { "/etc/cdi": dir() });
  assert.equal(generate(sys, "--output", "/etc/cdi"), 0, sys.errors);
  const [hook] = JSON.parse(sys.readText("/etc/cdi/sluice-nvidia.com-gpu.json", 1 << 20)).containerEdits.hooks;
  assert.ok(!hook.args.includes("--params"));
});

test("a driver that is not the one whose libraries lie there has no spec, and takes the old one away", () => {
  const sys = machine("half-upgraded", { [SPEC.replace("/var", "")]: "{}" });
  assert.equal(generate(sys), 1);
  assert.match(
    sys.errors,
    /^sluice: E_DRIVER_MISMATCH: driver 580\.65\.06 is loaded, and libcuda\.so\.580\.65\.06 is gone: there is that of 580\.82\.07; restart/m,
  );
  assert.equal(sys.stat(SPEC), undefined);
});

test("MIG devices have their UUIDs from nvidia-smi, and are given without where it fails", () => {
  const host = HOSTS["a100-mig-2"]();
  const sys = machine("a100-mig-2");
  sys.answers.set("/usr/bin/nvidia-smi -L", { code: 0, out: host.smi ?? "" });
  assert.equal(generate(sys), 0, sys.errors);
  const names = (of: MemorySys): string[] =>
    JSON.parse(of.readText(SPEC, 1 << 20)).devices.map((device: { name: string }) => device.name);
  assert.ok(names(sys).some((name) => name.startsWith("MIG-")));
  const failing = machine("a100-mig-2");
  assert.equal(generate(failing), 0, failing.errors);
  assert.deepEqual(
    names(failing),
    names(sys).filter((name) => !name.startsWith("MIG-")),
  );
  assert.match(failing.errors, /^sluice: nvidia-smi is not there, or failed: 11 MIG devices have no names by UUID$/m);
});

test("a place that cannot be written is told, with what to do", () => {
  const sys = machine("arc");
  sys.fail("createFile", "/var/run/cdi/sluice-intel.com-gpu.json.new", "EACCES");
  assert.throws(() => generate(sys), /E_CDI_WRITE: the CDI spec \S+ cannot be written \(EACCES\); run it as root/);
});

test("a machine without GPUs gets no spec, which is no failure", () => {
  const sys = machine("empty");
  assert.equal(generate(sys), 0);
  assert.equal(sys.output, "No GPUs: nothing to write.\n");
});

test("a GPU that falls off the bus changes the facts of its spec, and so does a library that goes", () => {
  const tree = HOSTS["h100x8"]().tree;
  const sys = memory(tree);
  const [made] = makeSpecs(sys, OPTIONS).specs;
  const facts = made?.origin.facts ?? [];
  const changed = (more: Tree): string[] => changedFacts(memory({ ...tree, ...more }), facts).map(({ path }) => path);
  assert.deepEqual(changed({}), []);
  const config = Object.keys(tree).find((path) => path.endsWith("0000:43:00.0/config")) as string;
  assert.deepEqual(changed({ [config]: { kind: "file", bytes: "\xff".repeat(64) } }), [
    "/sys/bus/pci/devices/0000:43:00.0/config",
  ]);
  assert.deepEqual(changed({ "/sys/module/nvidia/version": "580.82.07\n" }), ["/sys/module/nvidia/version"]);
});
