import assert from "node:assert/strict";
import { test } from "node:test";
import type { ContainerEdits } from "../../src/cdi/spec.ts";
import { applyEdits, depthOf, HOOK_ENV } from "../../src/oci/apply.ts";
import { patchJson } from "../../src/oci/lossless.ts";
import type { Config, Mount } from "../../src/oci/spec.ts";
import { dockerConfig } from "../fixtures/oci/docker-config.ts";
import { fullConfig } from "../fixtures/oci/full-config.ts";

function apply(config: Config, ...edits: ContainerEdits[]): Config {
  return applyEdits(config, edits);
}

/** Throws at any attempt to write to what was handed in. */
function freeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const part of Object.values(value)) freeze(part);
  }
  return value;
}

const NODE = { path: "/dev/gpu0", type: "c", major: 195, minor: 0 };

test("an empty config gets exactly what the edits say, in the order of the Go library", () => {
  const edited = apply(
    {},
    {
      env: ["A=1"],
      deviceNodes: [{ ...NODE, hostPath: "/dev/other", fileMode: 0o660, permissions: "rw", uid: 0, gid: 5 }],
      netDevices: [{ hostInterfaceName: "ib0", name: "net1" }],
      mounts: [{ hostPath: "/h", containerPath: "/c", type: "bind", options: ["ro"] }],
      hooks: [{ hookName: "prestart", path: "/x", args: ["x"], env: ["E=1"], timeout: 3 }],
      intelRdt: {
        closID: "c",
        l3CacheSchema: "L3:0=1",
        memBwSchema: "MB:0=1",
        schemata: ["X"],
        enableMonitoring: true,
        enableCMT: true,
        enableMBM: true,
      },
      additionalGids: [44],
    },
  );
  assert.deepEqual(edited, {
    process: { env: ["A=1"], user: { additionalGids: [44] } },
    linux: {
      devices: [{ path: "/dev/gpu0", type: "c", major: 195, minor: 0, fileMode: 0o660, uid: 0, gid: 5 }],
      resources: { devices: [{ allow: true, type: "c", major: 195, minor: 0, access: "rw" }] },
      netDevices: { ib0: { name: "net1" } },
      intelRdt: {
        closID: "c",
        schemata: ["X"],
        l3CacheSchema: "L3:0=1",
        memBwSchema: "MB:0=1",
        enableMonitoring: true,
        enableCMT: true,
        enableMBM: true,
      },
    },
    mounts: [{ destination: "/c", source: "/h", type: "bind", options: ["ro"] }],
    hooks: { prestart: [{ path: "/x", args: ["x"], env: ["E=1"], timeout: 3 }] },
  });
});

test("what is handed in is never written to, and every part without an edit is shared", () => {
  const config = freeze(JSON.parse(fullConfig) as Config);
  const edits = freeze<ContainerEdits[]>([
    {
      env: ["A=9"],
      deviceNodes: [NODE],
      netDevices: [{ hostInterfaceName: "x", name: "y" }],
      mounts: [{ hostPath: "/h", containerPath: "/c", options: ["rbind"] }],
      hooks: [{ hookName: "poststop", path: "/x" }],
      intelRdt: {},
      additionalGids: [7],
    },
  ]);
  const edited = applyEdits(config, edits) as Record<string, Record<string, unknown>>;
  const before = config as unknown as typeof edited;
  for (const [top, name] of [
    ["process", "capabilities"],
    ["process", "rlimits"],
    ["linux", "seccomp"],
    ["linux", "namespaces"],
    ["hooks", "prestart"],
  ]) {
    assert.equal(edited[top as string]?.[name as string], before[top as string]?.[name as string]);
    assert.notEqual(before[top as string]?.[name as string], undefined);
  }
  assert.equal(edited["annotations"], before["annotations"]);
  assert.equal(edited["x-unknown"], before["x-unknown"]);
  assert.ok(config.mounts?.every((mount) => (edited["mounts"] as unknown as Mount[]).includes(mount)));
});

test("edits that change nothing give the same config back", () => {
  const config = JSON.parse(dockerConfig) as Config;
  assert.equal(applyEdits(config, []), config);
  assert.equal(apply(config, {}), config);
  const nothing: ContainerEdits = {
    env: ["CUDA_VERSION=12.4.1"],
    deviceNodes: [],
    mounts: [],
    hooks: [],
    netDevices: [],
    additionalGids: [0, 10],
  };
  assert.equal(apply(config, nothing), config);
  assert.deepEqual(apply({}, { additionalGids: [0] }), {});
});

test("a variable replaces the last one of its name in its place, and a new one goes to the end", () => {
  const env = ["A=1", "PATH=/bin", "A=2", "B=1"];
  assert.deepEqual(apply({ process: { env } }, { env: ["A=3", "C=1", "B=2", "C=2=x"] }).process?.env, [
    "A=1",
    "PATH=/bin",
    "A=3",
    "B=2",
    "C=2=x",
  ]);
});

test("entries of the environment that are no variable stay as they are", () => {
  const env = ["FOO", "=x", "", "FOOBAR=1"];
  assert.deepEqual(apply({ process: { env } }, { env: ["FOO=2"] }).process?.env, [...env, "FOO=2"]);
});

test("a node without an owner belongs to the container's user unless that is root", () => {
  const process = { user: { uid: 1000, gid: 1001 } };
  const devices = (config: Config, ...deviceNodes: NonNullable<ContainerEdits["deviceNodes"]>) =>
    apply(config, { deviceNodes }).linux?.devices;
  assert.deepEqual(devices({ process }, NODE), [{ ...NODE, uid: 1000, gid: 1001 }]);
  assert.deepEqual(devices({ process }, { ...NODE, uid: 0 }), [{ ...NODE, uid: 0, gid: 1001 }]);
  assert.deepEqual(devices({ process: { user: { uid: 0, gid: 0 } } }, NODE), [NODE]);
  assert.deepEqual(devices({ process: {} }, NODE), [NODE]);
});

test("a node replaces all of its path, goes to the end, and the old rule stays", () => {
  const linux = {
    devices: [
      { path: "/dev/gpu0", type: "c", major: 1, minor: 1 },
      { path: "/dev/x", type: "c", major: 2, minor: 2 },
      { path: "/dev/gpu0", type: "b", major: 3, minor: 3 },
    ],
    resources: { devices: [{ allow: true, type: "c", major: 1, minor: 1, access: "rwm" }], pids: { limit: 5 } },
  };
  const edited = apply({ linux }, { deviceNodes: [{ ...NODE, minor: 7 }, { ...NODE, path: "/dev/y" }, NODE] }).linux;
  assert.deepEqual(edited?.devices, [linux.devices[1], { ...NODE, path: "/dev/y" }, NODE]);
  assert.deepEqual(edited?.resources, {
    devices: [
      linux.resources.devices[0],
      { allow: true, type: "c", major: 195, minor: 7, access: "rwm" },
      { allow: true, type: "c", major: 195, minor: 0, access: "rwm" },
      { allow: true, type: "c", major: 195, minor: 0, access: "rwm" },
    ],
    pids: { limit: 5 },
  });
});

test("only block and character nodes with access get a cgroup rule", () => {
  const edited = apply(
    {},
    {
      deviceNodes: [
        { path: "/dev/p", type: "p", fileMode: 0o600 },
        { path: "/dev/u", type: "u", major: 1, minor: 2 },
        { path: "/dev/n", type: "c", major: 1, minor: 3, permissions: "none" },
        { path: "/dev/b", type: "b", major: 1, minor: 4, permissions: "" },
      ],
    },
  ).linux;
  assert.deepEqual(
    edited?.devices?.map((d) => [d.type, d.major, d.minor]),
    [
      ["p", 0, 0],
      ["u", 1, 2],
      ["c", 1, 3],
      ["b", 1, 4],
    ],
  );
  assert.deepEqual(edited?.resources?.devices, [{ allow: true, type: "b", major: 1, minor: 4, access: "rwm" }]);
  assert.equal(apply({}, { deviceNodes: [{ path: "/dev/p", type: "p" }] }).linux?.resources, undefined);
});

test("a node without a type is refused", () => {
  assert.throws(() => apply({}, { deviceNodes: [{ path: "/dev/gpu0" }] }), {
    code: "E_EDIT_DEVICE",
    message: /"\/dev\/gpu0"/,
  });
});

test("network devices are set by their host name, whatever that name is", () => {
  const linux = { netDevices: { eth0: { name: "a" }, eth1: { name: "b" } } };
  const edited = apply(
    { linux },
    {
      netDevices: [
        { hostInterfaceName: "eth0", name: "c" },
        { hostInterfaceName: "__proto__", name: "d" },
      ],
    },
  ).linux?.netDevices;
  assert.equal(JSON.stringify(edited), '{"eth0":{"name":"c"},"eth1":{"name":"b"},"__proto__":{"name":"d"}}');
});

test("a mount replaces the first of its destination, and then all are ordered by depth (CDI 2.8 j)", () => {
  const mount = (destination: string, source = "user"): Mount => ({ destination, source });
  const mounts = [mount("/a/b/c"), mount("/a", "1"), mount("/z"), mount("/a", "2"), mount("/a/b"), mount("/")];
  const edited = apply({ mounts }, { mounts: [{ hostPath: "cdi", containerPath: "/a" }] }).mounts;
  assert.deepEqual(
    edited?.map((m) => `${m.destination} ${m.source}`),
    ["/z user", "/a 2", "/ user", "/a cdi", "/a/b user", "/a/b/c user"],
  );
  const twice = apply(
    { mounts },
    {
      mounts: [
        { hostPath: "cdi1", containerPath: "/a" },
        { hostPath: "cdi2", containerPath: "/a" },
        { hostPath: "cdi3", containerPath: "/a" },
      ],
    },
  ).mounts;
  assert.deepEqual(
    twice?.filter((m) => m.destination === "/a").map((m) => m.source),
    ["cdi2", "cdi3"],
  );
});

test("mounts keep their order where no mount is added", () => {
  const mounts = [{ destination: "/a/b/c" }, { destination: "/a" }];
  assert.equal(apply({ mounts }, { env: ["A=1"], deviceNodes: [NODE] }).mounts, mounts);
});

test("the depth of a destination is the number of slashes that Go's filepath.Clean leaves", () => {
  const cases: [string, number][] = [
    ["/", 1],
    ["//", 1],
    ["/.", 1],
    ["/..", 1],
    ["/a", 1],
    ["/a/", 1],
    ["//a//b/", 2],
    ["/a/b/../c/./d", 3],
    ["/a/../../b", 1],
    ["/a/.hidden", 2],
    ["/a/..b", 2],
    ["", 0],
    [".", 0],
    ["a", 0],
    ["a/b/", 1],
    ["../a", 1],
    ["a/../..", 0],
    ["../../a/b", 3],
  ];
  for (const [destination, depth] of cases) assert.equal(depthOf(destination), depth, destination);
});

test("bind mounts of a container with a user namespace are mapped to its users", () => {
  const options = (type: string | undefined, ...given: string[]): string[] | undefined => {
    const mount = { hostPath: "/h", containerPath: "/c", options: given, ...(type === undefined ? {} : { type }) };
    return apply({ linux: { namespaces: [{ type: "mount" }, { type: "user" }] } }, { mounts: [mount] }).mounts?.[0]
      ?.options;
  };
  assert.deepEqual(options("bind", "ro"), ["ro", "idmap"]);
  assert.deepEqual(options("none", "ro", "bind"), ["ro", "bind", "idmap"]);
  assert.deepEqual(options(undefined, "rbind"), ["rbind", "ridmap"]);
  assert.deepEqual(options("bind", "rbind"), ["rbind", "ridmap"]);
  assert.deepEqual(options("bind", "rbind", "idmap"), ["rbind", "idmap"]);
  assert.deepEqual(options("bind", "ridmap"), ["ridmap"]);
  assert.deepEqual(options("tmpfs", "ro"), ["ro"]);
  assert.equal(options("tmpfs"), undefined);
  const without = apply(
    { linux: { namespaces: [{ type: "pid" }] } },
    { mounts: [{ hostPath: "/h", containerPath: "/c" }] },
  );
  assert.deepEqual(without.mounts, [{ destination: "/c", source: "/h" }]);
});

test("hooks go behind those of the container, stage by stage", () => {
  const hooks = { createRuntime: [{ path: "/user" }], prestart: [{ path: "/p" }] };
  const env = ["A=1"];
  const edited = apply(
    { hooks },
    { hooks: [{ hookName: "createRuntime", path: "/1", env }] },
    {
      hooks: [
        { hookName: "startContainer", path: "/3", env },
        { hookName: "createRuntime", path: "/2", env },
      ],
    },
  ).hooks;
  assert.deepEqual(edited, {
    createRuntime: [{ path: "/user" }, { path: "/1", env }, { path: "/2", env }],
    prestart: hooks.prestart,
    startContainer: [{ path: "/3", env }],
  });
});

test("a hook without an environment gets a fixed one, never the container's (CDI 2.8 k, CVE-2025-23266)", () => {
  for (const env of [undefined, []]) {
    const hook = { hookName: "createContainer", path: "/h", ...(env === undefined ? {} : { env }) };
    const edited = apply({ process: { env: ["LD_PRELOAD=/x"] } }, { hooks: [hook] });
    assert.deepEqual(edited.hooks?.createContainer, [{ path: "/h", env: [...HOOK_ENV] }]);
  }
  assert.ok(HOOK_ENV.length > 0 && HOOK_ENV.every((entry) => entry.startsWith("PATH=/")));
});

test("a hook of a stage that OCI does not have is refused", () => {
  for (const hookName of ["", "poststopped", "__proto__", "constructor"]) {
    assert.throws(() => apply({}, { hooks: [{ hookName, path: "/h" }] }), { code: "E_EDIT_HOOK", message: /prestart/ });
  }
});

test("the last resource control edit replaces all that was there", () => {
  const linux = { intelRdt: { closID: "old", memBwSchema: "MB:0=1" } };
  const edited = apply({ linux }, { intelRdt: { closID: "a" } }, { env: ["A=1"] }, { intelRdt: { schemata: ["X"] } });
  assert.deepEqual(edited.linux?.intelRdt, { schemata: ["X"] });
});

test("groups are added once, and never group 0", () => {
  const process = { user: { uid: 5, additionalGids: [10, 20] } };
  assert.deepEqual(apply({ process }, { additionalGids: [0, 20, 30] }, { additionalGids: [30, 40] }).process, {
    user: { uid: 5, additionalGids: [10, 20, 30, 40] },
  });
});

test("edits in several parts are those of one list: all variables first, hooks last", () => {
  const parts: ContainerEdits[] = [
    { env: ["A=1"], mounts: [{ hostPath: "/1", containerPath: "/m" }], deviceNodes: [NODE] },
    { env: ["A=2"], mounts: [{ hostPath: "/2", containerPath: "/m" }], deviceNodes: [{ ...NODE, minor: 1 }] },
  ];
  const one: ContainerEdits = {
    env: ["A=1", "A=2"],
    mounts: parts.flatMap((p) => p.mounts ?? []),
    deviceNodes: parts.flatMap((p) => p.deviceNodes ?? []),
  };
  const config = JSON.parse(dockerConfig) as Config;
  assert.deepEqual(applyEdits(config, parts), applyEdits(config, [one]));
});

test("edits applied to a file on disk are the edits applied to its tree", () => {
  for (const text of [dockerConfig, fullConfig, JSON.stringify(JSON.parse(dockerConfig), null, "\t")]) {
    const config = JSON.parse(text) as Config;
    const edited = apply(config, {
      env: ["NVIDIA_VISIBLE_DEVICES=void", "X=1"],
      deviceNodes: [NODE],
      mounts: [
        { hostPath: "/h", containerPath: "/workspace", options: ["rbind"] },
        { hostPath: "/h", containerPath: "/a/b/c/d" },
      ],
      hooks: [{ hookName: "createContainer", path: "/h" }],
      additionalGids: [44],
    });
    const patched = patchJson(text, config, edited);
    assert.deepEqual(JSON.parse(patched), edited);
    for (const number of text.match(/\d{16,}/g) ?? []) assert.ok(patched.includes(number));
  }
});
