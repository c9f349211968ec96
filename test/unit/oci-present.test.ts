import assert from "node:assert/strict";
import { test } from "node:test";
import type { ContainerEdits } from "../../src/cdi/spec.ts";
import { applyEdits } from "../../src/oci/apply.ts";
import { missingEdits } from "../../src/oci/missing.part.ts";
import { withoutPresent } from "../../src/oci/present.ts";
import type { Config } from "../../src/oci/spec.ts";
import { dockerConfig } from "../fixtures/oci/docker-config.ts";

const EDITS: ContainerEdits[] = [
  {
    env: ["GPU=0", "NVIDIA_VISIBLE_DEVICES=void"],
    deviceNodes: [
      { path: "/dev/gpu0", type: "c", major: 195, minor: 0, fileMode: 0o666, uid: 0 },
      { path: "/dev/blk", type: "b", major: 8, minor: 1, permissions: "r" },
      { path: "/dev/none", type: "c", major: 195, minor: 9, permissions: "none" },
      { path: "/dev/pipe", type: "p" },
    ],
    mounts: [
      { hostPath: "/usr/lib/libgpu.so", containerPath: "/usr/lib/libgpu.so", options: ["ro", "rbind"] },
      { hostPath: "tmpfs", containerPath: "/scratch", type: "tmpfs" },
    ],
    hooks: [{ hookName: "createContainer", path: "/usr/bin/h", args: ["h", "x"], timeout: 5 }],
    netDevices: [{ hostInterfaceName: "ib0", name: "net1" }],
    intelRdt: { closID: "gpu", schemata: ["L3:0=f"], enableMonitoring: true },
    additionalGids: [0, 44],
  },
];

const EMPTY: Config = {};
const DOCKER = JSON.parse(dockerConfig) as Config;

test("nothing is missing where the edits were applied", () => {
  for (const config of [EMPTY, DOCKER, { ...DOCKER, linux: { ...DOCKER.linux, namespaces: [{ type: "user" }] } }]) {
    assert.deepEqual(missingEdits(applyEdits(config, EDITS), EDITS), []);
  }
});

test("every part that is missing is named with its place", () => {
  assert.deepEqual(missingEdits(EMPTY, EDITS), [
    { pointer: "/process/env", what: 'the variable "GPU" is not set and should be "0"' },
    { pointer: "/process/env", what: 'the variable "NVIDIA_VISIBLE_DEVICES" is not set and should be "void"' },
    { pointer: "/linux/devices", what: 'the device node "/dev/gpu0" (c 195:0) is not there' },
    {
      pointer: "/linux/resources/devices",
      what: 'the device cgroup does not allow c 195:0 rwm for "/dev/gpu0"',
    },
    { pointer: "/linux/devices", what: 'the device node "/dev/blk" (b 8:1) is not there' },
    { pointer: "/linux/resources/devices", what: 'the device cgroup does not allow b 8:1 r for "/dev/blk"' },
    { pointer: "/linux/devices", what: 'the device node "/dev/none" (c 195:9) is not there' },
    { pointer: "/linux/devices", what: 'the device node "/dev/pipe" (p 0:0) is not there' },
    { pointer: "/linux/netDevices/ib0", what: 'the network device "ib0" is not there as "net1"' },
    { pointer: "/mounts", what: 'the mount of "/usr/lib/libgpu.so" on "/usr/lib/libgpu.so" is not there' },
    { pointer: "/mounts", what: 'the mount of "tmpfs" on "/scratch" is not there' },
    { pointer: "/hooks/createContainer", what: 'the createContainer hook "/usr/bin/h" is not there' },
    { pointer: "/linux/intelRdt/closID", what: 'the resource control setting closID is not "\\"gpu\\""' },
    { pointer: "/linux/intelRdt/schemata", what: 'the resource control setting schemata is not "[\\"L3:0=f\\"]"' },
    {
      pointer: "/linux/intelRdt/enableMonitoring",
      what: 'the resource control setting enableMonitoring is not "true"',
    },
    { pointer: "/process/user/additionalGids", what: "the group 44 is not there" },
  ]);
});

test("an edit that was changed afterwards counts as missing", () => {
  const good = applyEdits(DOCKER, EDITS);
  const linux = good.linux ?? {};
  const devices = linux.devices ?? [];
  const rules = linux.resources?.devices ?? [];
  const withDevice = (change: object): Config => ({
    ...good,
    linux: { ...linux, devices: devices.map((d) => (d.path === "/dev/gpu0" ? { ...d, ...change } : d)) },
  });
  const withRules = (more: object[]): Config => ({
    ...good,
    linux: { ...linux, resources: { devices: [...rules, ...more] as typeof rules } },
  });
  const cases: [Config, string][] = [
    [{ ...good, process: { ...good.process, env: [...(good.process?.env ?? []), "GPU=1"] } }, "/process/env"],
    [withDevice({ minor: 1 }), "/linux/devices"],
    [withDevice({ type: "b" }), "/linux/devices"],
    [withDevice({ uid: 5 }), "/linux/devices"],
    [withDevice({ fileMode: 0 }), "/linux/devices"],
    [withRules([{ allow: false, access: "rwm" }]), "/linux/resources/devices"],
    [withRules([{ allow: false, type: "c", major: 195, access: "w" }]), "/linux/resources/devices"],
    [{ ...good, mounts: [...(good.mounts ?? []), { destination: "/scratch", source: "/evil" }] }, "/mounts"],
    [{ ...good, mounts: (good.mounts ?? []).map((m) => ({ ...m, options: ["rbind"] })) }, "/mounts"],
    [
      {
        ...good,
        hooks: { createContainer: [{ path: "/usr/bin/h", args: ["h", "x"], timeout: 5, env: ["LD_PRELOAD=/x"] }] },
      },
      "/hooks/createContainer",
    ],
    [{ ...good, linux: { ...linux, netDevices: { ib0: { name: "net2" } } } }, "/linux/netDevices/ib0"],
    [{ ...good, linux: { ...linux, intelRdt: { ...linux.intelRdt, schemata: [] } } }, "/linux/intelRdt/schemata"],
    [{ ...good, process: { ...good.process, user: {} } }, "/process/user/additionalGids"],
  ];
  for (const [config, pointer] of cases) {
    const missing = missingEdits(config, EDITS);
    assert.ok(
      missing.length > 0 && missing.every((m) => m.pointer === pointer),
      `${pointer}: ${JSON.stringify(missing)}`,
    );
  }
});

test("a later rule for other devices, or a wider one that allows, takes nothing away", () => {
  const good = applyEdits(DOCKER, EDITS);
  const rules = good.linux?.resources?.devices ?? [];
  for (const rule of [
    { allow: false, type: "b", access: "rwm", major: 195 },
    { allow: false, type: "c", major: 195, minor: 1, access: "rwm" },
    { allow: true, type: "a", major: -1, minor: -1, access: "rwm" },
    { allow: true, access: "rwm" },
  ]) {
    const config: Config = { ...good, linux: { ...good.linux, resources: { devices: [...rules, rule] } } };
    assert.deepEqual(missingEdits(config, EDITS), []);
  }
});

test("where edits name one thing twice the last one must be there", () => {
  const twice: ContainerEdits[] = [
    {
      env: ["A=1"],
      mounts: [{ hostPath: "/a", containerPath: "/m" }],
      deviceNodes: [{ path: "/dev/a", type: "c", major: 1, minor: 1 }],
      intelRdt: { closID: "a" },
    },
    {
      env: ["A=2"],
      mounts: [{ hostPath: "/b", containerPath: "/m" }],
      deviceNodes: [{ path: "/dev/a", type: "c", major: 1, minor: 2 }],
      intelRdt: { closID: "b" },
    },
  ];
  assert.deepEqual(missingEdits(applyEdits(EMPTY, twice), twice), []);
  assert.equal(missingEdits(applyEdits(EMPTY, [twice[0] as ContainerEdits]), twice).length, 5);
});

test("a network device called __proto__ is not found in an object's prototype", () => {
  const edits: ContainerEdits[] = [{ netDevices: [{ hostInterfaceName: "__proto__", name: "x" }] }];
  assert.equal(missingEdits({ linux: { netDevices: {} } }, edits).length, 1);
  assert.deepEqual(missingEdits(applyEdits(EMPTY, edits), edits), []);
});

test("what an engine's native CDI put in is not put in a second time", () => {
  const native = applyEdits(DOCKER, EDITS);
  const again = applyEdits(native, withoutPresent(native, EDITS));
  assert.deepEqual(again.hooks, native.hooks);
  assert.deepEqual(again.linux, native.linux);
  assert.deepEqual(again.process, native.process);
  assert.deepEqual(missingEdits(again, EDITS), []);
});

test("a node that an engine put in without its mode is as it should be if that is what runtimes take, else gets it", () => {
  const rule = { allow: true, type: "c", major: 195, minor: 0, access: "rwm" };
  const native: Config = {
    linux: { devices: [{ path: "/dev/gpu0", type: "c", major: 195, minor: 0 }], resources: { devices: [rule] } },
  };
  const withMode = (fileMode: number): ContainerEdits[] => [
    { deviceNodes: [{ path: "/dev/gpu0", type: "c", major: 195, minor: 0, fileMode }] },
  ];
  assert.deepEqual(withoutPresent(native, withMode(0o666)), [{ deviceNodes: [] }]);
  assert.deepEqual(missingEdits(native, withMode(0o666)), []);
  assert.equal(missingEdits(native, withMode(0o660)).length, 1);
  const again = applyEdits(native, withoutPresent(native, withMode(0o660)));
  assert.deepEqual(again.linux, {
    devices: [{ path: "/dev/gpu0", type: "c", major: 195, minor: 0, fileMode: 0o660 }],
    resources: { devices: [rule] },
  });
});

test("a node whose mode has the file's type in it, as in a privileged container of Podman, is not put in again", () => {
  const node = { path: "/dev/gpu0", type: "c", major: 195, minor: 0 };
  const privileged: Config = {
    linux: {
      devices: [{ ...node, fileMode: 0o20666, uid: 0, gid: 0 }],
      resources: { devices: [{ allow: true, access: "rwm" }] },
    },
  };
  const edits: ContainerEdits[] = [{ deviceNodes: [{ ...node, fileMode: 0o666 }] }];
  assert.deepEqual(withoutPresent(privileged, edits), [{ deviceNodes: [] }]);
  assert.deepEqual(missingEdits(privileged, edits), []);
  const other: ContainerEdits[] = [{ deviceNodes: [{ ...node, fileMode: 0o660 }] }];
  assert.equal(missingEdits(privileged, other).length, 1);
});

test("a hook or a device that only looks alike is put in", () => {
  const native = applyEdits(EMPTY, EDITS);
  const other: ContainerEdits[] = [
    {
      hooks: [
        { hookName: "createRuntime", path: "/usr/bin/h", args: ["h", "x"], timeout: 5 },
        { hookName: "createContainer", path: "/usr/bin/h", args: ["h", "y"], timeout: 5 },
        { hookName: "createContainer", path: "/usr/bin/h", args: ["h", "x"] },
        { hookName: "createContainer", path: "/usr/bin/h", args: ["h", "x"], timeout: 5, env: ["A=1"] },
      ],
      deviceNodes: [
        { path: "/dev/gpu0", type: "c", major: 195, minor: 1 },
        { path: "/dev/blk", type: "b", major: 8, minor: 1, permissions: "rw" },
      ],
    },
  ];
  assert.deepEqual(withoutPresent(native, other), other);
  assert.deepEqual(withoutPresent(EMPTY, EDITS), EDITS);
});
