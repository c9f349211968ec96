import assert from "node:assert/strict";
import { test } from "node:test";
import { readBundle } from "../../src/oci/bundle.ts";
import { inject } from "../../src/plan/inject.ts";
import { openMachine } from "../../src/plan/machine.ts";
import { binary, char, dir, type MemorySys, memory, type Tree } from "../support/memory-files.ts";

const SPEC = {
  cdiVersion: "1.1.0",
  kind: "x.com/gpu",
  devices: ["0", "1"].map((name) => ({
    name,
    containerEdits: {
      deviceNodes: [{ path: `/dev/gpu${name}` }],
      mounts: [{ hostPath: `/run/gpu${name}`, containerPath: `/run/gpu${name}`, type: "bind" }],
    },
  })),
  containerEdits: {
    env: ["DRIVER=1"],
    deviceNodes: [{ path: "/dev/gpuctl", hostPath: "/dev/x/ctl" }],
    hooks: [{ hookName: "createContainer", path: "/usr/bin/hook", args: ["hook", "a b"] }],
    mounts: [
      { hostPath: "/lib/a.so", containerPath: "/usr/lib/deep/down/a.so", options: ["ro", "rbind"] },
      { hostPath: "/lib/b.so", containerPath: "/etc/../proc/./b.so", options: ["ro", "bind"] },
      { hostPath: "/lib/c.so", containerPath: "/data", options: [] },
    ],
    additionalGids: [44],
  },
};

const CONFIG = {
  ociVersion: "1.2.0",
  process: { user: { uid: 7 }, args: ["sh"], env: ["PATH=/bin", "DRIVER=0"] },
  mounts: [
    { destination: "/proc", type: "proc", source: "proc" },
    { destination: "/data", source: "/srv", options: ["rw"] },
  ],
  annotations: { "gpu.sluice.dev": "x.com/gpu=1" },
  linux: { namespaces: [{ type: "pid" }] },
};

const TREE: Tree = {
  "/etc/cdi/x.json": JSON.stringify(SPEC),
  "/dev/gpu0": char(240, 0),
  "/dev/gpu1": char(240, 1, { mode: 0o660 }),
  "/dev/x/ctl": char(240, 255),
  "/run/sluice": dir(),
};

/** Starts a container; its config.json and its receipt without the id and the time, or the code of the error. */
function start(sys: MemorySys, config: object = CONFIG): string[] {
  sys.clock += 10_000;
  sys.put("/b/config.json", JSON.stringify(config));
  try {
    inject(openMachine(sys), readBundle(sys, "/b"), { id: "c", door: "runtime", runtimeRoot: "" });
  } catch (thrown) {
    return [(thrown as { code: string }).code];
  }
  const receipt = sys.text("/run/sluice/receipts/c.json") ?? "";
  return [sys.text("/b/config.json") ?? "", receipt.replace(/"time":"[^"]*"/, "")];
}

/** A machine on which the plan has been made before, and changed since. */
function after(change: (sys: MemorySys) => void): MemorySys {
  const sys = memory(TREE);
  for (let i = 0; i < 3; i++) start(sys);
  assert.equal(sys.list("/run/sluice/plans")?.length, 1);
  change(sys);
  return sys;
}

/** The same without anything kept. */
function fresh(sys: MemorySys, config?: object): string[] {
  for (const folder of ["plans", "cdi"]) {
    for (const { name } of sys.list(`/run/sluice/${folder}`) ?? []) sys.unlink(`/run/sluice/${folder}/${name}`);
  }
  return start(sys, config);
}

test("a plan that an earlier start has made is not made again, and comes out the same, byte for byte", () => {
  const sys = memory(TREE);
  const first = start(sys);
  start(sys);
  const read = sys.count("readText /etc/cdi/x.json");
  assert.deepEqual(start(sys), first);
  assert.equal(sys.count("readText /etc/cdi/x.json"), read, "the spec is not read");
  assert.deepEqual(fresh(sys), first);
  assert.ok(first[0]?.includes('"source":"/lib/a.so"') && first[1]?.includes("/lib/a.so"));
});

test("what has changed since is seen", () => {
  const changes: Record<string, (sys: MemorySys) => void> = {
    "the spec": (sys) => sys.put("/etc/cdi/x.json", JSON.stringify(SPEC).replaceAll("/lib/a.so", "/lib/z.so")),
    "a node's number": (sys) => sys.put("/dev/gpu1", char(241, 9)),
    "a node's mode": (sys) => sys.put("/dev/x/ctl", char(240, 255, { mode: 0o600 })),
    "a node that is gone": (sys) => sys.unlink("/dev/gpu1"),
    "another spec, which conflicts": (sys) => sys.put("/etc/cdi/y.json", JSON.stringify(SPEC)),
    "another spec, which hides it": (sys) =>
      sys.put("/var/run/cdi/x.json", JSON.stringify({ ...SPEC, containerEdits: {} })),
    "a spec that is gone": (sys) => sys.unlink("/etc/cdi/x.json"),
    "the spec folders": (sys) => sys.put("/etc/sluice/config.toml", '[cdi]\nspec_dirs = ["/none"]\n'),
  };
  const before = start(after(() => {}));
  for (const [what, change] of Object.entries(changes)) {
    const [seen, anew] = [start(after(change)), fresh(after(change))];
    assert.deepEqual(seen, anew, what);
    assert.notEqual(seen[0], before[0], what);
    // Once more, with what that start kept.
    const sys = after(change);
    start(sys);
    assert.deepEqual(start(sys), anew, what);
  }
});

test("another container gets what it would get without", () => {
  const containers: object[] = [
    { ...CONFIG, annotations: { "gpu.sluice.dev": "x.com/gpu=0" } },
    { ...CONFIG, annotations: { "gpu.sluice.dev": "x.com/gpu=1,x.com/gpu=0" } },
    { ...CONFIG, linux: { namespaces: [{ type: "user" }] } },
    { ...CONFIG, process: {} },
    { annotations: CONFIG.annotations },
    { ...CONFIG, mounts: SPEC.containerEdits.mounts.map((mount) => ({ destination: mount.containerPath })) },
    {
      ...CONFIG,
      mounts: ["/data", "/data", "/data/", "/dat", "/usr/lib/deep/a.so"].map((destination) => ({ destination })),
    },
    { ...CONFIG, mounts: [] },
    { ...CONFIG, mounts: null },
    { ...CONFIG, process: null, hooks: null, linux: null },
    { ...CONFIG, process: { user: { uid: 0, gid: 0 } } },
    { ...CONFIG, process: { user: { uid: 0, gid: 9 } } },
    { ...CONFIG, linux: { devices: [], resources: { devices: [{ allow: false, access: "rwm" }] } } },
    { ...CONFIG, linux: { devices: null, resources: { devices: null } } },
    { ...CONFIG, linux: { devices: [{ path: "/dev/gpu1", type: "c", major: 240, minor: 1 }] } },
    { ...CONFIG, hooks: { createContainer: [{ path: "/usr/bin/hook", args: ["hook", "a b"], env: ["A=1"] }] } },
  ];
  for (const config of containers) {
    const sys = after(() => {});
    start(sys, config);
    assert.deepEqual(
      start(sys, config),
      fresh(
        after(() => {}),
        config,
      ),
      JSON.stringify(config),
    );
  }
});

test("a kept plan that is damaged counts for nothing", () => {
  const [{ name } = { name: "" }] = after(() => {}).list("/run/sluice/plans") ?? [];
  const path = `/run/sluice/plans/${name}`;
  const text = after(() => {}).text(path) ?? "";
  const [key = "", head = "", planAndHead = "", ...lines] = text.split("\n");
  const kept = (...body: string[]): string => {
    const all = body.join("\n");
    return `${key.slice(0, key.lastIndexOf(" "))} ${all.length}\n${all}`;
  };
  assert.equal(kept(head, planAndHead, ...lines), text, "the test knows the form");
  const ready = planAndHead.slice(planAndHead.indexOf('{"rest":'));
  const plan = planAndHead.slice(0, -ready.length);
  assert.equal(JSON.parse(head).length, plan.length);
  const damaged = [
    "",
    text.slice(0, -1),
    `${text}x`,
    kept(head),
    kept("{", planAndHead, ...lines),
    kept("null", planAndHead, ...lines),
    kept("[]", planAndHead, ...lines),
    kept("{}", planAndHead, ...lines),
    kept(head, plan, ...lines),
    kept(head, `${plan}{`, ...lines),
    kept(head, `${plan}null`, ...lines),
    kept(head, `${plan}{}`, ...lines),
    kept(head, `${plan}${ready.replace('"rest":', '"pest":')}`, ...lines),
    kept(head, `${plan}${ready.replace('"groups":', '"droops":')}`, ...lines),
    kept(head, planAndHead, ...lines, "more"),
    kept(head, planAndHead, ...lines.slice(1)),
    text.replace(/^0\.1\.0/, "0.0.9"),
  ];
  const right = start(after(() => {}));
  for (const content of damaged) assert.deepEqual(start(after((sys) => sys.put(path, content))), right, content);
  assert.deepEqual(start(after((sys) => sys.put(path, binary()))), right);
  assert.deepEqual(start(after((sys) => sys.chmod("/run/sluice/plans", 0o777))), right);
});

test("mounts that the form cannot hold are not kept", () => {
  for (const paths of [["/a\tb\nc"], ["/a", "/b", "/a"]]) {
    const mounts = paths.map((path, i) => ({ hostPath: `/from/${i}`, containerPath: path }));
    const spec = JSON.stringify({ ...SPEC, containerEdits: { mounts } });
    const sys = memory({ ...TREE, "/etc/cdi/x.json": spec });
    const first = start(sys);
    for (let i = 0; i < 3; i++) assert.deepEqual(start(sys), first);
    assert.equal(sys.list("/run/sluice/plans"), undefined);
  }
});
