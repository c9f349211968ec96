import assert from "node:assert/strict";
import { test } from "node:test";
import { type EntitledDevice, entitledDevices } from "../../src/policy/allocated.ts";
import type { AllocatedDevices, PluginAnswer } from "../../src/policy/allocation.ts";

const UUID = "GPU-3a7c8d90-1b2c-4d5e-8f90-a1b2c3d4e5f6";
const OTHER = "GPU-11111111-2222-3333-4444-555555555555";
const MIG = "MIG-0a1b2c3d-4e5f-6789-abcd-ef0123456789";

function devices(resource: string, ids: readonly string[], answer?: Partial<PluginAnswer>): AllocatedDevices {
  const full = { visible: [], cdiDevices: [], nodes: [], ...answer };
  return { resource, ids, ...(answer === undefined ? {} : { answer: full }) };
}

function read(...allocated: AllocatedDevices[]) {
  return entitledDevices({ devices: allocated, claims: [] });
}

/** `uuid nvidia.com/gpu GPU-... ::share` */
function short({ by, kind, key, share }: EntitledDevice): string {
  return [by, kind, key, share === undefined ? undefined : `::${share}`].filter((part) => part !== undefined).join(" ");
}

/** What a device plugin's ids mean, or why not. */
function ids(resource: string, all: readonly string[], answer?: Partial<PluginAnswer>): string[] {
  const { devices: found, notUnderstood } = read(devices(resource, all, answer));
  return [...found.map(short), ...notUnderstood];
}

test("ids of NVIDIA's device plugin are UUIDs of GPUs and MIG devices, with a replica where they are shared", () => {
  const uuids = [UUID, `${UUID}::0`, `${UUID}::11`, MIG, `${MIG}::3`, `MIG-${UUID}/1/0`, `MIG-${UUID}/1/0::2`];
  assert.deepEqual(
    uuids.flatMap((id) => ids("nvidia.com/gpu", [id])),
    [
      `uuid nvidia.com/gpu ${UUID}`,
      `uuid nvidia.com/gpu ${UUID} ::0`,
      `uuid nvidia.com/gpu ${UUID} ::11`,
      `uuid nvidia.com/gpu ${MIG}`,
      `uuid nvidia.com/gpu ${MIG} ::3`,
      `uuid nvidia.com/gpu MIG-${UUID}/1/0`,
      `uuid nvidia.com/gpu MIG-${UUID}/1/0 ::2`,
    ],
  );
  for (const resource of [
    "nvidia.com/gpu.shared",
    "nvidia.com/mig-1g.5gb",
    "nvidia.com/mig-1g.5gb.me",
    "acme.io/gpus",
  ]) {
    assert.deepEqual(ids(resource, [`${MIG}::3`]), [`uuid nvidia.com/gpu ${MIG} ::3`]);
  }
});

test("every device says where it is from", () => {
  const found = read(devices("nvidia.com/gpu.shared", [`${UUID}::2`], { nodes: ["/dev/nvidia0"] })).devices;
  assert.deepEqual(
    found.map(({ from }) => from),
    [`nvidia.com/gpu.shared id ${UUID}::2`, "the answer of the plugin of nvidia.com/gpu.shared: node /dev/nvidia0"],
  );
});

test("two replicas are two, and the answer that names their GPU is no third", () => {
  const answer = { visible: [UUID], cdiDevices: [`k8s.device-plugin.nvidia.com/gpu=${UUID}`] };
  assert.deepEqual(ids("nvidia.com/gpu", [`${UUID}::0`, `${UUID}::1`, `${UUID}::0`], answer), [
    `uuid nvidia.com/gpu ${UUID} ::0`,
    `uuid nvidia.com/gpu ${UUID} ::1`,
    `cdi k8s.device-plugin.nvidia.com/gpu=${UUID}`,
  ]);
});

test("HAMi's ids do not say which GPU was given: its plugin's answer does", () => {
  assert.deepEqual(ids("nvidia.com/gpu", [`${UUID}-3`], { visible: [OTHER] }), [`uuid nvidia.com/gpu ${OTHER}`]);
  for (const answer of [undefined, {}]) {
    assert.deepEqual(ids("nvidia.com/gpu", [`${UUID}-3`], answer), [
      `nvidia.com/gpu id "${UUID}-3": HAMi's ids do not say which GPU was given, and what its plugin answered is not known`,
    ]);
  }
});

test("an id gives nothing where the plugin answered with other GPUs", () => {
  for (const answer of [{ visible: [OTHER] }, { cdiDevices: [`nvidia.com/gpu=${OTHER}`] }]) {
    const [other, refused] = [...ids("nvidia.com/gpu", [`${UUID}::1`], answer)];
    assert.match(other ?? "", new RegExp(OTHER));
    assert.equal(refused, `nvidia.com/gpu id "${UUID}::1": its plugin answered with another GPU`);
  }
  // An index is no other GPU, as far as can be told here.
  assert.deepEqual(ids("nvidia.com/gpu", [UUID], { visible: ["3"] }), [
    `uuid nvidia.com/gpu ${UUID}`,
    "index nvidia.com/gpu 3",
  ]);
});

test("NVIDIA_VISIBLE_DEVICES in an answer has UUIDs, numbers and CDI names; all is no device", () => {
  const visible = [UUID, MIG, "0", "0:1", "nvidia.com/gpu=1", "void", "none"];
  assert.deepEqual(ids("nvidia.com/gpu", [], { visible }), [
    `uuid nvidia.com/gpu ${UUID}`,
    `uuid nvidia.com/gpu ${MIG}`,
    "index nvidia.com/gpu 0",
    "index nvidia.com/gpu 0:1",
    "cdi nvidia.com/gpu=1",
  ]);
  assert.deepEqual(ids("nvidia.com/gpu", [], { visible: ["all"] }), [
    'the answer of the plugin of nvidia.com/gpu: NVIDIA_VISIBLE_DEVICES "all": it is no UUID, no number and no CDI device name',
  ]);
});

test("ids of AMD's device plugin are PCI addresses, and partitions on the platform bus", () => {
  assert.deepEqual(ids("amd.com/gpu", ["0000:41:00.0", "amdgpu_xcp_30", "card1"]), [
    "pci amd.com/gpu 0000:41:00.0",
    "platform amd.com/gpu amdgpu_xcp_30",
    "drm amd.com/gpu card1",
  ]);
  assert.deepEqual(ids("amd.com/cpx_nps4", ["0000:41:00.0"]), ["pci amd.com/gpu 0000:41:00.0"]);
});

test("ids of Intel's device plugin are cards with a number for each share", () => {
  assert.deepEqual(ids("gpu.intel.com/i915", ["card0-0", "card0-1", "card12-0"]), [
    "drm intel.com/gpu card0 ::0",
    "drm intel.com/gpu card0 ::1",
    "drm intel.com/gpu card12 ::0",
  ]);
  assert.deepEqual(ids("gpu.intel.com/i915_monitoring", ["all"], { nodes: ["/dev/dri/card0"] }), [
    "node /dev/dri/card0",
    'gpu.intel.com/i915_monitoring id "all": it is no device, but all of them; what the plugin answered counts',
  ]);
});

test("our ids are device names of the resource's kind, or full ones, with a share", () => {
  assert.deepEqual(ids("nvidia.com/gpu", ["0", "gpu-1::4", "amd.com/gpu=0", "nvidia.com/gpu=2::7"]), [
    "cdi nvidia.com/gpu=0",
    "cdi nvidia.com/gpu=gpu-1 ::4",
    "cdi amd.com/gpu=0",
    "cdi nvidia.com/gpu=2 ::7",
  ]);
});

test("a bare name counts only where the plugin answered with that very device, or nothing is known of its answer", () => {
  assert.deepEqual(ids("nvidia.com/gpu", ["0"], { cdiDevices: ["nvidia.com/gpu=0"] }), ["cdi nvidia.com/gpu=0"]);
  assert.deepEqual(ids("nvidia.com/gpu", ["0"], {}), ["cdi nvidia.com/gpu=0"]);
  assert.deepEqual(ids("nvidia.com/gpu", ["0"], { nodes: ["/dev/nvidia1"] }), [
    "node /dev/nvidia1",
    `nvidia.com/gpu id "0": it is a name of the plugin's own; what the plugin answered counts`,
  ]);
});

test("an id that stands for all devices gives none", () => {
  for (const id of ["all", "nvidia.com/gpu=all", "all::1"]) {
    assert.deepEqual(ids("nvidia.com/gpu", [id]), [
      `nvidia.com/gpu id "${id}": it is no device, but all of them; what the plugin answered counts`,
    ]);
  }
});

test("claims give the CDI devices that their driver made", () => {
  const claim = { namespace: "team", name: "mine", driver: "gpu.nvidia.com", pool: "node", device: "gpu-0" };
  const { devices: found, notUnderstood } = entitledDevices({
    devices: [],
    claims: [
      { ...claim, cdiDevices: ["k8s.gpu.nvidia.com/claim=1-gpu-0", "gpu-0"] },
      { ...claim, cdiDevices: [] },
    ],
  });
  assert.deepEqual(found, [
    {
      by: "cdi",
      key: "k8s.gpu.nvidia.com/claim=1-gpu-0",
      from: 'claim "team/mine" of the driver "gpu.nvidia.com": k8s.gpu.nvidia.com/claim=1-gpu-0',
    },
  ]);
  assert.deepEqual(notUnderstood, [
    'claim "team/mine" of the driver "gpu.nvidia.com": "gpu-0": it is no CDI device name',
  ]);
});

test("what is hostile or foreign gives no device, and is told in text that does no harm", () => {
  const cases: readonly (readonly [id: string, told: RegExp])[] = [
    ["", /the device name is empty$/],
    ["\u001b[2Jx", /id "\\u001b\[2Jx": the device name .* has the character/],
    [`${UUID}\n`, /has the character "\\n"/],
    [`${UUID}::`, /does not end with a letter or digit/],
    [`${UUID}::x::`, /does not end with a letter or digit/],
    ["../../dev/sda", /has the character "\/"/],
    ["nvidia.com/gpu=", /has the character "\/"/],
    ["x".repeat(513), /\(513 characters\): it has more than 512 characters$/],
    ["::1", /does not start with a letter or digit$/],
    ["\u202e0", /"\\u202e0"/],
    ["a,b", /has the character ","/],
  ];
  for (const [id, told] of cases) {
    const { devices: found, notUnderstood } = read(devices("nvidia.com/gpu", [id]));
    assert.deepEqual(found, [], id);
    assert.equal(notUnderstood.length, 1, id);
    assert.match(notUnderstood[0] as string, told);
    assert.match(notUnderstood[0] as string, /^[\x20-\x7e]*$/);
  }
});

test("a resource that is not vendor/class, and nodes that are none, give no device", () => {
  assert.deepEqual(ids("gpu\n", ["0", "1"]), [
    '2 ids of the resource "gpu\\n": there is no "/" between vendor and class',
  ]);
  const nodes = ["/dev/../etc/passwd", "/etc/passwd", "dev/x", "/dev/\u0007", "/dev/dri/renderD128"];
  const { devices: found, notUnderstood } = read(devices("amd.com/gpu", [], { nodes }));
  assert.deepEqual(found.map(short), ["node /dev/dri/renderD128"]);
  assert.equal(notUnderstood.length, 4);
  for (const told of notUnderstood) assert.match(told, /: node ".*": it is no path of a device node$/);
});

test("more names than a machine can have devices are told in one line", () => {
  const many = Array.from({ length: 5000 }, (_, i) => `gpu-${i}`);
  const { devices: found, notUnderstood } = read(devices("nvidia.com/gpu", many));
  assert.equal(found.length, 1024);
  assert.deepEqual(notUnderstood, ["what is beyond 1024 names"]);
});
