/** CDI edits as an adjustment of NRI. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import type { ContainerEdits, DeviceNode } from "../../src/cdi/spec.ts";
import { Adjustments, isEmpty, toAdjustment } from "../../src/nri/adjust.ts";
import { type ContainerAdjustment, ContainerSchema } from "../../src/nri/gen/nri_pb.js";
import { HOOK_ENV } from "../../src/oci/apply.ts";
import { pick, type Rand } from "../support/fuzz.ts";
import { random } from "../support/random.ts";

const V8 = { major: 0, minor: 8 };
const V10 = { major: 0, minor: 10 };
const V11 = { major: 0, minor: 11 };

type Init = MessageInitShape<typeof ContainerSchema>;

function adjust(edits: ContainerEdits | ContainerEdits[], container: Init = {}, nri = V8): ContainerAdjustment {
  return toAdjustment([edits].flat(), {}, create(ContainerSchema, container), nri);
}

type Rules = { allow: boolean; access: string }[];

const NODE: DeviceNode = { path: "/dev/nvidia0", type: "c", major: 195, minor: 0 };
const DENY_ALL = { allow: false, access: "rwm" };

/** The devices of an adjustment and its rules, as one line each. */
function devicesOf({ linux }: ContainerAdjustment): { devices: string[]; rules: string[] } {
  return {
    devices: (linux?.devices ?? []).map(({ path, type, major, minor, fileMode, uid, gid }) =>
      [path, type, major, minor, fileMode?.value.toString(8), uid?.value, gid?.value].join(" ").trimEnd(),
    ),
    rules: (linux?.resources?.devices ?? []).map(({ allow, type, major, minor, access }) =>
      [allow ? "allow" : "deny", type, major?.value, minor?.value, access].join(" "),
    ),
  };
}

test("every kind of edit has its place in an adjustment", () => {
  const a = toAdjustment(
    [
      {
        env: ["A=1", "B=x=y"],
        deviceNodes: [{ ...NODE, fileMode: 0o660, uid: 0, gid: 44 }],
        mounts: [{ hostPath: "/usr/lib/a.so", containerPath: "/lib/a.so", options: ["ro", "nosuid", "rbind"] }],
        hooks: [
          {
            hookName: "createContainer",
            path: "/usr/bin/sluice",
            args: ["sluice", "cdi-hook"],
            env: ["X=1"],
            timeout: 10,
          },
        ],
      },
      {
        env: ["A=2"],
        mounts: [{ hostPath: "tmpfs", containerPath: "/t", type: "tmpfs" }],
        hooks: [{ hookName: "poststop", path: "/bin/true" }],
      },
    ],
    { "sluice.dev/plan": "abc" },
    create(ContainerSchema, { linux: { resources: { devices: [DENY_ALL] } } }),
    V8,
  );
  assert.deepEqual(a.annotations, { "sluice.dev/plan": "abc" });
  assert.deepEqual(
    a.env.map(({ key, value }) => [key, value]),
    [
      ["A", "2"],
      ["B", "x=y"],
    ],
  );
  assert.deepEqual(
    a.mounts.map(({ destination, type, source, options }) => [destination, type, source, options]),
    [
      ["/lib/a.so", "", "/usr/lib/a.so", ["ro", "nosuid", "rbind"]],
      ["/t", "tmpfs", "tmpfs", []],
    ],
  );
  assert.deepEqual(devicesOf(a), { devices: ["/dev/nvidia0 c 195 0 660 0 44"], rules: [] });
  const [inside, after] = [a.hooks?.createContainer[0], a.hooks?.poststop[0]];
  assert.deepEqual(
    [inside?.path, inside?.args, inside?.env, inside?.timeout?.value],
    ["/usr/bin/sluice", ["sluice", "cdi-hook"], ["X=1"], 10n],
  );
  assert.deepEqual([after?.path, after?.args, after?.env, after?.timeout], ["/bin/true", [], HOOK_ENV, undefined]);
  assert.deepEqual([a.CDIDevices, a.args, a.rlimits], [[], [], []]);
  assert.ok(!isEmpty(a));
});

test("what the container has is not set again, for whoever set it would be said to conflict", () => {
  const edits: ContainerEdits = {
    env: ["A=1"],
    deviceNodes: [NODE, { ...NODE, path: "/dev/nvidiactl", minor: 255, fileMode: 0o666 }],
    mounts: [{ hostPath: "/a", containerPath: "/b", options: ["rbind", "ro"] }],
    hooks: [{ hookName: "createContainer", path: "/h", args: ["h"], env: ["E=1"], timeout: 10 }],
  };
  const devices = [
    { path: "/dev/nvidia0", type: "c", major: 195n, minor: 0n },
    { path: "/dev/nvidiactl", type: "c", major: 195n, minor: 255n },
  ];
  const has: Init = {
    annotations: { "sluice.dev/plan": "abc" },
    env: ["A=0", "A=1"],
    mounts: [{ destination: "/b", source: "/a", options: ["rbind", "ro"] }],
    hooks: { createContainer: [{ path: "/h", args: ["h"], env: ["E=1"], timeout: { value: 10n } }] },
    linux: {
      devices,
      resources: {
        devices: [
          DENY_ALL,
          { allow: true, type: "c", major: { value: 195n }, minor: { value: 0n }, access: "rwm" },
          { allow: true, type: "c", major: { value: 195n }, minor: { value: 255n }, access: "rw" },
        ],
      },
    },
  };
  const container = create(ContainerSchema, has);
  assert.ok(isEmpty(toAdjustment([edits], { "sluice.dev/plan": "abc" }, container, V8)));
  // Since 0.10 the right to make the node can be given, which another plugin's device does not have.
  assert.deepEqual(devicesOf(adjust(edits, has, V10)), { devices: [], rules: ["allow c 195 255 m"] });

  const differs: [Init, keyof ContainerAdjustment][] = [
    [{ ...has, env: ["A=2"] }, "env"],
    [{ ...has, mounts: [{ destination: "/b", source: "/a", options: ["rbind"] }] }, "mounts"],
    [{ ...has, mounts: [{ destination: "/b", source: "/other", options: ["rbind", "ro"] }] }, "mounts"],
    [{ ...has, hooks: { createContainer: [{ path: "/h", args: ["h"], env: ["E=1"] }] } }, "hooks"],
    [{ ...has, linux: { devices, resources: { devices: [DENY_ALL] } } }, "linux"],
    [{ ...has, linux: { resources: { devices: [] } } }, "linux"],
  ];
  for (const [other, field] of differs) {
    const a = adjust(edits, other);
    for (const each of ["env", "mounts", "hooks", "linux"] as const) {
      const isThere = Array.isArray(a[each]) ? a[each].length > 0 : a[each] !== undefined;
      assert.equal(isThere, each === field, `${each}, where ${field} differs`);
    }
  }
});

test("a device has the access of its permissions, as far as the version can be told", () => {
  const one = (node: Partial<DeviceNode>, nri = V10, rules: Rules = [DENY_ALL]) =>
    devicesOf(adjust({ deviceNodes: [{ ...NODE, ...node }] }, { linux: { resources: { devices: rules } } }, nri));
  const node = ["/dev/nvidia0 c 195 0"];
  assert.deepEqual(one({}), { devices: node, rules: ["allow c 195 0 m"] });
  assert.deepEqual(one({}, V8), { devices: node, rules: [] });
  assert.deepEqual(one({ permissions: "rw" }), { devices: node, rules: [] });
  assert.deepEqual(one({ permissions: "rw" }, V8), { devices: node, rules: [] });
  assert.deepEqual(one({ permissions: "r" }), { devices: node, rules: ["deny c 195 0 w"] });
  assert.deepEqual(one({ permissions: "none" }), { devices: node, rules: ["deny c 195 0 rw"] });
  assert.deepEqual(one({ type: "b" }), { devices: ["/dev/nvidia0 b 195 0"], rules: [] });
  assert.deepEqual(one({ type: "b", permissions: "rw" }).rules, ["deny b 195 0 m"]);
  for (const permissions of ["r", "w", "none"]) {
    assert.throws(() => one({ permissions }, V8), { code: "E_NRI_UNSUPPORTED", message: /NRI 0\.8 gives "rw"/ });
    // A privileged container has it all the same.
    assert.deepEqual(one({ permissions }, V8, [{ allow: true, access: "rwm" }]), { devices: node, rules: [] });
  }
  for (const type of ["u", "p"]) assert.throws(() => one({ type }), { code: "E_NRI_UNSUPPORTED" });
  assert.throws(() => adjust({ deviceNodes: [{ path: "/dev/x" }] }), { code: "E_EDIT_DEVICE" });
});

test("a node belongs to the container's user, where the runtime tells it, and its last edit counts", () => {
  const edits = [{ deviceNodes: [NODE, { ...NODE, path: "/dev/b" }] }, { deviceNodes: [{ ...NODE, minor: 1 }] }];
  const rules = { linux: { resources: { devices: [{ allow: true, access: "rwm" }] } } };
  assert.deepEqual(devicesOf(adjust(edits, { ...rules, user: { uid: 1000, gid: 0 } })).devices, [
    "/dev/b c 195 0  1000",
    "/dev/nvidia0 c 195 1  1000",
  ]);
});

test("another device at the path is a conflict that names it; another mode or owner is set anew", () => {
  const has = (device: object): Init => ({
    linux: { devices: [{ path: "/dev/nvidia0", type: "c", major: 195n, minor: 0n, ...device }] },
  });
  const edits = { deviceNodes: [{ ...NODE, fileMode: 0o660 }] };
  for (const device of [{ minor: 1n }, { major: 1n }, { type: "b" }]) {
    assert.throws(() => adjust(edits, has(device)), {
      code: "E_NRI_CONFLICT",
      message: /another device \([cb] \d+:\d+\) at "\/dev\/nvidia0", where c 195:0 belongs/,
    });
  }
  assert.deepEqual(devicesOf(adjust(edits, has({ fileMode: { value: 0o600 } }))).devices, ["/dev/nvidia0 c 195 0 660"]);
});

test("a variable that stands twice is set at the end where that can be said, and refused where not", () => {
  const twice = { env: ["A=old", "OTHER=1", "A=older"] };
  const said = (entry: string, container: Init = twice) =>
    adjust({ env: [entry] }, container).env.map((e) => [e.key, e.value]);
  assert.deepEqual(said("A=0=8G,1=4G"), [["A=0", "8G,1=4G"]]);
  assert.deepEqual(said("A=older"), []);
  assert.deepEqual(said("A=new", { env: ["A=old"] }), [["A", "new"]]);
  assert.deepEqual(said("A=new", { env: [] }), [["A", "new"]]);
  assert.deepEqual(said("A=new", { env: ["A", "A"] }), [["A", "new"]], "without a value it is nobody's variable");
  for (const entry of ["A=void", "A=", "A=old"]) {
    assert.throws(() => said(entry), { code: "E_NRI_ENV", message: /"A" stands twice/ });
  }
  assert.deepEqual(said("AB=x", { env: ["A=1", "A=2"] }), [["AB", "x"]]);
});

test("what a version would pass over in silence is refused", () => {
  const net = { netDevices: [{ hostInterfaceName: "eth1", name: "gpu0" }] };
  const rdt = { intelRdt: { closID: "gpu", schemata: ["L3:0=f"], enableMonitoring: true } };
  for (const edits of [net, rdt]) {
    assert.throws(() => adjust(edits, {}, V10), { code: "E_NRI_UNSUPPORTED", message: /0\.11 is the first/ });
  }
  const { linux } = adjust([net, rdt], {}, V11);
  assert.equal(linux?.netDevices["eth1"]?.name, "gpu0");
  assert.deepEqual(
    [linux?.rdt?.closId?.value, linux?.rdt?.schemata?.value, linux?.rdt?.enableMonitoring?.value, linux?.rdt?.remove],
    ["gpu", ["L3:0=f"], true, false],
  );
  for (const intelRdt of [
    { l3CacheSchema: "L3:0=f" },
    { memBwSchema: "MB:0=9" },
    { enableCMT: true },
    { enableMBM: true },
  ]) {
    assert.throws(() => adjust({ intelRdt }, {}, V11), { code: "E_NRI_UNSUPPORTED", message: /NRI does not know it/ });
  }
  assert.throws(() => adjust({ additionalGids: [44] }, {}, V11), { code: "E_NRI_UNSUPPORTED", message: /group 44/ });
  assert.ok(isEmpty(adjust({ additionalGids: [0, 44] }, { user: { additionalGids: [44] } }, V11)));
});

test("no name becomes a mark of removal", () => {
  const { annotations } = toAdjustment([], { ok: "1" }, create(ContainerSchema), V8);
  assert.deepEqual(annotations, { ok: "1" });
  assert.throws(() => toAdjustment([], { "-x": "" }, create(ContainerSchema), V8), { code: "E_NRI_UNSUPPORTED" });
  for (const edits of [
    { env: ["-A=1"] },
    { mounts: [{ hostPath: "/a", containerPath: "-/b" }] },
    { deviceNodes: [{ ...NODE, path: "-/dev/x" }] },
    { netDevices: [{ hostInterfaceName: "-eth0", name: "x" }] },
  ]) {
    assert.throws(() => adjust(edits, {}, V11), { code: "E_NRI_UNSUPPORTED", message: /begins with "-"/ });
  }
});

test("in a user namespace mounts are mapped, as the runtime door maps them", () => {
  const { mounts } = adjust(
    { mounts: [{ hostPath: "/a", containerPath: "/b", options: ["ro", "rbind"] }] },
    { linux: { namespaces: [{ type: "user" }] } },
  );
  assert.deepEqual(mounts[0]?.options, ["ro", "rbind", "ridmap"]);
});

/** A container in whose parts a plan's own may stand already. */
function someContainer(rand: Rand): Init {
  const maybe = <T>(value: T, odds = 0.15): T[] => (rand() < odds ? [value] : []);
  const [user] = maybe({ uid: pick(rand, [0, 7]), gid: pick(rand, [0, 8]), additionalGids: maybe(44, 0.5) }, 0.5);
  const [hooks] = maybe({ createContainer: maybe({ path: "/hook", args: ["hook"], env: [...HOOK_ENV] }, 0.5) }, 0.3);
  return {
    id: String(rand()),
    env: ["PATH=/bin", ...maybe("GPU=1"), ...maybe("GPU=2")],
    annotations: { ...(rand() < 0.15 && { plan: "1" }), ...(rand() < 0.15 && { plan: "2" }), other: "1" },
    mounts: [
      { destination: "/proc", type: "proc" },
      ...maybe({ destination: "/lib/x", source: "/host/x", type: "", options: ["ro"] }),
    ],
    ...(hooks && { hooks }),
    ...(user && { user }),
    linux: {
      namespaces: [{ type: "pid" }, ...maybe({ type: "user" }, 0.3)],
      devices: [
        ...maybe({ path: NODE.path, type: "c", major: 195n, minor: 0n }),
        ...maybe({ path: NODE.path, type: "c", major: 1n, minor: 3n }),
      ],
      resources: {
        devices: [
          ...maybe({ allow: false, access: "rwm" }, 0.8),
          ...maybe({ allow: true, type: "c", major: { value: 195n }, access: "rw" }, 0.3),
        ],
      },
    },
  };
}

test("what a plan's adjustments keep is what would be made anew, for each container", () => {
  const edits: ContainerEdits[] = [
    { env: ["GPU=1"], mounts: [{ hostPath: "/host/x", containerPath: "/lib/x", options: ["ro"] }] },
    { deviceNodes: [NODE] },
    { hooks: [{ hookName: "createContainer", path: "/hook", args: ["hook"] }] },
    { additionalGids: [44] },
  ];
  const outcome = (make: () => ContainerAdjustment): unknown => {
    try {
      return make();
    } catch (thrown) {
      return String(thrown);
    }
  };
  for (let seed = 0; seed < 50; seed++) {
    const rand = random(seed);
    const own = edits.filter(() => rand() < 0.6);
    const annotations = { plan: "1" };
    const kept = new Adjustments(own, annotations);
    for (let i = 0; i < 40; i++) {
      const container = create(ContainerSchema, someContainer(rand));
      const nri = pick(rand, [V8, V10, V11]);
      const now = outcome(() => kept.of(container, nri));
      assert.deepEqual(
        now,
        outcome(() => toAdjustment(own, annotations, container, nri)),
        `seed ${seed}, ${i}`,
      );
    }
  }
  const same = new Adjustments(edits.slice(0, 2), { plan: "1" });
  const [one, two] = ["a", "b"].map((id) => same.of(create(ContainerSchema, { id, env: [`ID=${id}`] }), V11));
  assert.equal(one, two, "one that is kept is the same object");
  const [three, four, five] = ["0", "0", "1"].map((value) =>
    same.of(create(ContainerSchema, { hooks: {}, env: [`GPU=${value}`] }), V11),
  );
  assert.equal(three, four, "also for a container that has a variable of the edits");
  assert.equal(five?.env.length, 0, "and what it has is looked at");
});
