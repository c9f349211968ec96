import assert from "node:assert/strict";
import { test } from "node:test";
import { readBundle } from "../../src/oci/bundle.ts";
import { inject, planFor, STAMP } from "../../src/plan/inject.ts";
import { openMachine } from "../../src/plan/machine.ts";
import { Receipts, receiptPath } from "../../src/plan/receipt.ts";
import { char, file, type MemorySys, memory } from "../support/memory-files.ts";

const SPEC = {
  cdiVersion: "0.5.0",
  kind: "x.com/gpu",
  devices: [
    { name: "0", containerEdits: { deviceNodes: [{ path: "/dev/gpu0" }] } },
    { name: "1", containerEdits: { deviceNodes: [{ path: "/dev/gpu1" }] } },
  ],
  containerEdits: { env: ["DRIVER=1"], mounts: [{ hostPath: "/lib/driver.so", containerPath: "/lib/driver.so" }] },
};

const CONFIG = {
  ociVersion: "1.2.0",
  process: { args: ["sh"], env: ["PATH=/bin"] },
  mounts: [{ destination: "/proc", type: "proc", source: "proc" }],
  annotations: { "gpu.sluice.dev": "x.com/gpu=1" },
};

const CONTAINER = { id: "web", door: "runtime", runtimeRoot: "" };

function host(config: object = CONFIG, spec: object = SPEC): MemorySys {
  return memory({
    "/etc/cdi/x.json": JSON.stringify(spec),
    "/dev/gpu0": char(240, 0),
    "/dev/gpu1": char(240, 1, { mode: 0o660 }),
    "/b/config.json": file(JSON.stringify(config), { mode: 0o600 }),
    "/run/other": "",
  });
}

test("a plan has the spec's edits, then the device's, each with its reason and source, its nodes resolved", () => {
  const sys = host();
  const plan = planFor(openMachine(sys), CONFIG);
  assert.deepEqual(plan?.devices, [
    {
      name: "x.com/gpu=1",
      from: "annotation gpu.sluice.dev",
      grant: "policy.trust = engine: whoever can start containers here may have what they name",
    },
  ]);
  assert.deepEqual(plan?.edits, [
    {
      reason: "common edits of x.com/gpu, which its devices need",
      source: { spec: "/etc/cdi/x.json" },
      edits: SPEC.containerEdits,
    },
    {
      reason: "device x.com/gpu=1, asked for by annotation gpu.sluice.dev",
      source: { spec: "/etc/cdi/x.json", device: "1" },
      edits: {
        deviceNodes: [{ path: "/dev/gpu1", hostPath: "/dev/gpu1", type: "c", major: 240, minor: 1, fileMode: 0o660 }],
      },
    },
  ]);
});

test("the same inputs give the same plan, byte for byte, at any time", () => {
  const one = host();
  const other = host();
  other.clock += 86_400_000;
  const plan = planFor(openMachine(one), CONFIG);
  assert.equal(plan?.text, planFor(openMachine(other), CONFIG)?.text);
  assert.equal(plan?.digest, one.sha256(plan?.text ?? ""));
  other.put("/dev/gpu1", char(241, 1));
  assert.notEqual(plan?.digest, planFor(openMachine(other), CONFIG)?.digest);
});

test("one device that is not there fails the whole plan", () => {
  const config = { annotations: { "gpu.sluice.dev": "x.com/gpu=1,x.com/gpu=9" } };
  assert.throws(() => planFor(openMachine(host()), config), { code: "E_CDI_UNKNOWN_DEVICE", message: /x\.com\/gpu=9/ });
});

test("NVIDIA_VISIBLE_DEVICES=none gives the common edits of the default kind alone", () => {
  const spec = { ...SPEC, kind: "nvidia.com/gpu" };
  const config = { process: { env: ["NVIDIA_VISIBLE_DEVICES=none"] } };
  const plan = planFor(openMachine(host(CONFIG, spec)), config);
  assert.deepEqual(plan?.devices, []);
  assert.deepEqual(
    plan?.edits.map((edit) => edit.edits),
    [SPEC.containerEdits],
  );
});

test("driver files that no spec has are refused, not left out", () => {
  const config = { process: { env: ["NVIDIA_VISIBLE_DEVICES=none"] } };
  assert.throws(() => planFor(openMachine(host()), config), {
    code: "E_CDI_UNKNOWN_DEVICE",
    message: /nvidia\.com\/gpu.*NVIDIA_VISIBLE_DEVICES/,
  });
});

test("a setting that this version cannot honour is refused for who asks, and only then", () => {
  const sys = host();
  sys.put("/etc/sluice/config.toml", '[share]\ndefault_mode = "mps"\n');
  assert.throws(() => planFor(openMachine(sys), CONFIG), { code: "E_NOT_YET" });
  assert.equal(planFor(openMachine(sys), {}), undefined);
});

test("injection writes config.json with a stamp, and the receipt that vouches for it", () => {
  const sys = host();
  const plan = inject(openMachine(sys), readBundle(sys, "/b"), CONTAINER);
  const written = JSON.parse(sys.text("/b/config.json") ?? "");
  assert.deepEqual(written.annotations, { ...CONFIG.annotations, [STAMP]: plan?.digest });
  assert.deepEqual(written.process.env, ["PATH=/bin", "DRIVER=1"]);
  assert.equal(sys.stat("/b/config.json")?.mode, 0o600);
  const receipt = JSON.parse(sys.text("/run/sluice/receipts/web.json") ?? "");
  assert.deepEqual(receipt, {
    version: 1,
    ...CONTAINER,
    config: "/b/config.json",
    time: receipt.time,
    digest: plan?.digest,
    devices: plan?.devices,
    edits: plan?.edits,
  });
  assert.match(receipt.time, /^2023-11-14T22:13:20\.\d{3}Z$/);
  assert.equal(sys.stat("/run/sluice/receipts")?.mode, 0o700);
  assert.equal(sys.stat("/run/sluice/receipts/web.json")?.mode, 0o600);
});

test("a second injection adds nothing, also where the specs are gone", () => {
  const sys = host();
  inject(openMachine(sys), readBundle(sys, "/b"), CONTAINER);
  const once = sys.text("/b/config.json");
  sys.remove("/etc/cdi/x.json");
  assert.equal(inject(openMachine(sys), readBundle(sys, "/b"), CONTAINER), undefined);
  assert.equal(sys.text("/b/config.json"), once);
});

test("a stamp without the receipt of the same container and digest counts for nothing", () => {
  const stamped = { ...CONFIG, annotations: { ...CONFIG.annotations, [STAMP]: "0".repeat(64) } };
  const forged = host(stamped);
  assert.notEqual(inject(openMachine(forged), readBundle(forged, "/b"), CONTAINER), undefined);
  // Nor one that belongs to another container.
  const sys = host();
  inject(openMachine(sys), readBundle(sys, "/b"), CONTAINER);
  const other = { ...CONTAINER, id: "other" };
  assert.notEqual(inject(openMachine(sys), readBundle(sys, "/b"), other), undefined);
});

test("a receipt that others could have written counts for nothing", () => {
  for (const spoil of [
    (sys: MemorySys) => sys.chmod("/run/sluice/receipts", 0o777),
    (sys: MemorySys) => sys.chown("/run/sluice/receipts", 1000, 1000),
    (sys: MemorySys) => sys.overwrite("/run/sluice/receipts/web.json", "{"),
    (sys: MemorySys) => sys.overwrite("/run/sluice/receipts/web.json", "[]"),
    (sys: MemorySys) => sys.overwrite("/run/sluice/receipts/web.json", "null"),
  ]) {
    const sys = host();
    inject(openMachine(sys), readBundle(sys, "/b"), CONTAINER);
    spoil(sys);
    assert.equal(new Receipts(sys, "/run/sluice").read("web"), undefined);
  }
});

test("a stamped container that lost an edit is refused, and the message names the edit", () => {
  const sys = host();
  inject(openMachine(sys), readBundle(sys, "/b"), CONTAINER);
  const config = JSON.parse(sys.text("/b/config.json") ?? "");
  config.linux.devices = [];
  sys.overwrite("/b/config.json", JSON.stringify(config));
  assert.throws(() => inject(openMachine(sys), readBundle(sys, "/b"), CONTAINER), {
    code: "E_STAMP",
    message: /\/b\/config\.json.*"web".*\/dev\/gpu1/,
  });
});

test("a receipt that cannot be written keeps config.json as it was", () => {
  for (const [spoil, code] of [
    [(sys: MemorySys) => sys.put("/run/sluice/receipts", "a file"), "E_RECEIPT"],
    [(sys: MemorySys) => sys.fail("createFile", "/run/sluice/receipts/.web.new", "ENOSPC"), "E_RECEIPT"],
    [(sys: MemorySys) => sys.fail("rename", "/run/sluice/receipts/.web.new", "EIO"), "E_RECEIPT"],
  ] as const) {
    const sys = host();
    spoil(sys);
    const before = sys.text("/b/config.json");
    assert.throws(() => inject(openMachine(sys), readBundle(sys, "/b"), CONTAINER), {
      code,
      message: /; make .* folder/,
    });
    assert.equal(sys.text("/b/config.json"), before);
  }
});

test("an id that could leave the receipts' folder is refused", () => {
  for (const id of ["", "../x", "a/b", ".hidden", "a\0b", "x".repeat(300)]) {
    const sys = host();
    assert.throws(() => inject(openMachine(sys), readBundle(sys, "/b"), { ...CONTAINER, id }), { code: "E_RECEIPT" });
    assert.equal(receiptPath("/run/sluice", id), undefined);
  }
});

test("who lives long makes the receipts' folder again where it has gone, and looks at no more than a file where not", () => {
  const sys = host();
  const receipts = new Receipts(sys, "/run/sluice");
  const plan = planFor(openMachine(sys), CONFIG);
  assert.ok(plan !== undefined);
  const write = (id: string) => receipts.write(id, "nri", "", "", plan);
  write("first");
  const before = sys.calls.length;
  write("second");
  assert.equal(sys.calls.length - before, 2, "the draft, and its name");
  sys.remove("/run/sluice");
  write("third");
  assert.equal(receipts.read("third")?.digest, plan.digest);
  assert.deepEqual(sys.names("/run/sluice/receipts"), ["third.json"]);
  sys.remove("/run/sluice");
  sys.put("/run/sluice/receipts", "a file");
  assert.throws(() => write("fourth"), { code: "E_RECEIPT" });
});

test("a receipt is released for its own runtime root only", () => {
  const sys = host();
  const receipts = new Receipts(sys, "/run/sluice");
  inject(openMachine(sys), readBundle(sys, "/b"), { ...CONTAINER, runtimeRoot: "/run/one" });
  receipts.release("web", "/run/two");
  assert.notEqual(receipts.read("web"), undefined);
  receipts.release("web", "/run/one");
  assert.equal(receipts.read("web"), undefined);
});

test("dying at any call leaves config.json old or new, and a second run makes it new and leaves nothing else", () => {
  const reference = host();
  inject(openMachine(reference), readBundle(reference, "/b"), CONTAINER);
  const after = reference.text("/b/config.json");
  const calls = reference.calls.length;
  assert.ok(calls > 10);
  for (let n = 0; n < calls; n++) {
    const sys = host();
    const before = sys.text("/b/config.json");
    sys.dieAfter(n);
    assert.throws(() => inject(openMachine(sys), readBundle(sys, "/b"), CONTAINER), { name: "Killed" });
    sys.heal();
    const text = sys.text("/b/config.json");
    assert.ok(text === before || text === after, `call ${n}`);
    inject(openMachine(sys), readBundle(sys, "/b"), CONTAINER);
    assert.equal(sys.text("/b/config.json"), after, `call ${n}`);
    assert.deepEqual(sys.names("/b"), ["config.json"], `call ${n}`);
    assert.deepEqual(sys.names("/run/sluice/receipts"), ["web.json"], `call ${n}`);
  }
});

test("a user without root has settings and state in the XDG folders, also as root of a user namespace", () => {
  const tree = {
    "/proc/self/uid_map": "         0       1000          1\n",
    "/home/u/.config/sluice/config.toml": '[cdi]\nspec_dirs = ["/home/u/cdi"]\n',
    "/etc/sluice/config.toml": '[cdi]\nspec_dirs = ["/etc/other"]\n',
    "/run/user/1000/x": "",
  };
  for (const euid of [1000, 0]) {
    const sys = memory(tree);
    sys.euid = euid;
    sys.environment.set("HOME", "/home/u");
    sys.environment.set("XDG_RUNTIME_DIR", "/run/user/1000");
    const machine = openMachine(sys);
    assert.deepEqual([machine.stateDir, machine.specDirs], ["/run/user/1000/sluice", ["/home/u/cdi"]]);
  }
  const root = memory({ ...tree, "/proc/self/uid_map": "         0          0 4294967295\n" });
  root.environment.set("XDG_RUNTIME_DIR", "/run/user/0");
  assert.deepEqual([openMachine(root).stateDir, openMachine(root).specDirs], ["/run/sluice", ["/etc/other"]]);
});

test("an environment without folders, or with relative ones, never makes the working folder one of settings", () => {
  for (const variables of [{}, { HOME: "home", XDG_CONFIG_HOME: "config" }, { HOME: "", XDG_CONFIG_HOME: "" }]) {
    const sys = memory({
      "/undefined/.config/sluice/config.toml": "broken",
      "/home/.config/sluice/config.toml": "broken",
      "/config/sluice/config.toml": "broken",
      "/run/user/1000/x": "",
    });
    sys.euid = 1000;
    sys.environment.set("XDG_RUNTIME_DIR", "/run/user/1000");
    for (const [name, value] of Object.entries(variables)) sys.environment.set(name, value);
    assert.deepEqual(openMachine(sys).specDirs, ["/etc/cdi", "/var/run/cdi"]);
  }
  const relative = memory({ "/run/x": "" });
  relative.euid = 1000;
  relative.environment.set("XDG_RUNTIME_DIR", "run");
  assert.equal(openMachine(relative).stateDir, "/run/sluice");
});

test("a home that cannot be looked into is an error that names the settings file", () => {
  const sys = memory({ "/run/user/1000/x": "" });
  sys.euid = 1000;
  sys.environment.set("XDG_RUNTIME_DIR", "/run/user/1000");
  sys.environment.set("HOME", "/home/u");
  sys.fail("stat", "/home/u/.config/sluice/config.toml", "EACCES");
  assert.throws(() => openMachine(sys), {
    code: "E_CONFIG_READ",
    message: /\/home\/u\/\.config\/sluice\/config\.toml/,
  });
});

test("an empty SLUICE_CONFIG names no file", () => {
  const sys = memory({});
  sys.environment.set("SLUICE_CONFIG", "");
  assert.deepEqual(openMachine(sys).specDirs, ["/etc/cdi", "/var/run/cdi"]);
});

test("another root is read beneath it, with its own settings, and without this machine's caches", () => {
  const sys = memory({
    "/mnt/etc/sluice/config.toml": '[cdi]\nspec_dirs = ["/cdi"]\n',
    "/mnt/cdi/x.json": JSON.stringify(SPEC),
    "/mnt/dev/gpu1": char(7, 7),
  });
  const machine = openMachine(sys, { root: "/mnt" });
  const plan = planFor(machine, CONFIG);
  assert.equal(plan?.edits[1]?.edits.deviceNodes?.[0]?.major, 7);
  assert.deepEqual(sys.names("/run"), []);
});
