import assert from "node:assert/strict";
import { test } from "node:test";
import type { Spec } from "../../src/cdi/spec.ts";
import { minimumVersion, plainVersion, VERSIONS, versionNeeds, versionRank } from "../../src/cdi/version.ts";

const BASE: Spec = { cdiVersion: "1.1.0", kind: "a.b/c", devices: [{ name: "x", containerEdits: { env: ["A=b"] } }] };

test("the known versions are ordered, and a leading v is ignored", () => {
  assert.deepEqual(
    ["0.3.0", "v0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "v1.0.0", "1.1.0"].map(versionRank),
    VERSIONS.map((_, i) => i),
  );
  for (const version of ["0.1.0", "0.2.0", "1.2.0", "", "v", "vv1.0.0", "1.0", "1.0.0-rc1"]) {
    assert.equal(versionRank(version), -1, version);
  }
  assert.equal(plainVersion("v1.0.0"), "1.0.0");
});

test("a spec that uses nothing new needs 0.3.0", () => {
  assert.deepEqual(minimumVersion(BASE), { version: "0.3.0", pointer: "", reason: "" });
});

test("the needed version and its reason are those of the newest field, wherever it stands", () => {
  const edits = [
    ["0.4.0", { mounts: [{ hostPath: "/a", containerPath: "/a", type: "bind" }] }, "/mounts/0/type"],
    ["0.5.0", { deviceNodes: [{ path: "/a" }, { path: "/a", hostPath: "/b" }] }, "/deviceNodes/1/hostPath"],
    ["0.7.0", { intelRdt: {} }, "/intelRdt"],
    ["0.7.0", { additionalGids: [0] }, "/additionalGids"],
    ["1.1.0", { netDevices: [{ hostInterfaceName: "a", name: "b" }] }, "/netDevices"],
    ["1.1.0", { intelRdt: { schemata: [] } }, "/intelRdt/schemata"],
    ["1.1.0", { intelRdt: { enableMonitoring: false } }, "/intelRdt/enableMonitoring"],
  ] as const;
  for (const [version, own, pointer] of edits) {
    const containerEdits = own as unknown as Spec["containerEdits"] & object;
    const onSpec = minimumVersion({ ...BASE, containerEdits });
    assert.deepEqual([onSpec.version, onSpec.pointer], [version, `/containerEdits${pointer}`]);
    const onDevice = minimumVersion({ ...BASE, devices: [...BASE.devices, { name: "y", containerEdits }] });
    assert.deepEqual([onDevice.version, onDevice.pointer], [version, `/devices/1/containerEdits${pointer}`]);
    assert.ok(onDevice.reason !== "");
  }
});

test("names and annotations have their versions", () => {
  assert.equal(minimumVersion({ ...BASE, kind: "a/b.c" }).version, "0.6.0");
  assert.equal(minimumVersion({ ...BASE, annotations: { a: "" } }).version, "0.6.0");
  const device = { name: "0x", annotations: { a: "" }, containerEdits: { env: ["A=b"] } };
  assert.deepEqual(
    versionNeeds({ ...BASE, devices: [...BASE.devices, device] }).map((need) => [need.version, need.pointer]),
    [
      ["0.6.0", "/devices/1/annotations"],
      ["0.5.0", "/devices/1/name"],
    ],
  );
});

test("empty lists and maps need nothing, as the library writes none", () => {
  const containerEdits = { netDevices: [], additionalGids: [], mounts: [], deviceNodes: [] };
  assert.equal(minimumVersion({ ...BASE, annotations: {}, containerEdits }).version, "0.3.0");
});

test("each reason is given once, however often it occurs", () => {
  const device = { name: "1", containerEdits: { deviceNodes: [{ path: "/a", hostPath: "/b" }] } };
  const needs = versionNeeds({ ...BASE, devices: [device, device, device] });
  assert.deepEqual(
    needs.map((need) => need.reason),
    ["a device name that starts with a digit", "the field hostPath of a device node"],
  );
});
