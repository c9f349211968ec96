/** CDI specs, good and bad, for the validator and for the schema that says the same. */

export type Json = Record<string, unknown>;

/** A spec with one device that has these edits, for the version that all of them exist in. */
export function specWith(edits: unknown, more: Json = {}): Json {
  return { cdiVersion: "1.1.0", kind: "vendor.com/gpu", devices: [{ name: "a", containerEdits: edits }], ...more };
}

const ENV = { env: ["A=b"] };
const device = (name: unknown, containerEdits: unknown = ENV, more: Json = {}): Json => ({
  name,
  containerEdits,
  ...more,
});

export const FULL: Json = {
  cdiVersion: "1.1.0",
  kind: "vendor.com/gpu.big",
  annotations: { "vendor.com/made-by": "a tool", plain: "" },
  devices: [
    {
      name: "0:1",
      annotations: { x: "y" },
      containerEdits: {
        env: ["A=b", "EMPTY=", "TWO=a=b"],
        deviceNodes: [
          { path: "/dev/a" },
          {
            path: "/dev/b",
            hostPath: "/dev/host/b",
            type: "c",
            major: 195,
            minor: 0,
            fileMode: 438,
            permissions: "rwm",
            uid: 0,
            gid: 44,
          },
          { path: "/dev/c", type: "b", major: 4095, minor: 1048575, permissions: "none" },
          { path: "/dev/d", type: "u", permissions: "rr" },
          { path: "/dev/e", type: "p" },
        ],
        netDevices: [
          { hostInterfaceName: "eth1", name: "eth0" },
          { hostInterfaceName: "eth2", name: "eth1" },
        ],
        mounts: [
          { hostPath: "/lib/a.so", containerPath: "/lib/a.so", options: ["ro", "nosuid", "rbind"] },
          { hostPath: "tmpfs", containerPath: "/tmp/x", type: "tmpfs" },
          { hostPath: "/x", containerPath: "/y", type: "bind", options: [] },
        ],
        hooks: [
          { hookName: "prestart", path: "/bin/hook" },
          { hookName: "createContainer", path: "/bin/hook", args: ["hook", ""], env: ["A=b"], timeout: 1 },
        ],
        intelRdt: { closID: "guaranteed", l3CacheSchema: "L3:0=f", memBwSchema: "MB:0=1", schemata: ["L3:0=f"] },
        additionalGids: [0, 44],
      },
    },
    device("all"),
  ],
  containerEdits: { intelRdt: { closID: "/", enableMonitoring: false } },
};

/** Good specs in canonical form. */
export const GOOD: Readonly<Record<string, unknown>> = {
  "everything there is": FULL,
  "the least there can be": { cdiVersion: "0.3.0", kind: "a/b", devices: [device("c")] },
  "a version with v": { cdiVersion: "v0.5.0", kind: "vendor.com/gpu", devices: [device("0")] },
  "names with every character": { cdiVersion: "0.6.0", kind: "v_e-n.d0r/c_l-a.s5", devices: [device("0_a-b.c:d")] },
  "empty edits of the spec": specWith(ENV, { containerEdits: {} }),
  "empty lists beside an edit": specWith({ ...ENV, mounts: [], hooks: [], deviceNodes: [], netDevices: [] }),
  "intelRdt alone": specWith({ intelRdt: {} }),
  "empty annotations in an old version": { cdiVersion: "0.3.0", kind: "a/b", annotations: {}, devices: [device("c")] },
  "removed flags before 1.1.0": {
    cdiVersion: "1.0.0",
    kind: "a/b",
    devices: [device("c", { intelRdt: { enableCMT: true, enableMBM: false } })],
  },
};

/** What both the schema and the validator refuse: the value, the code, and the places. */
export const BAD: Readonly<Record<string, readonly [value: unknown, code: string, ...pointers: string[]]>> = {
  "a text": ["x", "E_CDI_SPEC", ""],
  "a list": [[FULL], "E_CDI_SPEC", ""],
  nothing: [null, "E_CDI_SPEC", ""],
  "an empty object": [{}, "E_CDI_SPEC", ""],
  "no version": [{ kind: "a/b", devices: [device("c")] }, "E_CDI_SPEC", "/cdiVersion"],
  "an empty version": [specWith(ENV, { cdiVersion: "" }), "E_CDI_SPEC", "/cdiVersion"],
  "a version that is a number": [specWith(ENV, { cdiVersion: 0.6 }), "E_CDI_SPEC", "/cdiVersion"],
  "an unknown version": [specWith(ENV, { cdiVersion: "1.2.0" }), "E_CDI_VERSION", "/cdiVersion"],
  "a short version": [specWith(ENV, { cdiVersion: "0.6" }), "E_CDI_VERSION", "/cdiVersion"],
  "two v": [specWith(ENV, { cdiVersion: "vv0.6.0" }), "E_CDI_VERSION", "/cdiVersion"],
  "a version too old": [specWith(ENV, { cdiVersion: "0.2.0" }), "E_CDI_VERSION", "/cdiVersion"],
  "no kind": [{ cdiVersion: "0.3.0", devices: [device("c")] }, "E_CDI_SPEC", "/kind"],
  "a kind without class": [specWith(ENV, { kind: "vendor.com" }), "E_CDI_NAME", "/kind"],
  "a kind with two slashes": [specWith(ENV, { kind: "a/b/c" }), "E_CDI_NAME", "/kind"],
  "a class of 64 characters": [specWith(ENV, { kind: `a/${"b".repeat(64)}` }), "E_CDI_NAME", "/kind"],
  "a vendor of 254 characters": [specWith(ENV, { kind: `${"a".repeat(254)}/b` }), "E_CDI_NAME", "/kind"],
  "an unknown field": [specWith(ENV, { extra: 1 }), "E_CDI_SPEC", "/extra"],
  "an unknown field with a slash": [specWith(ENV, { "a/b~c": 1 }), "E_CDI_SPEC", "/a~1b~0c"],
  "a field __proto__": [
    JSON.parse(
      '{"cdiVersion":"0.3.0","kind":"a/b","devices":[{"name":"c","containerEdits":{"env":["A=b"]}}],"__proto__":{}}',
    ),
    "E_CDI_SPEC",
    "/__proto__",
  ],
  "no devices": [{ cdiVersion: "0.3.0", kind: "a/b" }, "E_CDI_SPEC", "/devices"],
  "an empty list of devices": [specWith(ENV, { devices: [] }), "E_CDI_SPEC", "/devices"],
  "devices in an object": [specWith(ENV, { devices: { a: device("a") } }), "E_CDI_SPEC", "/devices"],
  "a device that is nothing": [specWith(ENV, { devices: [null] }), "E_CDI_SPEC", "/devices/0"],
  "a device without name": [specWith(ENV, { devices: [{ containerEdits: ENV }] }), "E_CDI_SPEC", "/devices/0/name"],
  "a device with a bad name": [specWith(ENV, { devices: [device("a b")] }), "E_CDI_NAME", "/devices/0/name"],
  "a device name that is a number": [specWith(ENV, { devices: [device(0)] }), "E_CDI_SPEC", "/devices/0/name"],
  "a device without edits": [specWith(ENV, { devices: [{ name: "a" }] }), "E_CDI_SPEC", "/devices/0/containerEdits"],
  "a device with empty edits": [specWith({}), "E_CDI_SPEC", "/devices/0/containerEdits"],
  "a device with empty lists only": [specWith({ env: [], mounts: [] }), "E_CDI_SPEC", "/devices/0/containerEdits"],
  "edits in a list": [specWith([ENV]), "E_CDI_SPEC", "/devices/0/containerEdits"],
  "edits of the spec in a list": [specWith(ENV, { containerEdits: [ENV] }), "E_CDI_SPEC", "/containerEdits"],
  "an unknown edit": [specWith({ ...ENV, sysctl: {} }), "E_CDI_SPEC", "/devices/0/containerEdits/sysctl"],
  "env in an object": [specWith({ env: { A: "b" } }), "E_CDI_SPEC", "/devices/0/containerEdits/env"],
  "a variable without =": [specWith({ env: ["A=b", "A"] }), "E_CDI_SPEC", "/devices/0/containerEdits/env/1"],
  "a variable without name": [specWith({ env: ["=b"] }), "E_CDI_SPEC", "/devices/0/containerEdits/env/0"],
  "a variable that is a number": [specWith({ env: [1] }), "E_CDI_SPEC", "/devices/0/containerEdits/env/0"],
  "a variable that is nothing": [specWith({ env: [null] }), "E_CDI_SPEC", "/devices/0/containerEdits/env/0"],
  "a variable with NUL": [specWith({ env: ["A=\0"] }), "E_CDI_SPEC", "/devices/0/containerEdits/env/0"],
  ...inList("deviceNodes", {
    "a node that is a text": ["/dev/a", ""],
    "a node without path": [{ hostPath: "/dev/a" }, "/path"],
    "a node with an empty path": [{ path: "" }, "/path"],
    "a relative node": [{ path: "dev/a" }, "/path"],
    "a node with NUL": [{ path: "/dev/a\0b" }, "/path"],
    "a relative host path": [{ path: "/dev/a", hostPath: "a" }, "/hostPath"],
    "an unknown type": [{ path: "/dev/a", type: "x" }, "/type"],
    "a type in capitals": [{ path: "/dev/a", type: "C" }, "/type"],
    "a major number in quotes": [{ path: "/dev/a", major: "195" }, "/major"],
    "a negative major number": [{ path: "/dev/a", major: -1 }, "/major"],
    "a major number beyond the kernel's": [{ path: "/dev/a", major: 4096 }, "/major"],
    "a broken minor number": [{ path: "/dev/a", minor: 0.5 }, "/minor"],
    "a minor number beyond the kernel's": [{ path: "/dev/a", minor: 1048576 }, "/minor"],
    "a mode in quotes": [{ path: "/dev/a", fileMode: "0666" }, "/fileMode"],
    "a negative mode": [{ path: "/dev/a", fileMode: -1 }, "/fileMode"],
    "unknown permissions": [{ path: "/dev/a", permissions: "rwx" }, "/permissions"],
    "permissions that hold none": [{ path: "/dev/a", permissions: "rnone" }, "/permissions"],
    "a uid beyond 32 bits": [{ path: "/dev/a", uid: 4294967296 }, "/uid"],
    "a negative gid": [{ path: "/dev/a", gid: -1 }, "/gid"],
  }),
  ...inList("mounts", {
    "a mount without host path": [{ containerPath: "/a" }, "/hostPath"],
    "a mount without container path": [{ hostPath: "/a" }, "/containerPath"],
    "a relative container path": [{ hostPath: "/a", containerPath: "a" }, "/containerPath"],
    "options in a text": [{ hostPath: "/a", containerPath: "/a", options: "ro" }, "/options"],
    "an option that is a number": [{ hostPath: "/a", containerPath: "/a", options: [1] }, "/options/0"],
    "an option with NUL": [{ hostPath: "/a", containerPath: "/a", options: ["r\0o"] }, "/options/0"],
    "an unknown field of a mount": [{ hostPath: "/a", containerPath: "/a", source: "/a" }, "/source"],
  }),
  ...inList("hooks", {
    "a hook without stage": [{ path: "/a" }, "/hookName"],
    "an unknown stage": [{ hookName: "prestop", path: "/a" }, "/hookName"],
    "a hook without path": [{ hookName: "prestart" }, "/path"],
    "a relative hook": [{ hookName: "prestart", path: "hook" }, "/path"],
    "a hook with NUL": [{ hookName: "prestart", path: "/a\0" }, "/path"],
    "an argument with NUL": [{ hookName: "prestart", path: "/a", args: ["a", "\0"] }, "/args/1"],
    "a hook's variable without =": [{ hookName: "prestart", path: "/a", env: ["A"] }, "/env/0"],
    "a timeout of 0": [{ hookName: "prestart", path: "/a", timeout: 0 }, "/timeout"],
    "a negative timeout": [{ hookName: "prestart", path: "/a", timeout: -1 }, "/timeout"],
    "a broken timeout": [{ hookName: "prestart", path: "/a", timeout: 1.5 }, "/timeout"],
  }),
  ...inList("netDevices", {
    "a network device without host name": [{ name: "eth0" }, "/hostInterfaceName"],
    "a network device without name": [{ hostInterfaceName: "eth0" }, "/name"],
    "a network device with an empty name": [{ hostInterfaceName: "eth0", name: "" }, "/name"],
    "an interface name of 16 characters": [{ hostInterfaceName: "eth0", name: "a".repeat(16) }, "/name"],
    "an interface name with a slash": [{ hostInterfaceName: "a/b", name: "a" }, "/hostInterfaceName"],
    "an interface called ..": [{ hostInterfaceName: "..", name: "a" }, "/hostInterfaceName"],
  }),
  ...inList("additionalGids", {
    "a negative group": [-1, ""],
    "a group in quotes": ["44", ""],
    "a group that is nothing": [null, ""],
  }),
  "intelRdt in a list": [specWith({ intelRdt: [] }), "E_CDI_SPEC", "/devices/0/containerEdits/intelRdt"],
  ...closId("a class called .", "."),
  ...closId("a class called ..", ".."),
  ...closId("a class with a slash", "a/b"),
  ...closId("a class with a newline", "a\nb"),
  ...closId("a class of 4096 characters", "a".repeat(4096)),
  "schemata in a text": [
    specWith({ intelRdt: { schemata: "L3" } }),
    "E_CDI_SPEC",
    "/devices/0/containerEdits/intelRdt/schemata",
  ],
  "the field schema": [
    specWith({ intelRdt: { schema: [] } }),
    "E_CDI_SPEC",
    "/devices/0/containerEdits/intelRdt/schema",
  ],
  "a flag in quotes": [
    specWith({ intelRdt: { enableMonitoring: "true" } }),
    "E_CDI_SPEC",
    "/devices/0/containerEdits/intelRdt/enableMonitoring",
  ],
  "annotations in a list": [specWith(ENV, { annotations: ["a"] }), "E_CDI_SPEC", "/annotations"],
  "an annotation that is a number": [specWith(ENV, { annotations: { a: 1 } }), "E_CDI_SPEC", "/annotations/a"],
  "an annotation with an empty key": [specWith(ENV, { annotations: { "": "x" } }), "E_CDI_SPEC", "/annotations/"],
  "an annotation with a space in its key": [
    specWith(ENV, { annotations: { "a b": "x" } }),
    "E_CDI_SPEC",
    "/annotations/a b",
  ],
  "an annotation with two slashes": [
    specWith(ENV, { annotations: { "a/b/c": "x" } }),
    "E_CDI_SPEC",
    "/annotations/a~1b~1c",
  ],
  "an annotation with a bad prefix": [
    specWith(ENV, { annotations: { "a_b/c": "x" } }),
    "E_CDI_SPEC",
    "/annotations/a_b~1c",
  ],
  "an annotation key of 64 characters": [
    specWith(ENV, { annotations: { ["a".repeat(64)]: "x" } }),
    "E_CDI_SPEC",
    `/annotations/${"a".repeat(64)}`,
  ],
  "a device's bad annotation": [
    specWith(ENV, { devices: [device("a", ENV, { annotations: { "-": "x" } })] }),
    "E_CDI_SPEC",
    "/devices/0/annotations/-",
  ],
};

/** What only the validator refuses, because it takes two places to see, and how many problems it finds. */
export const BAD_TOGETHER: Readonly<Record<string, readonly [value: unknown, code: string, ...pointers: string[]]>> = {
  "two devices of one name": [
    specWith(ENV, { devices: [device("a"), device("b"), device("a")] }),
    "E_CDI_SPEC",
    "/devices/2/name",
  ],
  "a relative host path of a bind mount": [
    specWith({
      mounts: [
        { hostPath: "a", containerPath: "/a" },
        { hostPath: "a", containerPath: "/a", type: "bind" },
        { hostPath: "a", containerPath: "/a", type: "none", options: ["rbind"] },
      ],
    }),
    "E_CDI_SPEC",
    "/devices/0/containerEdits/mounts/0/hostPath",
    "/devices/0/containerEdits/mounts/1/hostPath",
    "/devices/0/containerEdits/mounts/2/hostPath",
  ],
  "one host interface twice": [
    specWith({
      netDevices: [
        { hostInterfaceName: "a", name: "b" },
        { hostInterfaceName: "a", name: "c" },
      ],
    }),
    "E_CDI_SPEC",
    "/devices/0/containerEdits/netDevices/1/hostInterfaceName",
  ],
  "one interface name twice": [
    specWith({
      netDevices: [
        { hostInterfaceName: "a", name: "c" },
        { hostInterfaceName: "b", name: "c" },
      ],
    }),
    "E_CDI_SPEC",
    "/devices/0/containerEdits/netDevices/1/name",
  ],
  "annotations of 256 KiB": [
    specWith(ENV, { annotations: { a: "x".repeat(256 * 1024) } }),
    "E_CDI_SPEC",
    "/annotations",
  ],
  "a field of a later version": [
    { cdiVersion: "0.3.0", kind: "a/b", annotations: { a: "b" }, devices: [device("c")] },
    "E_CDI_VERSION",
    "/annotations",
  ],
  "flags that 1.1.0 removed": [
    specWith(
      { intelRdt: { enableCMT: false, enableMBM: true } },
      { containerEdits: { intelRdt: { enableCMT: true } } },
    ),
    "E_CDI_VERSION",
    "/containerEdits/intelRdt/enableCMT",
    "/devices/0/containerEdits/intelRdt/enableCMT",
    "/devices/0/containerEdits/intelRdt/enableMBM",
  ],
};

/** What the validator takes though it is not canonical, with the spec that it makes of it. */
export const LENIENT: Readonly<Record<string, readonly [value: unknown, spec: unknown]>> = {
  "keys in another case": [
    { CDIVersion: "0.5.0", KIND: "a/b", Devices: [{ Name: "c", containeredits: { devicenodes: [{ Path: "/a" }] } }] },
    { cdiVersion: "0.5.0", kind: "a/b", devices: [{ name: "c", containerEdits: { deviceNodes: [{ path: "/a" }] } }] },
  ],
  "additionalGIDs, as the specification's text has it": [
    specWith({ additionalGIDs: [44] }),
    specWith({ additionalGids: [44] }),
  ],
  "fields that are null": [
    specWith({ ...ENV, mounts: null }, { annotations: null, containerEdits: null }),
    specWith(ENV),
  ],
  "texts that are empty": [
    specWith({ deviceNodes: [{ path: "/a", hostPath: "", type: "", permissions: "" }], intelRdt: { closID: "" } }),
    specWith({ deviceNodes: [{ path: "/a" }], intelRdt: {} }),
  ],
  "an annotation that is null": [
    specWith(ENV, { annotations: { a: null } }),
    specWith(ENV, { annotations: { a: "" } }),
  ],
};

function inList(field: string, cases: Readonly<Record<string, readonly [item: unknown, pointer: string]>>) {
  const entries = Object.entries(cases).map(([name, [item, pointer]]) => {
    const value = specWith({ [field]: [item] });
    return [name, [value, "E_CDI_SPEC", `/devices/0/containerEdits/${field}/0${pointer}`]] as const;
  });
  return Object.fromEntries(entries);
}

function closId(name: string, closID: string) {
  return inEdits(name, { intelRdt: { closID } }, "/intelRdt/closID");
}

function inEdits(name: string, edits: unknown, pointer: string) {
  return { [name]: [specWith(edits), "E_CDI_SPEC", `/devices/0/containerEdits${pointer}`] as const };
}
