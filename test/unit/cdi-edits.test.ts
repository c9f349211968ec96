import assert from "node:assert/strict";
import { test } from "node:test";
import { collectEdits, resolveDeviceNodes } from "../../src/cdi/edits.ts";
import { openRegistry } from "../../src/cdi/registry.ts";
import type { ContainerEdits, DeviceNode } from "../../src/cdi/spec.ts";
import { block, char, dir, fifo, link, memory } from "../support/memory-files.ts";

function specFile(kind: string, common: ContainerEdits | undefined, devices: Record<string, ContainerEdits>): string {
  return JSON.stringify({
    cdiVersion: "1.1.0",
    kind,
    devices: Object.entries(devices).map(([name, containerEdits]) => ({ name, containerEdits })),
    ...(common === undefined ? {} : { containerEdits: common }),
  });
}

const env = (value: string): ContainerEdits => ({ env: [`E=${value}`] });

const FILES = {
  "/etc/cdi/a.json": specFile("v/a", env("a"), { 0: env("a0"), 1: env("a1") }),
  "/etc/cdi/b.json": specFile("v/b", env("b"), { 0: env("b0") }),
  "/etc/cdi/c.json": specFile("v/c", undefined, { 0: env("c0") }),
};

function collect(names: readonly string[], tree: Record<string, string> = FILES) {
  const registry = openRegistry(memory(tree), ["/etc/cdi"]);
  return collectEdits(names.map((name) => registry.find(name)));
}

test("edits come in the order of the request, a spec's own before its first device, each with its source", () => {
  assert.deepEqual(collect(["v/b=0", "v/a=1", "v/c=0", "v/a=0"]), [
    { edits: env("b"), source: { path: "/etc/cdi/b.json", kind: "v/b" } },
    { edits: env("b0"), source: { path: "/etc/cdi/b.json", kind: "v/b", device: "0" } },
    { edits: env("a"), source: { path: "/etc/cdi/a.json", kind: "v/a" } },
    { edits: env("a1"), source: { path: "/etc/cdi/a.json", kind: "v/a", device: "1" } },
    { edits: env("c0"), source: { path: "/etc/cdi/c.json", kind: "v/c", device: "0" } },
    { edits: env("a0"), source: { path: "/etc/cdi/a.json", kind: "v/a", device: "0" } },
  ]);
  assert.deepEqual(collect([]), []);
});

test("two specs of one kind each make their own edits", () => {
  const tree = {
    "/etc/cdi/a.json": specFile("v/a", env("a"), { 0: env("a0") }),
    "/etc/cdi/b.json": specFile("v/a", env("b"), { 1: env("a1") }),
  };
  assert.deepEqual(
    collect(["v/a=0", "v/a=1"], tree).map((entry) => entry.edits.env?.[0]),
    ["E=a", "E=a0", "E=b", "E=a1"],
  );
});

test("a device that is named twice makes its edits once", () => {
  assert.deepEqual(
    collect(["v/c=0", "v/c=0"]).map((entry) => entry.edits.env?.[0]),
    ["E=c0"],
  );
});

test("one unknown device fails the whole request", () => {
  assert.throws(() => collect(["v/a=0", "v/a=9"]), { code: "E_CDI_UNKNOWN_DEVICE" });
});

test("the last intelRdt comes last, so that it wins where edits are applied in order", () => {
  const rdt = (closID: string): ContainerEdits => ({ intelRdt: { closID } });
  const tree = {
    "/etc/cdi/a.json": specFile("v/a", rdt("spec"), { 0: rdt("first"), 1: rdt("second"), 2: env("none") }),
  };
  const last = collect(["v/a=1", "v/a=0", "v/a=2"], tree).findLast((entry) => entry.edits.intelRdt !== undefined);
  assert.equal(last?.edits.intelRdt?.closID, "first");
});

test("2.8 i: two devices cannot move one network interface, or two to one name", () => {
  const net = (hostInterfaceName: string, name: string): ContainerEdits => ({
    netDevices: [{ hostInterfaceName, name }],
  });
  const tree = {
    "/etc/cdi/a.json": specFile("v/a", net("eth9", "net9"), {
      0: net("eth1", "net0"),
      1: net("eth1", "net1"),
      2: net("eth2", "net0"),
      3: net("eth3", "net3"),
    }),
  };
  assert.throws(() => collect(["v/a=0", "v/a=1"], tree), {
    code: "E_CDI_NET_DEVICE",
    message: /v\/a=0 and v\/a=1 both move the network interface "eth1"/,
  });
  assert.throws(() => collect(["v/a=0", "v/a=2"], tree), {
    code: "E_CDI_NET_DEVICE",
    message: /both give a network interface the name "net0"/,
  });
  assert.equal(collect(["v/a=0", "v/a=3", "v/a=0"], tree).length, 3);
  const clash = { "/etc/cdi/a.json": specFile("v/a", net("eth1", "x"), { 0: net("eth1", "y") }) };
  assert.throws(() => collect(["v/a=0"], clash), { code: "E_CDI_NET_DEVICE", message: /the spec of v\/a and v\/a=0/ });
});

const DEV = {
  "/dev/nvidia0": char(195, 0, { mode: 0o666 }),
  "/dev/sda": block(8, 16, { mode: 0o660 }),
  "/dev/pipe": fifo({ mode: 0o1644 }),
  "/dev/link": link("nvidia0"),
  "/dev/file": "text",
  "/dev/dir": dir(),
};

function resolve(node: DeviceNode) {
  return resolveDeviceNodes([node], memory(DEV))[0];
}

test("a node takes what it leaves out from the host's node", () => {
  assert.deepEqual(resolve({ path: "/dev/nvidia0" }), {
    path: "/dev/nvidia0",
    hostPath: "/dev/nvidia0",
    type: "c",
    fileMode: 0o666,
    major: 195,
    minor: 0,
  });
  assert.deepEqual(resolve({ path: "/dev/x", hostPath: "/dev/sda", permissions: "r", uid: 1, fileMode: 0o600 }), {
    path: "/dev/x",
    hostPath: "/dev/sda",
    permissions: "r",
    uid: 1,
    fileMode: 0o600,
    type: "b",
    major: 8,
    minor: 16,
  });
  assert.deepEqual(resolve({ path: "/dev/nvidia0", type: "c", minor: 7 }), {
    path: "/dev/nvidia0",
    hostPath: "/dev/nvidia0",
    type: "c",
    fileMode: 0o666,
    major: 195,
    minor: 0, // a minor number without a major one says nothing
  });
});

test("a FIFO has no numbers, and the bits of its mode are the host's, special ones too", () => {
  assert.deepEqual(resolve({ path: "/dev/pipe" }), {
    path: "/dev/pipe",
    hostPath: "/dev/pipe",
    type: "p",
    fileMode: 0o1644,
  });
  assert.deepEqual(resolve({ path: "/dev/none", type: "p" }), { path: "/dev/none", hostPath: "/dev/none", type: "p" });
});

test("a node with type and major number need not exist on the host", () => {
  const node: DeviceNode = { path: "/dev/none", type: "c", major: 1, minor: 3 };
  assert.deepEqual(resolve(node), { ...node, hostPath: "/dev/none" });
  assert.deepEqual(resolve({ ...node, hostPath: "/dev/file" }), { ...node, hostPath: "/dev/file" });
  const block: DeviceNode = { path: "/dev/nvidia0", type: "b", major: 195, minor: 0 };
  assert.deepEqual(resolve(block), {
    ...block,
    hostPath: "/dev/nvidia0",
    fileMode: 0o666,
  });
});

test("pinned numbers are kept where the host's differ", () => {
  const untyped = resolve({ path: "/dev/nvidia0", major: 508, minor: 0 });
  assert.deepEqual([untyped?.type, untyped?.major, untyped?.minor], ["c", 508, 0]);
});

test("a node that is incomplete and not on the host is refused with what stands in the way", () => {
  const table: [DeviceNode, RegExp][] = [
    [{ path: "/dev/none" }, /device node "\/dev\/none": there is no such node on the host/],
    [{ path: "/dev/x", hostPath: "/dev/none" }, /device node "\/dev\/x" \(from "\/dev\/none"\)/],
    [{ path: "/dev/none", major: 195, minor: 0 }, /there is no such node/],
    [{ path: "/dev/none", type: "c" }, /there is no such node/],
    [{ path: "/dev/file" }, /what the host has there is a file, not a device node/],
    [{ path: "/dev/dir" }, /is a dir/],
    [{ path: "/dev/link" }, /is a link/],
    [{ path: "/dev/file/x" }, /there is no such node/],
    [{ path: "/dev/nvidia0", type: "b" }, /the spec says type "b", and the host's node has type "c"/],
    [{ path: "/dev/nvidia0", type: "u" }, /the spec says type "u"/],
  ];
  for (const [node, message] of table) assert.throws(() => resolve(node), { code: "E_CDI_DEVICE_NODE", message });
  const files = memory(DEV);
  files.fail("lstat", "/dev/nvidia0", "EACCES");
  assert.throws(() => resolveDeviceNodes([{ path: "/dev/nvidia0" }], files), {
    code: "E_CDI_DEVICE_NODE",
    message: /EACCES/,
  });
});

test("2.8 b: a spec is not changed by its use, and the host is asked each time", () => {
  const files = memory(DEV);
  const nodes: DeviceNode[] = [{ path: "/dev/nvidia0" }];
  const before = JSON.stringify(nodes);
  assert.equal(resolveDeviceNodes(nodes, files)[0]?.major, 195);
  assert.equal(JSON.stringify(nodes), before);
  files.put("/dev/nvidia0", char(508, 1));
  assert.equal(resolveDeviceNodes(nodes, files)[0]?.major, 508);
});
